"""A full disk, or one that cannot be written to any more, ends a command in one line; what is there is whole, and with room the same command completes it."""
import contextlib
import json
import os
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest

from crlsr.training.interruptions import load_checkpoint
from tests.trust.folders import TINY, debris, made, photographs, study_folder

COMMANDS = {
    "degrade": ["degrade", "hr", "-o", "disk/out", "--preset", "gaussian8+noise:9"],
    "upscale": ["upscale", "hr", "-o", "disk/out", "--model", "bicubic", "--scale", "4"],
    "upscale to a file": ["upscale", "hr/astronaut.png", "-o", "disk/large.png", "--model", "bicubic", "--scale", "4"],
    "evaluate": ["evaluate", "--model", "bicubic", "--data", "hr", "--preset", "gaussian8", "--json", "disk/r.json"],
    "prepare": ["data", "prepare", "hr", "-o", "disk/out", "--size", "48", "--step", "24", "--jobs", "1"],
}

TRAIN = ["train", "--profile", "smoke", "--data", "train", "--run", "disk/run", *(f"--set={name}={value}" for name, value in TINY.items())]
STUDY = ["reproduce", "tiny", "--out", "disk"]


@contextlib.contextmanager
def small_disk(folder, size: str):
    "A file system of its own in a folder; gives what changes it. Skips where this user may not mount one."
    folder.mkdir()
    mount = lambda *options: subprocess.run(["mount", *options], capture_output=True, text=True)  # noqa: E731
    if os.name != "posix" or os.geteuid() or mount("-t", "tmpfs", "-o", f"size={size}", "none", str(folder)).returncode:
        pytest.skip("this user cannot mount a small file system")
    try:
        yield lambda option: mount("-o", f"remount,{option}", str(folder)).returncode
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def whole(found: dict, expected: dict) -> bool:
    return all(data == expected[name] for name, data in found.items())


def told(err: str, *words: str) -> bool:
    "One line that says all of this."
    return err.count("\n") == 1 and err.startswith("crlsr: ") and all(word in err for word in words)


def expected_of(drive, tmp_path, words: list[str], side: int) -> dict[str, bytes]:
    (tmp_path / "calm" / "disk").mkdir(parents=True)
    photographs(tmp_path / "calm" / "hr", side)
    code, _, err = drive(words, None, "calm")
    assert code == 0, err
    return made(tmp_path / "calm" / "disk")


@pytest.mark.parametrize("command", ["degrade", "upscale", "upscale to a file"])
def test_a_full_disk(drive, tmp_path, command):
    expected = expected_of(drive, tmp_path, COMMANDS[command], 128)
    photographs(tmp_path / "hr", 128)
    with small_disk(tmp_path / "disk", {"degrade": "64k", "upscale": "300k", "upscale to a file": "128k"}[command]) as remount:
        code, _, err = drive(COMMANDS[command])
        assert code == 1 and told(err, "No space left on device", "make room and start the same command again"), err
        found = made(tmp_path / "disk")
        assert whole(found, expected) and len(found) < len(expected) and not debris(tmp_path / "disk")
        assert remount("size=16m") == 0
        code, _, err = drive(COMMANDS[command])
        assert code == 0 and made(tmp_path / "disk") == expected, err


@pytest.mark.parametrize("command", COMMANDS)
def test_a_disk_that_says_that_it_is_full(drive, tmp_path, command):
    "The same where nothing can be mounted: calls that fail as they do on a full disk, from the n-th on."
    (tmp_path / "disk").mkdir()
    expected = expected_of(drive, tmp_path, COMMANDS[command], 96)
    photographs(tmp_path / "hr", 96)
    calls = [2] if command in ("evaluate", "upscale to a file") else [2, 12]
    for n in calls:
        code, _, err = drive(COMMANDS[command], {"full": n})
        assert code == 1 and told(err, "No space left on device"), err
    code, _, err = drive(COMMANDS[command])
    found = made(tmp_path / "disk")
    if command == "evaluate":
        found.pop("r.json"), expected.pop("r.json")  # holds the time of day
    assert code == 0 and found == expected and not debris(tmp_path / "disk"), err


@pytest.mark.parametrize("command", COMMANDS)
def test_a_disk_that_cannot_be_written_to(drive, tmp_path, command):
    photographs(tmp_path / "hr", 96)
    with small_disk(tmp_path / "disk", "16m") as remount:
        assert remount("ro") == 0
        code, out, err = drive(COMMANDS[command])
        assert (code, out) == (1, "") and told(err, "disk"), err
        assert os.listdir(tmp_path / "disk") == []


