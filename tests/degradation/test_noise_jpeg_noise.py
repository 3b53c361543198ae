"""noise_jpeg, noise: means and variances with their own error bounds, exact distributions, determinism, gradients."""
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats
import skimage.color
import torch
from hypothesis import given

from crlsr.core import generator
from crlsr.degradation.noise_jpeg import gaussian_noise, linear_to_srgb, poisson_noise, sensor_noise, srgb_to_linear

LIKELY = 5  # standard errors that a measured figure may be off: passed by chance once in 1.7 million
DTYPES = [torch.float32, torch.float64]


def flat(value, shape=(3, 120, 120), dtype=torch.float32):
    return torch.full(shape, value, dtype=dtype)


def assert_mean_and_variance(sample, mean, variance, excess_kurtosis=0.0):
    "Within five standard errors; that of a sample variance is variance · sqrt((2 + excess kurtosis) / n)."
    n = sample.numel()
    assert abs(sample.double().mean().item() - mean) < LIKELY * math.sqrt(variance / n)
    assert abs(sample.double().var().item() - variance) < LIKELY * variance * math.sqrt((2 + excess_kurtosis) / n)


def assert_uncorrelated(noise):
    "Between channels, and between neighbours along both axes: |r| below five times 1 / sqrt(n)."
    noise = noise.double() - noise.double().mean((1, 2), keepdim=True)
    pairs = [(noise[0], noise[1]), (noise[1], noise[2]), (noise[0, 1:], noise[0, :-1]), (noise[0, :, 1:], noise[0, :, :-1])]
    for a, b in pairs:
        r = ((a * b).mean() / (a.square().mean() * b.square().mean()).sqrt()).item()
        assert abs(r) < LIKELY / math.sqrt(a.numel())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("level", [0.5, 10.0, 25.0])
def test_gaussian_noise_has_the_stated_distribution(level, dtype):
    noise = (gaussian_noise(flat(0.4, dtype=dtype), level, generator("g", int(level))) - 0.4) * 255
    assert noise.dtype == dtype
    assert_mean_and_variance(noise, 0.0, level**2)
    assert_uncorrelated(noise)
    assert scipy.stats.kstest(noise.flatten().double().numpy() / level, "norm").pvalue > 1e-4


@pytest.mark.parametrize("dtype", DTYPES)
def test_gaussian_noise_is_torchs_draw_scaled(dtype):
    "The numbers of a colour field are those of torch.randn for its shape: recipes stored elsewhere rely on it."
    image = torch.rand(3, 9, 7, dtype=dtype, generator=generator("image"))
    drawn = torch.randn(3, 9, 7, generator=generator("noise", 7))
    assert torch.equal(gaussian_noise(image, 13.0, generator("noise", 7)), image + (drawn * (13.0 / 255)).to(dtype))


def test_grey_noise_is_one_field():
    image = torch.rand(3, 40, 50, generator=generator("image"))
    noise = gaussian_noise(image, 20.0, generator(1), grey=True) - image
    assert (noise - noise[0]).abs().max() < 1e-6 and noise.std() > 0.05
    alone = gaussian_noise(image[:1], 20.0, generator(1), grey=True) - image[:1]
    torch.testing.assert_close(alone[0], noise[0], rtol=0, atol=1e-6)
    counted = poisson_noise(image, 50.0, generator(1), grey=True) - image
    assert (counted - counted[0]).abs().max() < 1e-6


WITH_LEVEL = {
    "gaussian": lambda image, level, g: gaussian_noise(image, level, g),
    "sensor": lambda image, level, g: sensor_noise(image, level / 1000, level / 1000, g),
    "poisson": lambda image, level, g: poisson_noise(image, level, g),
}


