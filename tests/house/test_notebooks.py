"""Every library notebook keeps the rules, runs in time, and its outputs belong to its code; the package is its export."""
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests import kernels, notebooks
from tests.export import with_relative_imports
from tests.notebooks import label

LIBRARY, PAPERMILL = notebooks.library_notebooks(), notebooks.papermill_notebooks()
SOLUTIONS = notebooks.solution_notebooks()
RUN = [*LIBRARY, *SOLUTIONS]  # with outputs, which belong to their code
MAX_TOGETHER = 4 * 2**20  # bytes of the outputs of all library notebooks
MAX_SECONDS_TOGETHER = 600  # CPU seconds of all their kernels
MAX_SECONDS_SOLUTIONS = 150  # of the kernels of all solutions
BUSY = 2  # CPU seconds of the same work double where many share caches and cores (measured), and no test may fail for that


@pytest.mark.parametrize("path", RUN, ids=label)
def test_rules(path):
    assert notebooks.lint(path) == []


@pytest.mark.parametrize("path", PAPERMILL, ids=label)
def test_papermill_rules(path):
    assert notebooks.lint_papermill(path) == []


def pages():
    "Everything that people read: all notebooks, and the texts in Markdown."
    found = [*RUN, *notebooks.NBS.glob("[a-z]*/*.ipynb"), *notebooks.ROOT.glob("*.md"), *notebooks.ROOT.glob("data/**/*.md")]
    return [path for path in found if ".ipynb_checkpoints" not in path.parts]


def text_of(path):
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    return "\n\n".join(notebooks.source(cell) for cell in notebooks.read(path)["cells"] if cell["cell_type"] == "markdown")


def broken_links(path):
    "Links of a page that lead to no file, or to no heading of it."
    bad = []
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"(?s)```.*?```", "", text_of(path))):
        if re.match(r"[a-z]+:", link):
            continue  # another host
        file, _, anchor = link.partition("#")
        target = (path.parent / file) if file else path
        headings = re.findall(r"(?m)^#+ +(.+?) *$", text_of(target)) if anchor and target.suffix in (".md", ".ipynb") and target.is_file() else []
        if not target.exists() or anchor and anchor not in [heading.replace(" ", "-") for heading in headings]:
            bad.append(link)
    return bad


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.relative_to(notebooks.ROOT).with_suffix("").as_posix())
def test_every_link_leads_somewhere(path):
    assert broken_links(path) == []


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Top\n[a](page.md) [b](#Top) [c](gone.md) [d](#Bottom) [e](https://example.org/x)\n```\n[f](code.md)\n```\n")
    assert broken_links(page) == ["gone.md", "#Bottom"]


def test_all_outputs_are_small():
    size = sum(len(json.dumps(cell.get("outputs", []), ensure_ascii=False).encode()) for path in RUN for cell in notebooks.read(path)["cells"])
    assert size <= MAX_TOGETHER, f"outputs of notebooks weigh {size} bytes, at most {MAX_TOGETHER}"


@pytest.fixture(scope="session")
def executed(request):
    "The selected notebooks, executed two at a time: path -> notebook and CPU seconds, or the error."
    paths = [item.callspec.params["path"] for item in request.session.items if getattr(item, "originalname", "") == "test_runs"]

    def run(path):
        try:
            return notebooks.execute(path)
        except Exception as error:  # noqa: BLE001 - a cell may raise anything; the notebook's own test reports it
            return error

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(paths, pool.map(run, paths)))


@pytest.mark.parametrize("path", RUN, ids=label)
def test_runs(path, executed):
    result = executed[path]
    if isinstance(result, Exception):
        raise result
    fresh, seconds = result
    for stored, run in zip(notebooks.read(path)["cells"], fresh["cells"], strict=True):
        if stored["cell_type"] == "code":
            kinds = [{o["output_type"] for o in c["outputs"]} - {"stream"} for c in (stored, run)]
            first = (notebooks.source(stored).strip().splitlines() or [""])[0]
            assert kinds[0] == kinds[1], f"stored outputs are stale at '{first}': run `make notebooks`"
    assert seconds <= BUSY * notebooks.MAX_SECONDS, f"{seconds:.0f} CPU seconds, at most {notebooks.MAX_SECONDS}"


def test_findings_follow_from_the_files_of_the_runs(executed):
    "Run again, the page of findings says to the letter what is stored: nothing in it was typed."
    path = notebooks.NBS / "00_start" / "03_findings.ipynb"
    if path not in executed:
        pytest.skip("only some notebooks were run")
    stored, fresh = (["".join("".join(out.get("text", "")) + "".join(out.get("data", {}).get("text/markdown", "")) for out in cell["outputs"])
                      for cell in nb["cells"] if cell["cell_type"] == "code"] for nb in (notebooks.read(path), executed[path][0]))
    assert stored == fresh and sum(map(bool, stored)) >= 5


@pytest.mark.parametrize("paths, most", [(LIBRARY, MAX_SECONDS_TOGETHER), (SOLUTIONS, MAX_SECONDS_SOLUTIONS)], ids=["library", "solutions"])
def test_all_notebooks_are_quick(executed, paths, most):
    if not {*paths} <= executed.keys():
        pytest.skip("only some notebooks were run")
    seconds = sum(result[1] for path in paths if not isinstance(result := executed[path], Exception))
    assert seconds <= BUSY * most, f"all notebooks took {seconds:.0f} CPU seconds, at most {most}"


