"""interruptions: runs that are killed, stopped, starved of disk or of photographs: they end bit for bit like a run left alone, or say why not in one line."""
import errno
import json
import math
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from crlsr import core
from crlsr.core import generator, held_folder, read_jsonl
from crlsr.data import ImagePool, embedded_images
from crlsr.images import write_image
from crlsr.training import fit, interruptions, loop, profile
from crlsr.training.interruptions import StopRequest, load_checkpoint
from tests.forks import Forked

RUN = {"num_feat": 4, "num_block": 2, "num_embed": 4, "num_vectors": 8, "batch_size": 2, "patch_size": 6, "steps": 14, "warmup_steps": 3, "log_every": 1,
       "checkpoint_every": 2, "threads": 1, "device": "cpu", "bc_negatives": "queue", "ema_keys": 0.9, "queue_size": 32, "weight_bc": 0.01}
LONG = {"steps": 24}  # of runs that meet ten accidents

# One process imports the package once and forks a child for each accident.
SCENE = """
import json, os, signal, sys, time
from pathlib import Path
from crlsr import core
from crlsr.training import fit, profile
parent, settings, accidents = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])

def rows():
    return len(core.read_jsonl(folder / "log.jsonl"))

def dying_replace(at, count, honest=os.replace):
    def replace(source, target):
        nonlocal count
        hit = Path(target).name == at[0]
        count -= hit
        if hit and count == 0 and at[1] == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        honest(source, target)
        if hit and count == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return replace

def dying_fsync(count, honest=os.fsync):
    def fsync(handle):
        nonlocal count
        count -= ".partial" in os.readlink(f"/proc/self/fd/{handle}")
        if count == 0:
            os.ftruncate(handle, os.fstat(handle).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        honest(handle)
    return fsync

for accident in accidents:
    folder = parent / accident["run"]
    child = os.fork()
    if child == 0:
        if accident["kind"] == "replace":
            os.replace = dying_replace(accident["at"], accident["count"])
        if accident["kind"] == "half":
            os.fsync = dying_fsync(accident["count"])
        try:
            result = fit(*profile("smoke", settings), folder, progress=False)
        except BaseException as error:
            print(type(error).__name__, error, flush=True)
            os._exit(1)
        os._exit(0 if result.finished else 3)
    if accident["kind"] == "signal":
        before, end = rows(), time.monotonic() + 60
        while rows() < before + accident["rows"] and time.monotonic() < end and os.waitpid(child, os.WNOHANG)[0] == 0:
            time.sleep(0.001)
        time.sleep(accident["wait"])
        try:
            os.kill(child, accident["number"])
        except ProcessLookupError:
            pass
    try:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except ChildProcessError:
        status = 0
    print(json.dumps([status, rows()]), flush=True)
"""


def play(folder, runs):
    "For every run, a folder with a list of accidents: what became of each child, (exit status, rows of the log)."
    accidents = [{"run": run, **accident} for run, each in runs.items() for accident in each]
    scene = Forked(SCENE, folder, json.dumps(RUN | LONG), json.dumps(accidents))
    out, err = scene.communicate()
    assert scene.returncode == 0, err[-2000:]
    lines = iter(out.splitlines())
    return {run: [json.loads(next(lines)) for _ in each] for run, each in runs.items()}


def without_time(rows):
    return [{key: value for key, value in row.items() if key not in ("seconds", "images_per_second") and not key.startswith("time_")} for row in rows]


def assert_same_run(one, other):
    a, b = load_checkpoint(one / "checkpoint.pt"), load_checkpoint(other / "checkpoint.pt")
    assert a["step"] == b["step"] == a["config"]["train"]["steps"]
    for part in ("weights", "ema"):
        assert a[part].keys() == b[part].keys() and all(torch.equal(a[part][name], b[part][name]) for name in a[part])
    for i, memory in a["optimizer"]["state"].items():
        assert all(torch.equal(value, b["optimizer"]["state"][i][key]) for key, value in memory.items())
    rows = read_jsonl(other / "log.jsonl")
    assert [row["step"] for row in rows] == list(range(1, a["step"] + 1))
    assert without_time(read_jsonl(one / "log.jsonl")) == without_time(rows)
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert not list(other.glob(".*.partial*"))


