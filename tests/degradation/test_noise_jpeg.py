"""noise_jpeg, files: real ones as the reference, a DCT by loops, limits of the differentiable stand-in."""
import importlib.util
import io
import math
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.fft
import torch
from hypothesis import given
from PIL import Image
from skimage import data

from crlsr.core import generator
from crlsr.degradation.noise_jpeg import jpeg, jpeg_differentiable
from crlsr.images import read_image

needs_kornia = pytest.mark.skipif(importlib.util.find_spec("kornia") is None, reason="kornia is not installed: pip install 'crlsr[gradients]'")


@pytest.fixture(scope="module")
def photo():
    return torch.from_numpy(data.astronaut()[40:151, 150:263]).permute(2, 0, 1) / 255  # (3, 111, 113), no multiples of 8


def psnr(a, b):
    return -10 * math.log10((a - b).square().mean())


def quantization_table(quality):
    "The table that Pillow writes into a grey file of this quality."
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file).quantization[0]).reshape(8, 8)


@pytest.mark.parametrize("quality", [1, 25, 75, 100])
@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4"])
def test_equals_a_file_on_disk(photo, quality, subsampling, tmp_path):
    Image.fromarray((photo.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()).save(tmp_path / "a.jpg", quality=quality, subsampling=subsampling)
    assert torch.equal(jpeg(photo, quality, subsampling=subsampling), read_image(tmp_path / "a.jpg"))


@given(st.integers(1, 100), st.integers(1, 40), st.integers(1, 40), st.sampled_from(["4:2:0", "4:4:4"]))
def test_any_size_gives_codes_and_repeats(quality, height, width, subsampling):
    image = torch.rand(3, height, width, generator=generator("jpeg", height, width)) * 1.4 - 0.2
    out = jpeg(image, quality, subsampling=subsampling)
    assert out.shape == image.shape and out.dtype == torch.float32
    assert torch.equal((out * 255).round() / 255, out) and out.min() >= 0 and out.max() <= 1
    assert torch.equal(out, jpeg(image.clamp(0, 1), quality, subsampling=subsampling))  # clipped before
    assert (jpeg(image.double(), quality, subsampling=subsampling) - out).abs().max() < 1e-6


@pytest.mark.parametrize("quality", [10, 50, 90])
def test_a_grey_block_equals_the_cosine_transform(quality):
    "R = G = B has no colour: each 8x8 block is DCT, division by the file's own table, rounding; libjpeg's integers allow 1 code."
    table, checked = quantization_table(quality), 0
    for seed in range(40):
        grey = (torch.rand(8, 8, generator=generator("block", seed), dtype=torch.float64) * 200 + 20).round()
        coefficients = scipy.fft.dctn(grey.numpy() - 128, norm="ortho") / table
        kept = np.round(coefficients)
        if np.abs(np.abs(coefficients - kept) - 0.5).min() < 0.01:
            continue  # a coefficient so near half-way that integer arithmetic may round it to the other side
        out = jpeg(grey.expand(3, 8, 8).float() / 255, quality, subsampling="4:4:4") * 255
        expected = np.clip(np.round(scipy.fft.idctn(kept * table, norm="ortho") + 128), 0, 255)
        assert (out - out[0]).abs().max() < 1e-4
        assert np.abs(out[0].numpy() - expected).max() < 1.001
        checked += 1
    assert checked >= 5


def test_quality_and_subsampling_act(photo):
    values = [psnr(jpeg(photo, q), photo) for q in (1, 10, 40, 70, 95)]
    assert values == sorted(values)
    assert psnr(jpeg(photo, 90, subsampling="4:4:4"), photo) > psnr(jpeg(photo, 90), photo) + 0.5
    flat = torch.full((3, 33, 17), 128 / 255)
    assert torch.equal(jpeg(flat, 100), flat)


def test_no_gradient_and_no_change_of_the_image(photo):
    image = photo.clone().requires_grad_()
    assert not jpeg(image, 50).requires_grad and torch.equal(image, photo)


@needs_kornia
@pytest.mark.parametrize("quality, bound", [(20, 33), (50, 36), (90, 38)])
def test_the_differentiable_one_is_near_the_file(photo, quality, bound):
    soft, real = jpeg_differentiable(photo, quality), jpeg(photo, quality)
    assert soft.shape == photo.shape and soft.min() >= 0 and soft.max() <= 1
    assert psnr(soft, real) > bound
    assert psnr(soft, real) > psnr(real, photo) + 2, "nearer to the file than to the original"


@needs_kornia
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_differentiable_one_has_gradients(photo, dtype):
    image, quality = photo.clone().to(dtype).requires_grad_(), torch.tensor(40.0, dtype=dtype, requires_grad=True)
    out = jpeg_differentiable(image, quality)
    (out - photo).square().sum().backward()
    assert out.dtype == dtype and image.grad.isfinite().all() and (image.grad != 0).float().mean() > 0.5
    assert quality.grad.isfinite() and quality.grad < 0  # a better quality has less error


@needs_kornia
def test_descent_through_the_stand_in_finds_a_gamma(photo):
    gamma = torch.tensor(1.0, requires_grad=True)
    optimizer = torch.optim.Adam([gamma], lr=0.05)
    saved = jpeg(photo**1.4, 30)
    for _ in range(60):
        optimizer.zero_grad()
        (jpeg_differentiable(photo**gamma, 30) - saved).square().mean().backward()
        optimizer.step()
    assert abs(gamma.item() - 1.4) < 0.05


def test_a_missing_kornia_is_named(photo, monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia", None)
    monkeypatch.setitem(sys.modules, "kornia.enhance", None)
    with pytest.raises(ImportError, match=r'pip install .*\[gradients\]"$'):
        jpeg_differentiable(photo, 50)


@pytest.mark.parametrize("call, message", [
    (lambda: jpeg(torch.rand(3, 8, 8), 0), "quality: got 0, expected an integer in 1..100"),
    (lambda: jpeg(torch.rand(3, 8, 8), 101), "quality: got 101"),
    (lambda: jpeg(torch.rand(3, 8, 8), 50.0), "quality: got 50.0"),
    (lambda: jpeg(torch.rand(3, 8, 8), True), "quality: got True"),
    (lambda: jpeg(torch.rand(3, 8, 8), 50, subsampling="4:2:2"), "subsampling: got '4:2:2'"),
    (lambda: jpeg(torch.rand(1, 3, 8, 8), 50), r"image: got torch.float32 of shape \(1, 3, 8, 8\)"),
    (lambda: jpeg(torch.rand(1, 8, 8), 50), r"image: got torch.float32 of shape \(1, 8, 8\)"),
    (lambda: jpeg(torch.zeros(3, 8, 8, dtype=torch.uint8), 50), "image: got torch.uint8"),
    (lambda: jpeg(torch.rand(3, 8, 8) * 255, 50), "image: got values from .*expected .0, 1."),
    (lambda: jpeg_differentiable(torch.rand(3, 8, 8), 0.5), r"quality: got \[0.5\], expected one number in 1..100"),
    (lambda: jpeg_differentiable(torch.rand(3, 8, 8), torch.tensor([10.0, 20.0])), "quality: got"),
    (lambda: jpeg_differentiable(torch.rand(8, 8), 50), "image: got"),
])
def test_errors_are_one_line_that_names_the_argument(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
