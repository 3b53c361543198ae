"""execution: declared parameters, what a run's digest sees, what is skipped, what is repeated, and what a failure leaves."""
import json
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest

from crlsr.core import field_types, share_path
from crlsr.data import embedded_images
from crlsr.images import write_image
from crlsr.model import FLAT
from crlsr.studies import execution
from crlsr.studies.execution import declared_parameters, export_page, is_finished, notebook_parameters, run_digest, run_notebook
from crlsr.training import TrainConfig
from tests.studies.conftest import write_notebook

TRAIN = share_path("nbs/reproduce/train.ipynb")
PARAMETERS = "factor: float = 2.0  # what 21 is multiplied by\nrun_dir: str = '.'  # where the product goes"
COMPUTE = "import json, os, pathlib, sys\npathlib.Path(run_dir, 'results.json').write_text(json.dumps([21 * factor, sys.executable, os.environ.get('OMP_NUM_THREADS')]))"


@pytest.fixture
def multiply(tmp_path):
    return write_notebook(tmp_path / "multiply.ipynb", PARAMETERS, COMPUTE)


# --- parameters ------------------------------------------------------------------------------------------------------------

def test_every_field_of_the_configs_is_a_parameter_of_the_training_notebook():
    declared = declared_parameters(TRAIN)
    settings = {*FLAT, *field_types(TrainConfig)}
    assert settings <= declared.keys()
    assert {name for name in settings if declared[name] is not None} == {"seed"}, "a default here would hide that of the profile"


@pytest.mark.parametrize("cells", [["x = 1"], ["x: int = 1 + 1"], ["import os"], ["x: int ="]])
def test_a_parameters_cell_holds_annotated_literals_only(tmp_path, cells):
    with pytest.raises(ValueError, match="tagged 'parameters'"):
        declared_parameters(write_notebook(tmp_path / "n.ipynb", *cells))


def test_notebook_parameters_reads_the_last_run_of_the_cell():
    history = ["", "import os", "a: int = 1  # first try", "b = 3", "a: int = 2  # second try\nc: str = 'x'  # new"]
    assert notebook_parameters({"In": history, "a": 2, "c": "x", "b": 3}) == {"a": 2, "c": "x"}
    assert notebook_parameters({"In": [*history, "# Parameters\na = 5\nc = 'y'\n"], "a": 5, "c": "y"}) == {"a": 5, "c": "y"}
    with pytest.raises(ValueError, match="unknown parameter 'aa'"):
        notebook_parameters({"In": [*history, "# Parameters\naa = 5"], "a": 2, "c": "x"})


def test_a_misspelt_parameter_is_refused_by_the_runner(tmp_path):
    with pytest.raises(ValueError, match="^train.ipynb: unknown parameter 'setps'; did you mean 'steps'\\?$"):
        run_notebook(TRAIN, {"setps": 3}, tmp_path / "train.ipynb")
    assert not list(tmp_path.iterdir())


def test_a_misspelt_parameter_is_refused_by_the_notebook_itself(tmp_path):
    out = tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "papermill", str(TRAIN), str(out), "-p", "setps", "3", "-p", "run_dir", str(tmp_path / "run"), "--no-progress-bar"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "ValueError: papermill: unknown parameter 'setps'; did you mean 'steps'?" in done.stderr
    assert not (tmp_path / "run").exists()


# --- digests ---------------------------------------------------------------------------------------------------------------

