"""cli: `--set` means the same for every command."""
import pytest

from crlsr.app.cli import _study_settings
from crlsr.training import profile


@pytest.mark.parametrize("text, name, value", [
    ("weight_bc=0", "weight_bc", 0.0), ("decoupling.weight=.5", "weight_bc", 0.5), ("stop_gradient=None", "stop_gradient", "none"), ("share_heads=True", "share_heads", True),
    ("srnce_negatives=none", "srnce_negatives", "none"), ("steps=7", "steps", 7), ("preset=iso:2.4", "preset", "iso:2.4"), ("data=2024", "data", "2024"),
    ("betas=[0.5, 0.9]", "betas", (0.5, 0.9)), ("refinement.blur_sigmas=[1, 2]", "blur_sigmas", (1.0, 2.0)), ("learning_rate=1e-4", "learning_rate", 1e-4),
])
def test_training_and_studies_read_a_setting_alike(text, name, value):
    model, train = profile("smoke", [text])
    found = {**model.flat(), **train.to_dict()}[name]
    assert found == value and type(found) is type(value)
    for_study = _study_settings([text])
    assert for_study == {name: list(value) if isinstance(value, tuple) else value}
    assert profile("smoke", for_study) == (model, train)


@pytest.mark.parametrize("text, word", [
    ("weight_bc=abc", "weight_bc: got 'abc'"), ("decoupling.wieght=1", "did you mean 'decoupling.weight'"), ("steps=0", "steps: got 0"), ("guidance_end=None", "left to the profile")])
def test_a_wrong_setting_of_a_study_is_told_before_anything_is_planned(text, word):
    with pytest.raises(ValueError, match=word):
        _study_settings([text])


def test_own_parameters_of_the_notebook_pass():
    assert _study_settings(['test_presets=["iso"]', "pictures=3"]) == {"test_presets": ["iso"], "pictures": 3}
