"""`python -c code words` without the seconds in which it imports torch: forked from one process that has imported it. For tests of what processes do to a folder and to each other, not of how one starts.

What differs from a new process: torch is there already, nothing of the library; variables that Python or torch read as they start (PYTHON*, OMP_NUM_THREADS) come too late: it has one thread, and stdout is a file;
its parent is none of the test's. Folder, environment, words, signal handlers, exit status and what runs at exit are those of a new one. Where there is no fork, it is one.
"""
from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
import types
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINUX = sys.platform.startswith("linux")


class Forked:
    "A process that runs the code; what tests need of `subprocess.Popen`."

    def __init__(self, code: str, *words, env: dict[str, str] | None = None):
        self.returncode: int | None = None
        self._files = [tempfile.TemporaryFile("w+", encoding="utf-8") for _ in range(2)]
        request = [code, [str(word) for word in words], os.getcwd(), dict(os.environ if env is None else env)]
        if not LINUX:
            self._process = subprocess.Popen([sys.executable, "-c", code, *request[1]], env=request[3], stdout=self._files[0], stderr=self._files[1])
            self.pid = self._process.pid
            return
        self._server = socket.socket(socket.AF_UNIX)
        self._server.connect(_server())
        socket.send_fds(self._server, [b"."], [file.fileno() for file in self._files])
        self._server.sendall(json.dumps(request).encode() + b"\n")
        self._answers = self._server.makefile()
        self.pid = int(self._answers.readline())

    def wait(self, timeout: float = 600) -> int:
        if self.returncode is None and not LINUX:
            self.returncode = self._process.wait(timeout)
        elif self.returncode is None:
            self._server.settimeout(timeout)
            self.returncode = int(self._answers.readline())
        return self.returncode

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        self.wait(timeout)
        for file in self._files:
            file.seek(0)
        return tuple(file.read() for file in self._files)

    def kill(self) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


@functools.cache
def _server() -> str:
    "Starts the process to fork from, which ends when this one does. Gives the name of its socket."
    folder = tempfile.TemporaryDirectory(prefix="crlsr-forks-")
    path = f"{folder.name}/socket"
    server = subprocess.Popen([sys.executable, "-m", "tests.forks", path], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdout.read(1) == b"."
    atexit.register(folder.cleanup)
    atexit.register(server.stdin.close)
    return path


def serve(path: str) -> None:
    "Imports, then forks a process for each client, until the input ends."
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    os.write(1, b".")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who waits for the tests, and ends the input
    import torch._dynamo  # noqa: F401 - what an optimizer imports when it is first used

    while listener in select.select([listener, sys.stdin], [], [])[0]:
        client, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return attend(client)
        client.close()
        with contextlib.suppress(ChildProcessError):  # buries those that have ended
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def attend(client: socket.socket) -> None:
    "In the first fork: makes the second, which runs the code, and tells its number and how it ended."
    _, files, _, _ = socket.recv_fds(client, 1, 2)
    request = json.loads(client.makefile().readline())
    if (pid := os.fork()) == 0:
        client.close()
        return become(*request, files)
    client.sendall(f"{pid}\n".encode())
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(OSError):  # nobody may wait for it any more
        client.sendall(f"{status}\n".encode())
    os._exit(0)


def become(code: str, words: list[str], folder: str, env: dict[str, str], files: list[int]) -> None:
    "In the second fork: what `python -c` does."
    for number, file in enumerate([os.open(os.devnull, os.O_RDONLY), *files]):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    sys.argv, sys.path[0] = ["-c", *words], ""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    try:
        exec(compile(code, "<string>", "exec"), main.__dict__)
    except Exception:  # noqa: BLE001 - as Python ends
        traceback.print_exc()
        sys.exit(1)


if __name__ == "__main__":
    serve(sys.argv[1])
