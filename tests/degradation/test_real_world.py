"""real_world: every source leads to lr, varying ones vary, the long recipes have their published shares."""
import collections
import math

import numpy as np
import pytest
import torch

from crlsr.core import generator
from crlsr.degradation import DegradationParams, SIGMA_RANGE, apply_params
from crlsr.degradation.operations import (
    Blur, GaussianBlur, GaussianNoise, GeneralizedBlur, Jpeg, ManetBlur, PoissonNoise, Resize, SensorNoise, SincBlur, SpatialBlur,
    SpatialNoise,
)
from crlsr.degradation.real_world import HighOrder, MULTIMODAL, Shuffled, Spatial
from crlsr.degradation.sources import Aniso, Clean, Disk, Gaussian8, Iso, Mixture, Motion, Sensor, SourceChain, source_name, source_reach

SCALES = (2, 3, 4)


def draws(source, count, scale=4):
    return [source(scale, generator("draw", i)) for i in range(count)]


def share(count, total):
    "Bounds of a share that is missed once in ten thousand draws (normal approximation)."
    return lambda p: abs(count / total - p) < 4 * math.sqrt(p * (1 - p) / total)


@pytest.mark.parametrize("source", [Clean(), Iso(), Gaussian8(), Aniso(), Motion(), Disk(), Sensor(), Spatial(), Spatial("depth"), MULTIMODAL, HighOrder(), Shuffled()])
@pytest.mark.parametrize("scale", SCALES)
def test_every_source_leads_to_lr_and_depends_on_its_generator_alone(source, scale):
    hr = torch.rand(1, 3, 72, 96, generator=generator("hr"))
    for key in range(4):
        steps = source(scale, generator(key))
        torch.manual_seed(key)
        assert steps == source(scale, generator(key))
        lr = apply_params(hr, [DegradationParams(scale, source_name(source), tuple(steps))])
        assert lr.shape == (1, 3, 72 // scale, 96 // scale) and lr.isfinite().all()


def test_a_form_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="spatial: got 'blurred', expected one of smooth") as error:
        Spatial("blurred")
    assert "\n" not in str(error.value)


def test_a_long_recipe_says_how_far_it_reaches():
    assert source_reach(SourceChain(Mixture((Clean(), HighOrder()), (1.0, 1.0)))) == HighOrder.reach > 10


@pytest.mark.parametrize("mode", range(1, 7))
def test_manets_tests_have_no_noise_of_their_own(mode):
    (blur,) = Spatial(f"sv{mode}")(4, generator(1))
    assert isinstance(blur, ManetBlur) and blur.mode == mode and str(Spatial(f"sv{mode}")) == f"spatial:sv{mode}"
    sigma1, sigma2, theta = blur.maps(30, 40)  # blocks of 10x10 lr pixels
    low, high = math.sqrt(0.175 * 4), math.sqrt(2.5 * 4)
    assert low - 1e-9 <= min(sigma1.min(), sigma2.min()) and max(sigma1.max(), sigma2.max()) <= high + 1e-9 and 0 <= theta.min() and theta.max() <= math.pi
    for m in (sigma1, sigma2, theta):
        assert torch.equal(m, m[::10, ::10].repeat_interleave(10, 0).repeat_interleave(10, 1))


@pytest.mark.parametrize("form", Spatial.forms[:4])
def test_spatial_varies_kernel_and_noise(form):
    blur, noise = Spatial(form)(4, generator(1))
    assert isinstance(blur, SpatialBlur) and isinstance(noise, SpatialNoise) and blur.form == noise.form == form and blur.seed != noise.seed
    assert (blur.low, blur.high) == SIGMA_RANGE[4] and (noise.low, noise.high) == (0.0, 25.0) and str(Spatial(form)).startswith("spatial")
    sigma1, _, _ = blur.maps(24, 24)
    assert sigma1.std() > 0.2 and noise.level_map(24, 24).std() > 1


def test_high_order_has_real_esrgans_shares_and_ranges():
    count = 1500
    drawn = draws(HighOrder(), count)
    firsts = [steps[0] for steps in drawn]
    assert share(sum(isinstance(b, SincBlur) for b in firsts), count)(0.1)
    assert share(sum(isinstance(b, GaussianBlur) for b in firsts), count)(0.9 * 0.7)
    assert share(sum(isinstance(b, GeneralizedBlur) and b.plateau for b in firsts), count)(0.9 * 0.15)
    assert share(sum(isinstance(b, GaussianBlur) and b.sigma1 != b.sigma2 for b in firsts), count)(0.9 * 0.25)
    for blur in firsts:
        assert 7 <= blur.size <= 21 and (isinstance(blur, SincBlur) or 0.2 <= blur.sigma2 <= 3)
    for blur in (b for b in firsts if isinstance(b, GeneralizedBlur)):
        assert (1 if blur.plateau else 0.5) <= blur.beta <= (2 if blur.plateau else 4)
    scales = np.array([steps[1].scale for steps in drawn])
    assert 0.15 <= scales.min() and scales.max() <= 1.5 and share((scales > 1).sum(), count)(0.2) and share((scales == 1).sum(), count)(0.1)
    noises = [steps[2] for steps in drawn]
    assert share(sum(isinstance(n, GaussianNoise) for n in noises), count)(0.5) and share(sum(n.grey for n in noises), count)(0.4)
    assert all(1 <= n.noise_level <= 30 if isinstance(n, GaussianNoise) else 256 / 9 <= n.photons <= 256 / 0.05**2 + 1e-6 for n in noises)
    assert all(isinstance(steps[3], Jpeg) and 30 <= steps[3].quality <= 95 for steps in drawn)
    assert share(sum(isinstance(steps[4], Blur) for steps in drawn), count)(0.8)
    assert share(sum(isinstance(steps[-1], Jpeg) for steps in drawn), count)(0.5)
    tails = [steps[-3:] for steps in drawn]
    assert share(sum(any(isinstance(s, SincBlur) and s.cutoff >= math.pi / 3 for s in tail) for tail in tails), count)(0.8)


def test_shuffled_has_bsrgans_shares_and_every_order():
    count, scale = 1200, 4
    drawn = draws(Shuffled(), count, scale)
    assert share(sum(sum(isinstance(s, Jpeg) for s in steps) == 2 for steps in drawn), count)(0.9) and all(isinstance(steps[-1], Jpeg) for steps in drawn)
    assert share(sum(any(isinstance(s, SensorNoise) for s in steps) for steps in drawn), count)(0.25)
    orders = collections.Counter(tuple(type(s).__name__ for s in steps[:-1] if isinstance(s, (Blur, Resize, GaussianNoise))) for steps in drawn)
    assert len(orders) == 30  # five things of which two blurs, and two resizes in fixed order, look alike: 5! / (2! 2!)
    for steps in drawn:
        first, second = [s for s in steps if isinstance(s, Resize)]
        assert second.scale == 1 / scale and 1 / (2 * scale) <= first.scale <= 1
        for blur in (s for s in steps if isinstance(s, GaussianBlur)):
            assert 7 <= blur.size <= 25 and max(blur.sigma1, blur.sigma2) <= (math.sqrt(4 + scale) if blur.sigma1 != blur.sigma2 else 2 + 0.2 * scale)
        (noise,) = [s for s in steps if isinstance(s, GaussianNoise)]
        assert 2 <= noise.noise_level <= 25 and not any(isinstance(s, PoissonNoise) for s in steps)
