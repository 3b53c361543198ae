"""operations: what they refuse, what JSON keeps, and that they do what their parts do."""
import dataclasses
import json
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given

from crlsr.core import generator
from crlsr.degradation.noise_jpeg import gaussian_noise, jpeg, poisson_noise, sensor_noise
from crlsr.degradation.operations import (
    Blur, DiskBlur, GaussianBlur, GaussianNoise, GeneralizedBlur, Jpeg, ManetBlur, MotionBlur, PoissonNoise, Resize, SensorNoise, SincBlur,
    SpatialBlur, SpatialNoise, Step, VaryingBlur,
)

width, angle, seeds = st.floats(0, 8), st.floats(-7, 7), st.integers(0, 2**52)
sizes = st.sampled_from([7, 13, 21, 31])
forms = st.sampled_from(["smooth", "gradient", "blocks", "depth"])
blurs = st.one_of(
    st.builds(GaussianBlur, width, width, angle, sizes), st.builds(GeneralizedBlur, width, width, angle, st.floats(0.5, 4), st.booleans(), sizes),
    st.builds(MotionBlur, st.floats(0, 6), angle, st.floats(0, 2), seeds, sizes), st.builds(DiskBlur, st.floats(0, 3.5), sizes),
    st.builds(SincBlur, st.floats(0.3, math.pi), sizes))
steps = st.one_of(
    blurs, st.builds(Resize, st.floats(0.1, 1.5), st.sampled_from(["bicubic", "bilinear", "area", "nearest"])),
    st.builds(GaussianNoise, st.floats(0, 50), seeds, st.booleans()), st.builds(PoissonNoise, st.floats(1, 1e5), seeds, st.booleans()),
    st.builds(SensorNoise, st.floats(0, 0.1), st.floats(0, 0.1), seeds), st.builds(Jpeg, st.integers(1, 100)),
    st.builds(SpatialBlur, st.sampled_from([2, 3, 4]), forms, seeds, st.floats(0, 1), st.floats(1, 4)),
    st.builds(ManetBlur, st.sampled_from([2, 3, 4]), st.integers(1, 6), seeds),
    st.builds(SpatialNoise, forms, seeds, st.floats(0, 5), st.floats(5, 50)))


