"""The papermill notebooks take what the configs know: each option once, under its flat name, with its type."""
import ast
import types
import typing

import pytest

from crlsr.core import field_types
from crlsr.model import FLAT, ModelConfig
from crlsr.studies.execution import declared_parameters
from crlsr.training import TrainConfig
from tests import notebooks

TRAIN = notebooks.NBS / "reproduce" / "train.ipynb"
OWN = {"profile", "name", "run_dir", "test_data", "test_presets", "pictures", "picture_preset"}  # of the run: where, and what is looked at
OPTIONS = {**field_types(TrainConfig), **{name: field_types(type(getattr(ModelConfig(), group)))[field] for name, (group, field) in FLAT.items()}}


def lines():
    (cell,) = [c for c in notebooks.read(TRAIN)["cells"] if "parameters" in c["metadata"].get("tags", [])]
    return ast.parse(notebooks.source(cell)).body


def papermill_type(hint):
    "How papermill writes the type of an option that may be left to the profile: no tuples, no choices, no unions."
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return papermill_type(next(option for option in args if option is not type(None)))
    if origin is typing.Literal:
        return type(args[0]).__name__
    return f"list[{args[0].__name__}]" if origin is tuple else hint.__name__


def test_each_name_stands_once_and_is_an_option_or_the_run_s_own():
    names = [line.target.id for line in lines()]
    assert len(names) == len(set(names)) and set(names) == OWN | OPTIONS.keys() and not OWN & OPTIONS.keys()
    assert list(declared_parameters(TRAIN)) == names


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_has_its_type_and_is_left_to_the_profile(name):
    (line,) = [line for line in lines() if line.target.id == name]
    expected = "int" if name == "seed" else f"Optional[{papermill_type(OPTIONS[name])}]"
    assert ast.unparse(line.annotation) == expected and ast.literal_eval(line.value) == (0 if name == "seed" else None)
