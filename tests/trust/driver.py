"""Runs command lines, each in a fork of one warm process. Requests are lines of JSON on stdin: [plan, words, folder to work in]. A plan is null (undisturbed), {"kill": n} (SIGKILL at the
n-th call that touches the disk), {"full": n} (from that call on the disk is full), {"user": id} (as an ordinary user, whose rights count), {"seconds": s} (SIGKILL after so long) or {"seconds": s, "whom": "kernel"} (SIGKILL for the processes that
it started, not for itself). Answers are lines [exit status, stdout, stderr]; processes that outlive their parent are named in the last.

`reproduce tiny` is the smallest study with real kernels; where the folder holds train.ipynb and report.ipynb, with these. The sets of `data fetch` are those of registry.json there, its data
folder is `out`."""
import contextlib
import errno
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.trust.folders import TINY

CALLS = ("open", "fsync", "link", "replace", "truncate", "unlink", "rmdir")  # of `os`: between any two of them a process may die


def disturb(calls: int, happen) -> None:
    "From the n-th call on, `happen` comes before what touches the disk."
    left = calls

    def counted(name: str):
        function = getattr(os, name)

        def call(*args, **kwargs):
            nonlocal left
            left -= 1
            if left <= 0:
                happen(name)
            return function(*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, counted(name))


def die(name: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(name: str) -> None:
    if name in ("fsync", "link"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def started_by(pid: int) -> list[int]:
    "The processes that a process started, and those that these started."
    try:
        children = [int(child) for task in os.listdir(f"/proc/{pid}/task") for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split()]
    except OSError:
        return []
    return [*children, *(each for child in children for each in started_by(child))]


def running(pid: int) -> bool:
    "Whether a process is there and no zombie."
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def outliving(pids: list[int], patience: float = 20) -> list[int]:
    "Which of these are still there after a while."
    deadline = time.monotonic() + patience
    while (left := [pid for pid in pids if running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def tiny_study() -> None:
    "Makes the study known to this process."
    import crlsr.studies as face
    from crlsr.studies.studies import Study, load_study

    small = {**TINY, "data": "train", "test_data": ["test"], "test_presets": ["bicubic"], "pictures": 1}
    study = Study("tiny", "?", "smoke", {"l1": {name: small.pop(name) for name in ("weight_bc", "weight_srnce", "weight_rec")}}, small)
    if Path("train.ipynb").exists():
        study = study.replace(notebook=str(Path("train.ipynb").resolve()), report=str(Path("report.ipynb").resolve()))
    face.load_study = lambda source: study if source == "tiny" else load_study(source)


def own_registry() -> None:
    "Makes the sets of this folder those that are known to this process."
    from crlsr.core import read_json
    from crlsr.data import sets

    os.environ["CRLSR_DATA"] = "out"
    sets.registry = lambda: read_json("registry.json")


def run(plan: dict | None, words: list[str], folder: str) -> list:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        if (pid := os.fork()) == 0:
            try:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                os.chdir(folder)
                if "reproduce" in words:
                    tiny_study()
                if "fetch" in words:
                    own_registry()
                for kind, calls in (plan or {}).items():
                    if kind == "user":
                        os.setgroups([]), os.setgid(calls), os.setuid(calls)
                    elif kind in ("kill", "full"):
                        disturb(calls, {"kill": die, "full": refuse}[kind])
                code = main(words)
                sys.stdout.flush()
                os._exit(code)
            finally:
                os._exit(99)
        children = []
        if plan and "seconds" in plan:
            time.sleep(plan["seconds"])
            children = started_by(pid)
            for victim in children if plan.get("whom") == "kernel" else [pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="backslashreplace"))
        texts[1] += "".join(f"left running: {child}\n" for child in outliving(children))
        return [status, *texts]


if __name__ == "__main__":
    import papermill  # noqa: F401 - another user may not be able to load what is root's
    import torch._dynamo  # noqa: F401 - what an optimizer imports when it is first used: once for all forks

    import crlsr.app.batch  # noqa: F401 - what a fork should not load again
    import crlsr.data.preparation  # noqa: F401
    import crlsr.evaluation.scoring  # noqa: F401
    import crlsr.studies  # noqa: F401
    from crlsr.app.cli import main

    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(run(*json.loads(line))), flush=True)
