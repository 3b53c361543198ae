"""degradation: presets, drawn parameters, the operator, replay."""
import hashlib
import json
import math
import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import example, given

from crlsr.core import generator
from crlsr.degradation import (
    SIGMA_RANGE, Degradation, DegradationParams, add_noise, apply_params, kernel_of, load_params, save_params)
from crlsr.images import quantize, resize

PRESETS = ["bicubic", "iso", "iso:2.4", "gaussian8", "aniso", "aniso:4,1,45", "iso+noise:10", "aniso+noise:0..25"]
scales = st.sampled_from([2, 3, 4])
positive = st.floats(0, 1e6)
angle = st.floats(-1e4, 1e4)
noise = st.tuples(positive, positive).map(lambda pair: tuple(sorted(pair)))
kernels = st.one_of(
    st.sampled_from([("bicubic", ()), ("iso", ()), ("gaussian8", ()), ("aniso", ())]),
    positive.map(lambda s: ("iso", (s,))), st.tuples(positive, positive, angle).map(lambda v: ("aniso", v)))


@st.composite
def parameters(draw, scale=None, sigma=st.floats(0, 4), level=st.floats(0, 50)):
    kind, s1, s2, theta = draw(st.sampled_from(["none", "iso", "aniso"])), draw(sigma), draw(sigma), draw(st.floats(0, math.pi))
    shape = {"none": (0.0, 0.0, 0.0), "iso": (s1, s1, 0.0), "aniso": (s1, s2, theta)}[kind]
    return DegradationParams(scale or draw(scales), kind, *shape, noise_level=draw(level), noise_seed=draw(st.integers(0, 2**53 - 1)))


