"""Kernels without the seconds in which each imports torch: forked from one process that has imported it. `Forked` is for `nbclient.NotebookClient(kernel_manager_class=..., startup_timeout=600)`, and for papermill."""
from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from pathlib import Path

from jupyter_client.manager import AsyncKernelManager
from traitlets import CaselessStrEnum, default

ROOT = Path(__file__).parents[1]
LINUX = sys.platform.startswith("linux")
IMPORTED = ("torch", "matplotlib.pyplot", "IPython.display", "ipykernel.kernelapp", "scipy", "skimage")  # what most notebooks wait for; none of the library, which is under test
COMPILER = "torch._dynamo"  # which an optimizer imports when it is first used; its 2 CPU seconds are not counted, for most notebooks train nothing
# Stands for the kernel towards who manages it: hands over its folder and environment, and lives as long as the kernel.
CLIENT = """import json, os, signal, socket, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
kernel = socket.socket(socket.AF_UNIX)
kernel.connect(sys.argv[1])
kernel.sendall(json.dumps([sys.argv[2:], os.getcwd(), dict(os.environ)]).encode() + b"\\n")
kernel.recv(1)
"""
SPENT = "import os; print(sum(os.times()[:4]) + float(os.environ.get('SPENT_ON_IMPORTS', 0)))"  # CPU seconds of a kernel, the imports included, as if it had made them


class Forked(AsyncKernelManager):
    """Manages a kernel that is forked, where there is fork; elsewhere one that starts as always.

    Both speak by files: ports are chosen before the kernel takes them, and one that another program took meanwhile would be waited for until the startup ends."""
    transport = CaselessStrEnum(["tcp", "ipc"], default_value="ipc" if LINUX else "tcp")

    @default("ip")
    def _where(self) -> str:
        return f"{_folder()}/{uuid.uuid4().hex[:12]}" if LINUX else "127.0.0.1"

    def format_kernel_cmd(self, extra_arguments: list[str] | None = None) -> list[str]:
        if not LINUX:
            return super().format_kernel_cmd(extra_arguments)
        return [sys.executable, "-S", "-c", CLIENT, f"{_folder()}/socket", "-f", self.connection_file, "--IPKernelApp.log_level=40", *(extra_arguments or ())]


_STARTING = threading.Lock()  # kernels are asked for by several threads


def _folder() -> Path:
    with _STARTING:
        return _server()


@functools.cache
def _server() -> Path:
    "Starts the process that kernels are forked from, and waits until it has imported; it ends when this one does. Gives the folder of its socket and of those of the kernels."
    folder = tempfile.TemporaryDirectory(prefix="crlsr-kernels-")
    env = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    server = subprocess.Popen([sys.executable, "-m", "tests.kernels", f"{folder.name}/socket"], cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdout.read(1) == b"."
    atexit.register(folder.cleanup)
    atexit.register(server.stdin.close)
    return Path(folder.name)


def serve(path: str) -> None:
    "Imports, then forks a kernel for each client, until the input ends."
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    for name in IMPORTED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    spent = str(sum(os.times()[:4]))
    importlib.import_module(COMPILER)
    os.write(1, b".")  # only now: papermill gives a kernel a minute to answer
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # kernels that end are not waited for
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        client, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return become_kernel(client, spent)
        client.close()


def become_kernel(client: socket.socket, spent: str) -> None:
    "In the forked process: what `python -m ipykernel_launcher` does, in the client's folder and environment."
    arguments, folder, env = json.loads(client.makefile().readline())
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env, SPENT_ON_IMPORTS=spent)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.path.remove(str(ROOT))  # which `-m tests.kernels` put there
    threading.Thread(target=lambda: (client.recv(1), os._exit(1)), daemon=True).start()  # a client that is killed takes the kernel with it
    app = importlib.import_module("ipykernel.kernelapp")
    app.IPKernelApp.launch_instance(arguments)


if __name__ == "__main__":
    serve(sys.argv[1])
