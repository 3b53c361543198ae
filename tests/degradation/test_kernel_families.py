"""kernel_families: each family against loops, integrals and SciPy; sums, centroids and limits of all."""
import json
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.integrate
import scipy.ndimage
import scipy.special
import torch
from hypothesis import given

from crlsr.core import generator
from crlsr.degradation.blur import blur
from crlsr.degradation.kernel_families import (
    disk_kernel, generalized_gaussian_kernel, motion_kernel, motion_path, plateau_kernel, sinc_kernel,
)
from crlsr.degradation.kernels import delta_kernel, gaussian_kernel

sigmas, angles, betas = st.floats(0.2, 5), st.floats(-math.pi, math.pi), st.floats(0.3, 8)
sizes = st.sampled_from([7, 9, 15, 21, 31])
PROFILES = {generalized_gaussian_kernel: lambda q, beta: math.exp(-(q**beta) / 2), plateau_kernel: lambda q, beta: 1 / (1 + q**beta)}
EACH = {  # one kernel of each family as a function of its size
    "generalized": lambda size, dtype: generalized_gaussian_kernel(2.0, 0.7, 0.4, 0.6, size, dtype=dtype),
    "plateau": lambda size, dtype: plateau_kernel(3.0, 1.0, -1.0, 3.0, size, dtype=dtype),
    "motion": lambda size, dtype: motion_kernel(size - 1.0, 0.4, 2.0, 11, size, dtype=dtype),
    "disk": lambda size, dtype: disk_kernel(2.6, size, dtype=dtype),
    "disk beyond the window": lambda size, dtype: disk_kernel(12.5, size, dtype=dtype),
    "sinc": lambda size, dtype: sinc_kernel(1.3, size, dtype=dtype),
}