@pytest.fixture(scope="module", autouse=True)
def few_photographs(tmp_path_factory):
    "Two small files, so that a start takes no time."
    folder = tmp_path_factory.mktemp("few")
    for name in ("chelsea", "coffee"):
        write_image(embedded_images("heldout")[name][:, 100:180, 100:180], folder / f"{name}.png")
    RUN["data"] = str(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    result = fit(*profile("smoke", RUN), tmp_path_factory.mktemp("whole") / "run", progress=False)
    assert result.finished and any(name.startswith("decoupling.loss.negatives") for name in load_checkpoint(result.run_dir / "checkpoint.pt")["weights"])
    return result.run_dir


@pytest.fixture(scope="module")
def whole_and_long(tmp_path_factory):
    assert fit(*profile("smoke", RUN | LONG), run := tmp_path_factory.mktemp("long") / "run", progress=False).finished
    return run


@pytest.fixture(scope="module")
def nine_steps(tmp_path_factory):
    assert fit(*profile("smoke", RUN), run := tmp_path_factory.mktemp("nine") / "run", max_steps=9, progress=False).step == 9
    return run


@pytest.fixture
def begun(nine_steps, tmp_path):
    "A run of its own that was stopped after nine steps."
    return shutil.copytree(nine_steps, tmp_path / "run")


# kills

SIGKILLS = [{"kind": "signal", "number": signal.SIGKILL, "rows": 2, "wait": wait} for wait in torch.rand(10, generator=generator("moments")).mul(0.03).tolist()]
MOMENTS = [("checkpoint.pt", "before"), ("checkpoint-previous.pt", "before"), ("checkpoint-previous.pt", "after"), ("checkpoint.pt", "after"),
           ("model.safetensors", "before"), ("model.safetensors", "after")]
WRITING = [{"kind": "replace", "at": at, "count": 1} for at in MOMENTS] + [{"kind": "half", "count": count} for count in (1, 2, 3, 4)]
TERMS = [{"kind": "signal", "number": number, "rows": rows, "wait": 0.0} for number, rows in ((signal.SIGTERM, 1), (signal.SIGHUP, 5))]


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    folder = tmp_path_factory.mktemp("played")
    return folder, play(folder, {"killed": [*SIGKILLS, {"kind": "none"}], "writing": [*WRITING, {"kind": "none"}], "terminated": TERMS})


def test_a_run_killed_at_ten_moments_ends_as_if_it_had_not(whole_and_long, played):
    folder, became = played
    assert sum(status == -signal.SIGKILL for status, _ in became["killed"]) >= 7 and became["killed"][-1] == [0, 24]
    assert_same_run(whole_and_long, folder / "killed")


def test_kills_while_a_checkpoint_is_written(whole_and_long, played):
    "Half a file; before, between and after the renamings; before and after the weights for others are written."
    folder, became = played
    assert [status for status, _ in became["writing"]] == [-signal.SIGKILL] * len(WRITING) + [0] and became["writing"][-1] == [0, 24]
    assert_same_run(whole_and_long, folder / "writing")


def test_sigterm_and_sighup_leave_a_checkpoint_of_the_last_step_and_the_status_of_the_signal(whole_and_long, played):
    folder, became = played
    assert [status for status, _ in became["terminated"]] == [-signal.SIGTERM, -signal.SIGHUP]
    saved = load_checkpoint(folder / "terminated" / "checkpoint.pt")
    assert saved["step"] == became["terminated"][1][1] and saved["pending"] == []  # no step was lost
    assert fit(*profile("smoke", RUN | LONG), folder / "terminated", progress=False).finished
    assert_same_run(whole_and_long, folder / "terminated")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_campaign_of_kills_and_terms(whole_and_long, tmp_path, seed):
    draw = torch.rand(12, 2, generator=generator("campaign", seed)).tolist()
    accidents = [{"kind": "signal", "number": signal.SIGKILL if kind < 0.7 else signal.SIGTERM, "rows": 1, "wait": 0.1 * wait} for kind, wait in draw]
    assert play(tmp_path, {"run": [*accidents, {"kind": "none"}]})["run"][-1] == [0, 24]
    assert_same_run(whole_and_long, tmp_path / "run")


# stops inside this process

def stop_at(monkeypatch, step, action):
    honest = loop.train_step

    def train_step(state, *rest):
        if state.step == step:
            action()
        return honest(state, *rest)

    monkeypatch.setattr(loop, "train_step", train_step)


def test_an_interrupt_arrives_after_the_checkpoint(whole, tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        stop_at(patch, 10, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            fit(*profile("smoke", RUN), tmp_path / "run", progress=False)
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] == 11
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    torch.rand(3)  # the global generator plays no part
    assert fit(*profile("smoke", RUN), tmp_path / "run", progress=False).finished
    assert_same_run(whole, tmp_path / "run")


def test_a_time_budget_ends_a_call_with_a_checkpoint(whole, tmp_path, caplog):
    caplog.set_level("INFO", logger="crlsr")
    result = fit(*profile("smoke", RUN), tmp_path / "run", max_minutes=1e-6, progress=False)
    assert not result.finished and result.step == 1 and load_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] == 1
    assert "time is up: stopped after step 1 of 14" in caplog.text
    assert fit(*profile("smoke", RUN), tmp_path / "run", max_minutes=60, progress=False).finished
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.parametrize("minutes", [0, -1.0, math.nan])
def test_a_budget_of_no_time_is_refused(minutes):
    with pytest.raises(ValueError, match="max_minutes: got"):
        StopRequest(minutes)


def test_whoever_ignores_a_signal_goes_on_ignoring_it():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGTERM)
            assert not stop.due
    finally:
        signal.signal(signal.SIGTERM, before)


