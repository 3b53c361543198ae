"""execution: declared parameters, what a run's digest sees, what is skipped, what is repeated, and what a failure leaves."""
import base64
import gc
import json
import os
import re
import shutil
import sys
import tempfile
import typing

import papermill
import pytest
from bs4 import BeautifulSoup

from crlsr.core import field_types, share_path
from crlsr.data import embedded_images
from crlsr.images import write_image
from crlsr.model import FLAT
from crlsr.studies import execution
from crlsr.studies.execution import check_parameters, check_result, declared_parameters, declared_types, export_page, is_finished, notebook_parameters, run_digest, run_notebook, study_settings
from crlsr.training import TrainConfig, profile as training_profile
from tests.kernels import Forked
from tests.studies.conftest import write_notebook

TRAIN = share_path("nbs/reproduce/train.ipynb")
PARAMETERS = "factor: float = 2.0  # what 21 is multiplied by\nrun_dir: str = '.'  # where the product goes"
COMPUTE = "import json, os, pathlib, sys\npathlib.Path(run_dir, 'results.json').write_text(json.dumps({'found': [21 * factor, sys.executable, os.environ.get('OMP_NUM_THREADS')]}))"


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
    "Whoever starts papermill, not this package."
    given = {"setps": 3, "run_dir": str(tmp_path / "run")}
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        papermill.execute_notebook(TRAIN, tmp_path / "out.ipynb", given, kernel_name="python3", progress_bar=False, cwd=tmp_path, kernel_manager_class=Forked)
    assert (caught.value.ename, caught.value.evalue) == ("ValueError", "papermill: unknown parameter 'setps'; did you mean 'steps'?")
    assert not (tmp_path / "run").exists()


def test_types_are_those_of_the_cell(tmp_path):
    cell = "a: int = 1\nb: Optional[float] = None\nc: list[str] = []\nd: None = None\ne: int | None = 2"
    types = declared_types(write_notebook(tmp_path / "n.ipynb", cell))
    assert types == {"a": int, "b": typing.Optional[float], "c": tuple[str, ...], "d": type(None), "e": typing.Optional[int]}
    with pytest.raises(ValueError, match="a type of its parameters is unknown .*Path"):
        declared_types(write_notebook(tmp_path / "n.ipynb", "a: Path = 'x'"))


@pytest.mark.parametrize("change, message", [
    ({"test_data": "embedded:heldout"}, "test_data: got 'embedded:heldout' .str., expected tuple"), ({"pictures": "2"}, "pictures: got '2'"), ({"pictures": -3}, "pictures: got -3, expected 0 or more"),
    ({"test_presets": ["bogus"]}, "bogus"), ({"picture_preset": "bogus"}, "bogus"), ({"preset": "bogus"}, "bogus"), ({"test_presets": []}, "test_presets: got none"), ({"test_data": []}, "test_data: got none"),
    ({"learning_rate": "0.1"}, "learning_rate: got '0.1'"), ({"weight_bc": -1.0}, "weight"), ({"profile": "smoek"}, "did you mean 'smoke'"), ({"setps": 3}, "did you mean 'steps'"),
    ({"test_data": ["embedded:heldout", "embedded:all"]}, "test_data: 'embedded:all' holds 6 training photographs of 'embedded:train'"),
])
def test_what_a_training_cannot_take_is_told_before_any_work(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        check_parameters(declared_parameters(TRAIN) | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("role", ["data", "val_data", "test_data"])
def test_photographs_that_are_not_there_are_told_before_any_work(role):
    with pytest.raises(FileNotFoundError, match="source 'nowhere'"):
        check_parameters(declared_parameters(TRAIN) | {role: ["nowhere"] if role == "test_data" else "nowhere"})


def test_a_test_photograph_that_is_trained_on_under_another_name_is_told(tmp_path):
    write_image(embedded_images()["coffee"][:, :64, :64], tmp_path / "train" / "a.png")
    (tmp_path / "test").mkdir()
    shutil.copy(tmp_path / "train" / "a.png", tmp_path / "test" / "b.png")
    with pytest.raises(ValueError, match="holds 1 training photographs"):
        check_parameters(declared_parameters(TRAIN) | {"data": str(tmp_path / "train"), "test_data": [str(tmp_path / "test")]})


# --- settings ----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text, name, value", [
    ("weight_bc=0", "weight_bc", 0.0), ("decoupling.weight=.5", "weight_bc", 0.5), ("stop_gradient=None", "stop_gradient", "none"), ("share_heads=True", "share_heads", True),
    ("srnce_negatives=none", "srnce_negatives", "none"), ("steps=7", "steps", 7), ("preset=iso:2.4", "preset", "iso:2.4"), ("data=2024", "data", "2024"),
    ("betas=[0.5, 0.9]", "betas", (0.5, 0.9)), ("refinement.blur_sigmas=[1, 2]", "blur_sigmas", (1.0, 2.0)), ("learning_rate=1e-4", "learning_rate", 1e-4),
])
def test_training_and_studies_read_a_setting_alike(text, name, value):
    model, train = training_profile("smoke", [text])
    found = {**model.flat(), **train.to_dict()}[name]
    assert found == value and type(found) is type(value)
    for_study = study_settings([text])
    assert for_study == {name: list(value) if isinstance(value, tuple) else value}
    assert training_profile("smoke", for_study) == (model, train)


