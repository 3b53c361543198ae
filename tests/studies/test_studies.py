"""Papermill runs and studies: what is skipped, what is repeated, what a failure leaves, and one study with real kernels."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import pytest

from crlsr.core import read_jsonl, share_path
from crlsr.data import embedded_images
from crlsr.images import write_image
from crlsr.model import ModelConfig
from crlsr.studies import STUDIES, Study, build_report, execution as runs, run_study
from crlsr.studies.execution import declared_parameters, export_page, fingerprint, is_finished, notebook_parameters, run_notebook
from crlsr.studies.studies import describe, only, plan_jobs, run_jobs
from crlsr.training import TrainConfig, profile as training_profile
from crlsr.training.interruptions import load_checkpoint

TRAIN, REPORT = share_path("nbs/reproduce/train.ipynb"), share_path("nbs/reproduce/report.ipynb")


def write_notebook(path: Path, *cells: str) -> Path:
    "A notebook whose first cell holds the parameters."
    made = [{"cell_type": "code", "id": f"cell{i}", "metadata": {"tags": ["parameters"][i:]}, "execution_count": None, "outputs": [], "source": cell}
            for i, cell in enumerate(cells)]
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    path.write_text(json.dumps({"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}))
    return path


PARAMETERS = "factor: float = 2.0  # what 21 is multiplied by\nrun_dir: str = '.'  # where the product goes"
COMPUTE = "import json, os, pathlib, sys\npathlib.Path(run_dir, 'results.json').write_text(json.dumps([21 * factor, sys.executable, os.environ.get('OMP_NUM_THREADS')]))"


@pytest.fixture
def multiply(tmp_path):
    return write_notebook(tmp_path / "multiply.ipynb", PARAMETERS, COMPUTE)


# --- parameters ------------------------------------------------------------------------------------------------------------

def test_every_field_of_the_configs_is_a_parameter_of_the_training_notebook():
    declared = declared_parameters(TRAIN)
    settings = {field.name for config in (ModelConfig, TrainConfig) for field in fields(config)}
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
    with pytest.raises(ValueError, match="variant 'a': unknown parameter 'seeds'; did you mean 'seed'"):
        plan_jobs(Study("s", "?", "smoke", {"a": {"seeds": 3}}))
    assert not list(tmp_path.iterdir())


def test_a_misspelt_parameter_is_refused_by_the_notebook_itself(tmp_path):
    out = tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "papermill", str(TRAIN), str(out), "-p", "setps", "3", "-p", "run_dir", str(tmp_path / "run"), "--no-progress-bar"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "ValueError: papermill: unknown parameter 'setps'; did you mean 'steps'?" in done.stderr
    assert not (tmp_path / "run").exists()


# --- fingerprints ----------------------------------------------------------------------------------------------------------

def test_fingerprint_sees_what_counts_and_nothing_else(tmp_path, multiply):
    write_image(embedded_images()["coffee"][:, :16, :16], tmp_path / "photos" / "a.png")
    (tmp_path / "one.json").write_text("1")
    data = [str(tmp_path / "photos"), str(tmp_path / "one.json")]
    base = fingerprint(multiply, {"factor": 3.0}, data)
    assert fingerprint(multiply, {"factor": 3.0, "run_dir": "elsewhere"}, data) == base
    assert fingerprint(write_notebook(tmp_path / "same.ipynb", PARAMETERS, "# why\n" + COMPUTE + "  # how\n"), {"factor": 3.0}, data) == base
    assert fingerprint(multiply, {"factor": 3.5}, data) != base
    assert fingerprint(write_notebook(tmp_path / "new.ipynb", PARAMETERS.replace("2.0", "2.5"), COMPUTE), {"factor": 3.0}, data) != base
    (tmp_path / "one.json").write_text("2")
    assert fingerprint(multiply, {"factor": 3.0}, data) != base
    (tmp_path / "one.json").write_text("1")
    write_image(embedded_images()["coffee"][:, :16, :16], tmp_path / "photos" / "b.png")
    assert fingerprint(multiply, {"factor": 3.0}, data) != base


def test_fingerprint_sees_the_numerics_and_not_the_version(multiply, monkeypatch):
    base = fingerprint(multiply, {})
    monkeypatch.setattr("crlsr.__version__", "99")
    assert fingerprint(multiply, {}) == base
    monkeypatch.setattr(runs, "NUMERICS", runs.NUMERICS + 1)
    assert fingerprint(multiply, {}) != base


# --- what is finished; papermill replaced by a stand-in -----------------------------------------------------------------------

@pytest.fixture
def executed(monkeypatch):
    "Counts executions; writes what a kernel would."
    calls = []

    def stand_in(notebook, parameters, partial, threads):
        calls.append(parameters)
        partial.write_text(notebook.read_text())
        (partial.parent / "results.json").write_text("1")

    monkeypatch.setattr(runs, "_execute", stand_in)
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
    identity = fingerprint(multiply, parameters)
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


# --- one study, real --------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "The control and CRL-SR with two seeds, as small as possible, executed two at a time with a report."
    base = tmp_path_factory.mktemp("study")
    photos = embedded_images()
    write_image(photos["astronaut"][:, 40:200, 140:300], base / "train" / "face.png")
    write_image(photos["chelsea"][:, 40:200, 120:320], base / "test" / "cat.png")
    tiny = {"data": str(base / "train"), "test_data": [str(base / "test")], "test_presets": ["bicubic", "iso:2.4"], "steps": 4, "batch_size": 1,
            "patch_size": 12, "num_feat": 4, "num_block": 3, "log_every": 1, "warmup_steps": 1, "threads": 1}
    smoke = STUDIES["smoke"]
    study = Study("mini", "Is the chain closed?", smoke.profile, smoke.variants, tiny, seeds=(0, 1))
    notebooks, page = run_study(study, base / "runs", jobs=2)
    return study, base / "runs", notebooks, page


def test_a_study_leaves_executed_notebooks_results_and_a_report(finished):
    study, out, notebooks, page = finished
    jobs = plan_jobs(study, out)
    assert [job.name for job in jobs] == ["l1 seed 0", "crlsr seed 0", "l1 seed 1", "crlsr seed 1"]
    assert all(job.finished for job in jobs)
    assert notebooks == [*(job.out for job in jobs), out / "mini" / "report.ipynb"] and page == out / "mini" / "report.html"
    assert not list(out.rglob("*.partial*"))
    assert "all runs (4) are finished" in describe(study, jobs)


def test_results_hold_what_a_table_needs(finished):
    study, out, *_ = finished
    results = {job.name: json.loads((job.dir / "results.json").read_text()) for job in plan_jobs(study, out)}
    for name, result in results.items():
        assert {"config", "seed", "metrics", "protocol", "environment", "minutes"} <= result.keys()
        assert f"{result['name']} seed {result['seed']}" == name
        assert [row["preset"] for row in result["metrics"]] == ["bicubic", "iso:2.4"]
        assert result["environment"]["torch"] and result["protocol"]["crop_border"] == 4
    bicubic = {json.dumps([row["bicubic"] for row in result["metrics"]]) for result in results.values()}
    assert len(bicubic) == 1, "the runs were scored on different lr images"
    assert results["l1 seed 0"]["config"]["model"]["weight_bc"] == 0 < results["crlsr seed 0"]["config"]["model"]["weight_bc"]
    first = [json.loads((job.dir / "log.jsonl").read_text().splitlines()[0])["pixel"] for job in plan_jobs(study, out)]
    assert first[0] == first[1] and first[2] == first[3] != first[0], "control and model do not start from the same weights and patches"


def test_the_report_is_one_file_that_needs_no_network(finished):
    *_, page = finished
    html = page.read_text(encoding="utf-8")
    assert "<script" not in html and not re.findall(r"""(?:src|href)\s*=\s*["']?(?!data:|#)[^"'>\s]+""", html)
    assert not re.findall(r"url\(|@import", html.split("</style>")[0])
    assert html.count("data:image/png;base64,") >= 3 and "No description has been provided" not in html
    for text in ("Is the chain closed?", "A check of the chain, not a result", "bicubic", "l1 (n = 2)", "crlsr (n = 2)", "±", "weight_bc"):
        assert text in html, text
    assert "Traceback" not in html and "output_stderr" not in html.split("</style>")[1]


def test_a_finished_study_is_not_executed_again(finished, monkeypatch):
    study, out, notebooks, page = finished
    monkeypatch.setattr(runs, "_execute", lambda *args: pytest.fail("executed"))
    stamps = [path.stat().st_mtime_ns for path in (*notebooks, page)]
    assert run_study(study, out) == (notebooks, page)
    assert [path.stat().st_mtime_ns for path in (*notebooks, page)] == stamps


def test_a_lost_page_is_made_again_without_a_kernel(finished, monkeypatch):
    *_, out, _, page = finished
    monkeypatch.setattr(runs, "_execute", lambda *args: pytest.fail("executed"))
    text = page.read_text()
    page.unlink()
    build_report(out / "mini")
    assert page.read_text() == text


def test_training_progress_is_one_output_in_the_executed_notebook(finished):
    cells = json.loads(finished[2][0].read_text())["cells"]
    (fit,) = [cell for cell in cells if "trainer.fit(" in "".join(cell["source"])]
    assert len(fit["outputs"]) <= 2 and not any(output.get("name") == "stderr" for cell in cells for output in cell.get("outputs", []))


@pytest.mark.parametrize("number, words", [(signal.SIGTERM, "crlsr: terminated"), pytest.param(signal.SIGINT, "crlsr: interrupted", marks=pytest.mark.slow)])
def test_a_stopped_study_ends_with_its_kernel_and_leaves_a_checkpoint_of_the_last_step(tmp_path, number, words):
    write_image(embedded_images()["astronaut"][:, 40:200, 140:300], tmp_path / "train" / "face.png")
    code = f"""
import sys
from crlsr import studies
from crlsr.app.cli import main
tiny = dict(data={str(tmp_path / 'train')!r}, steps=100_000, batch_size=1, patch_size=12, num_feat=4, num_block=3, log_every=1, checkpoint_every=50_000, threads=1)
studies.STUDIES["long"] = studies.Study("long", "?", "smoke", {{"l1": dict(weight_bc=0.0, weight_srnce=0.0, weight_rec=0.0)}}, tiny)
sys.exit(main(["reproduce", "long", "--out", {str(tmp_path)!r}]))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (log := list(tmp_path.glob("long/*/log.jsonl"))) or len(log[0].read_text().splitlines()) < 5:
            assert process.poll() is None and time.monotonic() < deadline, "no step was made"
            time.sleep(0.1)
        kernels = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()] if Path("/proc").exists() else []
        process.send_signal(number)
        assert process.communicate(timeout=60)[1].splitlines()[-1] == words and process.returncode == 128 + number
    finally:
        process.kill()
    for pid in kernels:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    (folder,) = (path for path in tmp_path.glob("long/*") if path.is_dir())
    assert (folder / "train.partial.ipynb").exists()
    assert load_checkpoint(folder / "checkpoint.pt")["step"] == read_jsonl(folder / "log.jsonl")[-1]["step"]
    assert not (folder / "train.ipynb").exists() and not (folder / "results.json").exists()


def test_a_failed_run_does_not_stop_the_others(tmp_path):
    given = ("profile: str = 'smoke'  # x\nname: str = ''  # x\nseed: int = 0  # x\nrun_dir: str = '.'  # x\ndata: None = None  # x\n"
             "val_data: None = None  # x\ntest_data: list[str] = []  # x\npower: float = 2.0  # x")
    compute = "import pathlib\npathlib.Path(run_dir, 'results.json').write_text(str((seed + 10.0) ** power))"
    notebook = write_notebook(tmp_path / "power.ipynb", given, compute)
    study = Study("toy", "?", "smoke", {"huge": {"power": 400.0}, "square": {}}, notebook=str(notebook))
    with pytest.raises(RuntimeError, match=r"^1 of 2 runs failed; huge seed 0: OverflowError: .*power\.partial\.ipynb\)$"):
        run_jobs(plan_jobs(study, tmp_path), jobs=2)
    assert [job.finished for job in plan_jobs(study, tmp_path)] == [False, True]
    with pytest.raises(ValueError, match="jobs: got 0"):
        run_jobs(plan_jobs(study, tmp_path), jobs=0)


def test_a_page_of_any_notebook_has_no_script(tmp_path, multiply):
    export_page(multiply, tmp_path / "page.html")
    assert "<script" not in (tmp_path / "page.html").read_text()


SETTINGS = {field.name for config in (ModelConfig, TrainConfig) for field in fields(config)}


# --- grids -----------------------------------------------------------------------------------------------------------------

CONTROL = {"weight_bc": 0.0, "weight_srnce": 0.0, "weight_rec": 0.0}


def test_the_control_of_equal_time_makes_the_steps_that_fit():
    study = Study("s", "?", "smoke", {"l1": CONTROL, "a": {}}, {"steps": 100}, time_ratio=1.6)
    jobs = {job.variant: job.parameters for job in plan_jobs(study)}
    assert list(jobs) == ["l1", "l1 (equal time)", "a"] and [p["steps"] for p in jobs.values()] == [100, 160, 100]
    assert jobs["l1 (equal time)"].keys() - {"name", "run_dir", "steps"} == jobs["l1"].keys() - {"name", "run_dir", "steps"}
    assert [job.variant for job in plan_jobs(Study("s", "?", "smoke", {"l1": CONTROL}))] == ["l1"]


def test_parameters_of_a_profile_are_those_of_that_profile_only():
    study = Study("s", "?", "smoke", {"l1": CONTROL}, {"steps": 5, "batch_size": 2}, by_profile={"cpu": {"steps": 7}})
    assert [replace(study, profile=name).common["steps"] for name in ("smoke", "gpu", "cpu")] == [5, 5, 7]
    assert plan_jobs(study)[0].parameters["steps"] == 5 and study.common == {"profile": "smoke", "steps": 5, "batch_size": 2}
    assert replace(study, profile="cpu").common == {"profile": "cpu", "steps": 7, "batch_size": 2}


def test_a_part_of_a_study_keeps_its_control_and_its_fingerprints():
    study = Study("s", "?", "smoke", {"l1": CONTROL, "a": {}, "b": {"temperature": 0.2}}, time_ratio=2.0)
    whole = {job.variant: job.digest for job in plan_jobs(study)}
    part = {job.variant: job.digest for job in plan_jobs(only(study, ["b"]))}
    assert part == {name: whole[name] for name in ("l1", "b")}
    assert list(only(study, ["l1 (equal time)"]).grid()) == ["l1", "l1 (equal time)"]
    with pytest.raises(ValueError, match="variant: study 's' has no 'c'; it has: l1, l1 .equal time., a, b"):
        only(study, ["c"])


def test_every_study_can_be_planned_under_every_profile_that_it_knows():
    here = {"data": "embedded:train", "val_data": "embedded:heldout", "test_data": ["embedded:heldout"]}  # no other photographs are needed
    for study in STUDIES.values():
        for profile in {study.profile, "smoke", *study.by_profile}:
            known = {**study.by_profile.get(profile, {}), **here}
            jobs = plan_jobs(replace(study, profile=profile, by_profile={profile: known}))
            for job in jobs:  # what the notebook would do with them
                trained_with = {key: value for key, value in job.parameters.items() if key in SETTINGS}
                training_profile(profile, trained_with)
            assert len({job.dir for job in jobs}) == len(jobs) == len(study.grid()) * len(study.seeds)
            assert all(re.fullmatch(r"[a-z0-9-]+-seed\d+-[0-9a-f]{8}", job.dir.name) for job in jobs)


def test_a_report_of_runs_whose_pixel_loss_has_no_gradient_yet(finished, tmp_path):
    study, out, *_ = finished
    shutil.copytree(out / "mini", tmp_path / "mini")
    for job in plan_jobs(study, tmp_path):
        log = job.dir / "log.jsonl"
        rows = [json.loads(line) | {"grad_pixel": 0.0, "grad_bc": 1.0, "grad_srnce": 0.0, "cos_bc": 0.0, "cos_srnce": 0.0} for line in log.read_text().splitlines()]
        log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = build_report(tmp_path / "mini", force=True)[1].read_text(encoding="utf-8")
    assert "Not measured in these runs" in page


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in STUDIES if name != "smoke"])
def test_every_variant_of_a_study_runs_at_smoke(name, tmp_path):
    study = replace(STUDIES[name], profile="smoke", seeds=(0,))
    notebooks, page = run_study(study, tmp_path, jobs=2)
    assert len(notebooks) == len(study.grid()) + 1
    for job in plan_jobs(study, tmp_path):
        result = json.loads((job.dir / "results.json").read_text())
        assert result["name"] == job.variant and all(row["psnr"] > row["bicubic"]["psnr"] - 1 for row in result["metrics"])
    html = page.read_text(encoding="utf-8")
    assert "A check of the chain, not a result" in html and "minus l1 (equal time)" in html and "share of the pixel gradient" in html