# disks

def assert_goes_on(whole, folder, step):
    "The last good checkpoint is whole, and the run ends as if nothing had been."
    assert load_checkpoint(folder / "checkpoint.pt")["step"] == step
    assert fit(*profile("smoke", RUN), folder, progress=False).finished
    assert_same_run(whole, folder)


@pytest.mark.parametrize("room, step, reason, words", [*((*room, errno.ENOSPC, "No space left on device") for room in ((3, 9), (4, 9), (5, 10))), (3, 9, errno.EROFS, "Read-only file system")])
def test_a_disk_that_fills_while_a_checkpoint_is_written(whole, begun, tmp_path, monkeypatch, reason, words, room, step):
    left = room  # files that the disk still takes: config, photographs, a row, the checkpoint twice, the weights for others

    def full(handle, honest=os.fsync):
        nonlocal left
        left -= not os.path.isdir(f"/proc/self/fd/{handle}")
        if left < 0:
            os.ftruncate(handle, os.fstat(handle).st_size // 2)
            raise OSError(reason, os.strerror(reason))
        honest(handle)

    with monkeypatch.context() as patch:
        patch.setattr(interruptions.os, "fsync", full)
        with pytest.raises(OSError, match=rf"run/(checkpoint.pt|log.jsonl|model.safetensors): cannot be written \(.*{words}.*start the same command again") as caught:
            fit(*profile("smoke", RUN), tmp_path / "run", progress=False)
        assert "\n" not in str(caught.value)
    assert_goes_on(whole, tmp_path / "run", step)


def test_a_disk_that_is_full_for_the_log(whole, tmp_path, monkeypatch):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    log = tmp_path / "run" / "log.jsonl"

    def full():
        log.rename(tmp_path / "log")
        log.symlink_to("/dev/full")  # takes nothing: a real refusal of the system

    with monkeypatch.context() as patch:
        stop_at(patch, 10, full)
        with pytest.raises(OSError, match=r"log.jsonl: cannot be written \(No space left on device\)"):
            fit(*profile("smoke", RUN), tmp_path / "run", progress=False)
    log.unlink()
    (tmp_path / "log").rename(log)
    assert_goes_on(whole, tmp_path / "run", 10)


def test_weights_for_others_that_cannot_be_written(whole, begun, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        def full(path, content, honest=Path.write_bytes):
            if path.suffix == ".safetensors":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return honest(path, content)

        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match=r"model.safetensors: cannot be written .*No space left .*make room"):
            fit(*profile("smoke", RUN), tmp_path / "run", progress=False)
    assert_goes_on(whole, tmp_path / "run", 10)


def test_a_read_only_folder_is_refused_before_training(whole, begun, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:  # root may write everywhere, so the system's refusal is played
        def refuse(path, flags, *rest, honest=os.open):
            if flags & (os.O_CREAT | os.O_RDWR | os.O_WRONLY) and str(path).startswith(str(tmp_path)):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return honest(path, flags, *rest)

        patch.setattr(interruptions.os, "open", refuse)
        patch.setattr(loop, "ImagePool", lambda *a: pytest.fail("photographs were read"))
        with pytest.raises(OSError, match=r"run: cannot be written \(Read-only file system\).*make it writable") as caught:
            fit(*profile("smoke", RUN), tmp_path / "run", progress=False)
        assert "\n" not in str(caught.value)
        assert fit(*profile("smoke", RUN), whole, progress=False).finished  # a finished run is only read
    assert_goes_on(whole, tmp_path / "run", 9)


# two owners

def test_a_second_process_is_refused_and_the_first_undisturbed(whole, tmp_path, monkeypatch):
    folder, answers = tmp_path / "run", []
    code = "import sys\nfrom crlsr.training import fit, profile\nimport json\nfit(*profile('smoke', json.loads(sys.argv[2])), sys.argv[1], progress=False)"

    def intrude():
        answers.append((second := Forked(code, folder, json.dumps(RUN)), second.communicate()[1]))
        with pytest.raises(ValueError, match=r"run_dir: .*run is in use by process \d+ on"):
            fit(*profile("smoke", RUN), folder, progress=False)

    stop_at(monkeypatch, 10, intrude)
    assert fit(*profile("smoke", RUN), folder, progress=False).finished
    (second, err), = answers
    assert second.returncode == 1 and f"is in use by process {os.getpid()} on" in err.splitlines()[-1]
    assert_same_run(whole, folder)


def test_workers_of_a_killed_run_do_not_keep_its_folder(tmp_path):
    "They read photographs on for a while after their parent was killed."
    code = "import json, sys\nfrom crlsr.training import fit, profile\nfit(*profile('smoke', json.loads(sys.argv[2])), sys.argv[1], progress=False)"
    settings = RUN | {"workers": 2, "steps": 100000}
    killed = Forked(code, tmp_path / "run", json.dumps(settings))
    end = time.monotonic() + 120
    while len(read_jsonl(tmp_path / "run" / "log.jsonl")) < 2:
        assert time.monotonic() < end
        time.sleep(0.02)
    killed.kill()
    assert killed.wait(60) == -signal.SIGKILL
    with held_folder(tmp_path / "run"):
        pass


@pytest.mark.parametrize("how", ["removed", "renamed", "replaced"])
def test_a_folder_that_goes_under_a_run_ends_it_in_one_line(whole, tmp_path, monkeypatch, how):
    run = tmp_path / "run"

    def go():
        shutil.rmtree(run) if how == "removed" else run.rename(tmp_path / "other")
        if how == "replaced":
            run.mkdir()

    with monkeypatch.context() as patch:
        stop_at(patch, 10, go)
        with pytest.raises(OSError, match="run_dir: .*run was removed, renamed or replaced while it was in use") as caught:
            fit(*profile("smoke", RUN), run, progress=False)
    assert "\n" not in str(caught.value)
    assert not run.exists() if how != "replaced" else list(run.iterdir()) == []  # nothing was made anew
    if how != "removed":
        shutil.rmtree(run, ignore_errors=True)
        (tmp_path / "other").rename(run)
        assert_goes_on(whole, run, 10)


# photographs

@pytest.fixture
def photographs(tmp_path):
    image = embedded_images("heldout")["chelsea"]
    (tmp_path / "photos").mkdir()
    for number in range(4):
        write_image(image[:, : 40 + number, 50:100], tmp_path / "photos" / f"{number}.png")
    return tmp_path / "photos"


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("accident", ["vanishes", "breaks"])
def test_photographs_that_go_bad_during_a_run(tmp_path, monkeypatch, photographs, accident, workers):
    config = profile("smoke", RUN | {"data": str(photographs), "workers": workers, "weight_bc": 0, "weight_srnce": 0, "weight_rec": 0, "bc_negatives": "positions", "ema_keys": None})
    monkeypatch.setattr(loop, "ImagePool", lambda source: ImagePool(source, memory_mb=0))
    copy = tmp_path / "copy"
    shutil.copytree(photographs, copy)

    def spoil():
        shutil.rmtree(photographs)
        if accident == "breaks":
            photographs.mkdir()
            for path in copy.iterdir():
                (photographs / path.name).write_bytes(path.read_bytes()[:200])

    with monkeypatch.context() as patch:
        stop_at(patch, 10, spoil)
        words = {"vanishes": r"image '\d': its folder .*photos has vanished", "breaks": r"photos/\d.png: .*truncated"}[accident]
        with pytest.raises((FileNotFoundError, ValueError), match=rf"{words}.*training stopped after step \d+, with a checkpoint") as caught:
            fit(*config, tmp_path / "run", progress=False)
        assert "\n" not in str(caught.value)
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] >= 10
    shutil.rmtree(photographs, ignore_errors=True)
    shutil.copytree(copy, photographs)
    assert fit(*config, tmp_path / "run", progress=False).finished


def test_workers_change_nothing(whole, tmp_path):
    fit(*profile("smoke", RUN | {"workers": 2}), tmp_path / "run", progress=False, max_steps=7)
    fit(*profile("smoke", RUN | {"workers": 1}), tmp_path / "run", progress=False)
    assert_same_run(whole, tmp_path / "run")


# the same photographs: their content in its order, not the spelling of a path

@pytest.fixture
def half(tmp_path, monkeypatch, photographs):
    "A run that was stopped half way, and how to go on with it."
    monkeypatch.chdir(tmp_path)
    changes = {"data": "photos", "val_data": "photos", "validate_every": 24, "steps": 8}

    def go_on(**more):
        return fit(*profile("smoke", RUN | changes | more), tmp_path / "run", progress=False)

    fit(*profile("smoke", RUN | changes), tmp_path / "run", max_steps=4, progress=False)
    return go_on


def test_photographs_that_moved_go_on(half, tmp_path, photographs):
    photographs.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "3.png").rename(tmp_path / "elsewhere" / "4.png")  # in the same order
    os.utime(tmp_path / "elsewhere" / "0.png", (1, 1))
    (tmp_path / "run").rename(tmp_path / "moved")
    (tmp_path / "moved").rename(tmp_path / "run")
    result = half(data="./elsewhere/", val_data=str(tmp_path / "elsewhere"))
    assert result.finished and json.loads((tmp_path / "run" / "config.json").read_text())["train"]["data"] == "./elsewhere/"
    assert half(data="elsewhere", val_data="elsewhere").finished
    shutil.rmtree(tmp_path / "elsewhere")
    assert half(data="elsewhere", val_data="elsewhere").finished  # it is only read


