"""replay: parameters applied in any batch, read as numbers and maps, stored and loaded."""
import json
import math
import re

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from PIL import Image

from crlsr.core import generator
from crlsr.degradation import DegradationParams, apply_params, kernel_of, load_params, parameter_maps, save_params
from crlsr.degradation.operations import (
    DiskBlur, GaussianBlur, GaussianNoise, GeneralizedBlur, Jpeg, MotionBlur, PoissonNoise, Resize, SensorNoise, SincBlur, SpatialBlur,
    SpatialNoise,
)
from crlsr.degradation.replay import apply_steps
from crlsr.images import quantize

scales = st.sampled_from([2, 3, 4])
seeds = st.integers(0, 2**53 - 1)


def photo(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def parameters(draw, scale=None):
    s = scale or draw(scales)
    width, angle = st.floats(0, 4), st.floats(0, math.pi)
    shrink = Resize(1 / s)
    chain = draw(st.one_of(
        st.just([shrink]), st.tuples(st.builds(GaussianBlur, width, width, angle), st.just(shrink)),
        st.tuples(st.builds(MotionBlur, st.floats(0, 18), angle, st.floats(0, 1), seeds), st.just(shrink)),
        st.tuples(st.builds(DiskBlur, st.floats(0, 6)), st.just(shrink)), st.tuples(st.builds(SincBlur, st.floats(0.7, 3), st.sampled_from([7, 13])), st.just(shrink)),
        st.just([SpatialBlur(s, "smooth", draw(seeds), 0.2, 3.0)]),
        st.tuples(st.builds(GaussianBlur, width, width, angle, st.just(7)), st.builds(Resize, st.floats(0.5, 1.2), st.just("area")), st.just(shrink))))
    noise = draw(st.one_of(
        st.just([]), st.builds(GaussianNoise, st.floats(0, 50), seeds).map(lambda n: [n]), st.builds(SensorNoise, st.floats(0, 0.01), st.floats(0, 0.05), seeds).map(lambda n: [n]),
        st.just([SpatialNoise("blocks", draw(seeds), 0.0, 9.0)])))
    return DegradationParams(s, "test", tuple([*chain, *noise, *([Jpeg(draw(st.integers(1, 100)))] if draw(st.booleans()) else [])]))


# --- applying --------------------------------------------------------------------------------------------------------

@settings(max_examples=40)
@given(st.data(), scales, st.integers(3, 12), st.integers(3, 12), st.integers(1, 4))
def test_an_image_does_not_depend_on_its_batch(data, scale, rows, columns, count):
    rows, columns = max(rows, math.ceil(11 / scale)), max(columns, math.ceil(11 / scale))
    hr = photo(count, 3, rows * scale, columns * scale, seed=rows)
    params = [data.draw(parameters(scale=scale)) for _ in range(count)]
    lr = apply_params(hr, params)
    assert torch.equal(lr, apply_params(hr.clone(), params)), "replay differs"
    for i in range(count):
        assert torch.equal(lr[i : i + 1], apply_params(hr[i : i + 1], params[i : i + 1])), "image alone differs"
    order = data.draw(st.permutations(range(count)))
    assert torch.equal(lr[order], apply_params(hr[order], [params[i] for i in order])), "order in the batch matters"


@settings(max_examples=30)
@given(st.lists(parameters(scale=4), min_size=1, max_size=4), st.integers(1, 5))
def test_a_margin_leaves_the_inner_part_and_nothing_depends_on_the_batch(params, margin):
    hr = photo(len(params), 3, 48, 60, seed=7)
    inner = apply_params(hr, params, margin=margin, quantized=False)
    for i, p in enumerate(params):
        assert torch.equal(inner[i : i + 1], apply_params(hr[i : i + 1], [p], margin=margin, quantized=False))
        if not any(isinstance(step, Jpeg) for step in p.steps):  # JPEG turns 1e-6 into a whole code
            whole = apply_params(hr[i : i + 1], [p], quantized=False)
            torch.testing.assert_close(inner[i : i + 1], whole[..., margin:-margin, margin:-margin], rtol=0, atol=1e-5)


@given(parameters(), st.booleans())
def test_the_fast_path_agrees_with_the_plain_loop(params, double):
    hr = photo(2, 3, 48, 60, seed=3).to(torch.float64 if double else torch.float32)
    steps = [step for step in params.steps if not isinstance(step, Jpeg)]  # JPEG turns 1e-6 into a whole code
    params = params.replace(steps=tuple(steps))
    fast = apply_params(hr, [params, params], quantized=False)
    slow = torch.stack([apply_steps(image, steps) for image in hr])
    assert fast.dtype == hr.dtype and (fast - slow).abs().max() <= 1e-4
    assert torch.equal(apply_params(hr, [params, params]), quantize(fast))


def test_memory_layout_does_not_matter():
    wide = photo(1, 3, 44, 61).contiguous(memory_format=torch.channels_last)[..., 1:]  # odd alignment, no plain strides
    for steps in ([GaussianBlur(3.0, 0.5, 1.0), Resize(1 / 4), GaussianNoise(3.0, 1)], [Resize(1 / 4)], [SpatialBlur(4, "depth", 1, 0.2, 4.0)]):
        params = [DegradationParams(4, "test", tuple(steps))]
        assert torch.equal(apply_params(wide, params), apply_params(wide.contiguous(), params))


def test_gradients_reach_hr_through_the_fast_path():
    hr = photo(2, 3, 24, 24).double().requires_grad_()
    params = [DegradationParams(4, "a", (GaussianBlur(2.0, 1.0, 0.3), Resize(1 / 4), GaussianNoise(4.0, 1))), DegradationParams(4, "b", (SpatialBlur(4, "smooth", 1, 0.5, 3.0),))]
    weight = torch.randn(2, 3, 6, 6, generator=generator("weight"), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weight * apply_params(hr, params, quantized=False)).sum(), hr)
    direction = torch.randn(hr.shape, generator=generator("direction"), dtype=torch.float64)
    ahead, behind = (apply_params(hr.detach() + t * direction, params, quantized=False) for t in (1e-4, -1e-4))
    assert (gradient * direction).sum().item() == pytest.approx(((ahead - behind) * weight).sum().item() / 2e-4, rel=1e-6)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_image():
    params = [DegradationParams(4, "a", (GaussianBlur(2.0, 1.0, 0.3), Resize(1 / 4), GaussianNoise(4.0, 1))), DegradationParams(4, "b", (SpatialBlur(4, "smooth", 1, 0.5, 3.0),)),
              DegradationParams(4, "c", (DiskBlur(3.0), Resize(1 / 4), SensorNoise(0.01, 0.01, 5)))]
    hr = photo(3, 3, 48, 48).double()
    there = apply_params(hr.cuda(), params, quantized=False)
    assert there.is_cuda and (there.cpu() - apply_params(hr, params, quantized=False)).abs().max() < 1e-6


