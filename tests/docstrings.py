"""Comments on parameters, results and fields become NumPy-style docstrings, so that `help()` and editors show what the notebook shows.

The house comments what `fastcore.docments` reads, but that reads live objects, and neither the fields of a NamedTuple nor two comments on one name.
"""
from __future__ import annotations

import ast
import io
import re
import textwrap
import tokenize
from collections.abc import Iterator

Entries = dict[str, tuple[str, str]]  # name ("" of a result) -> (": type, default x", what is said of it)
Known = dict[str, dict[str, dict[str, str]]]  # class -> method -> name -> what is said of it
WIDTH = 100  # columns of a generated line
ERROR = r"[A-Z]\w*(?:Error|Exit)\b"


def documented(text: str, known: Known | None = None) -> str:
    """A module whose docstrings say what its comments said; these go, as nothing is said twice.

    What a method leaves unsaid is what the class said that it overrides: `known` keeps that from module to module, in reading order."""
    source, changed, known = Source(text), {}, {} if known is None else known
    for node, owner in public(ast.parse(text).body):
        doc, raised = split_raises(ast.get_docstring(node))
        if isinstance(node, ast.ClassDef):
            sections = class_sections(node, source)
            for method in node.body:  # `check` of a config: whoever makes one meets it
                raised |= split_raises(ast.get_docstring(method) or "")[1] if getattr(method, "name", "") == "check" else {}
            known[node.name] = {name: said for base in node.bases for name, said in known.get(ast.unparse(base), {}).items()}
        else:
            sections = function_sections(node, source)
            above = known[owner].get(node.name, {}) if owner else {}
            for entries in sections.values():
                entries |= {name: (type_, said or above.get(name, "")) for name, (type_, said) in entries.items()}
            if owner:
                known[owner][node.name] = {name: said for entries in sections.values() for name, (_, said) in entries.items()}
        old, sections["Raises"] = node.body[0], raised
        if any(sections.values()):
            changed |= dict.fromkeys(range(old.lineno, old.end_lineno + 1)) | {old.lineno: literal(doc, sections, old.col_offset)}
    lines = [changed.get(number, source.left(number)) for number, _ in enumerate(source.lines, 1)]
    return "\n".join(line for line in lines if line is not None) + "\n"


def public(body: list[ast.stmt], owner: str = "") -> Iterator[tuple[ast.FunctionDef | ast.ClassDef, str]]:
    "What has a docstring and is not private, and whose method it is; a constructor speaks through its class."
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) and (node.name[0] != "_" or node.name == "__call__"):
            yield node, owner
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, node.name)


class Source:
    "The text of a module, and its comments until somebody takes them."

    def __init__(self, text: str):
        self.text, self.lines, self.taken = text, text.splitlines(), set()
        tokens = [t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.COMMENT]
        self.comments = {t.start[0]: (t.start[1], t.string.lstrip("# ").rstrip()) for t in tokens}

    def take(self, node: ast.AST, first: int, last: int) -> str:
        "What is said inside `node` in comments on the lines `first` to `last`, and before it in comments alone above them."
        above = first
        while above - 1 > node.lineno and self.lines[above - 2].strip().startswith("#"):
            above -= 1
        numbers = [n for n in range(above, last + 1) if n in self.comments and n not in self.taken]
        self.taken |= {*numbers}
        parts = [" ".join(self.comments[n][1] for n in numbers if (n < first) is before) for before in (True, False)]
        return "; ".join(filter(None, parts))

    def left(self, number: int) -> str | None:
        "A line without its comment, if that was taken; None if nothing is left."
        line = self.lines[number - 1]
        return line if number not in self.taken else line[: self.comments[number][0]].rstrip() or None

    def default(self, value: ast.expr | None) -> str:
        "', default x', as it is written; of a dataclass's `field(…)` what that stands for."
        if isinstance(value, ast.Call) and ast.unparse(value.func).split(".")[-1] == "field":
            given = {k.arg: k.value for k in value.keywords}
            if made := given.get("default_factory"):
                return f", default {ast.unparse(made)}()"
            value = given.get("default")
        written = value and (ast.get_source_segment(self.text, value) if value.lineno == value.end_lineno else ast.unparse(value))
        return f", default {written}" if written else ""


def kind(annotation: ast.expr) -> str:
    "A type as text; one in quotes without them."
    return annotation.value if isinstance(annotation, ast.Constant) and annotation.value else ast.unparse(annotation)


