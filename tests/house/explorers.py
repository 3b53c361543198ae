"""What the tests of the explorers share: a kernel that ran all cells, and a JupyterLab in Chromium."""
from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import notebooks

WIDTH, HEIGHT = 1280, 800  # of the window in which an explorer has to fit


@contextlib.contextmanager
def kernel(path: Path, helpers: str) -> Iterator[Callable[[str], Any]]:
    "Runs code in the kernel of an explorer, all cells executed; gives what the code prints, read as JSON."
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    nb = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(nb, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}})
    with client.setup_kernel():
        def execute(code: str) -> Any:
            nb.cells.append(nbformat.v4.new_code_cell(code))
            client.execute_cell(nb.cells[-1], len(nb.cells) - 1)
            printed = "".join(out.text for out in nb.cells[-1].outputs if out.output_type == "stream" and out.name == "stdout")
            return json.loads(printed) if printed else None

        for index, cell in enumerate(nb.cells):
            client.execute_cell(cell, index)
        execute(helpers)
        yield execute


def widget(page: Any, kind: str, label: str) -> Any:
    "The widget of a kind (dropdown, hslider, text) with this label."
    return page.locator(f".widget-{kind}:has(label:text-is('{label}'))")


def message(page: Any) -> str:
    "The line above the pictures."
    return page.evaluate("() => document.querySelector('.jp-OutputArea-output:has(.widget-image) .jupyter-widgets.widget-html .widget-html-content').innerText")


def after(page: Any, act: Callable[[], object], expected: str = "redrawn in") -> str:
    "Acts, and waits until the line above the pictures changed and says what is expected; gives it."
    before, deadline = message(page), time.monotonic() + 60
    act()
    while (line := message(page)) == before or expected not in line:
        assert time.monotonic() < deadline, f"the explorer still says {line!r}, expected another line with {expected!r}"
        page.wait_for_timeout(100)
    return line


def sources(page: Any) -> list[str]:
    "What the images show, in their order."
    return page.evaluate("() => [...document.querySelectorAll('.jp-OutputArea-output .widget-image')].map(image => image.src)")


def overflow(page: Any) -> list[str]:
    "Controls and pictures that do not lie inside the part of the window that shows the notebook, the explorer scrolled to its top."
    page.evaluate("() => document.querySelector('.jp-OutputArea-output:has(.widget-image)').scrollIntoView({block: 'start'})")
    page.wait_for_timeout(500)
    return page.evaluate("""() => {
        const view = document.querySelector('.jp-WindowedPanel-outer').getBoundingClientRect()
        const parts = document.querySelectorAll('.jp-OutputArea-output:has(.widget-image) :is(.widget-image, .widget-inline-hbox, .widget-toggle-buttons, button)')
        return [...parts].map(part => [part, part.getBoundingClientRect()]).filter(([part, box]) => box.height > 0 &&
            (box.top < view.top - 1 || box.bottom > view.bottom + 1 || box.right > view.right + 1 || box.left < view.left - 1))
            .map(([part, box]) => `${part.className} "${part.innerText}" at ${Math.round(box.left)}, ${Math.round(box.top)}`)
    }""")


@contextlib.contextmanager
def lab(path: Path, folder: Path) -> Iterator[Any]:
    "A JupyterLab on a copy of an explorer, in Chromium; all cells were run."
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    pytest.importorskip("jupyterlab", reason="jupyterlab is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    shutil.copy(path, folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "RUNTIME")}
    options = ["--expose-app-in-browser", "--no-browser", "--ServerApp.token=", "--allow-root", f"--port={port}", "--ServerApp.port_retries=0"]
    env = {**os.environ, **folders, "PYTHONPATH": os.pathsep.join([str(notebooks.ROOT), os.environ.get("PYTHONPATH", "")])}
    with open(folder / "lab.log", "w") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], cwd=folder, env=env, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 240  # of a machine that does other work
        while "/lab" not in (folder / "lab.log").read_text():
            assert server.poll() is None and time.monotonic() < deadline, (folder / "lab.log").read_text()[-2000:]
            time.sleep(0.5)
        with playwright.sync_playwright() as play:
            arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
            browser = play.chromium.launch(executable_path=chromium, args=arguments)
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            page.set_default_timeout(120_000)
            page.goto(f"http://127.0.0.1:{port}/lab/tree/{path.name}")
            page.wait_for_function("window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'")
            page.evaluate("() => { window.done = null; window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => { window.done = 'done' }) }")
            page.wait_for_function("window.done", timeout=240_000)
            page.locator(".widget-image").first.wait_for(state="attached")
            yield page
            browser.close()
    finally:
        server.terminate()
        server.wait(30)
