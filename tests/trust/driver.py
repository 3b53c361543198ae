"""Runs command lines, each in a fork of one warm process. Requests are lines of JSON on stdin: [plan, words, folder to work in]. A plan is null (undisturbed), {"kill": n} (SIGKILL at the
n-th call that touches the disk), {"full": n} (from that call on the disk is full) or {"seconds": s} (SIGKILL after so long). Answers are lines [exit status, stdout, stderr]."""
import errno
import json
import os
import signal
import sys
import tempfile
import time

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


def run(plan: dict | None, words: list[str], folder: str) -> list:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        if (pid := os.fork()) == 0:
            try:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                os.chdir(folder)
                for kind, calls in (plan or {}).items():
                    if kind != "seconds":
                        disturb(calls, {"kill": die, "full": refuse}[kind])
                code = main(words)
                sys.stdout.flush()
                os._exit(code)
            finally:
                os._exit(99)
        if plan and "seconds" in plan:
            time.sleep(plan["seconds"])
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="backslashreplace"))
        return [status, *texts]


if __name__ == "__main__":
    import crlsr.app.batch  # noqa: F401 - what a fork should not load again
    import crlsr.data.preparation  # noqa: F401
    import crlsr.evaluation.scoring  # noqa: F401
    from crlsr.app.cli import main

    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(run(*json.loads(line))), flush=True)