def test_run_digest_sees_what_counts_and_nothing_else(tmp_path, multiply):
    write_image(embedded_images()["coffee"][:, :16, :16], tmp_path / "photos" / "a.png")
    (tmp_path / "one.json").write_text("1")
    data = [str(tmp_path / "photos"), str(tmp_path / "one.json")]
    base = run_digest(multiply, {"factor": 3.0}, data)
    assert run_digest(multiply, {"factor": 3.0, "run_dir": "elsewhere"}, data) == base
    assert run_digest(write_notebook(tmp_path / "same.ipynb", PARAMETERS, "# why\n" + COMPUTE + "  # how\n"), {"factor": 3.0}, data) == base
    assert run_digest(multiply, {"factor": 3.5}, data) != base
    assert run_digest(write_notebook(tmp_path / "new.ipynb", PARAMETERS.replace("2.0", "2.5"), COMPUTE), {"factor": 3.0}, data) != base
    (tmp_path / "one.json").write_text("2")
    assert run_digest(multiply, {"factor": 3.0}, data) != base
    (tmp_path / "one.json").write_text("1")
    write_image(embedded_images()["coffee"][:, :16, :16], tmp_path / "photos" / "b.png")
    assert run_digest(multiply, {"factor": 3.0}, data) != base


def test_run_digest_sees_the_numerics_and_not_the_version(multiply, monkeypatch):
    base = run_digest(multiply, {})
    monkeypatch.setattr("crlsr.__version__", "99")
    assert run_digest(multiply, {}) == base
    monkeypatch.setattr(execution, "NUMERICS", execution.NUMERICS + 1)
    assert run_digest(multiply, {}) != base


# --- what is finished; papermill replaced by a stand-in -----------------------------------------------------------------------

@pytest.fixture
def executed(monkeypatch):
    "Counts executions; writes what a kernel would."
    calls = []

    def stand_in(notebook, parameters, partial, threads):
        calls.append(parameters)
        partial.write_text(notebook.read_text())
        (partial.parent / "results.json").write_text("1")

    monkeypatch.setattr(execution, "_execute", stand_in)
    return calls


def test_a_run_is_executed_once_and_again_where_something_is_missing(tmp_path, multiply, executed):
    out = tmp_path / "run" / "multiply.ipynb"
    again = lambda **more: run_notebook(multiply, {"factor": 3.0}, out, products=["results.json"], **more)  # noqa: E731
    assert (again(), again()) == (True, False)
    for lost in ("results.json", "multiply.ipynb", "multiply.json"):
        (out.parent / lost).unlink()
        assert (again(), again()) == (True, False), lost
    assert again(force=True) is True
    write_notebook(multiply, PARAMETERS, COMPUTE + "\nprint(1)")
    assert (again(), again()) == (True, False)
    assert len(executed) == 6


def test_a_crash_at_any_moment_leaves_an_unfinished_run(tmp_path, multiply, executed, monkeypatch):
    out, parameters = tmp_path / "run" / "multiply.ipynb", {"factor": 3.0}
    identity = run_digest(multiply, parameters)
    run_notebook(multiply, parameters, out)
    assert is_finished(out, identity)

    @contextmanager
    def no_disk(path):
        raise OSError("no space left")
        yield

    for place, broken in (("_execute", no_disk), ("os.replace", no_disk), ("atomic_path", no_disk)):
        with monkeypatch.context() as patch:
            patch.setattr(f"crlsr.studies.execution.{place}", lambda *args: next(broken(args).gen))
            with pytest.raises(OSError, match="no space left"):
                run_notebook(multiply, parameters, out, force=True)
        assert not is_finished(out, identity), place
        assert run_notebook(multiply, parameters, out) is True and is_finished(out, identity)


def test_a_notebook_that_leaves_no_result_is_a_failure(tmp_path, multiply, executed):
    with pytest.raises(RuntimeError, match="multiply.partial.ipynb: ended without writing table.csv"):
        run_notebook(multiply, {}, tmp_path / "run" / "multiply.ipynb", products=["results.json", "table.csv"])
    assert not (tmp_path / "run" / "multiply.ipynb").exists()


# --- real kernels ------------------------------------------------------------------------------------------------------------