@pytest.mark.parametrize("text, value", [('test_presets=["iso"]', ["iso"]), ("test_presets=iso:2.4", ["iso:2.4"]), ("test_data=2024", ["2024"]), ("pictures=3", 3), ("picture_preset=iso", "iso")])
def test_parameters_of_the_notebook_itself_have_its_types(text, value):
    assert list(study_settings([text]).values()) == [value]


@pytest.mark.parametrize("text, word", [("decoupling.wieght=1", "did you mean 'decoupling.weight'"), ("guidance_end=None", "left to the profile"), ("steps", "expected key=value")])
def test_a_setting_that_means_nothing_is_told(text, word):
    with pytest.raises(ValueError, match=word):
        study_settings([text])


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


def test_run_digest_is_of_what_the_data_hold_by_role_and_not_of_where_they_lie(tmp_path, multiply, monkeypatch):
    for name, content in (("a", b"one"), ("b", b"two")):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / f"{name}.bmp").write_bytes(content)
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "c.png").write_bytes(b"three")
    photos, others = str(tmp_path / "photos"), str(tmp_path / "others")
    base = run_digest(multiply, {"data": photos}, {"data": [photos], "test_data": [others]})
    monkeypatch.chdir(tmp_path)
    assert run_digest(multiply, {"data": "photos/"}, {"data": ["./photos/"], "test_data": ["others"]}) == base
    shutil.copytree(photos, tmp_path / "moved")
    assert run_digest(multiply, {"data": "moved"}, {"data": ["moved"], "test_data": [others]}) == base
    different = {
        run_digest(multiply, {}, {"data": [others], "test_data": [photos]}), run_digest(multiply, {}, {"data": [photos], "val_data": [others]}),
        run_digest(multiply, {}, {"data": [photos], "test_data": [others, others]})}
    (tmp_path / "moved" / "b.bmp").write_bytes(b"TWO")
    different.add(run_digest(multiply, {}, {"data": ["moved"], "test_data": [others]}))
    (tmp_path / "moved" / "b.bmp").write_bytes(b"two")
    (tmp_path / "moved" / "a.bmp").rename(tmp_path / "moved" / "z.bmp")  # another order of images
    different.add(run_digest(multiply, {}, {"data": ["moved"], "test_data": [others]}))
    assert len(different | {base}) == 6
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run_digest(multiply, {}, {"data": ["nowhere"]})


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
        (partial.parent / "results.json").write_text('{"product": 1}')

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

    def until(number, real):
        "Works so many times, then the disk is full."
        calls = []

        def act(*args):
            if len(calls) == number:
                raise OSError("no space left")
            calls.append(args)
            return real(*args)

        return act

    for place, number in (("_execute", 0), ("os.replace", 1), ("write_json", 1)):  # the first of the others is the record that a run begins
        with monkeypatch.context() as patch:
            real = os.replace if place == "os.replace" else getattr(execution, place)
            patch.setattr(f"crlsr.studies.execution.{place}", until(number, real))
            with pytest.raises(OSError, match="no space left"):
                run_notebook(multiply, parameters, out, force=True)
        assert not is_finished(out, identity) and json.loads(out.with_suffix(".json").read_text())["digest"] is None, place
        assert run_notebook(multiply, parameters, out) is True and is_finished(out, identity)


