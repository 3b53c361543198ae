"""`help()` of every public name says what each parameter may be, what comes back and what is raised; the export makes it from the notebooks' comments."""
import ast
import dataclasses
import importlib
import inspect
import re
import textwrap

import pytest

from tests.docstrings import documented
from tests.house.test_package import ORDER, file_of
from tests.notebooks import exporting_notebooks, label, read, source

SHAPE = re.compile(r"\((?:\.\.\.|[\w'+*/² .|-]+,[^)]*|\w?|)\)|[Ss]hape|\bscalar|\bas (?:for|of|in) `|\blike `")
NUMBER = re.compile(r"\d|[<>≥≤]|\b(?:pixels?|channels?|images?|positions?|vectors?|keys?|anchors?|seconds?|minutes?|hours?|bytes|MiB|GiB|dB|nats|radians|inches|points|"
                    r"steps?|blocks?|shares?|weights?|momentum|side|rows?|columns?|numbers?|at least|or more|infinite|seeds?|draws?|size|values?|units?|total|[A-Z])\b")
TEXT = re.compile(r"\"|'|`|\b(?:names?|titles?|texts?|labels?|paths?|urls?|messages?|words?|keys?|digits|what|columns?|rows?|lines?|codes?|commands?|formats?|suffix|attributes?|fields?|units?)\b", re.I)
PLAIN = ("Tensor", "ndarray", "int", "float", "str", "bool", "tuple", "list", "dict", "Any", "Callable", "Iterator", "Iterable", "Mapping", "Sequence", "bytes", "None", "Generator")


def lacking(type_: str, said: str) -> str:
    "What the line on a parameter or a result lacks: tensors have a shape, numbers a range or a unit, texts their choices or their kind."
    outer = re.sub(r"\[.*", "", type_.split(", default")[0].split(" | ")[0])
    kinds = {part: re.search(rf"\b{part}\b", re.sub(r"Literal\[.*?\]|Callable\[.*|(?:dict|Mapping)\[.*", "", type_)) for part in ("Tensor", "ndarray", "float", "int", "str")}
    if not said.strip():
        return "" if outer and outer not in PLAIN else "nothing is said"
    if (kinds["Tensor"] or kinds["ndarray"]) and not SHAPE.search(said):
        return "no shape"
    if (kinds["int"] or kinds["float"]) and not kinds["Tensor"] and not NUMBER.search(said):
        return "no range or unit"
    if kinds["str"] and "Path" not in type_ and not kinds["int"] and not kinds["float"] and not TEXT.search(said):
        return "no choices or kind of text"
    return ""


def sections(thing: object) -> dict[str, dict[str, tuple[str, str]]]:
    "The docstring as the NumPy style has it: section -> name -> (type, what is said)."
    _, *parts = re.split(r"(?m)^(\w+)\n-+\n", inspect.getdoc(thing) or "")
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for title, body in zip(parts[::2], parts[1::2]):
        for head, said in re.findall(r"(?m)^(\S.*)\n((?: {4}.*\n)*)", body + "\n"):
            name, _, type_ = head.partition(" : ")
            found.setdefault(title, {})[name.lstrip("*")] = (type_ or head, " ".join(said.split()))
    return found


def raising(module: str) -> dict[str, bool]:
    "Qualified name -> whether a function of a module raises: itself, or in a private function or a check that it calls."
    tree = ast.parse(file_of(module).read_text(encoding="utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    for owner in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        functions |= {f"{owner.name}.{node.name}": node for node in owner.body if isinstance(node, ast.FunctionDef)}

    def raises(node: ast.AST, seen: frozenset) -> bool:
        if any(isinstance(part, ast.Raise) and part.exc is not None for part in ast.walk(node)):
            return True
        for call in (part.func for part in ast.walk(node) if isinstance(part, ast.Call)):
            name = call.id if isinstance(call, ast.Name) else call.attr if isinstance(call, ast.Attribute) else ""
            if name.startswith("check_") or (isinstance(call, ast.Attribute) and name in ("need", "require")):
                return True
            if name.startswith("_") and name in functions and name not in seen and raises(functions[name], seen | {name}):
                return True
        return False

    return {name: raises(node, frozenset({name})) for name, node in functions.items()}


def spoken(cls: type) -> dict[str, object]:
    "The members of a class that a reader of `help` meets: its own public methods and properties, and calling it."
    return {name: value for name, value in vars(cls).items() if (name == "__call__" or not name.startswith("_"))
            and (inspect.isfunction(value) or isinstance(value, (property, classmethod, staticmethod)))}


def constructor(cls: type) -> dict[str, inspect.Parameter]:
    "What a class of ours is made with, where it says so itself."
    own = dataclasses.is_dataclass(cls) or hasattr(cls, "_fields") or "__init__" in vars(cls)
    return dict(inspect.signature(cls).parameters) if own else {}


def breaches(module: str) -> list[str]:
    "Every line that `help` of a module's public names lacks."
    found, loaded, raises = [], importlib.import_module(f"crlsr.{module}"), raising(module)

    def look(name: str, thing: object) -> None:
        doc = sections(thing)
        function = thing.fget if isinstance(thing, property) else getattr(thing, "__func__", thing)
        takes = constructor(thing) if isinstance(thing, type) else inspect.signature(function).parameters
        lines = {f"{name}({p})": doc.get("Parameters", {}).get(p) for p in takes if p not in ("self", "cls")}
        if not isinstance(thing, type) and inspect.signature(function).return_annotation not in (None, "None"):
            lines[f"{name} ->"] = next(iter((doc.get("Returns") or doc.get("Yields") or {}).values()), None)
        found.extend(f"{module}: {at}: {lack}" for at, line in lines.items() if (lack := lacking(*line) if line else "is not there"))
        called = [f"{name}.__init__", f"{name}.check", f"{name}.__post_init__"] if isinstance(thing, type) else [name]
        if any(raises.get(part) for part in called) and "Raises" not in doc:
            found.append(f"{module}: {name}: raises, but does not say what")

    for name in loaded.__all__:
        thing = getattr(loaded, name)
        if inspect.isfunction(thing) or isinstance(thing, type):
            look(name, thing)
            for member, value in spoken(thing).items() if isinstance(thing, type) else ():
                look(f"{name}.{member}", value)
    return found


@pytest.mark.parametrize("module", ORDER)
def test_help_explains_every_parameter_result_and_error(module):
    assert breaches(module) == []
