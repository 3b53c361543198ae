"""Resize against an independent reading of MATLAB's imresize; luma against scikit-image."""
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.color import rgb2ycbcr

from crlsr.images import luma, modcrop, quantize, resize, scaling as images
from crlsr.images.scaling import resize_matrix, rgb_to_ycbcr

SCALES = (1 / 4, 1 / 3, 1 / 2, 2.0, 3.0, 4.0)
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-5}


# The reference: MATLAB's imresize as its documentation and its source describe it, one output pixel at a time, in Python numbers.


def weight_at(method: str, x: float) -> float:
    x = abs(x) if method != "box" else x
    if method == "bicubic":
        if x <= 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0
    if method == "bilinear":
        return 1 - x if x <= 1 else 0.0
    return 1.0 if -0.5 <= x < 0.5 else 0.0


def matlab_along_rows(image: np.ndarray, scale: float, length_out: int, method: str) -> np.ndarray:
    "Resizes the first axis."
    length_in = image.shape[0]
    kernel_width = {"bicubic": 4.0, "bilinear": 2.0, "box": 1.0}[method]
    antialias = scale < 1
    if antialias:
        kernel_width /= scale
    mirror = list(range(1, length_in + 1)) + list(range(length_in, 0, -1))  # MATLAB's aux = [1:n, n:-1:1]
    out = np.zeros((length_out, *image.shape[1:]))
    for x in range(1, length_out + 1):
        u = x / scale + 0.5 * (1 - 1 / scale)
        left = math.floor(u - kernel_width / 2)
        weights, pixels = [], []
        for step in range(math.ceil(kernel_width) + 2):
            position = left + step
            weights.append(scale * weight_at(method, scale * (u - position)) if antialias else weight_at(method, u - position))
            pixels.append(mirror[(position - 1) % len(mirror)])
        for weight, pixel in zip(weights, pixels):
            out[x - 1] += weight / sum(weights) * image[pixel - 1]
    return out


def matlab_imresize(image: np.ndarray, scale=None, size=None, method: str = "bicubic") -> np.ndarray:
    height, width = image.shape
    out_h, out_w = size if size else (math.ceil(height * scale), math.ceil(width * scale))
    scale_h, scale_w = (scale, scale) if scale else (out_h / height, out_w / width)
    tall = matlab_along_rows(image, scale_h, out_h, method)
    return matlab_along_rows(tall.T, scale_w, out_w, method).T


def random_image(*shape: int, dtype=torch.float64) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def assert_matlab(image: torch.Tensor, **arguments) -> None:
    expected = matlab_imresize(image.double().numpy(), **arguments)
    result = resize(image, arguments.get("scale"), arguments.get("size"), method=arguments.get("method", "bicubic"))
    assert result.shape == expected.shape and result.dtype == image.dtype
    error = np.abs(result.double().numpy() - expected).max()
    assert error < TOLERANCE[image.dtype], f"{tuple(image.shape)} {arguments} {image.dtype}: off by {error:.2g}"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", [(24, 36), (25, 37), (7, 5), (1, 1), (2, 3), (1, 50), (131, 11)])
def test_resize_is_matlabs(shape, scale, dtype):
    assert_matlab(random_image(*shape, dtype=dtype), scale=scale)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from((*SCALES, 0.37, 0.9, 1.0, 1.7, 2.5)),
    st.sampled_from(["bicubic", "bilinear", "box"]),
    st.sampled_from([torch.float64, torch.float32]),
)
def test_resize_is_matlabs_for_any_shape(height, width, scale, method, dtype):
    assert_matlab(random_image(height, width, dtype=dtype), scale=scale, method=method)