def photo(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# --- the grammar -----------------------------------------------------------------------------------------------------

@given(scales, kernels, noise)
def test_canonical_preset_round_trips(scale, kernel, levels):
    degradation = Degradation(scale, *kernel, noise=levels)
    again = Degradation.parse(degradation.preset, scale)
    assert again == degradation and again.preset == degradation.preset


@pytest.mark.parametrize("preset, canonical", [
    ("iso", "iso"), ("iso:2.40", "iso:2.4"), (" iso:.5 ", "iso:0.5"), ("iso:2e-1", "iso:0.2"), ("iso:-0", "iso:0"),
    ("bicubic+noise:0", "bicubic"), ("aniso:4,1,45+noise:0..25", "aniso:4,1,45+noise:0..25"),
    ("aniso:4,1,-45", "aniso:4,1,-45"), ("iso+noise:5..5", "iso+noise:5"),
])
def test_canonical_form(preset, canonical):
    assert Degradation.parse(preset).preset == canonical


@pytest.mark.parametrize("preset, message", [
    ("isso:2", "unknown kernel 'isso'; did you mean 'iso'"),
    ("ISO", "did you mean 'iso'"),
    ("gausian8", "did you mean 'gaussian8'"),
    ("bicubik+noise:3", "did you mean 'bicubic'"),
    ("", "unknown kernel ''"),
    ("+noise:3", "unknown kernel ''"),
    ("motion:5", "known: bicubic, iso"),
    ("iso+nois:3", "unknown part 'nois'; did you mean 'noise'"),
    ("iso+jpeg:40", "unknown part 'jpeg' .known: noise:n or noise:a..b"),
    ("iso+", "unknown part ''"),
    ("iso:", "got '', expected a number"),
    ("iso:x", "got 'x'"),
    ("iso:nan", "got 'nan'"),
    ("iso:1_0", "got '1_0'"),
    ("iso:1e999", "finite"),
    ("iso:-1", "iso σ: got -1"),
    ("iso:1,2", r"got 2 number\(s\), expected 1"),
    ("gaussian8:2", "expected none"),
    ("aniso:4,1", r"expected 3 \(λ1,λ2,θ°\)"),
    ("aniso:4,-1,0", "aniso λ2: got -1"),
    ("iso+noise", "got ''"),
    ("iso+noise:1..2..3", "noise:n or noise:a..b"),
    ("iso+noise:9..3", "0 <= a <= b"),
    ("iso+noise:-3", "0 <= a <= b"),
    ("iso+noise:1+noise:2", "once"),
    ("iso+noise:5,6", "got '5,6'"),
])
def test_wrong_presets_are_explained_in_one_line(preset, message):
    with pytest.raises(ValueError, match=message) as error:
        Degradation.parse(preset)
    assert str(error.value).startswith(f"preset {preset!r}: ") and "\n" not in str(error.value)


@given(st.one_of(st.text(max_size=20), st.text("isoan:+,.0129-e", max_size=20), st.lists(st.sampled_from(
    ["iso", "aniso", "noise", ":", "+", "..", ",", "1", "4", "\n", " "]), max_size=9).map("".join)))
@example("iso:2\n")
@example("iso+noise:1\n+noise:2")
def test_any_text_is_read_or_refused_in_one_line(text):
    try:
        degradation = Degradation.parse(text)
        assert Degradation.parse(degradation.preset) == degradation
    except ValueError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("scale", [1, 5, 0, -4])
def test_scale_is_checked(scale):
    with pytest.raises(ValueError, match="scale: got"):
        Degradation.parse("iso", scale)


# --- draws -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("scale", [2, 3, 4])
def test_drawn_ranges(scale):
    assert SIGMA_RANGE[scale] == (0.2, scale)
    draws = [Degradation.parse("aniso+noise:5..25", scale).sample(generator(scale, i)) for i in range(1500)]
    for values, (low, high) in [
        ([p.sigma1 for p in draws], (0.2, scale)), ([p.sigma2 for p in draws], (0.2, scale)),
        ([p.theta for p in draws], (0, math.pi)), ([p.noise_level for p in draws], (5, 25)),
    ]:
        assert low <= min(values) and max(values) <= high
        shares = np.histogram(values, bins=5, range=(low, high))[0] / len(values)
        assert abs(shares - 0.2).max() < 0.05, "not uniform"
    assert abs(np.corrcoef([(p.sigma1, p.sigma2, p.theta, p.noise_level) for p in draws], rowvar=False) - np.eye(4)).max() < 0.1
    assert len({p.noise_seed for p in draws}) == len(draws)


@given(st.sampled_from(PRESETS), scales, st.integers(0, 99))
def test_draws_follow_the_generator_alone(preset, scale, key):
    degradation = Degradation.parse(preset, scale)
    assert degradation.sample(generator(key)) == degradation.sample(generator(key))
    assert degradation.sample(generator(key)).scale == scale


@pytest.mark.parametrize("kernel", ["iso", "aniso", "gaussian8", "iso:1"])
def test_noise_changes_no_other_draw(kernel):
    plain, noisy = (Degradation.parse(kernel + part).sample(generator(3)) for part in ("", "+noise:1..9"))
    assert plain == noisy.replace(noise_level=0.0)


@pytest.mark.parametrize("scale, expected", [
    (4, [1.8, 2.0, 2.2, 2.4, 2.6, 2.8, 3.0, 3.2]),
    (3, [1.35, 1.5, 1.65, 1.8, 1.95, 2.1, 2.25, 2.4]),
    (2, np.linspace(0.8, 1.6, 8).tolist()),
])
def test_gaussian8(scale, expected):
    variants = Degradation.parse("gaussian8+noise:10", scale).variants()
    assert [v.numbers[0] for v in variants] == pytest.approx(expected, abs=1e-11)
    assert all(v == Degradation.parse(v.preset, scale) and v.noise == (10, 10) for v in variants)
    drawn = {Degradation.parse("gaussian8", scale).sample(generator(i)).sigma1 for i in range(200)}
    assert drawn == {v.numbers[0] for v in variants}
    assert Degradation.parse("iso", scale).variants() == [Degradation.parse("iso", scale)]


def test_preset_angles_are_degrees():
    params = Degradation.parse("aniso:4,1,45").sample(generator(0))
    assert (params.sigma1, params.sigma2, params.theta) == (4.0, 1.0, math.radians(45))
    kernel = kernel_of(params)
    assert kernel[14, 14] > 100 * kernel[6, 14]  # the long axis falls to the lower right


# --- the operator ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("scale, params", [
    (2, {"kernel": "iso", "sigma1": 1.2, "sigma2": 1.2}), (3, {"kernel": "aniso", "sigma1": 3.0, "sigma2": 0.7, "theta": 0.5}), (4, {}),
    (4, {"kernel": "iso", "sigma1": 3.6, "sigma2": 3.6, "noise_level": 15.0, "noise_seed": 5})])
