"""running: what a failed or stopped run leaves, what is said meanwhile, and one study with real kernels and its report."""
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from crlsr.core import held_folder, read_jsonl, share_path
from crlsr.data import embedded_images
from crlsr.evaluation.evidence import (Endpoint, at_equal_time, counted_cost, endpoint_differences, findings, findings_at_equal_time, findings_table,
                                       oracle_gate)
from crlsr.evaluation.scoring import read_scores
from crlsr.images import write_image
from crlsr.studies import Study, build_report, execution, load_study, run_study, running, study_names
from crlsr.studies.execution import TRAIN
from crlsr.studies.running import Table, describe, run_jobs, status_rows
from crlsr.studies.studies import plan_jobs, read_results
from crlsr.training.interruptions import load_checkpoint
from tests.kernels import Forked
from tests.studies.conftest import write_notebook


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
    smoke = load_study("smoke")
    study = Study("mini", "Is the chain closed?", smoke.profile, smoke.variants, tiny, seeds=(0, 1))
    with pytest.MonkeyPatch.context() as patch:  # kernels started as always: in the tests of execution, of stopped studies, and of a disk
        patch.setattr(execution, "_kernel_manager", lambda threads: Forked)
        notebooks, page = run_study(study, base / "runs", jobs=2)
    return study, base / "runs", notebooks, page


@pytest.fixture(scope="module")
def altered(finished, tmp_path_factory):
    "The page of that study after three changes that do not touch each other: a test set has two spellings, no pixel loss has a gradient yet, and one network of CRL-SR was not trained."
    study, out, *_ = finished
    folder = shutil.copytree(out, tmp_path_factory.mktemp("altered") / "runs")
    for job in plan_jobs(study, folder):
        result = json.loads((job.dir / "results.json").read_text())
        if job.name == "crlsr seed 0":
            result["metrics"] = [row | {"data": "./elsewhere"} for row in result["metrics"]]
        (job.dir / "results.json").write_text(json.dumps(result | {"untrained": ["heads.high"] if job.variant == "crlsr" else []}))
        log = job.dir / "log.jsonl"
        rows = [json.loads(line) | {"grad_pixel": 0.0, "grad_bc": 1.0, "grad_srnce": 0.0, "cos_bc": 0.0, "cos_srnce": 0.0} for line in log.read_text().splitlines()]
        log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execution, "_kernel_manager", lambda threads: Forked)
        return build_report(folder / "mini", force=True)[1].read_text(encoding="utf-8")


def test_a_study_leaves_executed_notebooks_results_and_a_report(finished):
    study, out, notebooks, page = finished
    jobs = plan_jobs(study, out)
    assert [job.name for job in jobs] == ["l1 seed 0", "crlsr seed 0", "l1 seed 1", "crlsr seed 1"]
    assert all(job.finished for job in jobs)
    assert notebooks == [*(job.out for job in jobs), out / "mini" / "report.ipynb"] and page == out / "mini" / "report.html"
    assert not list(out.rglob("*.partial*"))
    assert "all runs (4) are finished" in describe(study, jobs)
    assert describe(study, jobs, force=True).startswith("mini: trains and evaluates 4 of 4 models") and "then writes a report: " in describe(study, jobs, force=True)
    asks = Study("asks", "?", "smoke", {"a": {}}, {}, notebook="nbs/reproduce/diagnose.ipynb", report="")
    assert describe(asks, jobs[:1], force=True).startswith("asks: executes diagnose for 1 of 1 models (") and "report" not in describe(asks, jobs[:1], force=True)


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
    for text in ("Is the chain closed?", "Photograph by photograph", "As a compass", "A check of the chain, not a result", "bicubic", "l1 (n = 2)", "crlsr (n = 2)", "±", "weight_bc"):
        assert text in html, text
    assert "Traceback" not in html and "output_stderr" not in html.split("</style>")[1]


def test_a_finished_study_is_not_executed_again(finished, monkeypatch):
    study, out, notebooks, page = finished
    monkeypatch.setattr(execution, "_execute", lambda *args: pytest.fail("executed"))
    stamps = [path.stat().st_mtime_ns for path in (*notebooks, page)]
    assert run_study(study, out) == (notebooks, page)
    assert [path.stat().st_mtime_ns for path in (*notebooks, page)] == stamps