# --- a training, a study ---------------------------------------------------------------------------------------------------------

def weights(folder: Path) -> bytes:
    (path,) = folder.rglob("model.safetensors")
    return path.read_bytes()


def last_line(err: str) -> str:
    "What a command ends with, behind the notes on its way: one line."
    lines = err.splitlines()
    assert "Traceback" not in err and [line.startswith("crlsr: ") for line in lines].index(True) == len(lines) - 1, err
    return lines[-1]


@pytest.fixture(scope="module")
def calm_weights(driver, tmp_path_factory):
    "The model of an undisturbed training."
    folder = tmp_path_factory.mktemp("calm")
    study_folder(folder, short=True)
    print(json.dumps([None, TRAIN, str(folder)]), file=driver.stdin, flush=True)
    code, _, err = json.loads(driver.stdout.readline())
    assert code == 0, err
    return weights(folder / "disk")


@pytest.mark.parametrize("words", [pytest.param(TRAIN, id="train"), pytest.param(STUDY, id="reproduce", marks=pytest.mark.slow)])
def test_a_training_on_a_disk_that_becomes_full_goes_on_when_there_is_room(drive, tmp_path, calm_weights, words):
    study_folder(tmp_path, short=True)
    with small_disk(tmp_path / "disk", "230k" if words == TRAIN else "300k") as remount:
        code, _, err = drive(words)
        assert code == 1 and "No space left on device" in (said := last_line(err)) and said.count("make room") <= 1, err
        (checkpoint,) = (tmp_path / "disk").rglob("checkpoint.pt")
        assert 5 <= load_checkpoint(checkpoint)["step"] < 40
        assert remount("size=16m") == 0
        code, _, err = drive(words)
        assert code == 0 and weights(tmp_path / "disk") == calm_weights and not debris(tmp_path / "disk"), err


@pytest.mark.parametrize("calls", [1, 7, 31])
def test_a_training_that_hears_that_the_disk_is_full(drive, tmp_path, calm_weights, calls):
    study_folder(tmp_path, short=True)
    code, _, err = drive(TRAIN, {"full": calls})
    assert code == 1 and "No space left on device" in last_line(err)
    code, _, err = drive(TRAIN)
    assert code == 0 and weights(tmp_path / "disk") == calm_weights and not debris(tmp_path / "disk"), err


@pytest.mark.parametrize("words", [TRAIN, STUDY, *COMMANDS.values()], ids=["train", "reproduce", *COMMANDS])
def test_a_folder_that_this_user_may_not_write_to(drive, words):
    with tempfile.TemporaryDirectory() as name:  # where any user may go, as tmp_path is not
        folder, user = Path(name), {"user": 65534} if os.geteuid() == 0 else None
        study_folder(folder, short=True)
        photographs(folder / "hr", 96)
        (folder / "disk").mkdir()
        for path in (folder, folder / "disk"):
            path.chmod(0o555)
        code, out, err = drive(words, user, folder)
        try:
            assert code == 1 and "disk" in last_line(err) and os.listdir(folder / "disk") == [], err
        finally:
            for path in (folder, folder / "disk"):
                path.chmod(0o777)
        if words != STUDY:  # whose kernels are started in other tests
            code, _, err = drive(words, None, folder)
            assert code == 0 and os.listdir(folder / "disk"), err


@pytest.mark.parametrize("words, how", [pytest.param(TRAIN, "removed", id="train, removed"), pytest.param(TRAIN, "renamed", id="train, renamed"), pytest.param(STUDY, "removed", id="reproduce, removed", marks=pytest.mark.slow),
                                        pytest.param(STUDY, "renamed", id="reproduce, renamed", marks=pytest.mark.slow)])
def test_a_folder_that_goes_during_a_training(drive, tmp_path, calm_weights, words, how):
    study_folder(tmp_path, short=True)
    gone = threading.Event()

    def take_away():
        while not any(path.read_text() for path in (tmp_path / "disk").rglob("log.jsonl")):
            time.sleep(0.005)
        (tmp_path / "disk").rename(tmp_path / "elsewhere")
        gone.set()

    threading.Thread(target=take_away, daemon=True).start()
    code, _, err = drive(words)
    assert gone.is_set()
    assert code == 1 and "disk" in last_line(err), err
    assert not (tmp_path / "disk").exists(), "nothing is made again by halves"
    if how == "renamed":
        (tmp_path / "elsewhere").rename(tmp_path / "disk")
    code, _, err = drive(words)
    assert code == 0 and weights(tmp_path / "disk") == calm_weights and not debris(tmp_path / "disk"), err