@pytest.mark.parametrize("content", [b"", b'{"digest": "ab', b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"digest": NaN}', None])
def test_a_damaged_record_is_named_and_counts_as_absent(tmp_path, multiply, executed, caplog, content):
    out, parameters = tmp_path / "run" / "multiply.ipynb", {"factor": 3.0}
    again = lambda: run_notebook(multiply, parameters, out, products=["results.json"])  # noqa: E731
    for damaged in ("multiply.json", "results.json"):
        again()
        (out.parent / damaged).unlink()
        (out.parent / damaged).mkdir() if content is None else (out.parent / damaged).write_bytes(content)
        assert not is_finished(out, run_digest(multiply, parameters), ["results.json"])
        if content is None:
            (out.parent / damaged).rmdir()
        assert again() is True
        assert content is None or damaged in caplog.text


@pytest.mark.parametrize("content, taken", [(None, False), ("", False), ("{", False), ('{"digest": 1, "kind": "x"}', False), ('{"kind": "diagnosis"}', True), ('{"accuracy": 0.9}', True)])
def test_a_result_of_another_kind_is_not_replaced(tmp_path, content, taken):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    if taken:
        with pytest.raises(FileExistsError, match="results.json: is no result of such a run"):
            check_result(path, "digest")
    else:
        check_result(path, "digest")


def test_a_file_that_is_no_notebook_is_named(tmp_path):
    for content in ("[]", "{}", '{"cells": 3}', '{"cells": [{}]}', "{"):
        (tmp_path / "n.ipynb").write_text(content)
        with pytest.raises(ValueError, match=r"n\.ipynb: "):
            declared_parameters(tmp_path / "n.ipynb")


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
    product, executable, threads = json.loads((out.parent / "results.json").read_text())["found"]
    assert (product, executable, threads) == (63.0, sys.executable, "1")


@pytest.mark.skipif(os.name != "posix", reason="sockets that are files")
def test_no_port_of_a_kernel_can_be_taken_by_somebody_else(tmp_path, monkeypatch):
    "It speaks by files in a folder of its own, which goes with it."
    (tmp_path / "t").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t"))
    cell = ("import json, pathlib\nfrom ipykernel import get_connection_file\nsaid = json.loads(pathlib.Path(get_connection_file()).read_text())\n"
            "pathlib.Path(run_dir, 'results.json').write_text(json.dumps([said['transport'], said['ip'], sorted(path.name for path in pathlib.Path(said['ip']).parent.iterdir())]))")
    notebook = write_notebook(tmp_path / "says.ipynb", "run_dir: str = '.'  # x", cell)
    assert run_notebook(notebook, {"run_dir": str(tmp_path / "run")}, tmp_path / "run" / "says.ipynb", products=["results.json"])
    transport, where, sockets = json.loads((tmp_path / "run" / "results.json").read_text())
    assert transport == "ipc" and where.startswith(f"{tmp_path}/t/crlsr-kernel-") and sockets == [f"socket-{number}" for number in range(1, 6)]
    gc.collect()
    assert not [path for path in (tmp_path / "t").iterdir() if path.name.startswith("crlsr-kernel-")]


@pytest.mark.parametrize("cell, message", [
    ("def f():\n    raise OverflowError('too large\\nby far')\nf()", r"^OverflowError: too large \(In \[3\] of .*multiply\.partial\.ipynb\)$"),
    ("import os\nos._exit(9)", r"^DeadKernelError: Kernel died \(.*multiply\.partial\.ipynb\)$"),
])
def test_a_failure_is_one_line_and_a_partial_notebook(tmp_path, multiply, cell, message):
    write_notebook(multiply, PARAMETERS, cell)
    out = tmp_path / "run" / "multiply.ipynb"
    with pytest.raises(RuntimeError, match=message):
        run_notebook(multiply, {"factor": 1.0}, out)
    assert sorted(path.name for path in out.parent.iterdir()) == ["multiply.json", "multiply.partial.ipynb"]
    assert json.loads((out.parent / "multiply.json").read_text())["digest"] is None


@pytest.mark.parametrize("folder", ["runs {v2}", "{}", "runs {{x}} {0} {factor}", "}{", "% $HOME *?"])
def test_a_folder_of_any_name_takes_a_run(tmp_path, folder):
    source = tmp_path / folder
    source.mkdir()
    notebook, out = write_notebook(source / "multiply.ipynb", PARAMETERS, COMPUTE), source / "run" / "multiply.ipynb"
    assert run_notebook(notebook, {"factor": 3.0, "run_dir": str(out.parent)}, out, products=["results.json"])
    assert json.loads((out.parent / "results.json").read_text())["found"][0] == 63.0
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder]