def test_a_lost_page_is_made_again_without_a_kernel(finished, monkeypatch):
    *_, out, _, page = finished
    monkeypatch.setattr(execution, "_execute", lambda *args: pytest.fail("executed"))
    text = page.read_text()
    page.unlink()
    build_report(out / "mini")
    assert page.read_text() == text


def test_training_progress_is_one_output_in_the_executed_notebook(finished):
    cells = json.loads(finished[2][0].read_text())["cells"]
    (fit,) = [cell for cell in cells if "trainer.fit(" in "".join(cell["source"])]
    assert len(fit["outputs"]) <= 2 and not any(output.get("name") == "stderr" for cell in cells for output in cell.get("outputs", []))


def test_a_report_of_a_study_with_damaged_results_and_hostile_names(finished, tmp_path, forked):
    study, out, *_ = finished
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    jobs = plan_jobs(study, tmp_path)
    (jobs[0].dir / "results.json").write_text('{"name": "l1", ')  # of the control's first seed
    evil = "x<img src=x onerror=alert(1)> | `a` $b$ [c](javascript:alert(2)) *d* \\ \n# e"
    for job in jobs[1:]:
        result = json.loads((job.dir / "results.json").read_text())
        result["environment"]["device"] = f"cuda <script>alert(3)</script> {evil}"
        (job.dir / "results.json").write_text(json.dumps(result))
    record = json.loads((tmp_path / "mini" / "study.json").read_text())
    runs = [run | {"name": evil if run["name"] == "crlsr" else "l1"} for run in record["runs"]]
    (tmp_path / "mini" / "study.json").write_text(json.dumps(record | {"title": f"Title {evil}", "runs": runs}))
    page = build_report(tmp_path / "mini")[1].read_text(encoding="utf-8")
    soup = BeautifulSoup(page.split("<body>")[1], "html.parser")
    assert "1 run of this study did not finish or left a damaged result, and is not shown." in soup.get_text()
    assert not soup.find_all(["script", "iframe", "svg"]) and not [tag for tag in soup.find_all() if any(name.startswith("on") for name in tag.attrs)]
    assert not soup.find_all("a") and all(tag["src"].startswith("data:image/png") for tag in soup.find_all("img"))
    shown = evil.replace("\n", "\\n")
    assert soup.find("h2").get_text() == f"Title {shown}"
    for table in soup.find_all("table"):
        widths = {len(row.find_all(["th", "td"])) for row in table.find_all("tr")}
        assert len(widths) == 1, "a name has made a column"
    assert f"{shown} (n = 2)" in [cell.get_text() for cell in soup.find_all("td")]
    assert "[" not in "".join(cell.get_text() for cell in soup.find_all("table")[3].find_all("td")).replace(shown, ""), "no interval from two seeds and one photograph"


def test_a_test_set_under_two_spellings_is_one_in_the_report(altered):
    assert "elsewhere" not in altered


def test_what_is_no_result_of_a_training_is_left_out(finished, tmp_path, caplog):
    study, out, *_ = finished
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    jobs = plan_jobs(study, tmp_path)
    whole = json.loads((jobs[0].dir / "results.json").read_text())
    for number, job in enumerate(jobs[:3]):
        bad = [{"kind": "diagnosis"}, {"accuracy": 0.9}, whole | {"metrics": [{"data": "a"}]}][number]
        (job.dir / "results.json").write_text(json.dumps(bad))
    about, found, missing = read_results(tmp_path / "mini")
    assert (about["study"], [run["name"] for run in found], missing) == ("mini", ["crlsr"], 2) and found[0]["dir"] == jobs[3].dir
    assert caplog.text.count("is no result of a training") == 2
    assert [run["dir"] for run in read_results(tmp_path / "shared")[1]] == [jobs[3].dir], "a folder without the record of a study"


def test_a_report_of_runs_whose_pixel_loss_has_no_gradient_yet(altered):
    cells = [cell.get_text() for cell in BeautifulSoup(altered, "html.parser").find_all("td")]
    assert len(cells) > 50 and not [text for text in cells if re.search(r"\b(nan|inf)\b", text, re.I)], "nothing is divided by it"


def test_a_report_marks_the_model_with_an_untrained_network(altered):
    assert re.findall(r"<td[^>]*>(crlsr\S*)(?: \(n = 2\))?</td>", altered)[:3] == ["crlsr†"] * 3, "PSNR, SSIM and the differences"
    assert "l1†" not in altered and altered.count("heads.high of crlsr.") == 6, "beneath each table that marks it: outcome, scores, differences, detail twice; and among the limits"