BLUR = (GaussianBlur(1.0, 1.0), Resize(1 / 4))


@pytest.mark.parametrize("hr, params, message", [
    (torch.rand(1, 3, 30, 32), [DegradationParams(4, "t", BLUR)], "hr: 30x32 pixels, expected sides that are multiples of scale 4"),
    (torch.rand(1, 3, 8, 32), [DegradationParams(4, "t", BLUR)], "8x32 pixels are too few for a 21x21 kernel"),
    (torch.rand(2, 3, 32, 32), [DegradationParams(4, "t", BLUR)], "params: got 1"),
    (torch.rand(0, 3, 32, 32), [], "params: got 0"),
    (torch.rand(2, 3, 24, 24), [DegradationParams(4, "t", BLUR), DegradationParams(2, "t", (Resize(1 / 2),))], r"scales \[2, 4\]"),
    (torch.rand(32, 32), [DegradationParams(4, "t", BLUR)], r"hr: got shape \(32, 32\), expected \(B, C, H, W\) or \(C, H, W\)"),
    (torch.rand(1, 32, 33, 3), [DegradationParams(3, "t", (Resize(1 / 3),))], r"hr: got shape \(1, 32, 33, 3\)"),
    (torch.rand(3, 32, 32), [DegradationParams(4, "t", BLUR)] * 3, "params: got 3"),
    (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), [DegradationParams(4, "t", BLUR)], "hr: got torch.uint8"),
    (torch.rand(1, 3, 32, 32) * 255, [DegradationParams(4, "t", BLUR)], "hr: got values from .* expected .0, 1."),
    (torch.rand(1, 3, 32, 32) - 0.01, [DegradationParams(4, "t", BLUR)], "hr: got values from -0.0"),
    (torch.rand(1, 3, 32, 32) * math.nan, [DegradationParams(4, "t", BLUR)], "hr: holds NaN"),
    (np.zeros((3, 32, 32)), [DegradationParams(4, "t", BLUR)], "channels last"),
    (np.zeros((32, 32, 3)) + 9, [DegradationParams(4, "t", BLUR)], "hr: got values from 9 to 9"),
    (torch.rand(1, 3, 32, 32), [DegradationParams(4, "mine", (Resize(1 / 2),))], "steps of 'mine': lead from 32x32 to 16x16 pixels, expected 8x8"),
])
def test_operator_errors(hr, params, message):
    with pytest.raises(ValueError, match=message) as error:
        apply_params(hr, params)
    assert "\n" not in str(error.value)