def flip(path):
    content = bytearray(path.read_bytes())
    content[-20] ^= 1  # as long as before
    path.write_bytes(content)


@pytest.mark.parametrize("change, words", [
    (lambda photos: flip(photos / "1.png"), "data: image '1' was changed"), (lambda photos: (photos / "2.png").unlink(), "data: image '2' is gone"),
    (lambda photos: shutil.copy(photos / "0.png", photos / "9.png"), "data: image '9' is new"), (lambda photos: (photos / "0.png").rename(photos / "9.png"), "data: the same images stand in another order"),
])
@pytest.mark.parametrize("when", ["half way", "finished"])
def test_other_photographs_are_refused_by_name(half, tmp_path, photographs, change, words, when):
    if when == "finished":
        assert half().finished
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    change(photographs)
    with pytest.raises(ValueError, match=words) as caught:
        half()
    assert "\n" not in str(caught.value)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}


def test_other_photographs_to_look_at_are_refused_by_name(half, tmp_path, photographs):
    shutil.copytree(photographs, tmp_path / "look")
    flip(tmp_path / "look" / "3.png")
    with pytest.raises(ValueError, match="val_data: image '3' was changed"):
        half(val_data="look")
    with pytest.raises(ValueError, match="val_data: none here"):
        half(val_data=None)


