"""core.config: named randomness, strict configs, what a result was computed with."""
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Literal

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from crlsr import core

keys = st.lists(st.one_of(st.integers(-(2**70), 2**70), st.text(max_size=8)), min_size=1, max_size=4)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8)


@dataclass(frozen=True)
class Options(core.Config):
    steps: int = 10
    rate: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    input: Literal["lr", "upsampled"] = "lr"
    limit: int | None = None
    on: bool = True


@given(keys, keys)
def test_generators_follow_their_key(a, b):
    draw = lambda key: torch.rand(4, generator=core.generator(*key)).tolist()
    assert draw(a) == draw(a)
    assert (draw(a) == draw(b)) == (json.dumps(a) == json.dumps(b))


def test_generator_ignores_the_global_state():
    torch.manual_seed(1)
    first = torch.rand(2, generator=core.generator("x"))
    torch.manual_seed(2)
    assert torch.equal(first, torch.rand(2, generator=core.generator("x")))


@pytest.mark.parametrize("key", [(), (1.5,), (None,), (True,)])
def test_generator_refuses_other_keys(key):
    with pytest.raises(ValueError, match="generator"):
        core.generator(*key)


@given(st.integers(1, 1000), st.floats(0, 1), st.none() | st.integers(0, 9), st.sampled_from(["lr", "upsampled"]))
def test_config_survives_json_and_text(steps, rate, limit, kind):
    config = Options(steps=steps, rate=rate, limit=limit, input=kind)
    again = Options.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and again.digest() == config.digest()
    assert Options().override([f"{k}={json.dumps(v)}" for k, v in config.to_dict().items()]) == config


@pytest.mark.parametrize("changes, message", [
    ({"stps": 3}, r"unknown key 'stps'; did you mean 'steps'\?"),
    ({"zzz": 3}, "known: steps, rate"),
    ({"steps": 3.0}, r"Options.steps: got 3.0 \(float\), expected int"),
    ({"steps": True}, "expected int"),
    ({"on": 1}, "expected bool"),
    ({"rate": "fast"}, "expected float"),
    ({"betas": [0.9]}, "Options.betas"),
    ({"betas": ["a", 0.9]}, r"betas\[0\]"),
    ({"input": "upsample"}, "did you mean 'upsampled'"),
])
def test_config_refuses(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        Options().replace(**changes)
    assert "\n" not in str(caught.value)


def test_config_is_frozen_and_settings_need_a_value():
    with pytest.raises(AttributeError):
        Options().steps = 3
    with pytest.raises(ValueError, match="expected key=value"):
        Options().override(["steps"])


@given(json_values)
def test_digest_is_that_of_canonical_json(value):
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    assert core.digest(value) == hashlib.sha256(text.encode()).hexdigest()[:12]


def test_missing_things_say_what_to_do():
    with pytest.raises(FileNotFoundError, match="data/nothing.json"):
        core.share_path("data/nothing.json")


@pytest.mark.parametrize("installed", ["checkout", "wheel"])
def test_a_missing_module_is_named_with_the_command_that_brings_it(tmp_path, monkeypatch, installed):
    (tmp_path / "crlsr").mkdir()
    monkeypatch.setattr("crlsr.__file__", str(tmp_path / "crlsr" / "__init__.py"))
    if installed == "checkout":
        (tmp_path / "setup.py").touch()
    target = {"checkout": f'-e "{tmp_path}[gradients]"', "wheel": '"crlsr[gradients]"'}[installed]
    with pytest.raises(ImportError, match=f"^no_such_module is not installed .no_such_module is missing.: pip install {re.escape(target)}$"):
        core.require("no_such_module", "gradients")


def test_seed_everything_fixes_the_weights():
    core.seed_everything(5)
    first = torch.rand(3)
    core.seed_everything(5)
    assert torch.equal(first, torch.rand(3))
    with pytest.raises(ValueError, match="seed"):
        core.seed_everything(-1)


def test_environment_names_versions():
    record = core.environment()
    assert record["torch"] == torch.__version__ and record["threads"] == torch.get_num_threads()
    json.dumps(record)


def test_a_missing_field_is_named():
    from crlsr.degradation import DegradationParams

    with pytest.raises(ValueError, match="missing key 'scale'"):
        DegradationParams.from_dict({"kernel": "none"})


def test_a_config_may_hold_configs_of_a_subclass_and_nothing_else():
    @dataclass(frozen=True)
    class Part(core.Config):
        size: int = 1

    @dataclass(frozen=True)
    class Wheel(Part):
        spokes: int = 3

    @dataclass(frozen=True)
    class Whole(core.Config):
        parts: tuple[Part, ...] = ()

    assert Whole((Part(2), Wheel(1))).parts == (Part(2), Wheel(1))
    with pytest.raises(ValueError, match=r"Whole.parts\[1\]: got 3 \(int\), expected Part"):
        Whole((Part(), 3))


@pytest.mark.parametrize("value, choices, expected", [
    ("bot", ("hr", "both"), "x: got 'bot', expected one of 'hr', 'both'; did you mean 'both'?"),
    (True, (1, 2), "x: got True, expected one of 1, 2"), (1, (False, True), "x: got 1, expected one of False, True"), ("none", (False, True), "x: got 'none', expected one of False, True"),
])
def test_a_choice_is_one_of_its_choices(value, choices, expected):
    core.check_choice("x", choices[1], choices)
    with pytest.raises(ValueError) as error:
        core.check_choice("x", value, choices)
    assert str(error.value) == expected


def test_settings_are_shown_in_the_words_that_make_a_module():
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.factor, self.kind, self.inner, self.act = torch.nn.Parameter(torch.tensor(0.25)), "lr", torch.nn.ReLU(), torch.relu

    assert core.shown(Layer(), "factor", "kind", "inner") == "factor=Parameter(0.25), kind='lr'"
    assert "0x" not in core.shown(Layer(), "act")