def test_operator_equals_its_definition_in_float64(scale, params):
    hr, params = photo(1, 3, 36, 48), DegradationParams(scale, **params)
    kernel = kernel_of(params).double().numpy()
    blurred = torch.from_numpy(np.stack([scipy.ndimage.correlate(c, kernel, mode="mirror") for c in hr[0].double().numpy()]))
    lr = resize(blurred[None], scale=1 / scale)
    lr = lr + params.noise_level / 255 * torch.randn(lr.shape[1:], generator=generator("noise", params.noise_seed))
    levels, ours = (lr.clamp(0, 1) * 255).round(), apply_params(hr, [params]) * 255
    assert ours.shape == (1, 3, 36 // scale, 48 // scale) and (ours - levels).abs().max() < 1.001
    assert ((ours - levels).abs() > 0.01).double().mean() < 1e-3  # a value at .5 may round either way


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_no_blur_and_no_noise_is_bicubic(scale):
    hr = photo(2, 3, 36, 60)
    bicubic, _ = Degradation.parse("bicubic", scale)(hr, generator(0))
    assert torch.equal(bicubic, quantize(resize(hr, scale=1 / scale)))
    assert torch.equal(bicubic, Degradation.parse("iso:0", scale)(hr, generator(1))[0])
    assert torch.equal(bicubic, Degradation.parse("aniso:0,0,30+noise:0", scale)(hr, generator(2))[0])


def test_result_is_eight_bit():
    lr, _ = Degradation.parse("aniso+noise:50")(photo(2, 3, 64, 64), generator(0))
    assert lr.dtype == torch.float32 and 0 <= lr.min() and lr.max() <= 1
    assert torch.equal(lr, (lr * 255).round() / 255)


def test_noise_is_white_and_belongs_to_the_image():
    flat = torch.full((3, 3, 100, 100), 0.5)
    noise = (add_noise(flat, [10.0, 10.0, 0.0], seeds=[1, 2, 3]) - flat) * 255
    assert noise[:2].std().item() == pytest.approx(10, rel=0.02) and noise[:2].mean().abs() < 0.1 and not noise[2].any()
    channels = noise[:2].transpose(0, 1).flatten(1)  # (3, 2·H·W)
    assert (torch.corrcoef(channels) - torch.eye(3)).abs().max() < 0.03
    shifted = torch.corrcoef(torch.stack([noise[0, 0, :, 1:].flatten(), noise[0, 0, :, :-1].flatten()]))
    assert abs(shifted[0, 1]) < 0.03
    assert torch.equal(add_noise(flat[:1], 10.0, seeds=[2]), add_noise(flat, 10.0, seeds=[1, 2, 3])[1:2])


@pytest.mark.parametrize("hr, params, message", [
    (torch.rand(1, 3, 30, 32), [DegradationParams(4)], "hr: 30x32 pixels, expected sides that are multiples of scale 4"),
    (torch.rand(1, 3, 8, 32), [DegradationParams(4, "iso", 1.0, 1.0)], "8x32 pixels are too few for a 21x21 kernel"),
    (torch.rand(2, 3, 32, 32), [DegradationParams(4)], "params: got 1"),
    (torch.rand(0, 3, 32, 32), [], "params: got 0"),
    (torch.rand(2, 3, 24, 24), [DegradationParams(4), DegradationParams(2)], r"scales \[2, 4\]"),
    (torch.rand(3, 32, 32), [DegradationParams(4)], "hr: got"),
    (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), [DegradationParams(4)], "hr: got torch.uint8"),
])
def test_operator_errors(hr, params, message):
    with pytest.raises(ValueError, match=message) as error:
        apply_params(hr, params)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fields, message", [
    ({"scale": 7}, "scale: got 7"), ({"scale": 4, "size": 20}, "size: got 20"), ({"scale": 4, "noise_level": -1}, "noise_level"),
    ({"scale": 4, "kernel": "aniso", "sigma1": math.inf}, "sigma1"), ({"scale": 4, "kernel": "isso"}, "did you mean 'iso'"),
    ({"scale": 4, "kernel": "iso", "sigma1": 2.0}, "for kernel 'iso'"), ({"scale": 4, "sigma1": 2.0}, "for kernel 'none'"),
    ({"scale": 4, "sigma": 2.0}, "unknown key 'sigma'"), ({"scale": 4, "noise_seed": 1.5}, "noise_seed"),
])
def test_impossible_params(fields, message):
    with pytest.raises(ValueError, match=message) as error:
        DegradationParams.from_dict(fields)
    assert "\n" not in str(error.value)