def reference_kernel(profile, sigma1, sigma2, theta, beta, size):
    "Loops over the quadratic form with the inverse covariance matrix."
    c, s = math.cos(theta), math.sin(theta)
    rotation = np.array([[c, -s], [s, c]])
    inverse = rotation @ np.diag([sigma1**-2.0, sigma2**-2.0]) @ rotation.T
    weight = np.zeros((size, size))
    for row in range(size):
        for column in range(size):
            xy = np.array([column - size // 2, row - size // 2])
            weight[row, column] = profile(max(0.0, xy @ inverse @ xy), beta)
    return weight / weight.sum()


@pytest.mark.parametrize("family", PROFILES)
@given(sigmas, sigmas, angles, betas, st.sampled_from([7, 21]))
def test_blobs_equal_loops(family, sigma1, sigma2, theta, beta, size):
    expected = reference_kernel(PROFILES[family], sigma1, sigma2, theta, beta, size)
    np.testing.assert_allclose(family(sigma1, sigma2, theta, beta, size, dtype=torch.float64).numpy(), expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(family(sigma1, sigma2, theta, beta, size).numpy(), expected, rtol=0, atol=1e-6)


@given(st.floats(0, 5), st.floats(0.02, 5), angles)
def test_beta_1_is_the_gaussian(sigma1, sigma2, theta):
    ours = generalized_gaussian_kernel(max(sigma1, 0.02), sigma2, theta, dtype=torch.float64)
    torch.testing.assert_close(ours, gaussian_kernel(max(sigma1, 0.02), sigma2, theta, dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_plateau_is_half_as_high_at_sigma():
    kernel = plateau_kernel(4.0, 3.0, 0.0, 2.7, dtype=torch.float64)
    assert kernel[10, 14].item() == pytest.approx(kernel[10, 10].item() / 2) == pytest.approx(kernel[13, 10].item())


@pytest.mark.parametrize("family", PROFILES)
def test_blobs_of_a_batch_are_the_blobs_alone(family):
    draw = torch.rand(4, 5, dtype=torch.float64, generator=generator("blobs")) * 3 + 0.3
    batch = family(*draw, 13)
    assert batch.shape == (5, 13, 13)
    for i in range(5):
        torch.testing.assert_close(batch[i], family(*draw[:, i].tolist(), 13))
    torch.testing.assert_close(family(2.0, beta=draw[3], size=13)[2], family(2.0, beta=draw[3, 2].item(), size=13))


@pytest.mark.parametrize("family", PROFILES)
@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_blobs_shrink_to_a_delta(family, beta):
    assert (family(0.0, beta=beta, dtype=torch.float64) - delta_kernel(dtype=torch.float64)).abs().max() < 1e-9
    outside = [1 - family(sigma, beta=beta, dtype=torch.float64)[10, 10].item() for sigma in (1e-1, 1e-2, 1e-4, 1e-8)]
    assert outside == sorted(outside, reverse=True) and outside[-1] < 1e-5


@pytest.mark.parametrize("family", PROFILES)
def test_blobs_have_gradients(family):
    values = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (2.0, 1.0, 0.4, 0.7)]
    assert torch.autograd.gradcheck(lambda *v: family(*v, size=5, dtype=torch.float64), values)


@pytest.mark.parametrize("length, theta, wobble, seed, size", [(20.0, 0.0, 0.0, 0, 21), (13.7, 0.4, 1.5, 4, 21), (6.0, -2.0, 5.0, 9, 7), (30.0, 3.0, 0.7, 2, 31)])
def test_motion_equals_its_definition_in_numpy(length, theta, wobble, seed, size):
    steps = torch.randn(1024, generator=generator("motion", seed), dtype=torch.float64).numpy()
    walk = np.cumsum(steps) / 32
    angle = theta + wobble * (walk - walk.mean())
    path = length / 1024 * np.stack([np.cumsum(np.cos(angle)), np.cumsum(np.sin(angle))], axis=1)
    path -= path.mean(axis=0)
    np.testing.assert_allclose(motion_path(length, theta, wobble, seed).numpy(), path, atol=1e-12)
    expected = np.zeros((size + 1, size + 1))  # one more: the last pixel's neighbour, which gets nothing
    for x, y in path + size // 2:
        column, row = math.floor(x), math.floor(y)
        share = np.array([1 - (y - row), y - row])[:, None] * np.array([1 - (x - column), x - column])
        expected[row : row + 2, column : column + 2] += share / 1024
    assert np.all(expected[size] == 0) and np.all(expected[:, size] == 0)
    np.testing.assert_allclose(motion_kernel(length, theta, wobble, seed, size, dtype=torch.float64).numpy(), expected[:size, :size], atol=1e-12)


@given(st.floats(0.5, 20))
def test_a_level_line_equals_its_integral(length):
    "Each weight is the bilinear share max(0, 1 - |x - j|) integrated over the line."
    kernel = motion_kernel(length, dtype=torch.float64).numpy()
    tent = lambda t: np.where(np.abs(t) >= 1, np.sign(t) / 2, t - t * np.abs(t) / 2)  # its integral from 0 to t
    j = np.arange(-10, 11)
    np.testing.assert_allclose(kernel[10], (tent(length / 2 - j) - tent(-length / 2 - j)) / length, atol=1e-5)
    assert np.abs(np.delete(kernel, 10, axis=0)).max() < 1e-12
    np.testing.assert_allclose(motion_kernel(length, math.pi / 2, dtype=torch.float64).numpy(), kernel.T, atol=1e-12)


@given(st.floats(0, 20), angles, st.floats(0, 10), st.integers(0, 2**40))
def test_no_path_leaves_the_window(length, theta, wobble, seed):
    path = motion_path(length, theta, wobble, seed)
    assert path.norm(dim=1).max() <= length / 2 + 1e-9
    steps = path.diff(dim=0).norm(dim=1)
    torch.testing.assert_close(steps, torch.full_like(steps, length / 1024), rtol=1e-6, atol=1e-12)  # constant speed
    kernel = motion_kernel(length, theta, wobble, seed, dtype=torch.float64)
    offset = torch.arange(21, dtype=torch.float64) - 10
    assert (kernel >= 0).all() and abs(kernel.sum() - 1) < 1e-12
    assert abs(kernel.sum(0) @ offset) < 1e-9 and abs(kernel.sum(1) @ offset) < 1e-9


def test_wobble_is_the_standard_deviation_of_the_turn():
    turns, means = [], []
    for seed in range(400):
        step = motion_path(1.0, 0.3, 0.5, seed).diff(dim=0)
        angle = torch.atan2(step[:, 1], step[:, 0])
        turns.append((angle[-1] - angle[0]).item())
        means.append(angle.mean().item())
    assert np.std(turns) == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(800))  # five standard errors
    np.testing.assert_allclose(means, 0.3, atol=1e-2)  # the path's first step has no difference, so nearly the mean


def test_motion_replays_from_json_and_the_seed_matters_only_with_wobble():
    numbers = json.loads(json.dumps({"length": 12.3, "theta": 0.1 + 0.2, "wobble": 1 / 3, "seed": 123456789, "size": 31}))
    assert torch.equal(motion_kernel(**numbers), motion_kernel(12.3, 0.1 + 0.2, 1 / 3, 123456789, 31))
    assert not torch.equal(motion_kernel(9.0, 0.0, 1.0, 0), motion_kernel(9.0, 0.0, 1.0, 1))
    assert torch.equal(motion_kernel(9.0, 0.7, 0.0, 0), motion_kernel(9.0, 0.7, 0.0, 1))
    state = torch.get_rng_state()
    motion_kernel(9.0, 0.7, 1.0, 0)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"


@pytest.mark.parametrize("radius", [0.3, 0.5, 0.6, 1.0, 2.3, 4.0, 7.7])
def test_disk_equals_integrals(radius):
    "The height of the disk within a pixel's row, integrated over the pixel by quadrature."
    expected = np.zeros((15, 15))
    for row in range(15):
        for column in range(15):
            x0, y0 = column - 7.5, row - 7.5
            chord = lambda x: math.sqrt(max(0.0, radius**2 - x * x))
            height = lambda x: max(0.0, min(y0 + 1, chord(x)) - max(y0, -chord(x)))
            low, high = max(x0, -radius), min(x0 + 1, radius)
            if low < high and (abs(x0 + 0.5) - 0.5) ** 2 + (abs(y0 + 0.5) - 0.5) ** 2 < radius**2 + 1:
                kinks = [s * math.sqrt(radius**2 - y * y) for y in (y0, y0 + 1) for s in (-1, 1) if abs(y) < radius]
                points = [low, *sorted(k for k in kinks if low < k < high), high]
                expected[row, column] = sum(scipy.integrate.quad(height, a, b, epsabs=1e-11)[0] for a, b in zip(points, points[1:]))
    if radius < 7.5:
        assert expected.sum() == pytest.approx(math.pi * radius**2, abs=1e-8)
    np.testing.assert_allclose(disk_kernel(radius, 15, dtype=torch.float64).numpy(), expected / expected.sum(), atol=1e-9)


def test_disk_limits_and_batches():
    for radius in (0.0, 1e-9, 0.01, 0.5):
        assert torch.equal(disk_kernel(radius), delta_kernel())  # within one pixel
    torch.testing.assert_close(disk_kernel(1e6, 7), torch.full((7, 7), 1 / 49))
    radii = torch.tensor([0.0, 1.3, 6.0], dtype=torch.float64)
    for radius, kernel in zip(radii.tolist(), disk_kernel(radii, 11)):
        torch.testing.assert_close(kernel, disk_kernel(radius, 11))
    areas = [1 / disk_kernel(r, dtype=torch.float64)[10, 10].item() for r in np.linspace(1, 9, 50)]  # the centre pixel is full
    np.testing.assert_allclose(areas, math.pi * np.linspace(1, 9, 50) ** 2, rtol=1e-12)


def poisson_j1(x):
    "Poisson's integral of J1(x) / x by the midpoint rule, which is exact for what is periodic: no library's J1."
    tau = (np.arange(400) + 0.5) / 400 * math.pi
    return x * (np.cos(x[..., None] * np.cos(tau)) * np.sin(tau) ** 2).mean(-1)


@pytest.mark.parametrize("j1", [scipy.special.j1, poisson_j1])
@given(cutoff=st.floats(0.05, math.pi), size=sizes)
def test_sinc_is_exact_in_float64(j1, cutoff, size):
    offset = np.arange(size) - size // 2
    r = np.hypot(offset[:, None], offset[None, :])
    r[size // 2, size // 2] = 1e-9  # the limit c² / 4 pi, by the formula itself
    weight = cutoff * j1(cutoff * r) / (2 * math.pi * r)
    np.testing.assert_allclose(sinc_kernel(cutoff, size, dtype=torch.float64).numpy(), weight / weight.sum(), rtol=0, atol=1e-12)


def test_sinc_passes_what_is_below_its_cutoff():
    kernel = sinc_kernel(1.2, 201, dtype=torch.float64)
    response = torch.fft.fft2(torch.fft.ifftshift(kernel)).real
    omega = 2 * math.pi * torch.fft.fftfreq(201, dtype=torch.float64)
    radius = (omega[:, None] ** 2 + omega[None, :] ** 2).sqrt()
    assert (response[radius < 1.0] - 1).abs().max() < 0.1 and response[radius > 1.4].abs().max() < 0.1
    cutoffs = torch.tensor([0.5, 1.2, math.pi], dtype=torch.float64)
    torch.testing.assert_close(sinc_kernel(cutoffs, 9)[1], sinc_kernel(1.2, 9))


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("size", [7, 9, 15, 21, 31])
def test_every_family_sums_to_one_around_its_centre(name, size):
    kernel = EACH[name](size, torch.float64)
    offset = torch.arange(size, dtype=torch.float64) - size // 2
    assert kernel.shape == (size, size) and abs(kernel.sum() - 1) < 1e-12
    assert abs(kernel.sum(0) @ offset) < 1e-9 and abs(kernel.sum(1) @ offset) < 1e-9
    assert (kernel.min() >= 0) == (name != "sinc")
    single = EACH[name](size, torch.float32)
    assert single.dtype == torch.float32 and torch.equal(single, kernel.float())


@pytest.mark.parametrize("name", EACH)
def test_no_family_has_denormal_weights(name):
    for size in (7, 21, 31):
        kernel = EACH[name](size, torch.float32).abs()
        assert not ((kernel > 0) & (kernel < 1e-30)).any()


@pytest.mark.parametrize("name", EACH)
def test_blurring_with_every_family_equals_scipy(name):
    kernel = EACH[name](21, torch.float32)
    image = torch.rand(1, 3, 29, 34, generator=generator("image"))
    expected = np.stack([scipy.ndimage.correlate(c, kernel.double().numpy(), mode="mirror") for c in image[0].double().numpy()])
    np.testing.assert_allclose(blur(image, kernel)[0].numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("call, message", [
    (lambda: generalized_gaussian_kernel(1.0, size=20), "size: got 20"),
    (lambda: generalized_gaussian_kernel(-1.0), "sigma1: got -1.0"),
    (lambda: generalized_gaussian_kernel(1.0, beta=0.0), "beta: got 0.0, expected finite numbers > 0"),
    (lambda: plateau_kernel(1.0, beta=math.inf), "beta: got inf"),
    (lambda: plateau_kernel(1.0, beta=torch.tensor([1.0, -2.0])), r"beta: got \[1.0, -2.0\]"),
    (lambda: plateau_kernel(1.0, math.nan), "sigma2: got nan"),
    (lambda: plateau_kernel(1.0, size=8), "size: got 8"),
    (lambda: motion_kernel(21.0), "length: got 21.0, expected 0 to 20 pixels"),
    (lambda: motion_kernel(-1.0), "length: got -1.0"),
    (lambda: motion_kernel(math.nan), "length: got nan"),
    (lambda: motion_kernel(5.0, wobble=-1.0), "wobble: got -1.0"),
    (lambda: motion_kernel(5.0, theta=math.inf), "theta: got inf"),
    (lambda: motion_kernel(5.0, size=10), "size: got 10"),
    (lambda: motion_path(math.inf), "length: got inf"),
    (lambda: disk_kernel(-0.1), "radius: got -0.1"),
    (lambda: disk_kernel(math.inf), "radius: got inf"),
    (lambda: disk_kernel(1.0, 4), "size: got 4"),
    (lambda: sinc_kernel(0.0), r"cutoff: got 0.0, expected finite numbers in \(0, pi\]"),
    (lambda: sinc_kernel(3.2), "cutoff: got 3.2"),
    (lambda: sinc_kernel(1.0, 22), "size: got 22"),
])
def test_errors_are_one_line_that_names_the_argument(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