@pytest.mark.parametrize("number, words", [(signal.SIGTERM, "crlsr: terminated"), pytest.param(signal.SIGINT, "crlsr: interrupted", marks=pytest.mark.slow)])
def test_a_stopped_study_ends_with_its_kernel_and_leaves_a_checkpoint_of_the_last_step(tmp_path, number, words):
    write_image(embedded_images()["astronaut"][:, 40:200, 140:300], tmp_path / "train" / "face.png")
    (tmp_path / "long.toml").write_text(f"""
question = "?"
prediction = "0"
decision = "?"
profile = "smoke"
[parameters]
data = {json.dumps(str(tmp_path / 'train'))}
steps = 100000
batch_size = 1
patch_size = 12
num_feat = 4
num_block = 3
log_every = 1
checkpoint_every = 50000
threads = 1
[variants.l1]
weight_bc = 0.0
weight_srnce = 0.0
weight_rec = 0.0
""")
    command = [sys.executable, "-m", "crlsr", "reproduce", str(tmp_path / "long.toml"), "--out", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 900  # of a machine that does much besides
        while not (log := list(tmp_path.glob("shared/*/log.jsonl"))) or len(log[0].read_text().splitlines()) < 5:
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
    (folder,) = (path for path in tmp_path.glob("shared/*") if path.is_dir())
    assert (folder / "train.partial.ipynb").exists()
    assert load_checkpoint(folder / "checkpoint.pt")["step"] == read_jsonl(folder / "log.jsonl")[-1]["step"]
    assert not (folder / "train.ipynb").exists() and not (folder / "results.json").exists()


# --- a study with controls, costs and a curve of equal time, real --------------------------------------------------------------------

PLAIN = "weight_bc = 0.0\nweight_srnce = 0.0\nweight_rec = 0.0\n"
HEAD = """
question = "Does anything change within eight steps?"
prediction = "No: within 0.05 dB."
decision = "By both intervals."
profile = "smoke"
seeds = [10, 11]
[parameters]
data = "train"
test_data = ["test"]
test_presets = ["multimodal", "disk"]
preset = "multimodal"
draws = 2
steps = 8
batch_size = 2
patch_size = 12
num_feat = 6
num_block = 3
warmup_steps = 1
log_every = 1
probe_every = 2
pictures = 1
threads = 1
"""
TOY = f"""{HEAD}
[variants.L1]
{PLAIN}
[variants."L_bc, loud"]
weight_srnce = 0.0
weight_rec = 0.0
weight_bc = 1.0
cost = 1.2
[variants."narrow L1"]
num_feat = 4
{PLAIN}
[variants."narrow L_bc"]
num_feat = 4
weight_srnce = 0.0
weight_rec = 0.0
weight_bc = 1.0
control = "narrow L1"
cost = 1.5
[variants.oracle]
seeds = [10]
method = "estimating"
vector = "oracle"
pairing = "same_degradation"
probe_every = 0
"""
CURVE = HEAD + "".join(f"[variants.\"{name}, {times} times\"]\ntimes = {times}\nnum_feat = {wide}\n{PLAIN}" for name, wide in (("L1", 6), ("narrow L1", 4)) for times in (1.0, 2.0))


def cells_below(soup, heading):
    "The rows of the first table below a heading, as texts."
    (title,) = (tag for tag in soup.find_all("h3") if tag.get_text() == heading)
    return [[cell.get_text() for cell in row.find_all("td")] for row in title.find_next("table").find_all("tr")[1:]]


def cells_of(markdown):
    return [[cell.strip(" *").replace("\\", "") for cell in line.strip("| ").split(" | ")] for line in markdown.splitlines()[2:]]


@pytest.mark.slow
def test_a_report_compares_each_arm_with_its_own_control_at_its_own_cost(tmp_path, monkeypatch, forked):
    monkeypatch.chdir(tmp_path)
    photos = embedded_images()
    write_image(photos["astronaut"][:, 40:200, 140:300], Path("train/face.png"))
    for k in range(11):
        write_image(photos["chelsea"][:, 24 * k: 24 * k + 48, 40 * (k % 8): 40 * (k % 8) + 64], Path(f"test/{k:02d}.png"))
    Path("toy.toml").write_text(TOY)
    Path("control.toml").write_text(CURVE)
    study, curve = load_study("toy.toml"), load_study("control.toml")
    run_study(curve, "runs", jobs=2)
    _, page = run_study(study, "runs", jobs=2)
    assert len(list(Path("runs/shared").glob("seed*"))) == 9 + 4, "the controls of both are the same runs"
    about, runs, missing = read_results("runs/toy")
    assert (about["controls"], about["costs"], missing) == ({"narrow L_bc": "narrow L1"}, {"L_bc, loud": 1.2, "narrow L_bc": 1.5}, 0)
    longer = read_results("runs/control")[1]
    by_name = {name: [run for run in runs if run["name"] == name] for name in study.variants}
    endpoints = [Endpoint("multimodal", "test", ("multimodal",)), Endpoint("new sources", "test", ("disk",))]
    html = page.read_text(encoding="utf-8")
    soup = BeautifulSoup(html, "html.parser")
    for base, arms in (("L1", ["L_bc, loud", "narrow L1", "oracle"]), ("narrow L1", ["narrow L_bc"])):
        compared = [run for name in (base, *arms) for run in by_name[name]]
        assert cells_below(soup, f"At equal steps, minus {base}") == cells_of(findings_table(findings(compared, base, endpoints)))
        wide = by_name[base][0]["config"]["model"]["num_feat"]
        steps = [run for run in longer if run["config"]["model"]["num_feat"] == wide]
        assert sorted(run["config"]["train"]["steps"] for run in steps) == [8, 8, 16, 16]
        costs = {name: about["costs"].get(name, counted_cost(by_name[name])) for name in arms}
        timed, without = findings_at_equal_time(compared, steps, base, endpoints, costs)
        assert not without and cells_below(soup, f"At equal time, minus {base} of as many minutes") == cells_of(findings_table(timed))
        by_hand = [sum(cells) / 2 for cells in zip(*(  # at a cost of 2 it is the control of 16 steps itself
            [float(v) for v in endpoint_differences([run], [other for other in steps if other["config"]["train"]["steps"] == 16], endpoints[0]).mean(2)[0]] for run in by_name[arms[0]]))]
        assert at_equal_time(by_name[arms[0]], steps, 2.0, endpoints[0]).mean((0, 2)) == pytest.approx(by_hand)
    text = soup.get_text()
    assert oracle_gate(by_name["oracle"], by_name["L1"], endpoints[0]).text() in text and "A step costs, in steps of plain L1: L_bc, loud 1.20; narrow L1 1.00; oracle" in text
    order = ["Does anything change within eight steps?", "Prediction, written before the runs", "Rule of decision", "Outcome", "Limits", "Fewer than 3 seeds", "Next experiment", "--profile cpu --only oracle", "Scores", "Pictures"]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)
    for path in Path("runs/toy").glob("report.*"):
        path.unlink()
    assert build_report("runs/toy")[1].read_text(encoding="utf-8") == html, "byte for byte"
    for run in longer:
        if run["config"]["train"]["steps"] == 16:
            (run["dir"] / "results.json").write_text("{")
    text = BeautifulSoup(build_report("runs/toy")[1].read_text(encoding="utf-8"), "html.parser").get_text()
    assert "At equal time" not in text and "No answer at equal time" in text and "Every difference is one of equal steps" in text


