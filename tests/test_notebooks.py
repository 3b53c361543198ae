"""Every library notebook keeps the rules, runs in time, and its outputs belong to its code; the package is its export."""
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests import notebooks

LIBRARY, PAPERMILL = notebooks.library_notebooks(), notebooks.papermill_notebooks()
MAX_TOGETHER = 4_000_000  # bytes of all library notebooks, outputs included


def name(path):
    return path.stem


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_rules(path):
    assert notebooks.lint(path) == []


@pytest.mark.parametrize("path", PAPERMILL, ids=name)
def test_papermill_rules(path):
    assert notebooks.lint_papermill(path) == []


def test_all_notebooks_are_small():
    size = sum(path.stat().st_size for path in LIBRARY)
    assert size <= MAX_TOGETHER, f"library notebooks weigh {size} bytes, at most {MAX_TOGETHER}"


@pytest.fixture(scope="session")
def executed(request):
    "The selected notebooks, executed two at a time on one thread each: (name -> notebook and seconds or the error, seconds of all)."
    paths = [item.callspec.params["path"] for item in request.session.items if getattr(item, "originalname", "") == "test_runs"]

    def run(path):
        try:
            return notebooks.execute(path, threads=1)
        except Exception as error:  # noqa: BLE001 - a cell may raise anything; the notebook's own test reports it
            return error

    start = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        results = dict(zip((path.stem for path in paths), pool.map(run, paths)))
    return results, time.perf_counter() - start


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_runs(path, executed):
    result = executed[0][path.stem]
    if isinstance(result, Exception):
        raise result
    fresh, seconds = result
    for stored, run in zip(notebooks.read(path)["cells"], fresh["cells"], strict=True):
        if stored["cell_type"] == "code":
            kinds = [{o["output_type"] for o in c["outputs"]} - {"stream"} for c in (stored, run)]
            first = (notebooks.source(stored).strip().splitlines() or [""])[0]
            assert kinds[0] == kinds[1], f"stored outputs are stale at '{first}': run `make notebooks`"
    assert seconds <= notebooks.MAX_SECONDS, f"{seconds:.0f} s, at most {notebooks.MAX_SECONDS}"


def test_all_notebooks_are_quick(executed):
    results, seconds = executed
    if len(results) < len(LIBRARY):
        pytest.skip("only some notebooks were run")
    assert seconds <= 300, f"all notebooks took {seconds:.0f} s on two cores, at most 300"


def test_package_is_the_export_of_the_notebooks(tmp_path):
    for part in ("nbs", "crlsr"):
        shutil.copytree(notebooks.ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("_site", "__pycache__", "_share"))
    shutil.copy(notebooks.ROOT / "settings.ini", tmp_path)
    subprocess.run([sys.executable, "-c", "from nbdev.doclinks import nbdev_export; nbdev_export()"], cwd=tmp_path, check=True, capture_output=True)
    modules = {p.name for p in (notebooks.ROOT / "crlsr").glob("*.py")} | {p.name for p in (tmp_path / "crlsr").glob("*.py")}
    stale = [
        m for m in sorted(modules - {"_modidx.py"})
        if not (notebooks.ROOT / "crlsr" / m).exists()
        or (notebooks.ROOT / "crlsr" / m).read_text() != (tmp_path / "crlsr" / m).read_text()
    ]
    assert stale == [], "run `make export`"


def test_every_module_has_its_notebook():
    modules = {p.stem for p in (notebooks.ROOT / "crlsr").glob("*.py")} - {"__init__", "_modidx"}
    assert modules == {p.stem.split("_", 1)[1] for p in LIBRARY if p.stem != "index"}


@pytest.mark.parametrize("breach, message", [
    ("import os\nx = 1", "imports mixed"),
    ("!ls", "shell or magic"),
    ("from crlsr.core import *", "star import"),
    ("#| export\ndef f(x):\n    return x", "no docstring"),
])
def test_the_lint_can_fail(tmp_path, monkeypatch, breach, message):
    nb = notebooks.read(notebooks.NBS / "00_core.ipynb")
    nb["cells"].insert(5, {"cell_type": "code", "id": "breach", "metadata": {}, "outputs": [], "execution_count": None, "source": breach})
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    bad = tmp_path / "00_core.ipynb"
    bad.write_text(notebooks.json.dumps(nb))
    assert any(message in line for line in notebooks.lint(bad))