def photo(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@given(steps)
def test_json_keeps_a_step_exactly(step):
    again = Step.from_dict(json.loads(json.dumps(step.to_dict(), allow_nan=False)))
    assert again == step and type(again) is type(step) and step.replace() == step


@given(steps)
def test_a_step_depends_on_image_and_numbers_alone(step):
    image = photo(3, 36, 48)
    before = image.clone()
    first = step.apply(image)
    torch.manual_seed(1)
    assert torch.equal(first, step.apply(image.clone())) and torch.equal(image, before)
    assert first.dtype == torch.float32 and len(first) == 3 and first.isfinite().all()


@given(blurs)
def test_kernels_sum_to_one_and_blur_as_scipy_does(step):
    kernel, image = step.kernel(torch.float64), photo(1, 33, 40).double()
    assert len(kernel) % 2 and kernel.sum().item() == pytest.approx(1, abs=1e-9)
    reference = scipy.ndimage.correlate(image[0].numpy(), kernel.numpy(), mode="mirror")
    np.testing.assert_allclose(step.apply(image)[0].numpy(), reference, atol=1e-9)
    np.testing.assert_allclose(step.apply(image.float())[0].numpy(), reference, atol=1e-5)


def test_noise_and_files_are_those_of_their_modules():
    image = photo(3, 24, 32)
    rng = lambda: generator("noise", 5)  # noqa: E731
    assert torch.equal(GaussianNoise(9.0, 5).apply(image), gaussian_noise(image, 9.0, rng()))
    assert torch.equal(GaussianNoise(9.0, 5, grey=True).apply(image), gaussian_noise(image, 9.0, rng(), grey=True))
    assert torch.equal(PoissonNoise(90.0, 5, grey=True).apply(image), poisson_noise(image, 90.0, rng(), grey=True))
    assert torch.equal(SensorNoise(0.01, 0.02, 5).apply(image), sensor_noise(image, 0.01, 0.02, rng()))
    assert torch.equal(Jpeg(35).apply(image), jpeg(image, 35))


@pytest.mark.parametrize("method, rows", [
    ("nearest", [2, 6, 10]), ("s-fold", [0, 4, 8]), ("area", [1.5, 5.5, 9.5]), ("bilinear", [None, 5.5, None]), ("bicubic", [None, 5.5, None])])
def test_where_the_pixels_of_a_shrunk_ramp_lie(method, rows):
    ramp = torch.arange(12.0).expand(3, 12, 12).transpose(1, 2)
    shrunk = Resize(1 / 4, method).apply(ramp)
    assert shrunk.shape == (3, 3, 3)
    for found, expected in zip(shrunk[0, :, 0].tolist(), rows):
        assert expected is None or found == pytest.approx(expected, abs=1e-5)


@given(st.integers(20, 90), st.integers(20, 90), st.floats(0.05, 2), st.floats(0.05, 2))
def test_sizes_count_against_hr(height, width, first, second):
    hr, last = photo(1, height, width), Resize(second, "nearest")
    between = Resize(first, "nearest").apply(hr, (height, width))
    assert last.apply(between, (height, width)).shape == last.apply(hr).shape == (1, max(1, round(height * second)), max(1, round(width * second)))


@pytest.mark.parametrize("step", [*(SpatialBlur(4, form, 3, 0.2, 4.0, 13) for form in ("smooth", "gradient", "blocks", "depth")), *(ManetBlur(2, mode, 1, 13) for mode in range(1, 7))])
def test_a_varying_blur_is_filter_then_mask(step):
    image = photo(2, 24, 36, seed=2).double()
    lr, maps = step.apply(image), step.maps(24 // step.scale, 36 // step.scale)
    for y in range(lr.shape[1]):
        for x in range(lr.shape[2]):
            kernel = GaussianBlur(*(m[y, x].item() for m in maps), size=13).kernel(torch.float64).numpy()
            blurred = np.stack([scipy.ndimage.correlate(c, kernel, mode="mirror") for c in image.numpy()])
            np.testing.assert_allclose(lr[:, y, x], Resize(1 / step.scale).apply(torch.from_numpy(blurred))[:, y, x], atol=1e-4)


def test_a_varying_blur_needs_whole_blocks():
    with pytest.raises(ValueError, match="SpatialBlur: got 30x32 pixels, expected sides that are multiples of scale 4"):
        SpatialBlur(4, "smooth", 0, 0.2, 4.0).apply(photo(3, 30, 32))


def test_s_fold_needs_a_whole_factor():
    with pytest.raises(ValueError, match="12x13 to 3x3 pixels by s-fold, expected one whole factor"):
        Resize(1 / 4, "s-fold").apply(photo(1, 12, 13))


@pytest.mark.parametrize("values, message", [
    ({"step": "GausianBlur"}, "step: got 'GausianBlur'.*did you mean 'GaussianBlur'"), ({"step": "Step"}, "step: got 'Step'"), ({"step": "Blur"}, "got 'Blur'"),
    ({}, "step: got 'Step'"), ({"step": 3}, "step: got 3"),
    ({"step": "GaussianBlur", "sigma1": 1.0}, "missing key 'sigma2'"), ({"step": "GaussianBlur", "sigma": 1.0}, "unknown key 'sigma'"),
    ({"step": "GaussianBlur", "sigma1": -1.0, "sigma2": 1.0}, "GaussianBlur.sigma1: got -1"),
    ({"step": "GaussianBlur", "sigma1": math.inf, "sigma2": 1.0}, "GaussianBlur.sigma1: got inf"),
    ({"step": "GaussianBlur", "sigma1": 1.0, "sigma2": 1.0, "theta": math.nan}, "GaussianBlur.theta: got nan, expected a finite number"),
    ({"step": "GaussianBlur", "sigma1": 1.0, "sigma2": 1.0, "size": 20}, "GaussianBlur.size: got 20, expected an odd"),
    ({"step": "GeneralizedBlur", "sigma1": 1.0, "sigma2": 1.0, "theta": 0.0, "beta": 0.0}, "beta: got 0, expected a finite number > 0"),
    ({"step": "MotionBlur", "length": 30.0}, r"length: got 30, expected 0..20"), ({"step": "DiskBlur", "radius": 11.0}, "radius: got 11"),
    ({"step": "SincBlur", "cutoff": 0.0}, "cutoff: got 0"), ({"step": "SincBlur", "cutoff": 4.0}, "cutoff: got 4"),
    ({"step": "Resize", "scale": 0.0}, "scale: got 0"), ({"step": "Resize", "scale": 0.5, "method": "cubic"}, "did you mean 'bicubic'"),
    ({"step": "GaussianNoise", "noise_level": -1.0, "seed": 0}, "noise_level: got -1"), ({"step": "GaussianNoise", "noise_level": 1.0, "seed": 0.5}, "seed"),
    ({"step": "PoissonNoise", "photons": 0.0, "seed": 0}, "photons: got 0"), ({"step": "SensorNoise", "shot": -0.1, "read": 0.0, "seed": 0}, "shot: got -0.1"),
    ({"step": "Jpeg", "quality": 0}, "quality: got 0, expected 1..100"), ({"step": "Jpeg", "quality": 50.0}, "quality"),
    ({"step": "SpatialBlur", "scale": 5, "form": "smooth", "seed": 0, "low": 0.0, "high": 1.0}, "scale: got 5"),
    ({"step": "SpatialBlur", "scale": 4, "form": "smoth", "seed": 0, "low": 0.0, "high": 1.0}, "did you mean 'smooth'"),
    ({"step": "SpatialBlur", "scale": 4, "form": "smooth", "seed": 0, "low": 2.0, "high": 1.0}, "low, high: got 2 and 1"),
    ({"step": "ManetBlur", "scale": 4, "mode": 7}, "mode: got 7, expected 1 to 6"), ({"step": "ManetBlur", "scale": 4, "mode": 1, "size": 4}, "size: got 4"),
    ({"step": "SpatialNoise", "form": "smooth", "seed": 0, "low": -2.0, "high": 1.0}, "low, high: got -2 and 1"),
])
def test_impossible_steps_are_named_in_one_line(values, message):
    with pytest.raises(ValueError, match=message) as error:
        Step.from_dict(values)
    assert "\n" not in str(error.value)


def test_abstract_steps_cannot_be_made():
    for kind in (Step, Blur, VaryingBlur):
        with pytest.raises(TypeError, match="abstract"):
            kind()


def test_a_step_defined_elsewhere_can_be_stored():
    @dataclasses.dataclass(frozen=True)
    class Inverted(Step):
        def apply(self, image, hr_size=None):
            return 1 - image

    step = Step.from_dict(json.loads(json.dumps(Inverted().to_dict())))
    assert step == Inverted() and torch.equal(step.apply(torch.zeros(1, 2, 2)), torch.ones(1, 2, 2))


@pytest.mark.parametrize("step", [
    GaussianBlur(2.0, 1.0, 0.3), MotionBlur(7.0, 0.2), SincBlur(1.5), Resize(1 / 3, "area"), Resize(0.7, "bilinear"), GaussianNoise(5.0, 1),
    SensorNoise(0.01, 0.01, 1), Resize(1 / 2, "nearest"), SpatialBlur(4, "smooth", 3, 0.2, 3.0), SpatialNoise("gradient", 3, 0.0, 9.0)])
def test_gradients_with_respect_to_hr(step):
    image = (0.2 + 0.6 * photo(1, 24, 24)).double().requires_grad_()
    probe = torch.randn(step.apply(image).shape, generator=generator("probe"), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((probe * step.apply(image)).sum(), image)
    direction = torch.randn(image.shape, generator=generator("direction"), dtype=torch.float64)
    h = 1e-5
    with torch.no_grad():
        slope = ((probe * (step.apply(image + h * direction) - step.apply(image - h * direction))).sum() / (2 * h)).item()
    assert gradient.isfinite().all() and (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_a_differentiable_file_is_near_the_real_one():
    pytest.importorskip("kornia", reason="the differentiable JPEG needs kornia")
    image = scipy.ndimage.gaussian_filter(photo(3, 48, 48).numpy(), (0, 3, 3))
    image = torch.from_numpy((image - image.min()) / (image.max() - image.min())).requires_grad_()
    soft = Jpeg(80, differentiable=True).apply(image)
    assert -10 * math.log10((soft.detach() - Jpeg(80).apply(image.detach())).square().mean()) > 30
    (gradient,) = torch.autograd.grad(soft.square().sum(), image)
    assert gradient.isfinite().all() and gradient.abs().max() > 0


@pytest.mark.parametrize("shift", [2**70, -1e308, 10.6, math.nan])
def test_a_shift_leads_out_of_no_kernel(shift):
    with pytest.raises(ValueError, match=r"shift: got .*, expected -10.5..10.5"):
        GaussianBlur(1.0, 1.0, shift=shift)
    assert abs(GaussianBlur(1.0, 1.0, shift=10.5).kernel().sum() - 1) < 1e-6