# --- the page ----------------------------------------------------------------------------------------------------------------

EVIL = ("<script>document.title = 'run'</script><img src=http://127.0.0.1:9/a.png onerror=\"document.title = 'run'\"> <a href=\"javascript:document.title = 'run'\">link</a>"
        " <style>@import url(http://127.0.0.1:9/a.css);</style> <iframe src=http://127.0.0.1:9></iframe> [link](javascript:document.title='run') ![picture](http://127.0.0.1:9/b.png)")
WIDE = "\n".join(["| |" + " a variant |" * 30, "| --- |" + " ---: |" * 30, "| `setting` |" + ' "positions" |' * 30])


@pytest.fixture
def hostile_page(tmp_path):
    "The page of a notebook whose every kind of text and output brings HTML that wants to run and to load something."
    data = [{"text/markdown": EVIL}, {"text/html": EVIL}, {"application/javascript": "document.title = 'run'"}, {"text/markdown": f"| {EVIL} |\n| --- |\n| {EVIL} |"}, {"text/markdown": WIDE}]
    png = base64.b64encode(b"\x89PNG").decode()
    data.append({"image/svg+xml": "<svg><script>document.title = 'run'</script></svg>", "text/plain": EVIL})
    outputs = [{"output_type": "display_data", "metadata": {}, "data": each} for each in data] + [
        {"output_type": "display_data", "metadata": {"image/png": {"alt": f'"> {EVIL}'}}, "data": {"image/png": png}}] + [{"output_type": "stream", "name": "stdout", "text": EVIL}]
    cells = [{"cell_type": "code", "id": "a", "metadata": {}, "execution_count": 1, "outputs": outputs, "source": "secret = 1"}, {"cell_type": "markdown", "id": "b", "metadata": {}, "source": EVIL}]
    (tmp_path / "hostile.ipynb").write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    export_page(tmp_path / "hostile.ipynb", tmp_path / "page.html")
    return tmp_path / "page.html"


def test_a_page_of_any_notebook_has_no_script_and_no_code(hostile_page):
    head, body = hostile_page.read_text(encoding="utf-8").split("<body>")
    tags = {tag.name for tag in BeautifulSoup(body, "html.parser").find_all()}
    assert not tags & {"script", "iframe", "style", "svg", "object", "embed", "form"} and "<script" not in head
    attributes = [(name, str(value)) for tag in BeautifulSoup(body, "html.parser").find_all() for name, value in tag.attrs.items()]
    assert not [name for name, value in attributes if name.startswith("on") or "javascript:" in value and name != "alt"]
    assert "secret" not in body and "positions" in body and "&lt;script&gt;" in body
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
        page.locator("a", has_text="link").first.click()
        assert page.title() == "Report" and loaded == [hostile_page.as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "the page itself does not scroll sideways"
        scrolls = "[...document.querySelectorAll('.cell')].some(c => c.scrollWidth > c.clientWidth && c.offsetHeight - c.clientHeight >= 10)"
        assert page.evaluate(scrolls), "a wide table has a bar of its own"
        browser.close()