def test_rounding_is_no_other_scale_and_gradients_take_any_value():
    params = [DegradationParams(4, "t", BLUR)]
    hr = torch.rand(1, 3, 32, 32)
    hr[0, 0, 0, :2] = torch.tensor([1 + 1e-3, -1e-3])
    apply_params(hr, params)
    apply_params(9 * hr - 4, params, quantized=False)


@pytest.mark.parametrize("steps", [BLUR, (Resize(1 / 4), GaussianNoise(5.0, 1)), (*BLUR, Jpeg(60))])
def test_one_image_is_a_batch_of_one_of_whatever_kind(steps):
    hr = torch.rand(2, 3, 48, 44, generator=generator("one image")).mul(255).round().div(255)
    params = [DegradationParams(4, "t", steps)]
    expected = apply_params(hr[:1], params)
    assert torch.equal(apply_params(hr[0], params), expected[0])
    eight = (hr * 255).round().byte().permute(0, 2, 3, 1).numpy()
    levels = (expected[0] * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(apply_params(eight[0], params), levels) and np.array_equal(apply_params(eight[:1], params)[0], levels)
    picture = apply_params(Image.fromarray(eight[0]), params)
    assert picture.mode == "RGB" and np.array_equal(np.asarray(picture), levels)
    double = apply_params(hr[0].double().permute(1, 2, 0).numpy(), params)
    assert double.dtype == np.float64 and np.abs(255 * double - levels).max() < 1.01


# --- numbers and maps ------------------------------------------------------------------------------------------------

def of(*steps, scale=4):
    return DegradationParams(scale, "test", tuple(steps))


@pytest.mark.parametrize("margin", [-1, 4])
def test_impossible_margin(margin):
    with pytest.raises(ValueError, match=f"margin: got {margin}, expected >= 0 and less than half of 8 lr pixels"):
        apply_params(torch.rand(1, 3, 32, 32), [DegradationParams(4, "t", BLUR)], margin=margin)


def test_readings_of_single_steps_are_their_numbers():
    p = of(GaussianBlur(1.0, 3.0, 0.4), Resize(1 / 4), GaussianNoise(7.0, 11), Jpeg(44))
    assert (p.sigma1, p.sigma2, p.theta, p.noise_level, p.noise_seed, p.jpeg_quality) == (1.0, 3.0, 0.4, 7.0, 11, 44)
    p = of(Resize(1 / 4))
    assert (p.sigma1, p.sigma2, p.theta, p.noise_level, p.noise_seed, p.jpeg_quality) == (0.0, 0.0, 0.0, 0.0, 0, None)
    assert kernel_of(p).max() == 1 and torch.equal(kernel_of(of(DiskBlur(3.0))), DiskBlur(3.0).kernel())


@given(st.floats(0.8, 2.5), st.floats(0.8, 2.5), st.floats(0, math.pi), st.floats(0.8, 2.5))
def test_variances_of_blurs_add(a, b, theta, c):
    p = of(GaussianBlur(a, b, theta), GaussianBlur(c, c), Resize(1 / 4))
    assert p.sigma1 == pytest.approx(math.hypot(max(a, b), c), rel=1e-9) and p.sigma2 == pytest.approx(math.hypot(min(a, b), c), rel=1e-9)


@pytest.mark.parametrize("step", [MotionBlur(12.0, 0.7, 0.5, 3), DiskBlur(4.0), GeneralizedBlur(3.0, 1.0, 0.5, 2.0)])
def test_other_kernels_have_their_second_moments(step):
    dot = torch.zeros(1, 61, 61, dtype=torch.float64)
    dot[0, 30, 30] = 1
    seen, offset = step.apply(dot)[0], torch.arange(61, dtype=torch.float64) - 30
    p = of(step, Resize(1 / 4))
    trace = (seen.sum(0) @ offset**2 + seen.sum(1) @ offset**2).item()
    along = offset[None, :] * math.cos(p.theta) + offset[:, None] * math.sin(p.theta)
    assert p.sigma1**2 + p.sigma2**2 == pytest.approx(trace, rel=1e-6) and (seen * along**2).sum().item() == pytest.approx(p.sigma1**2, rel=1e-6)


def test_blurs_after_shrinking_count_in_hr_pixels_and_a_sinc_does_not():
    assert of(Resize(1 / 2), GaussianBlur(1.0, 1.0), Resize(1 / 4)).sigma1 == 2.0
    assert of(SincBlur(1.0), Resize(1 / 4)).sigma1 == 0.0


@pytest.mark.parametrize("steps", [
    (GaussianNoise(12.0, 1), Resize(1 / 4, "area")), (Resize(1 / 4), PoissonNoise(300.0, 2)), (Resize(1 / 4), SensorNoise(0.005, 0.01, 3)),
    (Resize(1 / 4), GaussianNoise(5.0, 1), GaussianNoise(12.0, 2)), (Resize(1 / 4), SpatialNoise("smooth", 5, 8.0, 8.0))])
def test_stated_noise_level_is_measured_on_a_grey_card(steps):
    image = apply_steps(torch.full((3, 512, 512), 0.5), steps)
    assert of(*steps).noise_level == pytest.approx(255 * image.std().item(), rel=0.03)


def test_maps_of_constant_and_of_varying_degradations():
    constant = parameter_maps(of(GaussianBlur(1.0, 3.0, 0.4), Resize(1 / 4), GaussianNoise(7.0, 11)), 5, 6)
    assert {name: (m.shape, m.unique().tolist()) for name, m in constant.items()} == {
        name: ((5, 6), [pytest.approx(v)]) for name, v in (("sigma1", 1.0), ("sigma2", 3.0), ("theta", 0.4), ("noise_level", 7.0))}
    blur, noise = SpatialBlur(4, "smooth", 3, 0.5, 3.0), SpatialNoise("gradient", 4, 2.0, 9.0)
    varied = parameter_maps(of(blur, noise), 12, 16)
    for name, expected in zip(("sigma1", "sigma2", "theta", "noise_level"), (*blur.maps(12, 16), noise.level_map(12, 16))):
        torch.testing.assert_close(varied[name], expected.float())
    both = parameter_maps(of(blur, noise, GaussianNoise(3.0, 1)), 12, 16)["noise_level"]
    torch.testing.assert_close(both, torch.hypot(noise.level_map(12, 16), torch.tensor(3.0)).float())
    assert of(blur).sigma1**2 + of(blur).sigma2**2 == pytest.approx(sum(m.square().mean().item() for m in blur.maps(64, 64)[:2]), rel=0.02)


# --- files -----------------------------------------------------------------------------------------------------------

@given(parameters())
def test_params_survive_json_exactly(params):
    assert DegradationParams.from_dict(json.loads(json.dumps(params.to_dict(), allow_nan=False))) == params == params.replace()


@pytest.mark.parametrize("fields, message", [
    ({"scale": 7, "source": "x", "steps": []}, "scale: got 7"), ({"scale": 4, "source": "x"}, "missing key 'steps'"),
    ({"scale": 4, "source": "x", "steps": 3}, "steps: got 3, expected a list of steps"), ({"scale": 4, "source": "x", "steps": [3]}, "steps"),
    ({"scale": 4, "source": "x", "steps": [{"step": "Blurr"}]}, "step: got 'Blurr'"), ({"scale": 4, "source": 1, "steps": []}, "source"),
    ({"scale": 4, "source": "x", "steps": [], "seed": 1}, "unknown key 'seed'"),
    ({"kernel": "iso"}, "missing key 'scale'"), ({"kernel": "iso", "scale": "4"}, "scale: got '4', expected 2, 3 or 4"), ({"scale": 4, "kernel": "isso"}, "kernel: got 'isso'"), ({"scale": 4, "kernel": "none", "sigmas": 1.0}, "unknown key 'sigmas'; known in version 1"),
])
def test_impossible_params(fields, message):
    with pytest.raises(ValueError, match=message) as error:
        DegradationParams.from_dict(fields)
    assert "\n" not in str(error.value)


@given(st.lists(parameters(), max_size=3), st.text(st.characters(codec="utf-8", exclude_characters="/\\\0"), max_size=9))
def test_file_of_params_round_trips(tmp_path_factory, params, name):
    path = tmp_path_factory.mktemp("params") / "params.json"
    records = [{"name": f"{i}{name}", "params": p, "preset": "iso", "seed": 3, "sha256": None} for i, p in enumerate(params)]
    save_params(path, records)
    assert load_params(path) == records


def test_files_of_version_1_are_still_read(tmp_path):
    flat = {"scale": 4, "kernel": "aniso", "sigma1": 2.5, "sigma2": 1.5, "theta": 0.25, "size": 21, "noise_level": 18.0, "noise_seed": 6968219155936574}
    clean = {"scale": 2, "kernel": "none", "sigma1": 0.0, "sigma2": 0.0, "theta": 0.0, "size": 21, "noise_level": 0.0, "noise_seed": 3}
    path = tmp_path / "params.json"
    path.write_text(json.dumps({"format": "crlsr degradation parameters 1", "images": [{"name": "a", "params": flat}, {"name": "b", "params": clean}]}))
    a, b = (record["params"] for record in load_params(path))
    assert a == DegradationParams(4, "aniso", (GaussianBlur(2.5, 1.5, 0.25), Resize(1 / 4), GaussianNoise(18.0, 6968219155936574)))
    assert b == DegradationParams(2, "bicubic", (Resize(1 / 2),))


@pytest.mark.parametrize("content", [
    "", "not json", "[]", "{}", '{"format": 1, "images": []}', '{"format": "crlsr degradation parameters 1"}',
    '{"format": "crlsr degradation parameters 3", "images": []}', '{"format": "crlsr degradation parameters 2", "images": 3}',
    '{"format": "crlsr degradation parameters 1", "images": [{"params": {"scale": 4}}]}',
    '{"format": "crlsr degradation parameters 1", "images": [{"name": "a", "params": {"kernel": "none"}}]}',
    '{"format": "crlsr degradation parameters 1", "images": [{"name": "a", "params": {"scale": "4", "kernel": "none"}}]}',
    '{"format": "crlsr degradation parameters 1", "images": [{"name": "a", "params": {"scale": 4, "sigmas": 1}}]}',
    '{"format": "crlsr degradation parameters 2", "images": [{"name": "a", "params": {"scale": 4, "source": "x", "steps": [{"step": "x"}]}}]}',
    '{"format": "crlsr degradation parameters 2", "images": [{"name": "a", "params": 4}]}', "\x00\x01",
])
def test_other_files_are_refused_in_one_line(tmp_path, content):
    path = tmp_path / "params.json"
    path.write_bytes(content.encode() + (b"\xff" if content.startswith("\x00") else b""))
    with pytest.raises(ValueError, match="not a file of degradation parameters|no JSON object") as error:
        load_params(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_missing_file_of_params(tmp_path):
    with pytest.raises(FileNotFoundError, match="params.json: is not there"):
        load_params(tmp_path / "params.json")


def record(name="a", steps=({"step": "Resize", "scale": 0.25, "method": "bicubic"},), **more):
    return {"name": name, "params": {"scale": 4, "source": "x", "steps": list(steps)}, **more}


@pytest.mark.parametrize("images, words", [
    *(([record(name)], "stays in its folder") for name in ("../a", "/a", "a/../../b", "..", ".", "", "a//b", "a/", "./a", "CON/../x")),
    ([record("a\0b")], "expected a text"), ([record(3)], "expected a text"), ([record(["a"])], "expected a text"), ([record("a"), record("a")], "stands there twice"),
    ([record(image=["a"])], "image: got"), ([record(sha256=4)], "sha256: got"), ([record(lr_sha256={})], "lr_sha256: got"),
    ([record(steps=[{"step": "GaussianBlur", "sigma1": 1.0, "sigma2": 1.0, "size": 100_001}])], "GaussianBlur.size: got 100001, expected 0..999"),
    ([record(steps=[{"step": "ManetBlur", "scale": 4, "seed": 1, "low": 1.0, "high": 2.0, "size": 4001}])], "ManetBlur"),
    ([record(steps=[{"step": "Resize", "scale": 1000.0, "method": "bicubic"}])], "Resize.scale: got 1000.0, expected 0..8"),
    ([record(steps=[{"step": "GaussianNoise", "noise_level": 3.0, "seed": 2**70}])], "seed"),
    ([record(steps=[{"step": "Resize", "scale": 1.0, "method": "bicubic"}] * 101)], "steps: got 101, expected at most 100"),
])
def test_a_foreign_file_is_judged_before_it_costs(tmp_path, images, words):
    path = tmp_path / "params.json"
    path.write_text(json.dumps({"format": "crlsr degradation parameters 2", "images": images}))
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        load_params(path)
    assert "\n" not in str(error.value)


def test_a_file_of_params_from_a_windows_editor_and_one_nested_to_death(tmp_path):
    save_params(tmp_path / "a.json", [{"name": "a\udce9", "params": DegradationParams(4, "x", (Resize(1 / 4),))}])
    (tmp_path / "b.json").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.json").read_bytes())
    assert load_params(tmp_path / "b.json") == load_params(tmp_path / "a.json") and load_params(tmp_path / "a.json")[0]["name"] == "a\udce9"
    (tmp_path / "deep.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(ValueError, match="deep.json: is damaged or no JSON object"):
        load_params(tmp_path / "deep.json")
