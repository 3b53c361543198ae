"""blur, the plain path: correlation against loops and SciPy, and every s-th pixel on the grid of bicubic."""
import math

import numpy as np
import pytest
import scipy.ndimage
import torch

from crlsr.degradation.blur import blur, sfold_shift, subsample
from crlsr.degradation.kernels import delta_kernel, gaussian_kernel, shift_kernel
from crlsr.images import resize


def reference_blur(image, kernel):
    "Loops over pixels and taps; mirrored at the edge pixel."
    (height, width), k = image.shape, len(kernel)
    mirror = lambda i, n: abs(i) if abs(i) < n else 2 * (n - 1) - abs(i)
    out = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            out[y, x] = sum(kernel[i, j] * image[mirror(y + i - k // 2, height), mirror(x + j - k // 2, width)]
                            for i in range(k) for j in range(k))
    return out


def random_images(*shape, dtype=torch.float32, seed=0):
    return torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def random_kernels(*shape, dtype=torch.float64, seed=0):
    kernel = torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return kernel / kernel.sum((-2, -1), keepdim=True)


@pytest.mark.parametrize("height, width, size", [(5, 6, 3), (4, 7, 7), (11, 12, 21)])
def test_blur_equals_loops(height, width, size):
    image, kernel = random_images(1, 1, height, width, dtype=torch.float64), random_kernels(size, size, seed=1)
    expected = reference_blur(image[0, 0].numpy(), kernel.numpy())
    np.testing.assert_allclose(blur(image, kernel)[0, 0].numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("border, mode", [("reflect", "mirror"), ("replicate", "nearest"), ("circular", "wrap")])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_blur_equals_scipy(border, mode, dtype, tolerance):
    images, kernels = random_images(3, 3, 33, 46, dtype=dtype), random_images(3, 21, 21, dtype=dtype, seed=1)  # not symmetric
    kernels = kernels / kernels.sum((1, 2), keepdim=True)
    ours = blur(images, kernels, border=border)
    for b in range(3):
        for c in range(3):
            expected = scipy.ndimage.correlate(images[b, c].double().numpy(), kernels[b].double().numpy(), mode=mode)
            np.testing.assert_allclose(ours[b, c].numpy(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("sigma", [0.3, 1.2, 2.4, 4.0])
def test_gaussian_blur_equals_scipy(sigma):
    image = random_images(1, 3, 40, 30)
    expected = scipy.ndimage.gaussian_filter(image[0].double().numpy(), sigma, mode="mirror", radius=10, axes=(1, 2))
    np.testing.assert_allclose(blur(image, gaussian_kernel(sigma))[0].numpy(), expected, rtol=0, atol=1e-5)


def test_blur_keeps_constants_dtype_and_identity():
    flat = torch.full((2, 3, 24, 31), 0.25)
    torch.testing.assert_close(blur(flat, gaussian_kernel(3.0, 0.5, 1.0)), flat)
    image = random_images(2, 4, 24, 31)
    assert torch.equal(blur(image, delta_kernel()), image)
    torch.testing.assert_close(blur(image.double(), delta_kernel()), image.double(), rtol=0, atol=1e-15)  # through frequencies
    wide = random_images(2, 3, 62, 62).transpose(2, 3)[..., ::2]  # not contiguous
    torch.testing.assert_close(blur(wide, gaussian_kernel(2.0)), blur(wide.contiguous(), gaussian_kernel(2.0)))


def test_gradients():
    image = random_images(2, 1, 5, 6, dtype=torch.float64).requires_grad_()
    kernels = random_kernels(2, 3, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(blur, (image, kernels))


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(12, 24), (2, 3, 13, 7), (5, 1, 1)])
def test_subsample_keeps_the_first_pixel_of_each_block(scale, shape):
    image = torch.arange(math.prod(shape)).reshape(shape)
    out = subsample(image, scale)
    assert out.shape[-2:] == (math.ceil(shape[-2] / scale), math.ceil(shape[-1] / scale))
    for row in range(out.shape[-2]):
        for column in range(out.shape[-1]):
            assert torch.equal(out[..., row, column], image[..., row * scale, column * scale])


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("kernel", [delta_kernel(7, dtype=torch.float64), gaussian_kernel(1.7, 0.6, 0.5, 13, dtype=torch.float64), random_kernels(9, 9)])
def test_a_ramp_shrinks_to_the_ramp_of_bicubic(scale, kernel):
    y, x = torch.meshgrid(*[torch.arange(96, dtype=torch.float64)] * 2, indexing="ij")
    ramp = (0.3 * x - 1.1 * y)[None, None]
    d = sfold_shift(scale)
    aligned, bicubic = subsample(blur(ramp, shift_kernel(kernel, d, d)), scale), resize(blur(ramp, kernel), 1 / scale)
    inner = (..., slice(6, -6), slice(6, -6))
    torch.testing.assert_close(aligned[inner], bicubic[inner], rtol=0, atol=1e-6)
    off = (subsample(blur(ramp, kernel), scale) - bicubic)[inner]
    torch.testing.assert_close(off, torch.full_like(off, -d * (0.3 - 1.1)), rtol=0, atol=1e-6)  # what the shift has to make up for


@pytest.mark.parametrize("scale, sigma, size", [(2, 3.0, 41), (3, 4.0, 51), (4, 5.0, 65)])
def test_a_dot_lands_where_bicubic_has_it(scale, sigma, size):
    "Sums over the lr grid are exact up to aliasing, exp(-2 pi² sigma² / scale²) < 1e-12 here, and up to what the window cuts off."
    image = torch.zeros(1, 1, 144, 144, dtype=torch.float64)
    image[..., 70, 77] = 1
    d = sfold_shift(scale)
    lr = subsample(blur(image, shift_kernel(gaussian_kernel(sigma, size=size, dtype=torch.float64), d, d)), scale)[0, 0]
    place = torch.arange(len(lr), dtype=torch.float64) * scale + (scale - 1) / 2  # hr position of the lr pixels' centres
    assert (lr.sum(0) @ place / lr.sum()).item() == pytest.approx(77, abs=1e-6)
    assert (lr.sum(1) @ place / lr.sum()).item() == pytest.approx(70, abs=1e-6)


@pytest.mark.parametrize("call, message", [
    (lambda: blur(torch.rand(1, 3, 10, 64), delta_kernel()), "10x64 pixels are too few for a 21x21 kernel"),
    (lambda: blur(torch.rand(1, 3, 64, 1), delta_kernel()), "64x1 pixels"),
    (lambda: blur(torch.rand(3, 64, 64), delta_kernel()), "image: got"),
    (lambda: blur(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), delta_kernel()), "image: got torch.uint8"),
    (lambda: blur(torch.rand(2, 3, 64, 64), torch.ones(3, 21, 21)), r"kernel: got shape \(3, 21, 21\)"),
    (lambda: blur(torch.rand(2, 3, 64, 64), torch.ones(4, 4)), "kernel: got shape"),
    (lambda: blur(torch.rand(1, 3, 64, 64), delta_kernel(), border="mirror"), "border: got 'mirror'"),
    (lambda: blur(torch.rand(1, 3, 64, 64), 255 * delta_kernel()), "kernel: its weights add up to 255 to 255, expected 1"),
    (lambda: blur(torch.rand(2, 3, 64, 64), torch.stack([delta_kernel(), delta_kernel() / 2])), "add up to 0.5 to 1"),
    (lambda: blur(torch.rand(1, 3, 64, 64), delta_kernel() * math.nan), "add up to nan"),
    (lambda: blur(torch.rand(1, 3, 64, 64), delta_kernel().to(torch.uint8)), "kernel: got torch.uint8"),
    (lambda: subsample(torch.rand(64, 64, 3), 4), r"got shape \(64, 64, 3\), which looks like"),
    (lambda: subsample(torch.zeros(3), 2), r"image: got shape \(3,\)"),
    (lambda: subsample(torch.zeros(3, 3), 0), "scale: got 0"),
    (lambda: sfold_shift(0), "scale: got 0"),
])
def test_errors_are_one_line_that_names_the_argument(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