def test_a_report_of_many_arms_is_a_map_and_of_few_photographs_a_gate(finished, tmp_path, forked):
    study, out, *_ = finished
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    runs = []
    for arm in range(5):
        for job in plan_jobs(study, tmp_path)[::2]:  # l1, seeds 0 and 1
            folder = tmp_path / "shared" / f"arm{arm}-seed{job.seed}"
            shutil.copytree(job.dir, folder)
            result = json.loads((folder / "results.json").read_text())
            for row in result["metrics"]:
                names, scores = read_scores(result, row["data"], row["preset"], "psnr")
                row["scores"]["psnr"] = " ".join(f"{value + 0.01 * arm * (1 + job.seed):.4f}" for value in scores.flatten())
            (folder / "results.json").write_text(json.dumps(result))
            rows = [json.loads(line) | {"psnr": 27 + (0.3 if k == 1 else 0.1 * arm) + 0.01 * job.seed} for k, line in enumerate((folder / "log.jsonl").read_text().splitlines())]
            (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            runs.append({"name": f"arm {arm}", "seed": job.seed, "dir": folder.name})
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "study.json").write_text(json.dumps({"study": "few", "title": "Few?", "runs": runs, "controls": {"arm 4": "lost"}}))
    soup = BeautifulSoup(build_report(tmp_path / "few")[1].read_text(encoding="utf-8"), "html.parser")
    text = soup.get_text()
    assert "Gate passed: plain L1 ends below the step that the other seeds call best, mean 0.300 dB of 0.1 needed (2 seeds); interval over seeds not known" in text
    fall = cells_below(soup, "How far each arm ends below the step that its other seeds call best, dB of validation")
    assert fall == [[f"arm {arm}", "2", f"+{0.3 - 0.1 * arm:.3f}" if arm < 3 else "0.000", "" if not arm else f"-{min(0.1 * arm, 0.3):.3f}"] for arm in range(5)]
    assert "No answer for arm 4: its control, lost, has no finished run of the same seed." in text and "Map" not in text, "three arms are no map"
    record = json.loads((tmp_path / "few" / "study.json").read_text())
    (tmp_path / "few" / "study.json").write_text(json.dumps({**record, "controls": {}}))
    soup = BeautifulSoup(build_report(tmp_path / "few")[1].read_text(encoding="utf-8"), "html.parser")
    table = cells_below(soup, "Map, minus arm 0")
    assert [row[:3] for row in table] == [*([f"arm {arm}", "2", f"+{0.015 * arm:.3f}"] for arm in range(1, 5)), ["between arms (sd)", "", "0.019"]]