# a damaged checkpoint

def test_a_run_goes_on_from_the_checkpoint_before_and_names_the_damaged_one(whole, tmp_path, caplog):
    fit(*profile("smoke", RUN), tmp_path / "run", max_steps=11, progress=False)
    newest = tmp_path / "run" / "checkpoint.pt"
    content = bytearray(newest.read_bytes())
    content[content.find(load_checkpoint(newest)["weights"]["restorer.remover.head.bias"].numpy().tobytes()) + 2] ^= 1
    newest.write_bytes(content)
    assert fit(*profile("smoke", RUN), tmp_path / "run", progress=False).finished
    assert "checkpoint.pt is cut short, altered" in caplog.text and "going on from step 10 in checkpoint-previous.pt" in caplog.text
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.parametrize("damage", ["{", "", "[1]", '{"model": {}}'])
def test_a_damaged_config_is_named_and_counts_as_absent(whole, begun, tmp_path, caplog, damage):
    (tmp_path / "run" / "config.json").write_text(damage)
    if damage == '{"model": {}}':  # whole, but of something else
        with pytest.raises(ValueError, match="holds a run of other settings"):
            fit(*profile("smoke", RUN), tmp_path / "run", progress=False)
    else:
        assert_goes_on(whole, tmp_path / "run", 9)
        assert "config.json" in caplog.text and json.loads((tmp_path / "run" / "config.json").read_text())["train"]["steps"] == 14


