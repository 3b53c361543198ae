"""kernels: Gaussian weights against loops and closed forms, moved kernels against polynomials."""
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from crlsr.degradation.kernels import delta_kernel, gaussian_kernel, shift_kernel, squared_distance

sigmas = st.floats(0.1, 6)
angles = st.floats(-2 * math.pi, 2 * math.pi)
shifts = st.floats(-3, 3)


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


def random_images(*shape, dtype=torch.float32, seed=0):
    return torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def random_kernels(*shape, dtype=torch.float64, seed=0):
    kernel = torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return kernel / kernel.sum((-2, -1), keepdim=True)


def moments(kernel):
    "Sum, mean and covariance of (x, y), pixels from the centre."
    k = kernel.double().numpy()
    offset = np.arange(len(k)) - len(k) // 2
    x, y = (offset[None, :] * k).sum() / k.sum(), (offset[:, None] * k).sum() / k.sum()
    dx, dy = offset[None, :] - x, offset[:, None] - y
    return np.array([k.sum(), x, y, (k * dx**2).sum(), (k * dx * dy).sum(), (k * dy**2).sum()])


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


@given(shifts, shifts, st.integers(0, 9))
def test_a_shift_moves_the_centroid_and_keeps_sum_and_covariance(dx, dy, seed):
    kernel = random_kernels(7, 7, seed=seed)
    before, after = moments(kernel), moments(shift_kernel(kernel, dx, dy))
    np.testing.assert_allclose(after - before, [0, dx, dy, 0, 0, 0], atol=1e-9)


@given(shifts, st.integers(0, 9))
def test_a_shift_evaluates_the_cubic_through_four_neighbours(d, seed):
    kernel = random_kernels(7, 7, seed=seed)
    moved, transposed = shift_kernel(kernel, d, 0.0), shift_kernel(kernel.T, 0.0, d)
    torch.testing.assert_close(moved, transposed.T, rtol=0, atol=1e-15)
    margin = (len(moved) - 7) // 2
    padded = np.pad(kernel.numpy(), margin + 6)  # zeros around, then rows of length len(moved) + 12
    for place in range(len(moved)):
        at = place + 6 - d  # where the moved kernel's entry lies in the padded one
        nodes = np.arange(math.ceil(at) - 2, math.ceil(at) + 2)  # two neighbours on either side
        for row in range(7):
            values = padded[row + margin + 6, nodes]
            expected = sum(v * np.prod([(at - m) / (n - m) for m in nodes if m != n]) for v, n in zip(values, nodes))
            assert moved[row + margin, place].item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("dx, dy", [(0, 0), (1, 0), (-2, 3), (0, -1)])
def test_a_whole_shift_moves_the_entries(dx, dy):
    kernel = random_kernels(5, 5, dtype=torch.float32)
    moved = shift_kernel(kernel, float(dx), float(dy))
    margin = max(abs(dx), abs(dy))
    expected = np.roll(np.pad(kernel.numpy(), margin), (dy, dx), (0, 1))
    assert moved.dtype == torch.float32 and np.array_equal(moved.numpy(), expected)


def test_a_shift_of_a_batch_is_the_shift_of_each():
    kernels = random_kernels(3, 9, 9)
    for one, moved in zip(kernels, shift_kernel(kernels, 1.5, -0.5)):
        torch.testing.assert_close(moved, shift_kernel(one, 1.5, -0.5))
    assert torch.autograd.gradcheck(lambda k: shift_kernel(k, 0.5, 1.5), random_kernels(3, 3).requires_grad_())


@pytest.mark.parametrize("call, message", [
    (lambda: gaussian_kernel(1.0, size=20), "size: got 20"),
    (lambda: squared_distance(1.0, size=4), "size: got 4"),
    (lambda: gaussian_kernel(-1.0), "sigma1: got -1.0"),
    (lambda: gaussian_kernel(1.0, float("nan")), "sigma2: got nan"),
    (lambda: gaussian_kernel(torch.tensor([1.0, math.inf])), "sigma1: got"),
    (lambda: shift_kernel(torch.ones(4, 4), 0.5, 0.5), r"kernel: got shape \(4, 4\)"),
    (lambda: shift_kernel(torch.ones(3, 5), 0.5, 0.5), r"kernel: got shape \(3, 5\)"),
    (lambda: shift_kernel(torch.ones(1, 1, 3, 3), 0.5, 0.5), "kernel: got shape"),
    (lambda: shift_kernel(torch.ones(3, 3), math.nan, 0.5), "dx: got nan"),
    (lambda: shift_kernel(torch.ones(3, 3), 0.5, math.inf), "dy: got inf"),
])
def test_errors_are_one_line_that_names_the_argument(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