def function_sections(node: ast.FunctionDef, source: Source) -> dict[str, Entries]:
    "Parameters, and Returns or Yields."
    found, line = {"Parameters": parameters(node, source)}, node.returns.end_lineno
    type_, said = kind(node.returns), source.take(node, line, line)
    if any(isinstance(part, ast.Yield) for part in ast.walk(node)):
        return found | {"Yields": {"": (re.sub(r"^\w+\[(.*)\]$", r"\1", type_), said)}}
    return found | ({"Returns": {"": (type_, said)}} if said or type_ != "None" else {})


def parameters(node: ast.FunctionDef, source: Source) -> Entries:
    "Those of a function but self and cls, which have no annotation."
    a, found = node.args, {}
    plain = [*a.posonlyargs, *a.args]
    rows = [("", arg, default) for arg, default in zip(plain, [None] * (len(plain) - len(a.defaults)) + a.defaults)]
    rows += [("*", a.vararg, None), *(("", arg, default) for arg, default in zip(a.kwonlyargs, a.kw_defaults)), ("**", a.kwarg, None)]
    for stars, arg, default in rows:
        if arg and arg.arg not in ("self", "cls"):
            last = (default or arg).end_lineno  # a comment behind the colon is on the result
            said = "" if node.returns and last == node.returns.end_lineno else source.take(node, arg.lineno, last)
            found[stars + arg.arg] = f" : {kind(arg.annotation)}{source.default(default)}", said
    return found


def class_sections(node: ast.ClassDef, source: Source) -> dict[str, Entries]:
    "Parameters: the fields of a dataclass or NamedTuple, or what the constructor takes."
    made = {n.target.id: (f" : {kind(n.annotation)}{source.default(n.value)}", source.take(node, n.lineno, n.end_lineno))
            for n in node.body if isinstance(n, ast.AnnAssign) and n.target.id[0] != "_" and "ClassVar" not in ast.unparse(n.annotation)}
    constructor = next((n for n in node.body if getattr(n, "name", "") == "__init__"), None)
    return {"Parameters": parameters(constructor, source), "Attributes": made} if constructor else {"Parameters": made}


def split_raises(doc: str) -> tuple[str, Entries]:
    "A docstring without its sentences 'Raises AError where …', and what they say; a summary stays."
    kept, found = [], {}
    for paragraph in re.sub(r"\A(.*\.)\n(?!\n)", r"\1\n\n", doc).split("\n\n"):
        sentences = re.split(r"(?<=\.)\s+(?=[A-Z])", paragraph)
        rest = [s for s in sentences if not s.startswith("Raises ")]
        for sentence in (s for s in sentences if s not in rest):
            found |= errors(" ".join(sentence.split()).removeprefix("Raises ").rstrip("."))
        if rest != sentences:
            paragraph = textwrap.fill(" ".join(rest if rest or kept else sentences), WIDTH - 8 if kept else 999)
        kept += [paragraph] if paragraph else []
    return "\n\n".join(kept), found


def errors(text: str) -> Entries:
    "'AError, or BError where b, CError where c': 'AError, BError' -> where b, CError -> where c."
    found, names = {}, []
    for piece in filter(None, re.split(rf"(?:\A|,? |/)(?:or )?(?:an? )?(?=\b{ERROR})", text)):
        name, said = re.fullmatch(rf"({ERROR})?[,:]? ?(.*)", piece).groups()
        names.append(name or "Exception")  # "what `fit` raises"
        if said:
            found[", ".join(names)] = "", said
            names = []
    return found | {name: ("", "") for name in names}


def literal(doc: str, sections: dict[str, Entries], indent: int) -> str:
    "The docstring as it stands in the source."
    rows, margin = [doc], " " * indent
    for title, entries in sections.items():
        rows += ["", title, "-" * len(title)] if entries else []
        for name, (type_, said) in entries.items():
            rows += [name + type_, *textwrap.wrap(said, WIDTH - indent - 4, initial_indent="    ", subsequent_indent="    ",
                                                  break_long_words=False, break_on_hyphens=False)]
    text = textwrap.indent("\n".join(rows), margin).lstrip()
    raw = "\\" in text and '"""' not in text
    text = text if raw else text.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    return f'{margin}{"r" * raw}"""{text}\n{margin}"""'