def test_a_forked_kernel_is_like_any_other(tmp_path, monkeypatch):
    "Its own folder, environment, CPU seconds and error; no module but what is imported beforehand, and no name in the notebook."
    monkeypatch.setenv("CRLSR_KERNEL_TEST", "given")
    cells = [
        "import os, sys, time\nstart = time.process_time()\nwhile time.process_time() < start + 1:\n    pass",
        "print(os.getcwd(), os.environ['CRLSR_KERNEL_TEST'], 'crlsr' in sys.modules, 'torch' in globals(), os.getppid() == 1)",
    ]
    path = tmp_path / "nb.ipynb"
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "id": f"cell{i}", "metadata": {}, "outputs": [], "execution_count": None, "source": text} for i, text in enumerate(cells)],
                                "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    nb, seconds = notebooks.execute(path)
    assert os.listdir(kernels._folder()) == ["socket"], "its own are taken away"
    assert nb["cells"][1]["outputs"][0]["text"] == f"{tmp_path} given False False False\n"
    assert 1.5 < seconds < 60, "its own second, and the imports"
    path.write_text(path.read_text().replace("print(os.getcwd()", "print(1 / 0"))
    with pytest.raises(Exception, match="ZeroDivisionError"):
        notebooks.execute(path)


def export(root):
    "`make export` of the project at `root`, in a process of its own: nbdev remembers the first project that it sees."
    run = subprocess.run([sys.executable, "-m", "tests.export", str(root)], cwd=notebooks.ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_package_is_the_export_of_the_notebooks(tmp_path):
    for part in ("nbs", "crlsr"):
        shutil.copytree(notebooks.ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("_site", "__pycache__", "_share", "_modidx.py"))
    shutil.copy(notebooks.ROOT / "settings.ini", tmp_path)
    removed = export(tmp_path)
    packages = (notebooks.ROOT / "crlsr", tmp_path / "crlsr")
    ours, fresh = ({m.relative_to(p).as_posix(): m.read_text() for m in p.rglob("*.py") if m.name != "_modidx.py"} for p in packages)
    assert removed == "" and {m for m in ours.keys() | fresh.keys() if ours.get(m) != fresh.get(m)} == set(), "run `make export`"


@pytest.mark.parametrize("module, absolute, relative", [
    ("core", "from crlsr.viz import a", "from .viz import a"),
    ("data.sets", "    from crlsr.data.folders import (", "    from .folders import ("),
    ("data.sets", "from crlsr.core import (\n    a,\n)", "from ..core import (\n    a,\n)"),
    ("data.sets", "from crlsr import __version__", "from .. import __version__"),
    ("data.sets", "from crlsr.datasets import a", "from ..datasets import a"),
    ("model.crlsr", "import crlsr", "import crlsr"),
])
def test_imports_become_relative(module, absolute, relative):
    assert with_relative_imports(absolute, module) == relative


def test_export_takes_away_a_module_without_a_notebook(tmp_path):
    for part in ("nbs/01_core", "crlsr/core"):
        (tmp_path / part).mkdir(parents=True)
    shutil.copy(notebooks.ROOT / "settings.ini", tmp_path)
    shutil.copy(notebooks.ROOT / "crlsr" / "__init__.py", tmp_path / "crlsr")
    shutil.copy(notebooks.NBS / "01_core" / "01_config.ipynb", tmp_path / "nbs" / "01_core")
    (tmp_path / "crlsr" / "gone.py").write_text("# AUTOGENERATED! DO NOT EDIT! File to edit: ../nbs/00_gone.ipynb.\n")
    (tmp_path / "crlsr" / "own.py").write_text("written = 'by hand'\n")
    assert export(tmp_path) == "crlsr/gone.py: removed, no notebook exports it\n"
    modules = sorted(m.relative_to(tmp_path / "crlsr").as_posix() for m in (tmp_path / "crlsr").rglob("*.py") if m.name not in ("__init__.py", "_modidx.py"))
    assert modules == ["core/config.py", "own.py"]


def test_every_module_has_its_notebook():
    package = notebooks.ROOT / "crlsr"
    modules = {".".join(p.relative_to(package).with_suffix("").parts) for p in package.rglob("*.py") if p.stem not in ("__init__", "__main__", "_modidx")}
    assert modules == {notebooks.module_of(p) for p in notebooks.exporting_notebooks()}


@pytest.mark.parametrize("breach, message", [
    ("import os\nx = 1", "imports mixed"),
    ("import colorsys", "colorsys is imported and not used"),
    ("#| export\nimport wave", "wave is imported and not used by what is exported"),
    ("!ls", "shell or magic"),
    ("from crlsr.core import *", "star import"),
    (f"x = '{'a' * 100}'", "a line of 106 columns"),
    ("#| export\ndef f(x):\n    return x", "no docstring"),
])
def test_the_lint_can_fail(tmp_path, monkeypatch, breach, message):
    nb = notebooks.read(notebooks.NBS / "01_core" / "01_config.ipynb")
    nb["cells"].insert(5, {"cell_type": "code", "id": "breach", "metadata": {}, "outputs": [], "execution_count": None, "source": breach})
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    monkeypatch.setattr(notebooks, "NBS", tmp_path)
    bad = tmp_path / "01_config.ipynb"
    bad.write_text(notebooks.json.dumps(nb))
    assert any(message in line for line in notebooks.lint(bad))

