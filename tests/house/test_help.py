"""`help()` of every public name says what each parameter may be, what comes back and what is raised; the export makes it from the notebooks' comments."""
import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
import typing

import pytest

from tests.docstrings import documented, errors
from tests.house.test_package import ORDER, file_of
from tests.notebooks import exporting_notebooks, label, read, source

SHAPE = re.compile(r"\((?:\.\.\.|[\w'+*/² .|-]+,[^)]*|\w?|)\)|[Ss]hape|\bscalar|\bas (?:for|of|in) `|\blike `")
NUMBER = re.compile(r"\d|[<>≥≤]|\[\w+, \w+[\])]|\b(?:degrees|pixels?|channels?|images?|positions?|vectors?|keys?|anchors?|seconds?|minutes?|hours?|bytes|MiB|GiB|dB|nats|radians|inches|points|"
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


SAMPLE = '''
# %% ../nbs/01_a.ipynb #01234567
class Point(NamedTuple):
    """Where.

    Raises ValueError for neither."""
    # rows first
    x: int  # pixels, >= 0
    y: "float" = 1e-3  # share

class Base:
    "What others build on."
    weights: dict[str, int]  # name -> count

    def __init__(
        self,
        size: int,  # channels, >= 1
        *parts: Point,  # each once
    ):
        self.size = size  # stays

    @property
    def area(self) -> float:  # pixels
        "How much."

    def apply(
        self,
        image: Tensor,  # (B, C, H, W) in [0, 1]
        mode: str = "a",  # "a" | "b"
    ) -> Tensor:  # same shape; C:\\new
        # a remark
        "The image. Raises TypeError, or ValueError where b, OSError where c."
        return image  # stays

class Heir(Base):
    "The same, otherwise."
    def apply(self, image: Tensor, mode: str = "b") -> Tensor:
        "Another image."
        return image

# %% ../nbs/01_a.ipynb #01234568
def lines(path: str) -> Iterator[str]:  # one """ each
    "The lines of a file."
    yield path

def _private(
    x: int,  # stays
) -> int:
    "Says nothing."
    return x
'''.lstrip()


def test_comments_become_docstrings():
    text = documented(SAMPLE)
    space: dict = {"NamedTuple": typing.NamedTuple, "Tensor": object, "Iterator": typing.Iterator}
    exec(compile(text, "sample", "exec"), space)
    assert inspect.getdoc(space["Point"]) == textwrap.dedent("""\
        Where.

        Parameters
        ----------
        x : int
            rows first; pixels, >= 0
        y : float, default 1e-3
            share

        Raises
        ------
        ValueError
            for neither""")
    assert sections(space["Base"]) == {
        "Parameters": {"size": ("int", "channels, >= 1"), "parts": ("Point", "each once")}, "Attributes": {"weights": ("dict[str, int]", "name -> count")}}
    assert sections(space["Base"].area) == {"Returns": {"float": ("float", "pixels")}}
    assert sections(space["Base"].apply) == {
        "Parameters": {"image": ("Tensor", "(B, C, H, W) in [0, 1]"), "mode": ('str, default "a"', '"a" | "b"')},
        "Returns": {"Tensor": ("Tensor", "same shape; C:\\new")}, "Raises": {"TypeError, ValueError": ("TypeError, ValueError", "where b"), "OSError": ("OSError", "where c")}}
    assert inspect.getdoc(space["Base"].apply).startswith("The image.\n\nParameters")
    assert sections(space["Heir"].apply) == {
        "Parameters": {"image": ("Tensor", "(B, C, H, W) in [0, 1]"), "mode": ('str, default "b"', '"a" | "b"')}, "Returns": {"Tensor": ("Tensor", "same shape; C:\\new")}}
    assert sections(space["lines"]) == {"Parameters": {"path": ("str", "")}, "Yields": {"str": ("str", 'one """ each')}}
    kept = [line.strip() for line in text.splitlines() if "#" in line]
    assert kept == ["# %% ../nbs/01_a.ipynb #01234567", "self.size = size  # stays", "# a remark", "return image  # stays", "# %% ../nbs/01_a.ipynb #01234568", "x: int,  # stays"]
    assert bare(text) == bare(SAMPLE)


@pytest.mark.parametrize("text, entries", [
    ("ValueError for another", {"ValueError": ("", "for another")}), ("OSError", {"OSError": ("", "")}),
    ("ValueError/FileNotFoundError where it has none", {"ValueError, FileNotFoundError": ("", "where it has none")}),
    ("a ValueError that names it", {"ValueError": ("", "that names it")}), ("what `fit` raises", {"Exception": ("", "what `fit` raises")}),
])
def test_errors_are_told_apart(text, entries):
    assert errors(text) == entries


def bare(text: str) -> str:
    "The syntax tree of a module without its docstrings."
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return ast.dump(tree)


@pytest.mark.parametrize("path", exporting_notebooks(), ids=label)
def test_the_export_changes_docstrings_and_nothing_else(path):
    cells = [source(cell) for cell in read(path)["cells"] if cell["cell_type"] == "code" and source(cell).startswith("#| export")]
    raw = "\n\n".join(cell.split("\n", 1)[1] for cell in cells) + "\n"
    text = documented(raw)
    assert bare(text) == bare(raw) and documented(raw) == text


@pytest.mark.parametrize("type_, said, lack", [
    ("Tensor", "vectors", "no shape"), ("Tensor", "(B, M, D)", ""), ("Tensor", "like `x`", ""), ("Tensor, default None", "", "nothing is said"),
    ("int", "how wide", "no range or unit"), ("int", "pixels", ""), ("float", "> 0", ""), ("float", "in [low, high)", ""), ("float", "degrees", ""), ("float | None, default None", "a share of all", ""),
    ("str", "which", "no choices or kind of text"), ("str", '"a" | "b"', ""), ("ModelConfig", "", ""), ("dict[str, int]", "", "nothing is said"), ("bool", "whether", ""),
])
def test_the_rule_can_fail(type_, said, lack):
    assert lacking(type_, said) == lack