# --- replay ----------------------------------------------------------------------------------------------------------

@given(parameters(sigma=st.floats(0, 1e9), level=st.floats(0, 1e9)))
def test_params_survive_json_exactly(params):
    assert DegradationParams.from_dict(json.loads(json.dumps(params.to_dict()))) == params


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


@pytest.mark.parametrize("preset", PRESETS)
def test_call_returns_what_replays(preset):
    hr = photo(3, 3, 48, 64)
    lr, params = Degradation.parse(preset)(hr, generator(5))
    assert torch.equal(lr, apply_params(hr, params)) and torch.equal(lr, Degradation.apply(hr, params))
    own = [generator(5, i) for i in range(3)]
    lr, params = Degradation.parse(preset)(hr, own)
    alone, _ = Degradation.parse(preset)(hr[2:], generator(5, 2))
    assert torch.equal(lr[2:], alone)


def test_memory_layout_does_not_matter():
    wide = photo(1, 3, 44, 61).contiguous(memory_format=torch.channels_last)[..., 1:]  # odd alignment, no plain strides
    params = [DegradationParams(4, "aniso", 3.0, 0.5, 1.0, noise_level=3.0), DegradationParams(4)]
    for p in params:
        assert torch.equal(apply_params(wide, [p]), apply_params(wide.contiguous(), [p]))


def test_bits_are_equal_in_another_process_with_one_thread():
    code = """
import hashlib, torch
from crlsr.core import generator
from crlsr.degradation import Degradation
hr = torch.rand(3, 3, 96, 132, generator=torch.Generator().manual_seed(0))
lr, params = Degradation.parse("aniso+noise:0..25")(hr, generator(1))
print(hashlib.sha256((lr * 255).round().byte().numpy().tobytes()).hexdigest())
"""
    code = "import torch; torch.set_num_threads(1)\n" + code
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    lr, _ = Degradation.parse("aniso+noise:0..25")(photo(3, 3, 96, 132), generator(1))
    assert there.strip() == hashlib.sha256((lr * 255).round().byte().numpy().tobytes()).hexdigest()


@given(st.lists(parameters(), max_size=3), st.text(st.characters(codec="utf-8"), max_size=9))
def test_file_of_params_round_trips(tmp_path_factory, params, name):
    path = tmp_path_factory.mktemp("params") / "params.json"
    records = [{"name": f"{i}{name}", "params": p, "preset": "iso", "seed": 3, "sha256": None} for i, p in enumerate(params)]
    save_params(path, records)
    assert load_params(path) == records


@pytest.mark.parametrize("content", [
    "", "not json", "[]", "{}", '{"format": 1, "images": []}', '{"format": "crlsr degradation parameters 1"}',
    '{"format": "crlsr degradation parameters 1", "images": [{"params": {"scale": 4}}]}',
    '{"format": "crlsr degradation parameters 1", "images": [{"name": "a", "params": {"kernel": "none"}}]}',
    '{"format": "crlsr degradation parameters 1", "images": [{"name": "a", "params": {"scale": 4, "sigmas": 1}}]}',
    '{"format": "crlsr degradation parameters 1", "images": [{"name": "a", "params": 4}]}', "\x00\x01",
])
def test_other_files_are_refused_in_one_line(tmp_path, content):
    path = tmp_path / "params.json"
    path.write_bytes(content.encode() + (b"\xff" if content.startswith("\x00") else b""))
    with pytest.raises(ValueError, match="not a file of degradation parameters") as error:
        load_params(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_missing_file_of_params(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_params(tmp_path / "params.json")
