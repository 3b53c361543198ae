"""A full disk, or one that cannot be written to any more, ends a command in one line; what is there is whole, and with room the same command completes it."""
import contextlib
import os
import subprocess

import pytest

from tests.trust.folders import debris, made, photographs

COMMANDS = {
    "degrade": ["degrade", "hr", "-o", "disk/out", "--preset", "gaussian8+noise:9"],
    "upscale": ["upscale", "hr", "-o", "disk/out", "--model", "bicubic", "--scale", "4"],
    "upscale to a file": ["upscale", "hr/astronaut.png", "-o", "disk/large.png", "--model", "bicubic", "--scale", "4"],
    "evaluate": ["evaluate", "--model", "bicubic", "--data", "hr", "--preset", "gaussian8", "--json", "disk/r.json"],
    "prepare": ["data", "prepare", "hr", "-o", "disk/out", "--size", "48", "--step", "24", "--jobs", "1"],
}


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


def expected_of(drive, tmp_path, words: list[str]) -> dict[str, bytes]:
    (tmp_path / "calm" / "disk").mkdir(parents=True)
    photographs(tmp_path / "calm" / "hr", 256)
    code, _, err = drive(words, None, "calm")
    assert code == 0, err
    return made(tmp_path / "calm" / "disk")


@pytest.mark.parametrize("command", ["degrade", "upscale", "upscale to a file"])
def test_a_full_disk(drive, tmp_path, command):
    expected = expected_of(drive, tmp_path, COMMANDS[command])
    photographs(tmp_path / "hr", 256)
    with small_disk(tmp_path / "disk", "256k" if command == "degrade" else "700k") as remount:
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
    expected = expected_of(drive, tmp_path, COMMANDS[command])
    photographs(tmp_path / "hr", 256)
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
    photographs(tmp_path / "hr", 256)
    with small_disk(tmp_path / "disk", "16m") as remount:
        assert remount("ro") == 0
        code, out, err = drive(COMMANDS[command])
        assert (code, out) == (1, "") and told(err, "disk"), err
        assert os.listdir(tmp_path / "disk") == []
