"""Studies whose runner or kernel is killed, or whose disk fills: the same command completes them, makes nothing twice, and takes nothing half-made for finished."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crlsr.app.cli import main
from tests.studies.conftest import write_notebook

GIVEN = ("profile: str = 'smoke'  # x\nname: str = ''  # x\nseed: int = 0  # x\nrun_dir: str = '.'  # x\ndata: None = None  # x\n"
         "val_data: None = None  # x\ntest_data: list[str] = ['embedded:heldout']  # x\npower: float = 2.0  # x")
# A run writes the number of its process as it begins, waits where it is told to, or meets a full disk, and writes its result.
BEGIN = """
import errno, json, os, pathlib, time
here, ledger = pathlib.Path(run_dir), pathlib.Path(run_dir).parents[2]
with open(ledger / 'begun', 'a') as file:
    print(name, os.getpid(), file=file, flush=True)
while (ledger / f'hold {name}').exists():
    time.sleep(0.05)
if (ledger / f'full {name}').exists():
    (here / 'results.json').write_text('{"product": 1')
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
"""
END = "(here / 'results.json').write_text(json.dumps({'product': (seed + 10.0) ** power}))\nwith open(ledger / 'ended', 'a') as file:\n    print(name, file=file)"
POWERS = {"square": 2.0, "cube": 3.0, "fourth": 4.0}


@pytest.fixture
def study(tmp_path):
    "The command of a study with three runs, one at a time, and its folder."
    write_notebook(tmp_path / "power.ipynb", GIVEN, BEGIN, END)
    write_notebook(tmp_path / "list.ipynb", "runs: str = '.'  # x", "print(runs)")
    lines = ['question = "?"', 'prediction = "1"', 'decision = "?"', 'profile = "smoke"', 'notebook = "power.ipynb"', 'report = "list.ipynb"']
    (tmp_path / "toy.toml").write_text("\n".join([*lines, *(f"[variants.{name}]\npower = {power}" for name, power in POWERS.items())]) + "\n")
    return [sys.executable, "-m", "crlsr", "reproduce", str(tmp_path / "toy.toml"), "--out", str(tmp_path / "runs")]


def started(command: list[str], tmp_path: Path, name: str) -> tuple[subprocess.Popen, int]:
    "A runner that has come to a run that waits, and the process of its kernel."
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (lines := [line for line in lines_of(tmp_path / "begun") if line.startswith(f"{name} ")]):
        assert process.poll() is None, "the study ended before it was disturbed"
        time.sleep(0.05)
    return process, int(lines[-1].split()[1])


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def results(tmp_path: Path) -> dict[str, float]:
    "Finished runs, as the study sees them: an executed notebook with its digest, and a result that can be read."
    found = {}
    for folder in (tmp_path / "runs" / "shared").glob("seed*"):
        record = folder / "power.json"
        if (folder / "power.ipynb").exists() and record.exists() and json.loads(record.read_text())["digest"]:
            found[json.loads(record.read_text())["parameters"]["name"]] = json.loads((folder / "results.json").read_text())["product"]
    return found


def gone(pid: int) -> bool:
    "Whether a process has ended, or is a corpse that nobody has buried yet."
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="whether a kernel still lives is read from /proc")
@pytest.mark.parametrize("who", ["runner", pytest.param("kernel", marks=pytest.mark.slow)])
def test_a_study_that_was_killed_is_completed_by_the_same_command(tmp_path, study, who, forked):
    "Killed as a process, with its kernel; completed in this one."
    (tmp_path / "hold cube").touch()
    process, kernel = started(study, tmp_path, "cube")
    os.kill(process.pid if who == "runner" else kernel, signal.SIGKILL)
    if who == "runner":
        process.wait()
        while not gone(kernel):  # it notices that nobody listens
            time.sleep(0.05)
        assert results(tmp_path) == {"square": 100.0}
    else:
        assert process.wait() != 0, "a lost run is no success"
        assert results(tmp_path) == {"square": 100.0, "fourth": 1e4}, "the others went on"
    before = lines_of(tmp_path / "ended")
    (tmp_path / "hold cube").unlink()
    assert main(study[3:]) == 0
    assert results(tmp_path) == {name: 10.0**power for name, power in POWERS.items()}
    assert lines_of(tmp_path / "ended") == [*before, *(name for name in POWERS if name not in before)], "each run once"
    assert main(study[3:]) == 0
    assert len(lines_of(tmp_path / "ended")) == len(POWERS), "nothing is executed again"


@pytest.mark.slow
def test_a_study_whose_disk_was_full_is_completed_by_the_same_command(tmp_path, study, forked):
    (tmp_path / "full cube").touch()
    first = subprocess.run(study, capture_output=True, text=True)
    assert first.returncode != 0 and "No space left on device" in first.stderr
    assert results(tmp_path) == {"square": 100.0, "fourth": 1e4}
    (tmp_path / "full cube").unlink()
    assert main(study[3:]) == 0
    assert results(tmp_path) == {name: 10.0**power for name, power in POWERS.items()}
    assert sorted(lines_of(tmp_path / "ended")) == sorted(POWERS)