@pytest.mark.parametrize("name", WITH_LEVEL)
def test_a_map_of_one_number_is_that_number(name):
    image = torch.rand(3, 8, 10, generator=generator("image")) * 0.9
    constant = WITH_LEVEL[name](image, torch.full((8, 10), 40.0), generator(3))
    torch.testing.assert_close(constant, WITH_LEVEL[name](image, 40.0, generator(3)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["gaussian", "sensor"])  # how much a Poisson draw takes from the generator depends on its rate
def test_a_map_applies_each_number_in_its_place(name):
    image, levels = torch.rand(3, 8, 10, generator=generator("image")) * 0.9, torch.full((8, 10), 10.0)
    levels[:, 5:] = 40.0
    mixed, low, high = (WITH_LEVEL[name](image, level, generator(3)) for level in (levels, 10.0, 40.0))
    torch.testing.assert_close(mixed, torch.cat([low[..., :5], high[..., 5:]], dim=2), rtol=0, atol=1e-6)


def test_a_map_of_photons_sets_the_variance_in_its_place():
    photons = torch.full((120, 240), 10.0)
    photons[:, 120:] = 400.0
    noisy = poisson_noise(flat(0.6, (3, 120, 240)), photons, generator("map"))
    for half, count in zip(noisy.split(120, dim=2), (10, 400)):
        assert_mean_and_variance(half, 0.6, 0.6 / count, 1 / (0.6 * count))


def test_a_map_of_levels_scales_the_noise_pixel_by_pixel():
    levels = torch.rand(30, 20, generator=generator("levels")) * 50
    image = flat(0.5, (3, 30, 20), torch.float64)
    unit = gaussian_noise(image, 1.0, generator(5)) - image
    torch.testing.assert_close(gaussian_noise(image, levels, generator(5)) - image, unit * levels, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value, photons", [(0.05, 10.0), (0.5, 10.0), (0.9, 100.0), (0.3, 1e4)])
def test_poisson_noise_has_the_stated_distribution(value, photons, dtype):
    noisy = poisson_noise(flat(value, dtype=dtype), photons, generator("p", int(photons)))
    rate, counts = value * photons, (noisy.double() * photons).numpy()
    assert noisy.dtype == dtype
    assert_mean_and_variance(noisy, value, value / photons, 1 / rate)
    assert_uncorrelated(noisy)
    assert np.abs(counts - counts.round()).max() < 2e-3, "counts are whole numbers"


@pytest.mark.parametrize("rate", [0.7, 5.0, 23.0])  # torch samples rates below and above 10 by different algorithms
def test_counts_pass_a_chi_square_test_against_the_poisson_formula(rate):
    counts = (poisson_noise(flat(rate / 50, dtype=torch.float64), 50.0, generator("chi", int(rate))) * 50).round().flatten().numpy()
    k = np.arange(0, 80)
    expected = scipy.stats.poisson.pmf(k, rate) * len(counts)
    seen = np.bincount(counts.astype(int), minlength=80)
    few = expected < 20  # one class for all rare counts
    seen, expected = np.append(seen[~few], seen[few].sum()), np.append(expected[~few], len(counts) - expected[~few].sum())
    assert scipy.stats.chisquare(seen, expected).pvalue > 1e-4


def test_grey_poisson_counts_the_luma():
    value = torch.tensor([0.9, 0.3, 0.1])[:, None, None].expand(3, 150, 150)
    noise = (poisson_noise(value, 60.0, generator("grey"), grey=True) - value)[0]
    grey = 0.299 * 0.9 + 0.587 * 0.3 + 0.114 * 0.1
    assert_mean_and_variance(noise, 0.0, grey / 60, 1 / (60 * grey))


def test_poisson_leaves_values_without_light_alone():
    image = torch.tensor([[[-0.1, 0.0, -1e-9]]])
    assert torch.equal(poisson_noise(image, 30.0, generator(1)), image)


@pytest.mark.parametrize("dtype", DTYPES)
def test_srgb_curve_equals_skimage(dtype):
    rgb = torch.rand(3, 30, 40, dtype=dtype, generator=generator("rgb"))
    rgb[:, :5] *= 0.05  # below the knee
    xyz = skimage.color.rgb2xyz(rgb.permute(1, 2, 0).double().numpy())
    linear = xyz @ np.linalg.inv(skimage.color.colorconv.xyz_from_rgb).T
    np.testing.assert_allclose(srgb_to_linear(rgb).permute(1, 2, 0).numpy(), linear, atol=1e-6)
    torch.testing.assert_close(linear_to_srgb(srgb_to_linear(rgb)), rgb, rtol=0, atol=1e-6)


@given(st.floats(-0.5, 1.5))
def test_srgb_curve_equals_its_formula(value):
    x = torch.tensor(value, dtype=torch.float64)
    assert srgb_to_linear(x).item() == pytest.approx(value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4)
    assert linear_to_srgb(x).item() == pytest.approx(12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055)


def test_srgb_curve_has_gradients_everywhere():
    x = torch.tensor([0.0, 0.001, 0.02, 0.3, 1.0, 1.2, -0.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(srgb_to_linear, x) and torch.autograd.gradcheck(linear_to_srgb, x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value, shot, read", [(0.5, 0.001, 0.01), (0.7, 0.004, 0.0), (0.6, 0.0, 0.03), (0.3, 1e-4, 1e-3)])
def test_sensor_noise_has_the_stated_mean_and_variance_in_the_light(value, shot, read, dtype):
    "So far from 0 and 1 that nothing is clipped."
    light = ((value + 0.055) / 1.055) ** 2.4
    noisy = sensor_noise(flat(value, dtype=dtype), shot, read, generator("s", int(1000 * value)))
    assert noisy.dtype == dtype and 0 < noisy.min() and noisy.max() < 1
    linear = srgb_to_linear(noisy.double())
    assert_mean_and_variance(linear, light, shot * light + read**2)
    assert_uncorrelated(linear)
    z = (linear - light).flatten().numpy() / math.sqrt(shot * light + read**2)
    assert scipy.stats.kstest(z, "norm").pvalue > 1e-4


def test_sensor_noise_clips_at_both_ends():
    black, white = sensor_noise(flat(0.0), 0.01, 0.02, generator(1)), sensor_noise(flat(1.0), 0.01, 0.02, generator(1))
    n = black.numel()
    for clipped in (black == 0, white > 1 - 1e-6):  # half of a symmetric noise
        assert abs(clipped.double().mean().item() - 0.5) < LIKELY * 0.5 / math.sqrt(n)
    half = srgb_to_linear(black.double())
    assert abs(half.mean().item() - 0.02 / math.sqrt(2 * math.pi)) < LIKELY * 0.02 * math.sqrt((0.5 - 0.5 / math.pi) / n)
    beyond = sensor_noise(torch.tensor([[[-0.3, 1.4]]]), 0.0, 0.0, generator(1))
    torch.testing.assert_close(beyond, torch.tensor([[[0.0, 1.0]]]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("add", [
    lambda image, g: gaussian_noise(image, 10.0, g), lambda image, g: gaussian_noise(image, 10.0, g, grey=True),
    lambda image, g: poisson_noise(image, 30.0, g), lambda image, g: sensor_noise(image, 0.01, 0.01, g),
])
def test_the_generator_alone_decides(add):
    image = torch.rand(3, 12, 17, generator=generator("image"))
    assert torch.equal(add(image, generator(4)), add(image, generator(4)))
    assert not torch.equal(add(image, generator(4)), add(image, generator(5)))
    assert (add(image.double(), generator(4)) - add(image, generator(4))).abs().max() < 1e-5  # one field for both types
    wide = torch.cat([image, image], dim=2)[..., :17]  # not contiguous
    assert torch.equal(add(wide, generator(4)), add(image, generator(4)))
    state = torch.get_rng_state()
    add(image, generator(4))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(3)
    first = add(image, None)
    torch.manual_seed(3)
    assert torch.equal(add(image, None), first)


def test_gradients():
    image = torch.rand(3, 3, 4, dtype=torch.float64, generator=generator("image")) * 0.6 + 0.2
    levels = torch.rand(3, 4, dtype=torch.float64, generator=generator("levels")) * 10
    image.requires_grad_(), levels.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, level: gaussian_noise(x, level, generator(1)), (image, levels))
    assert torch.autograd.gradcheck(lambda x, level: sensor_noise(x, level / 1000, level / 1000, generator(1)), (image, levels))
    poisson_noise(image, 20 + levels, generator(1)).sum().backward()
    assert torch.equal(image.grad, torch.ones_like(image)) and levels.grad is None  # that of the mean: counts have none
    black = torch.zeros(1, 2, 2, requires_grad=True)
    sensor_noise(black, 0.01, 0.0, generator(1)).sum().backward()
    assert black.grad.isfinite().all(), "no variance at 0 and no infinite gradient"


def test_no_noise_gives_back_the_image():
    image = torch.rand(3, 6, 5, generator=generator("image"))
    assert torch.equal(gaussian_noise(image, 0.0, generator(1)), image)
    torch.testing.assert_close(sensor_noise(image, 0.0, 0.0, generator(1)), image, rtol=0, atol=1e-6)
    torch.testing.assert_close(poisson_noise(image, 1e12, generator(1)), image, rtol=0, atol=1e-5)


@pytest.mark.gpu
def test_the_image_may_live_on_a_gpu():
    image = torch.rand(3, 8, 9, generator=generator("image"))
    for add in (lambda x: gaussian_noise(x, 10.0, generator(1)), lambda x: poisson_noise(x, 30.0, generator(1)), lambda x: sensor_noise(x, 0.01, 0.01, generator(1))):
        torch.testing.assert_close(add(image.cuda()).cpu(), add(image), rtol=0, atol=1e-5)


@pytest.mark.parametrize("call, message", [
    (lambda: gaussian_noise(torch.rand(1, 3, 4, 4), 5.0, None), r"image: got torch.float32 of shape \(1, 3, 4, 4\)"),
    (lambda: gaussian_noise(torch.zeros(3, 4, 4, dtype=torch.uint8), 5.0, None), "image: got torch.uint8"),
    (lambda: gaussian_noise(torch.rand(3, 4, 4) * 255, 5.0, None), "image: got values from .*divided by 255"),
    (lambda: sensor_noise(torch.rand(3, 4, 4) * 255, 0.1, 0.1, None), "image: got values from"),
    (lambda: poisson_noise(torch.rand(3, 4, 4) * math.nan, 9.0, None), "image: holds NaN"),
    (lambda: gaussian_noise(torch.rand(3, 4, 4), -1.0, None), "noise_level: got -1"),
    (lambda: gaussian_noise(torch.rand(3, 4, 4), math.nan, None), "noise_level: got nan"),
    (lambda: gaussian_noise(torch.rand(3, 4, 4), torch.rand(4, 5), None), r"noise_level: got shape \(4, 5\), expected a number or a map \(4, 4\)"),
    (lambda: poisson_noise(torch.rand(3, 4, 4), 0.0, None), "photons: got 0 to 0, expected finite numbers > 0"),
    (lambda: poisson_noise(torch.rand(3, 4, 4), math.inf, None), "photons: got inf"),
    (lambda: poisson_noise(torch.rand(4, 4), 10.0, None), "image: got"),
    (lambda: poisson_noise(torch.rand(2, 4, 4), 10.0, None, grey=True), "image: got 2 channels"),
    (lambda: sensor_noise(torch.rand(3, 4, 4), -0.1, 0.0, None), "shot: got -0.1"),
    (lambda: sensor_noise(torch.rand(3, 4, 4), 0.1, torch.tensor([[0.1]]), None), r"read: got shape \(1, 1\)"),
])
def test_errors_are_one_line_that_names_the_argument(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
