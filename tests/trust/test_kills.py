"""Killed at any moment, the same command completes its work: the bytes of an undisturbed run, nothing doubled, no debris."""
import contextlib
import functools
import http.server
import io
import json
import random
import signal
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import pytest
import torch

from crlsr.core import read_jsonl
from crlsr.training.interruptions import load_checkpoint
from tests.trust.folders import debris, made, photographs, study_folder

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


# --- a study: the runner, its kernels ------------------------------------------------------------------------------------------

def untimed(value):
    "A result without what two runs of the same cannot have in common."
    if isinstance(value, dict):
        return {name: untimed(inner) for name, inner in value.items() if name not in ("minutes", "seconds", "images_per_second", "changed") and not name.startswith("time_")}
    return [untimed(inner) for inner in value] if isinstance(value, list) else value


def study_result(out: Path) -> dict:
    "All that a study left, but for times: the names of its files, and what is in them."
    found = {}
    for path in out.rglob("*"):
        name = path.relative_to(out).as_posix()
        if path.is_dir() or path.name == ".lock":
            continue
        found[name] = None
        if path.suffix == ".json":
            found[name] = untimed(json.loads(path.read_text()))
            found[name].pop("digest") if path.name == "report.json" else None  # of results, which hold times
        elif path.suffix == ".jsonl":
            found[name] = untimed(read_jsonl(path))
        elif path.suffix in (".safetensors", ".png"):
            found[name] = path.read_bytes()
    return found


def weights(out: Path) -> dict:
    (path,) = out.glob("shared/*/checkpoint.pt")
    state = load_checkpoint(path)
    return {f"{part} {name}": value for part in ("weights", "ema") for name, value in state[part].items()}


STUDY = ["reproduce", "tiny", "--out", "out"]


@pytest.fixture(scope="session")
def calm_study(driver, tmp_path_factory):
    "The study without any accident, short or with the notebooks of the project: its folder, and how long it took."

    @functools.cache
    def calm(short: bool) -> tuple[Path, float]:
        folder = tmp_path_factory.mktemp("calm")
        study_folder(folder, short)
        began = time.monotonic()
        print(json.dumps([None, STUDY, str(folder)]), file=driver.stdin, flush=True)
        code, _, err = json.loads(driver.stdout.readline())
        assert code == 0, err
        return folder / "out", time.monotonic() - began

    return calm


def killed_study(drive, tmp_path, calm: tuple[Path, float], short: bool, plans: list[dict]) -> list[int]:
    "Runs the study by these plans and once more; gives the exit statuses of the plans."
    study_folder(tmp_path, short)
    statuses = []
    for plan in plans:
        code, _, err = drive(STUDY, plan)
        statuses.append(code)
        assert "left running" not in err and "Traceback" not in err, err
        if code == 1:  # its kernel was killed: one line on the error, beside the notes on how far it is
            assert len([line for line in err.splitlines() if line.startswith("crlsr: ")]) == 1 and "kernel" in err.lower(), err
    code, _, err = drive(STUDY)
    assert code == 0, err
    expected = study_result(calm[0])
    found = study_result(tmp_path / "out")
    assert found.keys() == expected.keys() and not debris(tmp_path / "out")
    assert found == expected
    assert all(torch.equal(value, weights(calm[0])[name]) for name, value in weights(tmp_path / "out").items())
    (log,) = (rows for name, rows in found.items() if name.endswith("log.jsonl"))
    assert [row["step"] for row in log] == list(range(5, 45, 5)), "a row is lost or doubled"
    return statuses


@pytest.mark.slow
def test_a_study_whose_kernel_and_whose_runner_are_killed(drive, tmp_path, calm_study):
    calm = calm_study(True)
    plans = [{"seconds": 0.45 * calm[1], "whom": "kernel"}, {"seconds": 0.4 * calm[1]}]
    statuses = killed_study(drive, tmp_path, calm, True, plans)
    assert any(statuses) and statuses[0] in (0, 1) and statuses[1] in (0, -signal.SIGKILL)  # a busy machine may be late or early once


