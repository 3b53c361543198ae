"""kernels: Gaussian weights and blur against loops and SciPy."""
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given

from crlsr.degradation.kernels import blur, delta_kernel, gaussian_kernel, squared_distance

sigmas = st.floats(0.1, 6)
angles = st.floats(-2 * math.pi, 2 * math.pi)


def reference_kernel(sigma1, sigma2, theta, size):
    "Loops over the quadratic form with the inverse covariance matrix, float64."
    c, s = math.cos(theta), math.sin(theta)
    rotation = np.array([[c, -s], [s, c]])
    inverse = np.linalg.inv(rotation @ np.diag([sigma1**2, sigma2**2]) @ rotation.T)
    weight = np.zeros((size, size))
    for row in range(size):
        for column in range(size):
            xy = np.array([column - size // 2, row - size // 2])
            weight[row, column] = math.exp(-0.5 * xy @ inverse @ xy)
    return weight / weight.sum()


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


@given(sigmas, sigmas, angles, st.sampled_from([1, 5, 21]))
def test_gaussian_kernel_equals_loops(sigma1, sigma2, theta, size):
    expected = reference_kernel(sigma1, sigma2, theta, size)
    ours = gaussian_kernel(sigma1, sigma2, theta, size, dtype=torch.float64).numpy()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(gaussian_kernel(sigma1, sigma2, theta, size).numpy(), expected, rtol=0, atol=1e-6)


@given(sigmas, sigmas, angles, st.integers(-3, 3), st.integers(-3, 3))
def test_squared_distance_equals_the_quadratic_form(sigma1, sigma2, theta, x, y):
    c, s = math.cos(theta), math.sin(theta)
    rotation = np.array([[c, -s], [s, c]])
    expected = np.array([x, y]) @ np.linalg.inv(rotation @ np.diag([sigma1**2, sigma2**2]) @ rotation.T) @ np.array([x, y])
    q = squared_distance(sigma1, sigma2, theta, 7)
    assert q.dtype == torch.float64 and q[3, 3] == 0
    assert q[3 + y, 3 + x].item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_a_small_sigma_is_taken_as_the_floor():
    assert torch.equal(squared_distance(0.0, 2.0, size=5, floor=0.1), squared_distance(0.1, 2.0, size=5))
    assert squared_distance(0.0, size=3)[1, 2].item() == pytest.approx(1e4)


@given(st.floats(0, 100), st.floats(0, 100), angles)
def test_weights_are_a_distribution(sigma1, sigma2, theta):
    kernel = gaussian_kernel(sigma1, sigma2, theta, dtype=torch.float64)
    assert (kernel >= 0).all() and abs(kernel.sum().item() - 1) < 1e-12
    torch.testing.assert_close(kernel, kernel.flip(0, 1))  # the same from both sides


@given(st.floats(0, 6), st.floats(0, 6), angles, st.sampled_from([torch.float32, torch.float64]))
def test_no_weight_is_denormal(sigma1, sigma2, theta, dtype):
    kernel = gaussian_kernel(sigma1, sigma2, theta, dtype=dtype)
    assert not ((kernel > 0) & (kernel < 9e-31)).any()
    exact = torch.exp(-0.5 * squared_distance(sigma1, sigma2, theta))
    assert ((kernel > 0) | (exact / exact.sum() < 1.1e-30)).all()  # nothing larger is lost


def test_kernels_made_together_are_those_made_alone_to_the_bit():
    s1, s2, theta = (6 * torch.rand(3, 19, dtype=torch.float64, generator=torch.Generator().manual_seed(2))).unbind()
    together = gaussian_kernel(s1, s2, theta)
    for count in (1, 2, 5):
        assert all(torch.equal(together[i : i + count], gaussian_kernel(s1[i : i + count], s2[i : i + count], theta[i : i + count])) for i in range(19))


def test_sigma_is_a_standard_deviation_along_theta():
    offset = torch.arange(-20, 21, dtype=torch.float64)
    y, x = torch.meshgrid(offset, offset, indexing="ij")
    theta = math.radians(30)
    kernel = gaussian_kernel(4.0, 2.0, theta, size=41, dtype=torch.float64)
    along, across = x * math.cos(theta) + y * math.sin(theta), y * math.cos(theta) - x * math.sin(theta)
    assert (kernel * along**2).sum().sqrt().item() == pytest.approx(4.0, abs=1e-4)
    assert (kernel * across**2).sum().sqrt().item() == pytest.approx(2.0, abs=1e-4)
    assert (kernel * along * across).sum().item() == pytest.approx(0.0, abs=1e-4)
    assert kernel[20 + 3, 20 + 4] > kernel[20 - 3, 20 + 4]  # x right, y down: 30° points to the lower right


@pytest.mark.parametrize("sigma", [0.0, 1e-12, 0.01])
def test_small_sigma_is_a_delta(sigma):
    for dtype in (torch.float32, torch.float64):
        kernel = gaussian_kernel(sigma, theta=0.3, dtype=dtype)
        assert torch.equal(kernel, delta_kernel(dtype=dtype)) and kernel[10, 10] == 1 and kernel.sum() == 1


def test_kernels_of_a_batch_are_the_kernels_alone():
    s1, s2, theta = (random_images(5, dtype=torch.float64, seed=i) * 4 for i in range(3))
    batch = gaussian_kernel(s1, s2, theta)
    assert batch.shape == (5, 21, 21)
    for i in range(5):
        torch.testing.assert_close(batch[i], gaussian_kernel(s1[i].item(), s2[i].item(), theta[i].item()))


def test_gradients():
    values = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (2.0, 1.0, 0.4)]
    assert torch.autograd.gradcheck(lambda *v: gaussian_kernel(*v, size=7, dtype=torch.float64), values)
    image = random_images(2, 1, 5, 6, dtype=torch.float64).requires_grad_()
    kernels = random_images(2, 3, 3, dtype=torch.float64, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(blur, (image, kernels))


@pytest.mark.parametrize("height, width, size", [(5, 6, 3), (4, 7, 7), (11, 12, 21)])
def test_blur_equals_loops(height, width, size):
    image, kernel = random_images(1, 1, height, width, dtype=torch.float64), random_images(size, size, dtype=torch.float64, seed=1)
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
    image = random_images(2, 4, 24, 31, dtype=torch.float64)
    assert torch.equal(blur(image, delta_kernel()), image)
    wide = random_images(2, 3, 62, 62).transpose(2, 3)[..., ::2]  # not contiguous
    torch.testing.assert_close(blur(wide, gaussian_kernel(2.0)), blur(wide.contiguous(), gaussian_kernel(2.0)))


@pytest.mark.parametrize("call, message", [
    (lambda: gaussian_kernel(1.0, size=20), "size: got 20"),
    (lambda: squared_distance(1.0, size=4), "size: got 4"),
    (lambda: gaussian_kernel(-1.0), "sigma1: got -1.0"),
    (lambda: gaussian_kernel(1.0, float("nan")), "sigma2: got nan"),
    (lambda: gaussian_kernel(torch.tensor([1.0, math.inf])), "sigma1: got"),
    (lambda: blur(torch.rand(1, 3, 10, 64), delta_kernel()), "10x64 pixels are too few for a 21x21 kernel"),
    (lambda: blur(torch.rand(1, 3, 64, 1), delta_kernel()), "64x1 pixels"),
    (lambda: blur(torch.rand(3, 64, 64), delta_kernel()), "image: got"),
    (lambda: blur(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), delta_kernel()), "image: got torch.uint8"),
    (lambda: blur(torch.rand(2, 3, 64, 64), torch.ones(3, 21, 21)), r"kernel: got shape \(3, 21, 21\)"),
    (lambda: blur(torch.rand(2, 3, 64, 64), torch.ones(4, 4)), "kernel: got shape"),
    (lambda: blur(torch.rand(1, 3, 64, 64), delta_kernel(), border="mirror"), "border: got 'mirror'"),
])
def test_errors_are_one_line_that_names_the_argument(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
