"""Killed at any moment, the same command completes its work: the bytes of an undisturbed run, nothing doubled, no debris."""
import random
import signal

import pytest

from tests.trust.folders import debris, made, photographs

COMMANDS = {
    "degrade": ["degrade", "hr", "-o", "out", "--preset", "gaussian8+noise:0..9"],
    "upscale": ["upscale", "hr", "-o", "out", "--model", "bicubic", "--scale", "2"],
    "prepare": ["data", "prepare", "hr", "-o", "out", "--size", "48", "--step", "24", "--jobs", "1"],
}


def campaign(drive, tmp_path, words: list[str], plans: list) -> list[int]:
    "Runs a command by these plans and once more; gives the exit statuses of the plans."
    for place in ("calm", "storm"):
        photographs(tmp_path / place / "hr", 96)
    code, out, err = drive(words, None, "calm")
    assert code == 0, err
    statuses = [drive(words, plan, "storm")[0] for plan in plans]
    code, last, err = drive(words, None, "storm")
    assert code == 0 and (last == out or "prepare" in words), err
    assert made(tmp_path / "storm" / "out") == made(tmp_path / "calm" / "out") and not debris(tmp_path / "storm" / "out")
    return statuses


@pytest.mark.parametrize("command", COMMANDS)
def test_three_kills(drive, tmp_path, command):
    "Before the first file is whole, between its content and its name, and later."
    plans = [{"kill": calls} for calls in {"degrade": (3, 8, 31), "upscale": (3, 8, 13), "prepare": (3, 8, 31)}[command]]
    assert campaign(drive, tmp_path, COMMANDS[command], plans) == [-signal.SIGKILL] * 3


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_many_kills(drive, tmp_path, command):
    "At every call that touches the disk, one after the other, and by the clock."
    dice = random.Random(command)
    plans = [{"kill": calls} for calls in range(1, 25)] + [{"seconds": dice.uniform(0.01, 1)} for _ in range(6)]
    statuses = campaign(drive, tmp_path, COMMANDS[command], plans)
    assert statuses.count(-signal.SIGKILL) >= 10 and set(statuses) <= {0, -signal.SIGKILL}


@pytest.mark.parametrize("calls", [5, pytest.param(60, id="60, almost done"), *(pytest.param(n, marks=pytest.mark.slow) for n in range(10, 100, 9))])
def test_a_killed_replacement_leaves_the_old_set_or_the_new_one_and_never_a_manifest_of_neither(drive, tmp_path, calls):
    photographs(tmp_path / "hr", 96)
    for place, sigma in (("out", 3), ("new", 2)):
        assert drive(["degrade", "hr", "-o", place, "--preset", f"iso:{sigma}"])[0] == 0
    old, new = made(tmp_path / "out"), made(tmp_path / "new")
    words = ["degrade", "hr", "-o", "out", "--preset", "iso:2", "--overwrite"]
    drive(words, {"kill": calls})
    found = {name: data for name, data in made(tmp_path / "out").items() if "/" not in name}
    assert found in (old, new) or "params.json" not in found and all(data in (old[name], new[name]) for name, data in found.items())
    code, _, err = drive(words)
    assert code == 0 and made(tmp_path / "out") == new and not debris(tmp_path / "out"), err