def test_the_kernel_is_this_interpreter_whatever_is_registered(tmp_path, multiply, monkeypatch):
    for variable in ("JUPYTER_PATH", "JUPYTER_DATA_DIR"):
        spec = tmp_path / variable / "kernels" / "python3" / "kernel.json"
        spec.parent.mkdir(parents=True)
        spec.write_text(json.dumps({"argv": ["/no/such/python", "{connection_file}"], "display_name": "old", "language": "python"}))
        monkeypatch.setenv(variable, str(spec.parents[2]))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    out = tmp_path / "run" / "multiply.ipynb"
    assert run_notebook(multiply, {"factor": 3.0, "run_dir": str(out.parent)}, out, products=["results.json"], threads=1)
    product, executable, threads = json.loads((out.parent / "results.json").read_text())
    assert (product, executable, threads) == (63.0, sys.executable, "1")


@pytest.mark.parametrize("cell, message", [
    ("def f():\n    raise OverflowError('too large\\nby far')\nf()", r"^OverflowError: too large \(In \[3\] of .*multiply\.partial\.ipynb\)$"),
    ("import os\nos._exit(9)", r"^DeadKernelError: Kernel died \(.*multiply\.partial\.ipynb\)$"),
])
def test_a_failure_is_one_line_and_a_partial_notebook(tmp_path, multiply, cell, message):
    write_notebook(multiply, PARAMETERS, cell)
    out = tmp_path / "run" / "multiply.ipynb"
    with pytest.raises(RuntimeError, match=message):
        run_notebook(multiply, {"factor": 1.0}, out)
    assert [path.name for path in out.parent.iterdir()] == ["multiply.partial.ipynb"]


# --- the page ----------------------------------------------------------------------------------------------------------------

EVIL = ("<script>document.title = 'run'</script><img src=http://127.0.0.1:9/a.png onerror=\"document.title = 'run'\"> <a href=\"javascript:document.title = 'run'\">link</a>"
        " <style>@import url(http://127.0.0.1:9/a.css);</style> <iframe src=http://127.0.0.1:9></iframe>")
WIDE = "\n".join(["| |" + " a variant |" * 30, "| --- |" + " ---: |" * 30, "| `setting` |" + ' "positions" |' * 30])


@pytest.fixture
def hostile_page(tmp_path):
    "The page of a notebook whose every kind of text and output brings HTML that wants to run and to load something."
    data = [{"text/markdown": EVIL}, {"text/html": EVIL}, {"application/javascript": "document.title = 'run'"}, {"text/markdown": f"| {EVIL} |\n| --- |\n| {EVIL} |"}, {"text/markdown": WIDE}]
    outputs = [{"output_type": "display_data", "metadata": {}, "data": each} for each in data] + [{"output_type": "stream", "name": "stdout", "text": EVIL}]
    cells = [{"cell_type": "code", "id": "a", "metadata": {}, "execution_count": 1, "outputs": outputs, "source": "secret = 1"}, {"cell_type": "markdown", "id": "b", "metadata": {}, "source": EVIL}]
    (tmp_path / "hostile.ipynb").write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    export_page(tmp_path / "hostile.ipynb", tmp_path / "page.html")
    return tmp_path / "page.html"


def test_a_page_of_any_notebook_has_no_script_and_no_code(hostile_page):
    head, body = hostile_page.read_text(encoding="utf-8").split("<body>")
    assert "<script" not in head + body.replace("&lt;", "") and "secret" not in body and "positions" in body
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy"\s+content="([^"]*)"', head)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_a_page_in_a_browser_runs_nothing_loads_nothing_and_scrolls_its_tables(hostile_page):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    loaded = []
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"], ignore_default_args=["--hide-scrollbars"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.on("requestfinished", lambda request: loaded.append(request.url))
        page.goto(hostile_page.as_uri())
        page.locator("a").first.click()
        assert page.title() == "Report" and loaded == [hostile_page.as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "the page itself does not scroll sideways"
        scrolls = "[...document.querySelectorAll('.cell')].some(c => c.scrollWidth > c.clientWidth && c.offsetHeight - c.clientHeight >= 10)"
        assert page.evaluate(scrolls), "a wide table has a bar of its own"
        browser.close()