@pytest.mark.slow
def test_minutes_add_up_over_a_run_that_was_killed_and_nothing_counts_twice(tmp_path):
    "Killed between two checkpoints, runner and kernel: what came after the first is made again, and counted once."
    write_image(embedded_images()["astronaut"][:, 40:200, 140:300], tmp_path / "train" / "face.png")
    (tmp_path / "killed.toml").write_text(f"""
question = "?"
prediction = "0"
decision = "?"
profile = "smoke"
report = ""
[parameters]
data = {json.dumps(str(tmp_path / 'train'))}
test_presets = ["iso:2.4"]
steps = 60
batch_size = 16
log_every = 1
checkpoint_every = 20
pictures = 0
threads = 1
[variants.l1]
{PLAIN}""")
    command = [sys.executable, "-m", "crlsr", "reproduce", str(tmp_path / "killed.toml"), "--out", str(tmp_path)]
    process, kernels = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL), []
    try:
        deadline = time.monotonic() + 300
        while not (log := list(tmp_path.glob("shared/*/log.jsonl"))) or len(log[0].read_text().splitlines()) < 32:
            assert process.poll() is None and time.monotonic() < deadline, "no step was made"
            time.sleep(0.05)
        kernels = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    finally:
        for pid in (process.pid, *kernels):
            os.kill(pid, signal.SIGKILL)
        process.wait()
    folder = log[0].parent
    before = read_jsonl(log[0])
    saved = load_checkpoint(folder / "checkpoint.pt")
    assert not (folder / "results.json").exists() and 32 <= before[-1]["step"] < 60 and saved["step"] < before[-1]["step"]
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr[-500:]
    rows, minutes = read_jsonl(log[0]), json.loads((folder / "results.json").read_text())["minutes"]
    assert [row["step"] for row in rows] == list(range(1, 61)), "each step once"
    assert rows[: saved["step"]] == before[: saved["step"]] and rows[saved["step"] - 1]["seconds"] == pytest.approx(saved["seconds"], abs=2e-3)
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds) and minutes["training"] == pytest.approx(seconds[-1] / 60, abs=0.006)
    # what the last call did beside training, by papermill's clock of its cells, from the one that starts the clock to the one that writes the result
    cells = [cell for cell in json.loads((folder / "train.ipynb").read_text())["cells"] if cell["cell_type"] == "code"]
    first, last = (next(i for i, cell in enumerate(cells) if text in "".join(cell["source"])) for text in ("began = time.monotonic()", "write_json(folder"))
    fit = next(cell for cell in cells if "trainer.fit(" in "".join(cell["source"]))
    beside = sum(cell["metadata"]["papermill"]["duration"] for cell in cells[first: last + 1] if cell is not fit)
    assert 60 * (minutes["all"] - minutes["training"]) == pytest.approx(beside, abs=1.0 + 0.1 * beside), f"{minutes}, of which {seconds[-1]:.1f} s of training"
    assert 60 * minutes["all"] < seconds[saved["step"] - 1] + sum(cell["metadata"]["papermill"]["duration"] for cell in cells[first: last + 1]) + 2.0


