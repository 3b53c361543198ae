"""Runs and lints the notebooks: `python -m tests.notebooks run|lint [NAME...]`, NAME a path under nbs as 04_degradation/03_blur (all library notebooks and solutions by default)."""
from __future__ import annotations

import ast
import configparser
import json
import os
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
NBS = ROOT / "nbs"
MAX_SECONDS, MAX_BYTES = 30, 200 * 1024  # of one notebook: CPU time of its kernel, size with outputs
MAX_CELL_LINES, MAX_CLASS_LINES = 40, 100  # of an exported cell; a class cannot be divided, and signatures take a line a parameter
MAX_MODULE_LINES = 450  # of at most MAX_COLUMNS: the same code filled 400 longer ones
MAX_COLUMNS = 100  # of a line of code: JupyterLab cuts off the rest at 1280 pixels
IMPORTS = (ast.Import, ast.ImportFrom)


def library_notebooks(nbs: Path | None = None) -> list[Path]:
    "The notebooks that readers go through in order, chapter by chapter, and the index."
    nbs = nbs or NBS
    numbered = [*nbs.glob("[0-9]*.ipynb"), *nbs.glob("[0-9]*/[0-9]*.ipynb")]
    return sorted(numbered, key=lambda path: path.relative_to(nbs).as_posix()) + sorted(nbs.glob("index.ipynb"))


def solution_notebooks() -> list[Path]:
    "The solutions of the learner's exercises, one notebook a chapter."
    return sorted(NBS.glob("[0-9]*/solutions.ipynb"))


def module_of(path: Path, nbs: Path | None = None) -> str:
    "The module that a library notebook exports: 04_degradation/03_blur.ipynb -> degradation.blur."
    return ".".join(part.split("_", 1)[1] for part in path.relative_to(nbs or NBS).with_suffix("").parts)


def exporting_notebooks(nbs: Path | None = None) -> list[Path]:
    "The library notebooks with a module of their own, in reading order: a module imports only earlier ones."
    return [path for path in library_notebooks(nbs) if any(source(c).startswith("#| export") for c in read(path)["cells"] if c["cell_type"] == "code")]


def reading_paths() -> dict[str, list[str]]:
    "The three paths that the index names, HOUR, LEARNER and REPRODUCER: labels of notebooks in reading order."
    code = next(source(cell) for cell in read(NBS / "index.ipynb")["cells"] if source(cell).startswith("HOUR = "))
    space: dict[str, list[str]] = {}
    for node in ast.parse(code).body:
        if isinstance(node, ast.Assign):
            exec(ast.unparse(node), {}, space)
    return space


def label(path: Path) -> str:
    "How a notebook is called on the command line and in the names of tests: its path under nbs."
    return path.relative_to(NBS).with_suffix("").as_posix()


def papermill_notebooks() -> list[Path]:
    return sorted((NBS / "reproduce").glob("*.ipynb"))


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def settings() -> configparser.SectionProxy:
    "settings.ini, which nbdev and setup.py read too."
    parser = configparser.ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def write_clean(path: Path, nb: dict) -> None:
    "Writes `nb` as nbdev cleans it: no counts, no ids of objects, only the metadata that settings.ini allows."
    from execnb.nbio import dict2nb, write_nb
    from nbdev.clean import clean_nb

    for cell in nb["cells"]:  # streams of a kernel arrive in pieces: join them, so that outputs do not depend on timing
        joined: list[dict] = []
        for out in cell.get("outputs", []):
            if joined and out["output_type"] == joined[-1]["output_type"] == "stream" and out["name"] == joined[-1]["name"]:
                joined[-1]["text"] = "".join(joined[-1]["text"]) + "".join(out["text"])
            else:
                joined.append(out)
        if "outputs" in cell:
            cell["outputs"] = joined
    nb = dict2nb(json.loads(json.dumps(nb)))
    clean_nb(nb, **{key: settings()[key].split() for key in ("allowed_metadata_keys", "allowed_cell_metadata_keys")})
    write_nb(nb, path)


