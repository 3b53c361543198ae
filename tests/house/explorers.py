"""What the tests of the explorers share: a kernel that ran all cells, and a JupyterLab in Chromium.

    python -m tests.house.explorers [NAME ...]  draws the pictures that stand for `nbs/explore/NAME.ipynb` where nothing runs
"""
from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from crlsr.images import write_image
from crlsr.model import CRLSR, EstimatingSR, ModelConfig, save_model
from tests import notebooks

WIDTH, HEIGHT = 1280, 800  # of the window in which an explorer has to fit
PHOTOS = [f"test/{i:02d}" for i in range(12)]  # of the studies below
PATIENCE = 240  # seconds that a machine may take that does other work
ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+/lab")
TIMED = """
import statistics, time
def timed(control, values):  # processor time of a change to each of the values, ms: their median
    own = []
    for value in values:
        begin = time.process_time()
        control.value = value
        own.append(1000 * (time.process_time() - begin))
    return statistics.median(own)
"""


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
        execute(TIMED + helpers)
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


def record(name: str, seed: int, gain: float, bc: float = 0.0, steps: int = 400) -> dict:
    "A result as train.ipynb writes it; photograph 07 decides."
    dice, rows = np.random.default_rng([seed, len(name), steps]), []
    for preset in ("iso", "motion", "disk"):
        psnr = 26 + np.linspace(-3, 3, 12)[:, None] + gain + dice.normal(0, 0.01, (12, 2)) + 3 * gain * (np.arange(12) == 7)[:, None]
        scores = {"draws": 2} | {key: " ".join(f"{value:.4f}" for value in (psnr * factor).ravel()) for key, factor in (
            ("psnr", 1), ("ssim", 0.03), ("detail_energy", 0.01), ("detail_correlation", 0.02))}
        means = {key: np.array(text.split(), float).mean() for key, text in scores.items() if key != "draws"}
        rows.append({"data": "set:validation", "preset": preset, **means, "bicubic": {"psnr": 25.0}, "images": PHOTOS, "scores": scores})
    return {"name": name, "seed": seed, "metrics": rows, "unseen": ["motion", "disk"], "protocol": {}, "environment": {}, "minutes": {}, "parameters": {},
            "config": {"profile": "cpu", "model": {"scale": 4, "weight_bc": bc}, "train": {"preset": "iso", "steps": steps, "seed": seed, "keep_at": [0.5]}},
            "pictures": {"preset": "iso:2.4", "names": ["test_03", "test_05"]}}


def written(root: Path, study: str, records: list[dict], planned: int = 0) -> Path:
    "A study's folder, its runs with logs and pictures beside it; `planned` more have no result."
    (root / study).mkdir(parents=True)
    runs = [{"name": each["name"], "seed": each["seed"], "dir": f"{study}{i}"} for i, each in enumerate(records)]
    for place, (each, run) in enumerate(zip(records, runs)):
        folder = root / "shared" / run["dir"]
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(each))
        (folder / "kept-0.5.safetensors").touch()
        bc = each["config"]["model"]["weight_bc"]
        rows = [{"step": step, "pixel": 1 / step + place / 100, "grad_pixel": 2.0, "grad_bc": bc / 10, "cos_bc": 0.3 * bc} | ({"psnr": 20 + step / 100} if step % 200 == 0 else {})
                for step in range(50, 401, 50)]
        (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for name in each["pictures"]["names"]:
            hr = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(int(name[-2:])))
            sr = (hr + (0.02 + 0.02 * place) * torch.linspace(-1, 1, 128)).clamp(0, 1)
            (folder / "pictures").mkdir(exist_ok=True)
            for kind, image in (("hr", hr), ("sr", sr), ("lr", hr[:, ::4, ::4])):
                write_image(image, folder / "pictures" / f"{name}.{kind}.png")
    runs += [{"name": f"late {i}", "seed": 1, "dir": f"late{i}"} for i in range(planned)]
    (root / study / "study.json").write_text(json.dumps({"study": study, "runs": runs, "costs": {"small": 1.5, "large": 1.5, "none": 1.5}}))
    return root / study


def widget(page: Any, kind: str, label: str) -> Any:
    "The widget of a kind (dropdown, hslider, text, select-multiple) with this label."
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
    "What the images show, and figures that are text, in their order."
    return page.evaluate("() => [...document.querySelectorAll('.jp-OutputArea-output .widget-image')].map(image => image.src ?? image.outerHTML)")


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
    folders = {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "RUNTIME")}
    options = ["--expose-app-in-browser", "--no-browser", "--ServerApp.token=", "--allow-root", "--ServerApp.ip=127.0.0.1"]
    env = {**os.environ, **folders, "PYTHONPATH": os.pathsep.join([str(notebooks.ROOT), os.environ.get("PYTHONPATH", "")])}
    with open(folder / "lab.log", "w") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], cwd=folder, env=env, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + PATIENCE
        while not (address := ADDRESS.search((folder / "lab.log").read_text())):  # on the first port that is free
            assert server.poll() is None and time.monotonic() < deadline, (folder / "lab.log").read_text()[-2000:]
            time.sleep(0.5)
        with playwright.sync_playwright() as play:
            arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
            chrome = play.chromium.launch(executable_path=chromium, args=arguments)

            def open_explorer(path: Path) -> Any:
                shutil.copy(path, folder)
                page = chrome.new_page(viewport={"width": WIDTH, "height": HEIGHT})
                page.set_default_timeout(1000 * PATIENCE)
                page.goto(f"{address[0]}/tree/{path.name}?reset")  # alone, not beside the one before
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
        for name in sys.argv[1:] or sorted(path.stem for path in (notebooks.NBS / "explore").glob("*.ipynb")):
            file = notebooks.NBS / "explore" / f"{name}.png"
            opened = open_explorer(file.with_suffix(".ipynb"))
            if name == "studies":  # also where there are runs of one's own
                widget(opened, "dropdown", "folder").locator("select").select_option(label="reference results")
                settled(opened)
            picture(opened).save(file, optimize=True)
            print(f"{file.relative_to(notebooks.ROOT)}: {file.stat().st_size / 1024:.0f} KiB")
