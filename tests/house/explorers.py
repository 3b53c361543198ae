"""What the tests of the explorers share: a kernel that ran all cells, and a JupyterLab in Chromium.

    python -m tests.house.explorers [NAME ...]  draws the pictures that stand for `nbs/explore/NAME.ipynb` where nothing runs
"""
from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from crlsr.model import CRLSR, EstimatingSR, ModelConfig, save_model
from tests import notebooks

WIDTH, HEIGHT = 1280, 800  # of the window in which an explorer has to fit
PATIENCE = 240  # seconds that a machine may take that does other work


@contextlib.contextmanager
def kernel(path: Path, helpers: str) -> Iterator[Callable[[str], Any]]:
    "Runs code in the kernel of an explorer, all cells executed; gives what the code prints, read as JSON."
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    from tests.kernels import Forked

    nb = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(nb, timeout=120, kernel_name="python3", kernel_manager_class=Forked, startup_timeout=600, resources={"metadata": {"path": str(path.parent)}})
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


def models(folder: Path) -> dict[str, str]:
    "Small models of every kind, with weights of their own: name -> file."
    found = {}
    for name, kind, options in (("small", CRLSR, {}), ("double", CRLSR, {"scale": 2}), ("vector", EstimatingSR, {}), ("map", EstimatingSR, {"local_vector": True})):
        torch.manual_seed(len(found))
        model = kind(ModelConfig.from_flat(num_feat=8, num_block=1, **options)).eval()
        for weights in model.parameters():  # a new network adds nothing to bicubic
            weights.data.add_(0.03 * torch.randn(weights.shape))
        found[name] = str(folder / f"{name}.safetensors")
        save_model(model, found[name])
    return found


def widget(page: Any, kind: str, label: str) -> Any:
    "The widget of a kind (dropdown, hslider, text) with this label."
    return page.locator(f".widget-{kind}:has(label:text-is('{label}'))")


def message(page: Any) -> str:
    "The line above the pictures."
    return page.evaluate("""() => {
        const explorer = document.querySelector('.jp-OutputArea-output:has(.widget-image)')
        return (explorer.querySelector('.explorer-message') ?? explorer.querySelector('.jupyter-widgets.widget-html')).innerText
    }""")


def after(page: Any, act: Callable[[], object], expected: str = "redrawn in") -> str:
    "Acts, and waits until line or pictures changed, all of them arrived, and the line says what is expected; gives it."
    before = now = (message(page), sources(page))
    deadline = time.monotonic() + PATIENCE
    act()
    while True:
        settled(page)
        last, now = now, (message(page), sources(page))
        if now != before and now == last and expected in now[0]:  # twice the same: nothing is on its way
            return now[0]
        assert time.monotonic() < deadline, f"the explorer says {now[0]!r}, expected another line or picture, and {expected!r}"
        page.wait_for_timeout(300)


def settled(page: Any) -> None:
    "Waits until the kernel has nothing left to do."
    page.wait_for_function("window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'")


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
def browser(folder: Path) -> Iterator[Callable[[Path], Any]]:
    "A JupyterLab in `folder`, and Chromium: gives what opens an explorer there, a copy of it with all cells run, as a page."
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    pytest.importorskip("jupyterlab", reason="jupyterlab is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "RUNTIME")}
    options = ["--expose-app-in-browser", "--no-browser", "--ServerApp.token=", "--allow-root", f"--port={port}", "--ServerApp.port_retries=0"]
    env = {**os.environ, **folders, "PYTHONPATH": os.pathsep.join([str(notebooks.ROOT), os.environ.get("PYTHONPATH", "")])}
    with open(folder / "lab.log", "w") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], cwd=folder, env=env, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + PATIENCE
        while "/lab" not in (folder / "lab.log").read_text():
            assert server.poll() is None and time.monotonic() < deadline, (folder / "lab.log").read_text()[-2000:]
            time.sleep(0.5)
        with playwright.sync_playwright() as play:
            arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
            chrome = play.chromium.launch(executable_path=chromium, args=arguments)

            def open_explorer(path: Path) -> Any:
                shutil.copy(path, folder)
                page = chrome.new_page(viewport={"width": WIDTH, "height": HEIGHT})
                page.set_default_timeout(1000 * PATIENCE)
                page.goto(f"http://127.0.0.1:{port}/lab/tree/{path.name}?reset")  # alone, not beside the one before
                settled(page)
                page.evaluate("() => { window.done = null; window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => { window.done = 'done' }) }")
                page.wait_for_function("window.done")
                page.evaluate("""() => {  // cells out of sight are not in the page
                    const notebook = window.jupyterapp.shell.currentWidget.content
                    const cell = notebook.widgets.find(cell => cell.model.sharedModel.source.trimEnd().endsWith('explorer.view'))
                    notebook.scrollToCell(cell, "start")
                }""")
                page.locator(".widget-image").first.wait_for(state="attached")
                return page

            yield open_explorer
            chrome.close()
    finally:
        server.terminate()
        server.wait(30)


def picture(page: Any) -> Image.Image:
    "What the window shows of an explorer, in 96 colours."
    for news in page.locator(".Toastify button:text-is('No')").all():
        news.click()
    assert overflow(page) == []
    box = page.locator(".jp-OutputArea-output:has(.widget-image)").bounding_box()
    return Image.open(io.BytesIO(page.screenshot(clip=box))).convert("RGB").quantize(96, dither=Image.Dither.NONE)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, browser(Path(folder)) as open_explorer:
        for name in sys.argv[1:] or ("negatives", "removers"):
            file = notebooks.NBS / "explore" / f"{name}.png"
            picture(open_explorer(file.with_suffix(".ipynb"))).save(file, optimize=True)
            print(f"{file.relative_to(notebooks.ROOT)}: {file.stat().st_size / 1024:.0f} KiB")