@settings(max_examples=40, deadline=None)
@given(st.tuples(st.integers(1, 30), st.integers(1, 30)), st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_a_size_alone_gives_each_side_its_own_scale(shape, size):
    assert_matlab(random_image(*shape), size=size)


@settings(max_examples=20, deadline=None)
@given(st.integers(4, 30), st.sampled_from(SCALES), st.integers(-3, 3))
def test_scale_and_size_together_keep_the_geometry(side, scale, extra):
    size = max(1, math.ceil(side * scale) + extra)
    assert_matlab(random_image(side, side), scale=scale, size=(size, size))


@pytest.mark.parametrize("shape, scale", [((300, 9), 1 / 3), ((9, 301), 1 / 2), ((70, 6), 3.0), ((5, 133), 4.0)])
def test_sides_of_many_bands(shape, scale):
    assert max(shape) * scale > 1.5 * images._BAND
    for dtype in TOLERANCE:
        assert_matlab(random_image(*shape, dtype=dtype), scale=scale)


@pytest.mark.parametrize("length, scale", [(40, 1 / 4), (41, 1 / 3), (300, 1 / 2), (20, 3.0), (150, 4.0)])
def test_the_matrix_is_the_operator(length, scale):
    out = math.ceil(length * scale)
    matrix = resize_matrix(length, out, scale, torch.float64)
    assert torch.allclose(matrix.sum(1), torch.ones(out, dtype=torch.float64), atol=1e-13)
    rows = random_image(3, length)
    assert (resize(rows[:, None, :].expand(3, 1, length).mT, scale)[..., :1].mT.squeeze(1) - rows @ matrix.T).abs().max() < 1e-12
    assert resize_matrix(length, out, scale).dtype == torch.float32


@pytest.mark.parametrize("k", [2, 3, 4])
def test_shrinking_agrees_with_torch_inside_and_pillow_everywhere_but_the_border(k):
    image = random_image(1, 1, 12 * k, 20 * k)
    result, margin = resize(image, 1 / k), 3
    inside = (..., slice(margin, -margin), slice(margin, -margin))
    theirs = F.interpolate(image, size=result.shape[-2:], mode="bicubic", antialias=True)
    assert (result - theirs)[inside].abs().max() < 1e-10 and (result - theirs).abs().max() > 1e-3
    pillow = Image.fromarray(image[0, 0].float().numpy(), mode="F").resize(result.shape[-2:][::-1], Image.Resampling.BICUBIC)
    assert (result[0, 0] - torch.from_numpy(np.array(pillow)))[inside[1:]].abs().max() < 1e-5


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 24), st.integers(2, 24), st.sampled_from(SCALES))
def test_symmetries(height, width, scale):
    image = random_image(2, height, width)
    result = resize(image, scale)
    assert torch.allclose(resize(image.mT, scale).mT, result, atol=1e-12)
    assert torch.allclose(resize(torch.full_like(image, 0.3), scale), torch.tensor(0.3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(resize(2 * image + 0.1, scale), 2 * result + 0.1, atol=1e-12)
    if scale > 1 or (height * scale).is_integer():  # else ceil(n * s) leaves the last pixel half outside: no mirror image
        assert torch.allclose(resize(image.flip(-2), scale).flip(-2), result, atol=1e-9)


def test_scale_one_changes_nothing():
    image = random_image(3, 9, 11)
    assert torch.allclose(resize(image, 1.0), image, atol=1e-14)


def test_leading_dimensions_and_strides():
    image = random_image(2, 3, 4, 10, 12)
    result = resize(image, 1 / 2)
    assert result.shape == (2, 3, 4, 5, 6)
    assert torch.allclose(result[1, 2, 3], resize(image[1, 2, 3].contiguous(), 1 / 2), atol=1e-14)
    last = image[0].contiguous(memory_format=torch.channels_last)
    assert torch.allclose(resize(last, 2), resize(image[0], 2), atol=1e-14)
    assert resize(image[:, :, :0], 2).shape == (2, 3, 0, 20, 24)


@pytest.mark.parametrize("scale", [1 / 4, 1 / 3, 2.0])
def test_gradients(scale):
    assert torch.autograd.gradcheck(lambda x: resize(x, scale), random_image(2, 7, 9).requires_grad_())


def test_the_cache_serves_training_after_inference():
    images._bands.cache_clear()
    with torch.inference_mode():
        resize(torch.rand(3, 13, 17), 2)
    image = torch.rand(3, 13, 17, requires_grad=True)
    resize(image, 2).sum().backward()
    assert image.grad is not None


def test_the_result_does_not_depend_on_what_was_resized_before():
    image = torch.rand(3, 40, 44)
    first = resize(image, 1 / 4)
    for side in range(30, 60):
        resize(torch.rand(3, side, side), 1 / 4)
    assert torch.equal(resize(image, 1 / 4), first)


def test_half_precision_is_computed_in_float32():
    image = random_image(3, 16, 16, dtype=torch.float32)
    exact = resize(image, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(resize(image, 4), exact)
    half = resize(image.half(), 4)
    assert half.dtype == torch.float16 and (half.float() - exact).abs().max() < 2e-3


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: resize(torch.zeros(3, 8, 8, dtype=torch.uint8), 2), "torch.uint8"),
        (lambda: resize(torch.rand(8), 2), r"got shape \(8,\)"),
        (lambda: resize(torch.rand(8, 8)), "neither scale nor size"),
        (lambda: resize(torch.rand(8, 8), -1.0), "expected positive"),
        (lambda: resize(torch.rand(8, 8), size=(0, 4)), "expected positive"),
        (lambda: resize(torch.rand(0, 8), size=(4, 4)), r"got shape \(0, 8\)"),
        (lambda: resize(torch.rand(8, 8), 2, method="cubic"), "expected one of bicubic, bilinear, box"),
        (lambda: modcrop(torch.rand(3, 3, 9), 4), "got 3x9 pixels, expected at least scale 4"),
        (lambda: modcrop(torch.rand(3, 3, 9), 0), "scale 0"),
        (lambda: luma(torch.rand(2, 8, 8)), r"expected \(..., 3, H, W\)"),
        (lambda: resize(torch.rand(8, 8), math.nan), "scale: got nan, expected positive and finite"),
        (lambda: resize(torch.rand(8, 8), math.inf), "scale: got inf"),
        (lambda: resize(torch.rand(8, 8), 0), "scale: got 0"),
        (lambda: resize(torch.rand(8, 8), size=(4.5, 4)), r"size: got \(4.5, 4\), expected positive whole"),
        (lambda: resize(torch.rand(8, 8), size=4), r"size: got 4, expected positive whole numbers \(height, width\)"),
        (lambda: resize(torch.rand(40, 36, 3), 1 / 4), r"got shape \(40, 36, 3\), which looks like \(..., H, W, C\)"),
        (lambda: resize(torch.rand(1, 40, 36, 3), 2), "looks like"),
        (lambda: resize(np.zeros((8, 8), np.int64), 2), "array of int64"),
        (lambda: modcrop(torch.rand(40, 36, 3), 3), "looks like"),
        (lambda: modcrop(torch.rand(3, 8, 8), 2.5), "scale 2.5 on each side, a whole number"),
        (lambda: modcrop(torch.rand(8), 2), r"got shape \(8,\)"),
        (lambda: quantize(torch.zeros(3, 8, 8, dtype=torch.uint8)), "image: got torch.uint8"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("scale", [1 / 3, 2.0])
@pytest.mark.parametrize("shape", [(9, 12), (9, 12, 1), (9, 12, 3), (2, 9, 12, 3)])
def test_arrays_are_resized_as_their_planes_and_keep_their_kind(shape, scale):
    array = np.random.default_rng(0).random(shape)
    planes = torch.from_numpy(array.reshape(shape[0], *shape[1:]) if len(shape) == 4 else array[None, ..., None] if len(shape) == 2 else array[None])
    expected = np.stack([np.stack([resize(image[..., c], scale).numpy() for c in range(image.shape[-1])], -1) for image in planes])
    expected = expected.reshape(*shape[:-3], *expected.shape[1:3], *shape[2:3]) if len(shape) < 4 else expected
    found = resize(array, scale)
    assert found.dtype == array.dtype
    np.testing.assert_allclose(found, expected, atol=1e-12)
    eight = (array * 255).round().astype(np.uint8)
    exact = resize(eight / 255.0, scale)
    assert resize(eight, scale).dtype == np.uint8 and np.abs(resize(eight, scale) - exact.clip(0, 1) * 255).max() <= 0.5001


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pictures_stay_pictures(mode):
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (9, 12, 3)).astype(np.uint8)).convert(mode)
    found = resize(picture, 2)
    assert found.mode == mode and found.size == (24, 18) and np.array_equal(np.asarray(found), resize(np.asarray(picture), 2))
    assert np.array_equal(np.asarray(modcrop(picture, 4)), np.asarray(picture)[:8, :12])


# Colour


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20))
def test_ycbcr_is_scikit_images(height, width):
    image = random_image(2, 3, height, width)
    expected = torch.stack([torch.from_numpy(rgb2ycbcr(x.permute(1, 2, 0).numpy())).permute(2, 0, 1) for x in image])
    assert (rgb_to_ycbcr(image) * 255 - expected).abs().max() < 1e-10
    assert (luma(image) * 255 - expected[:, :1]).abs().max() < 1e-10
    assert (luma(image.float()) * 255 - expected[:, :1]).abs().max() < 1e-4


def test_one_channel_is_luma_already():
    grey = random_image(2, 1, 5, 6)
    assert torch.equal(luma(grey), grey) and torch.equal(luma(luma(random_image(3, 5, 6))), luma(random_image(3, 5, 6)))


def test_luma_spans_the_studio_range():
    grey = torch.linspace(0, 1, 5, dtype=torch.float64).expand(3, 1, 5)
    assert torch.allclose(luma(grey) * 255, 16 + 219 * grey[:1], atol=1e-12)
    assert torch.allclose(rgb_to_ycbcr(grey)[1:] * 255, torch.tensor(128.0, dtype=torch.float64), atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(4, 30), st.integers(4, 30), st.integers(1, 4))
def test_modcrop_leaves_the_largest_multiple(height, width, scale):
    image = random_image(3, height, width)
    cropped = modcrop(image, scale)
    assert all(side % scale == 0 and 0 <= full - side < scale for side, full in zip(cropped.shape[1:], image.shape[1:]))
    assert torch.equal(cropped, image[:, : cropped.shape[1], : cropped.shape[2]])