def execute(path: Path, timeout: int = 600) -> tuple[dict, float]:
    "Executes a notebook with a real kernel in its own folder, on one thread; returns it with its outputs, and the CPU seconds of the kernel and what it started."
    import nbformat
    from nbclient import NotebookClient

    from tests.kernels import SPENT, Forked

    nb = nbformat.read(path, as_version=4)
    nb["cells"].append(nbformat.v4.new_code_cell(SPENT))  # wall time depends on who else is at work
    client = NotebookClient(nb, timeout=timeout, kernel_name="python3", kernel_manager_class=Forked, startup_timeout=600, resources={"metadata": {"path": str(path.parent)}})
    with tempfile.TemporaryDirectory() as cache:  # that of the user does not fill up with examples
        client.execute(env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "CRLSR_CACHE": cache})
    return nb, float(nb["cells"].pop()["outputs"][0]["text"])


def long_lines(text: str) -> list[str]:
    "Lines of code over the limit, but for those inside a text of several lines, which layout must not change."
    inside: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Constant, ast.JoinedStr)) and node.end_lineno > node.lineno:
            inside |= set(range(node.lineno, node.end_lineno + 1))
    return [line for number, line in enumerate(text.splitlines(), 1) if len(line) > MAX_COLUMNS and number not in inside]


def alone_a_class(cell: dict) -> bool:
    "Whether a cell holds one class and nothing else."
    return [type(node) for node in ast.parse(source(cell)).body] == [ast.ClassDef]