GIVEN = ("profile: str = 'smoke'  # x\nname: str = ''  # x\nseed: int = 0  # x\nrun_dir: str = '.'  # x\ndata: None = None  # x\n"
         "val_data: None = None  # x\ntest_data: list[str] = ['embedded:heldout']  # x\npower: float = 2.0  # x")


def toy_study(folder, **variants):
    "A study whose model is a number, and whose report prints names."
    compute = "import json, pathlib\npathlib.Path(run_dir, 'results.json').write_text(json.dumps({'product': (seed + 10.0) ** power}))"
    notebook = write_notebook(folder / "power.ipynb", GIVEN, compute)
    report = write_notebook(folder / "list.ipynb", "runs: str = '.'  # x", "print(runs)")
    return Study("toy", "?", "smoke", variants, notebook=str(notebook), report=str(report))


def test_a_study_is_for_one_process(tmp_path, executed):
    study = toy_study(tmp_path, square={})
    with held_folder(tmp_path / "toy"):
        for start in (lambda: run_study(study, tmp_path), lambda: build_report(tmp_path / "toy", study.report)):
            (tmp_path / "toy" / "results.json").write_text("{}")
            with pytest.raises(ValueError, match=r"toy is in use by process \d+ on .*; wait for it"):
                start()
    assert executed == [] and not (tmp_path / "toy" / "study.json").exists()
    (tmp_path / "toy" / "results.json").unlink()
    run_study(study, tmp_path)
    assert executed == ["square", "list"]


def test_a_run_that_somebody_else_trains_fails_alone(tmp_path, executed):
    study = toy_study(tmp_path, square={}, cube={"power": 3.0})
    square, _ = plan_jobs(study, tmp_path)
    with held_folder(square.dir), pytest.raises(RuntimeError, match="1 of 2 runs failed; square seed 0: run_dir: .* is in use"):
        run_study(study, tmp_path)
    assert executed == ["cube"]


@pytest.mark.parametrize("taken", ["report.html", "report.ipynb", "report.json", "study.json"])
@pytest.mark.parametrize("kind", ["file", "link to nothing"])
def test_what_somebody_wrote_is_not_replaced_and_nothing_is_begun(tmp_path, executed, taken, kind):
    study, folder = toy_study(tmp_path, square={}), tmp_path / "toy"
    folder.mkdir()
    (folder / taken).write_text('{"title": "mine"}') if kind == "file" else (folder / taken).symlink_to("nothing")
    with pytest.raises(FileExistsError, match=f"{taken}: exists and was not made by crlsr"):
        run_study(study, tmp_path)
    assert executed == [] and (kind != "file" or (folder / taken).read_text() == '{"title": "mine"}') and {path.name for path in folder.iterdir()} == {taken, ".lock"}
    (folder / taken).unlink()
    run_study(study, tmp_path)
    (folder / "report.html").write_text("seen")
    run_study(study, tmp_path, force=True)  # ours: replaced
    assert (folder / "report.html").read_text() != "seen"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"study": "toy", "runs": 3}', '{"study": "toy", "runs": [{"dir": 3}, 4]}'])
def test_damaged_records_end_no_study(tmp_path, executed, content):
    study, folder = toy_study(tmp_path, square={}), tmp_path / "toy"
    run_study(study, tmp_path)
    for name in ("study.json", "report.json"):
        (folder / name).write_text(content)
        if name == "report.json" and "runs" in content:
            continue  # whole, and not of a report: somebody else's
        run_study(study, tmp_path)
        assert json.loads((folder / "study.json").read_text())["runs"][0]["name"] == "square"


def test_force_removes_what_a_run_writes_by_name(tmp_path, executed):
    study = toy_study(tmp_path, square={})
    run_study(study, tmp_path)
    (job,) = plan_jobs(study, tmp_path)
    ours = ["config.json", "data.json", "log.jsonl", "checkpoint.pt", "checkpoint-previous.pt", "model.safetensors", "pictures/a.sr.png", "tensorboard/events.out.tfevents.1"]
    theirs = ["notes.txt", "checkpoint-mine.pt", "pictures/mine.png", "my/config.json", ".hidden"]
    for name in ours + theirs:
        (job.dir / name).parent.mkdir(exist_ok=True)
        (job.dir / name).write_text("x")
    run_study(study, tmp_path, force=True)
    assert executed == ["square", "list"] * 2 and job.finished
    assert not [name for name in ours if (job.dir / name).exists()] and all((job.dir / name).exists() for name in theirs)
    assert not (job.dir / "tensorboard").exists() and (job.dir / "pictures").exists()


