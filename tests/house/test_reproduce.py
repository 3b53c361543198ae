"""The papermill notebooks take what the configs know: each option once, under its flat name, with its type."""
import ast
import re
import types
import typing

import pytest

from crlsr.core import field_types
from crlsr.model import FLAT, ModelConfig
from crlsr.studies.execution import declared_parameters
from crlsr.training import TrainConfig
from tests import notebooks

TRAIN = notebooks.NBS / "reproduce" / "train.ipynb"
OWN = {"profile", "name", "run_dir", "test_data", "test_presets", "pictures", "picture_preset", "draws", "other_draws"}  # of the run: where, and what is looked at
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


def comments():
    (cell,) = [c for c in notebooks.read(TRAIN)["cells"] if "parameters" in c["metadata"].get("tags", [])]
    return {line.partition(":")[0]: line.partition("  # ")[2] for line in notebooks.source(cell).splitlines() if not line.startswith("#")}


def choices(hint):
    "The texts and numbers that an option chooses from, or none."
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [choice for option in typing.get_args(hint) for choice in choices(option)]
    return list(typing.get_args(hint)) if typing.get_origin(hint) is typing.Literal else []


@pytest.mark.parametrize("name", [name for name, hint in OPTIONS.items() if choices(hint)])
def test_a_comment_names_all_choices_and_no_other(name):
    "`training` and `schedule` explain theirs; every choice is a word of the comment, and what looks like a choice is one."
    comment = comments()[name]
    words = re.findall(r"[\w]+", comment)
    assert [str(choice) for choice in choices(OPTIONS[name]) if str(choice) not in words] == []
    for listed in re.findall(r"^((?:\w+, )*\w+ or \w+)", comment):
        assert set(re.split(", | or ", listed)) == {str(choice) for choice in choices(OPTIONS[name])}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_comment_says_what_none_means_only_where_none_is_a_value(name):
    assert comments()[name] and ("None:" not in comments()[name] or type(None) in typing.get_args(OPTIONS[name]))