@pytest.mark.slow
@pytest.mark.parametrize("number", range(4))
def test_a_study_that_is_killed_three_times(drive, tmp_path, calm_study, number):
    "With the notebooks of the project; in every other round the runner's kernels die first."
    calm, dice = calm_study(False), random.Random(number)
    whom = [{"whom": "kernel"}, {}] * 2
    statuses = killed_study(drive, tmp_path, calm, False, [{"seconds": dice.uniform(0.05, 0.9) * calm[1], **whom[number + k & 1]} for k in range(3)])
    assert any(statuses), "nothing was killed"


# --- downloads -----------------------------------------------------------------------------------------------------------------

@pytest.fixture
def archives(tmp_path):
    "A web server that gives two archives slowly, and the registry that asks for them."

    class Slow(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            data = (tmp_path / "served" / Path(self.path).name).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            with contextlib.suppress(OSError):  # the client was killed
                for start in range(0, len(data), 40_000):
                    self.wfile.write(data[start : start + 40_000])
                    time.sleep(0.02)

        def log_message(self, *args):
            pass

    photos = photographs(tmp_path / "hr", 96)
    (tmp_path / "served").mkdir()
    with zipfile.ZipFile(tmp_path / "served" / "a.zip", "w") as packed:
        for path in photos.iterdir():
            packed.write(path, f"A/HR/{path.name}")
        packed.writestr("A/readme.txt", random.Random(0).randbytes(400_000))
    with tarfile.open(tmp_path / "served" / "b.tgz", "w:gz") as packed:
        for number in range(6):
            data = random.Random(number).randbytes(30_000)
            member = tarfile.TarInfo(f"B/{number}.png")
            member.size = len(data)
            packed.addfile(member, io.BytesIO(data))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    archive = lambda name, folders: {"url": f"{address}/{name}", "sha256": None, "unpack": folders}  # noqa: E731
    registry = {"AB": {"archives": [archive("a.zip", {"A/HR": "a"}), archive("b.tgz", {"B": "b/deep"})], "page": "p",
                                "splits": {"train": [{"folder": "a", "images": 3}], "valid": [{"folder": "b/deep", "images": 6}]}}}
    yield registry
    server.shutdown()
    server.server_close()


def killed_fetch(drive, tmp_path, known: dict, plans: list[dict]) -> list[int]:
    for place in ("calm", "storm"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "registry.json").write_text(json.dumps(known))
    code, out, err = drive(["data", "fetch", "AB"], None, "calm")
    assert code == 0, err
    statuses = [drive(["data", "fetch", "AB"], plan, "storm")[0] for plan in plans]
    code, last, err = drive(["data", "fetch", "AB"], None, "storm")
    assert (code, last) == (0, out), err
    expected = made(tmp_path / "calm" / "out")
    assert made(tmp_path / "storm" / "out") == expected and len(expected) == 3 + 6 + 2 and not debris(tmp_path / "storm")
    assert {path.name for path in (tmp_path / "storm" / "out" / "archives").iterdir()} == {"a.zip", "b.tgz", ".lock"}
    return statuses


def test_a_fetch_that_is_killed(drive, tmp_path, archives):
    "While it downloads, while it unpacks."
    assert killed_fetch(drive, tmp_path, archives, [{"seconds": 0.15}, {"kill": 6}, {"kill": 14}, {"kill": 22}])[1:] == [-signal.SIGKILL] * 3


@pytest.mark.slow
def test_a_fetch_that_is_killed_often(drive, tmp_path, archives):
    dice = random.Random("fetch")
    statuses = killed_fetch(drive, tmp_path, archives, [{"kill": calls} for calls in range(1, 25)] + [{"seconds": dice.uniform(0.01, 0.8)} for _ in range(6)])
    assert statuses.count(-signal.SIGKILL) >= 10 and set(statuses) <= {0, -signal.SIGKILL}