@pytest.mark.parametrize("log, config, said", [
    (None, None, "starting"), ('{"step": 3}\n', '{"train": {"steps": 9}}', "step 3 of 9"), ('{"step": 3}\n', "{", "step 3 of ?"), ('{"step": 3}\n', '{"train": 3}', "step 3 of ?"),
    ('{"step": 3}\n{"step": \n{"step": 4}\n', '{"train": {"steps": 9}}', "step 4 of 9"), ("[]\n3\n", None, "starting"), ('{"pixel": 1}\n', "[]", "step ? of ?"),
])
def test_how_far_a_training_is_can_always_be_said(tmp_path, log, config, said):
    for name, content in (("log.jsonl", log), ("config.json", config)):
        if content is not None:
            (tmp_path / name).write_text(content)
    assert running._standing(tmp_path) == said


def test_cells_of_a_grid_are_run_one_by_one_and_the_study_finds_them(tmp_path, executed):
    study = toy_study(tmp_path, square={}, cube={"power": 3.0})
    square, cube = plan_jobs(study, tmp_path)
    run_jobs([cube])
    run_jobs([cube, square], jobs=2)
    assert executed == ["cube", "square"] and not (tmp_path / "toy").exists()
    run_study(study, tmp_path)
    assert executed == ["cube", "square", "list"]


def test_a_run_of_two_studies_is_executed_once_and_has_both_names(tmp_path, executed):
    first, second = toy_study(tmp_path, square={}), toy_study(tmp_path, again={}, cube={"power": 3.0}).replace(name="other")
    run_study(first, tmp_path)
    run_study(second, tmp_path)
    assert executed == ["square", "list", "cube", "list"] and len(list((tmp_path / "shared").iterdir())) == 2
    names = [[run["name"] for run in json.loads((tmp_path / of / "study.json").read_text())["runs"]] for of in ("toy", "other")]
    assert names == [["square"], ["again", "cube"]]


def test_a_report_is_made_again_when_anything_that_it_reads_has_changed(tmp_path, executed):
    study = toy_study(tmp_path, square={})
    run_study(study, tmp_path)
    (job,) = plan_jobs(study, tmp_path)
    curve = tmp_path / "shared" / "seed0-curve"
    changes = {
        "a log": lambda: (job.dir / "log.jsonl").write_text('{"step": 1}\n'),
        "the curve beside it": lambda: ((tmp_path / "control").mkdir(), (tmp_path / "control" / "study.json").write_text('{"runs": [{"name": "l1", "dir": "seed0-curve"}]}')),
        "a run of the curve": lambda: (curve.mkdir(), (curve / "results.json").write_text("{}")),
        "its log": lambda: (curve / "log.jsonl").write_text('{"step": 1}\n'),
        "a result": lambda: (job.dir / "results.json").write_text('{"product": 2}'),
    }
    for what, change in changes.items():
        executed.clear()
        change()
        run_study(study, tmp_path)
        assert executed == ["list"], what
        run_study(study, tmp_path)
        assert executed == ["list"], f"{what}: nothing has changed since"


def test_a_study_without_a_report_ends_with_its_runs(tmp_path, executed):
    notebooks, page = run_study(toy_study(tmp_path, square={}).replace(report=""), tmp_path)
    assert executed == ["square"] and page is None and [path.name for path in notebooks] == ["power.ipynb"]


def test_the_record_of_a_study_says_what_was_predicted(tmp_path, executed):
    run_study(toy_study(tmp_path, square={}).replace(prediction="100", decision="by eye"), tmp_path)
    record = json.loads((tmp_path / "toy" / "study.json").read_text())
    assert (record["question"], record["prediction"], record["decision"]) == ("?", "100", "by eye")
    assert record["controls"] == {} == record["costs"]


def test_the_record_of_a_study_says_what_an_arm_is_compared_with_and_costs(tmp_path, executed):
    run_study(toy_study(tmp_path, square={}, cube={"power": 3.0, "cost": 1.2}, fourth={"power": 4.0, "control": "cube"}), tmp_path)
    record = json.loads((tmp_path / "toy" / "study.json").read_text())
    assert record["controls"] == {"fourth": "cube"} and record["costs"] == {"cube": 1.2}


# --- what is said meanwhile ---------------------------------------------------------------------------------------------------