@pytest.mark.parametrize("change", [
    lambda state: state["optimizer"].clear(), lambda state: state["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)), lambda state: state["pending"].append([0.0]),
    lambda state: state["weights"].update({name: value[:1] for name, value in list(state["weights"].items())[:1]}), lambda state: state["ema"].update(mine=torch.zeros(1)),
])
def test_entries_that_do_not_fit_are_refused_in_one_line(begun, tmp_path, change):
    path = tmp_path / "run" / "checkpoint.pt"
    state = load_checkpoint(path)
    change(state)
    torch.save(state, path)
    with pytest.raises(ValueError, match="checkpoint.pt: written by crlsr .*, its entries do not fit crlsr") as caught:
        fit(*profile("smoke", RUN), tmp_path / "run", progress=False)
    assert "\n" not in str(caught.value)


# finished

def test_a_finished_model_is_never_trained_over(whole, tmp_path, caplog):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for name in ("checkpoint.pt", "checkpoint-previous.pt"):
        (run / name).unlink()  # to save room
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert fit(*profile("smoke", RUN), run, progress=False).finished
    assert before == {path.name: path.read_bytes() for path in run.iterdir()}
    (run / "model.safetensors").write_bytes(before["model.safetensors"][:-1] + b"?")  # damaged: not finished, and nothing to go on from
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
        fit(*profile("smoke", RUN), run, progress=False)
    assert (run / "model.safetensors").read_bytes() == before["model.safetensors"][:-1] + b"?"


def test_a_run_finished_by_another_process_meanwhile_is_only_read(whole, tmp_path, monkeypatch):
    run = tmp_path / "run"
    honest = loop.held_folder

    def late(folder):
        shutil.copytree(whole, run, dirs_exist_ok=True)  # between the first look and the lock
        return honest(folder)

    monkeypatch.setattr(loop, "held_folder", late)
    monkeypatch.setattr(loop, "ImagePool", lambda *a: pytest.fail("photographs were read"))
    assert fit(*profile("smoke", RUN), run, progress=False).finished
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_names_survive_a_power_cut(tmp_path, monkeypatch):
    "The folder is synchronised after the renaming, else the new name may be lost though the content is there."
    calls, honest = [], (os.fsync, os.replace)
    monkeypatch.setattr(core.files.os, "fsync", lambda handle: (calls.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file"), honest[0](handle)))
    monkeypatch.setattr(core.files.os, "replace", lambda *names: (calls.append("rename"), honest[1](*names)))
    with core.atomic_path(tmp_path / "x") as partial:
        partial.write_text("x")
    assert calls == ["file", "rename", "folder"]
    core.append_jsonl(tmp_path / "log", {"step": 1})
    assert calls[-1] == "file"