def unused_imports(cells: list[dict]) -> list[str]:
    "Names that cells import and do not use, exported cells for themselves; a name in an annotation that is a text counts as used."
    def unused(sources: list[str]) -> dict[str, None]:
        nodes = [*ast.walk(ast.parse("\n".join(re.sub(r"^\s*[!%].*$", "", text, flags=re.M) for text in sources)))]
        imported = [(alias.asname or alias.name).split(".")[0] for node in nodes if isinstance(node, IMPORTS) for alias in node.names]
        used = {node.id for node in nodes if isinstance(node, ast.Name)} | {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        return dict.fromkeys(name for name in imported if name not in used and name != "annotations")

    code = [source(c) for c in cells if c["cell_type"] == "code"]
    return [*(unused([text for text in code if text.startswith("#| export")]) | unused(code))]


def lint(path: Path) -> list[str]:
    "The rules of a library notebook that a program can check: one line per breach."
    nb, bad = read(path), []
    cells = nb["cells"]
    code = [c for c in cells if c["cell_type"] == "code" and source(c).strip()]
    prose = [c for c in cells if c["cell_type"] == "markdown"]
    exported = [c for c in code if source(c).startswith("#| export")]

    def say(text: str) -> None:
        bad.append(f"{path.relative_to(ROOT)}: {text}")

    if path.stat().st_size > MAX_BYTES:
        say(f"{path.stat().st_size // 1024} KiB, at most {MAX_BYTES // 1024}")
    if not re.match(r"# .+\n+> .+", source(cells[0])):
        say("the first cell is not '# Title' and a one-line '> description'")
    elif "$" in source(cells[0]):
        say("LaTeX in the description line becomes an invalid escape in the module docstring")
    if any(c.get("execution_count") for c in code):
        say("execution counts are not cleared: run `make notebooks`")
    if not any(c.get("outputs") for c in code):
        say("no outputs committed: run `make notebooks`")
    if nb["metadata"].get("kernelspec", {}).get("name") != "python3":
        say("kernelspec is not python3")
    if "widgets" in nb["metadata"]:
        say("widget state is stored")
    for c in code:
        text, first = source(c), source(c).strip().splitlines()[0][:50]
        if re.search(r"^\s*[!%]", text, re.M):
            say(f"a shell or magic line in the cell '{first}'")
        if re.search(r"^\s*from .+ import \*", text, re.M):
            say(f"a star import in the cell '{first}'")
        if re.search(r"^\s*from \.", text, re.M):
            say(f"a relative import in the cell '{first}'")
        for line in [] if re.search(r"^\s*[!%]", text, re.M) else long_lines(text):
            say(f"a line of {len(line)} columns, at most {MAX_COLUMNS}: '{line.strip()[:50]}'")
        top = ast.parse(re.sub(r"^\s*[!%].*$", "", text, flags=re.M)).body
        if any(isinstance(n, IMPORTS) for n in top) and not all(isinstance(n, IMPORTS) for n in top):
            say(f"imports mixed with other code in the cell '{first}'")
        for out in c.get("outputs", []):
            shown = json.dumps(out.get("text", "")) + json.dumps({k: v for k, v in out.get("data", {}).items() if k.startswith("text/")})
            if re.search(r"/(home|root|work|tmp|Users)/|0x[0-9a-f]{6,}", shown):
                say(f"a path of one machine or a memory address in the output of '{first}'")
            if out.get("name") == "stderr" or out["output_type"] == "error":
                say(f"an error or stderr stored in the output of '{first}'")
    for name in unused_imports(cells) if path.stem != "solutions" else ():  # there, functions recalled from notebooks use them
        say(f"{name} is imported and not used" + " by what is exported" * any(name in source(c) for c in exported))
    if path.stem == "solutions" and exported:
        say("solutions export nothing")
    if path.stem in ("index", "solutions"):
        return bad
    titles = [m for c in prose for m in re.findall(r"^## +(.+)$", source(c), re.M)]
    for needed in ("Recap", "Exercises", "Next"):
        if needed not in titles:
            say(f"no section '## {needed}'")
    if not all(word in source(cells[1]) for word in ("**Before", "**After", "**Time")):
        say("the second cell does not say Before, After and Time")
    if exported and source(code[0]).strip() != f"#| default_exp {module_of(path)}":
        say(f"the first code cell is not '#| default_exp {module_of(path)}'")
    if not exported and any("#| default_exp" in source(c) for c in code):
        say("a default_exp, but nothing is exported")
    if not 25 <= len(cells) <= 110:
        say(f"{len(cells)} cells, expected 25 to 110")
    if len(prose) < 0.7 * len(code):
        say(f"{len(prose)} prose cells for {len(code)} code cells, expected at least 0.7 each")
    run = 0
    for c in cells:
        run = run + 1 if c in exported else (0 if c["cell_type"] == "code" else run)
        lines = len(source(c).splitlines()) - 1
        if run > 3 and c in exported:
            say(f"more than three exported cells without an example before '{source(c).splitlines()[1][:50]}'")
        if c in exported and lines > (most := MAX_CLASS_LINES if alone_a_class(c) else MAX_CELL_LINES):
            say(f"an exported cell of {lines} lines, at most {most}: '{source(c).splitlines()[1][:50]}'")
    return bad + lint_module(path, exported)


def lint_module(path: Path, exported: list[dict]) -> list[str]:
    "Rules of the exported code: names, docstrings, hints, size."
    bad, names = [], []
    where = path.relative_to(ROOT)
    lines = sum(len(source(c).splitlines()) - 1 for c in exported)
    if lines > MAX_MODULE_LINES:
        bad.append(f"{where}: {lines} exported lines, at most {MAX_MODULE_LINES}")
    for c in exported:
        for node in ast.parse(source(c)).body:
            if isinstance(node, ast.Assign):
                names += [t.id for t in node.targets if isinstance(t, ast.Name) and not t.id.startswith("_")]
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
                continue
            names.append(node.name)
            public = [node] if isinstance(node, ast.FunctionDef) else [
                m for m in node.body if isinstance(m, ast.FunctionDef) and (m.name in ("__init__", "__call__") or not m.name.startswith("_"))]
            if not ast.get_docstring(node):
                bad.append(f"{where}: {node.name} has no docstring")
            for f in public:
                label = node.name if f is node else f"{node.name}.{f.name}"
                if f.name != "__init__" and not ast.get_docstring(f):
                    bad.append(f"{where}: {label} has no docstring")
                a = f.args
                for arg in [*a.posonlyargs, *a.args, *a.kwonlyargs]:
                    if arg.arg not in ("self", "cls") and arg.annotation is None:
                        bad.append(f"{where}: {label}({arg.arg}) has no type hint")
                if f.returns is None and f.name != "__init__":
                    bad.append(f"{where}: {label} has no return type")
                if a.kwarg and a.kwarg.arg not in ("changes", "meta"):
                    bad.append(f"{where}: {label} takes **{a.kwarg.arg}: name the parameters")
    if len(names) > 20:
        bad.append(f"{where}: {len(names)} public names, at most 20: {', '.join(names)}")
    return bad


def lint_papermill(path: Path) -> list[str]:
    "Rules of a papermill source: one cell tagged `parameters` with typed, commented literals; no outputs."
    nb, where, bad = read(path), path.relative_to(ROOT), []
    tagged = [c for c in nb["cells"] if "parameters" in c["metadata"].get("tags", [])]
    if len(tagged) != 1:
        return [f"{where}: {len(tagged)} cells tagged 'parameters', expected one"]
    for line in source(tagged[0]).splitlines():
        if line.strip() and not line.startswith("#") and not re.match(r"\w+: [\w\[\], |]+ = .+  # .+", line):
            bad.append(f"{where}: parameter without type or comment: '{line}'")
    for node in ast.parse(source(tagged[0])).body:
        try:
            ast.literal_eval(node.value)  # type: ignore[attr-defined]
        except (ValueError, AttributeError):
            bad.append(f"{where}: a parameter is not a literal: '{ast.unparse(node)}'")
    bad += [f"{where}: {name} is imported and not used" for name in unused_imports(nb["cells"])]
    if any(c.get("outputs") or c.get("execution_count") for c in nb["cells"]):
        bad.append(f"{where}: outputs are stored; a papermill source keeps none")
    return bad


def lint_explorer(path: Path) -> list[str]:
    "The rules of an explorer's source that a program can check: one line per breach."
    nb, bad = read(path), []
    cells = nb["cells"]
    code, prose = ([c for c in cells if c["cell_type"] == kind] for kind in ("code", "markdown"))
    say = lambda text: bad.append(f"{path.name}: {text}")  # noqa: E731
    if set(nb["metadata"]) != {"kernelspec"} or nb["metadata"]["kernelspec"].get("name") != "python3":
        say(f"metadata {sorted(nb['metadata'])}, expected the kernelspec python3 and nothing else, no widget state")
    if any(c.get("outputs") or c.get("execution_count") for c in code):
        say("outputs or execution counts are stored; an explorer keeps none")
    if len({c["id"] for c in cells}) < len(cells) or not all(re.fullmatch("[0-9a-f]{8}", c["id"]) for c in cells):
        say("cell ids are not distinct, of 8 hexadecimal digits each")
    if not re.match(r"# .+\n> .+", source(cells[0])) or not all(word in source(cells[1]) for word in ("**Before", "**After", "**Time")):
        say("does not begin with '# Title', '> description' and the cell of Before, After, Time")
    if len(prose) < 0.7 * len(code):
        say(f"{len(prose)} prose cells for {len(code)} code cells, expected at least 0.7 each")
    for needed in ("## Recap", "## Next"):
        if not any(source(c).startswith(needed) for c in prose):
            say(f"no section '{needed}'")
    for c in code:
        text = source(c)
        first = text.strip().splitlines()[0][:50]
        if re.search(r"^\s*([!%]|from \.|from .+ import \*)", text, re.M):
            say(f"a shell, magic, relative or star import line in the cell '{first}'")
            continue
        if len(text.splitlines()) > 40:
            say(f"{len(text.splitlines())} lines in the cell '{first}', at most 40")
        top = ast.parse(text).body
        if any(isinstance(n, IMPORTS) for n in top) and not all(isinstance(n, IMPORTS) for n in top):
            say(f"imports mixed with other code in the cell '{first}'")
        for f in ast.walk(ast.parse(text)):
            if isinstance(f, ast.FunctionDef) and not f.name.startswith("_") and not (ast.get_docstring(f) and f.returns):
                say(f"{f.name} has no docstring or no return type")
    for name in unused_imports(cells) if path.stem != "solutions" else ():  # there, functions recalled from notebooks use them
        say(f"{name} is imported and not used")
    for c in cells:
        if found := re.search(r"/(home|root|work|tmp|Users)/\S*", source(c)):
            say(f"a path of one machine: {found[0]}")
    return bad


LINTS = {"reproduce": lint_papermill, "explore": lint_explorer}  # folder -> rules; all others are library notebooks


def main(argv: list[str]) -> int:
    command, names = argv[0], argv[1:]
    paths = [NBS / f"{n}.ipynb" for n in names] or [*library_notebooks(), *solution_notebooks()]
    failed = False
    for path in paths:
        if command == "lint":
            bad = LINTS.get(path.parent.name, lint)(path)
            print(*bad, sep="\n") if bad else None
            failed |= bool(bad)
            continue
        if path.parent.name in LINTS:
            print(f"{label(path)}: keeps no outputs, so it is not run in place")
            failed = True
            continue
        try:
            nb, seconds = execute(path)
        except Exception as error:  # noqa: BLE001 - a cell may raise anything: show it and go on with the next notebook
            print(f"{label(path)}: {str(error)[-3000:]}")
            failed = True
            continue
        write_clean(path, nb)
        print(f"{label(path)}: {seconds:.1f} CPU s, {path.stat().st_size // 1024} KiB", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