def test_a_table_shows_what_runs_and_what_failed(tmp_path):
    jobs = plan_jobs(toy_study(tmp_path, square={}, cube={"power": 3.0}, fourth={"power": 4.0}, fifth={"power": 5.0}), tmp_path)
    done, failed, going, waiting = futures = [Future() for _ in jobs]
    done.set_result("")
    failed.set_result("ValueError: a\nb")
    going.set_running_or_notify_cancel()
    jobs[2].dir.mkdir(parents=True)
    (jobs[2].dir / "log.jsonl").write_text('{"step": 3}\n')
    assert status_rows(dict(zip(futures, jobs))) == [
        "running  fourth seed 0  step 3 of ?", "failed   cube seed 0    ValueError: a\\nb", "1 done, 1 failed, 1 running, 1 waiting"]


def test_a_table_is_written_over_and_cut_to_the_terminal(monkeypatch):
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((10, 3)))
    table = Table(screen := io.StringIO())
    table.show(["0123456789abc", "b"])
    table.show(["c", "d", "e"])
    table.clear()
    table.clear()
    assert screen.getvalue() == "012345678\nb\n\x1b[2F\x1b[Jd\ne\n\x1b[2F\x1b[J"


def test_runs_on_a_terminal_leave_no_table_behind(tmp_path, executed, caplog):
    study = toy_study(tmp_path, square={}, cube={"power": 3.0})
    with caplog.at_level("INFO", "crlsr.studies"):
        run_jobs(plan_jobs(study, tmp_path), jobs=2, terminal=(screen := io.StringIO()))
    assert sorted(executed) == ["cube", "square"] and screen.getvalue().count("\x1b[J") == len(re.findall(r"(?m)^\d+ done, .* waiting$", screen.getvalue()))
    assert len(re.findall(r"\[\d/2\] \w+ seed 0: done", caplog.text)) == 2


def test_a_failed_run_does_not_stop_the_others(tmp_path):
    study = toy_study(tmp_path, huge={"power": 400.0}, square={})
    with pytest.raises(RuntimeError, match=r"^1 of 2 runs failed; huge seed 0: OverflowError: .*power\.partial\.ipynb\)$"):
        run_jobs(plan_jobs(study, tmp_path), jobs=2)
    assert [job.finished for job in plan_jobs(study, tmp_path)] == [False, True]
    with pytest.raises(ValueError, match="jobs: got 0"):
        run_jobs(plan_jobs(study, tmp_path), jobs=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in study_names() if name not in ("smoke", "diagnosis")])
def test_every_variant_of_a_study_runs_at_smoke(name, tmp_path):
    study = load_study(name)
    study = study.replace(profile="smoke", seeds=(0,), variants={v: {k: x for k, x in of.items() if k != "seeds"} for v, of in study.variants.items()})
    study = study.replace(by_profile={"smoke": {**study.by_profile.get("smoke", {}), "threads": 1}})
    notebooks, page = run_study(study, tmp_path, jobs=2)
    assert len(notebooks) == len(study.variants) + 1
    for job in plan_jobs(study, tmp_path):
        result = json.loads((job.dir / "results.json").read_text())
        assert result["name"] == job.variant and all(row["psnr"] > row["bicubic"]["psnr"] - 1 for row in result["metrics"])
    html = page.read_text(encoding="utf-8")
    assert "A check of the chain, not a result" in html


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in study_names() if name != "diagnosis"])
def test_plain_papermill_runs_the_control_and_the_last_variant_of_a_study(name, tmp_path):
    study = load_study(name)
    small = {"profile": "smoke", "data": "embedded:train", "val_data": "embedded:heldout", "test_data": ["embedded:heldout"], "test_presets": ["iso:2.4"], "steps": 2, "warmup_steps": 1, "pictures": 1, "threads": 1, "workers": 0}
    for number, variant in enumerate((next(iter(study.variants)), list(study.variants)[-1])):
        given = study.settings(variant) | small | {"name": variant, "run_dir": str(tmp_path / str(number))}
        given |= {"batch_size": 1 if given.get("pairing", "none") == "none" else 2, **({"extractor_steps": 1} if "extractor_steps" in given else {})}
        done = subprocess.run([sys.executable, "-m", "papermill", str(share_path(TRAIN)), str(tmp_path / f"{number}.ipynb"), "-y", json.dumps(given), "--no-progress-bar"], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, f"{variant}: {done.stderr[-2000:]}"
        assert json.loads((tmp_path / str(number) / "results.json").read_text())["name"] == variant
