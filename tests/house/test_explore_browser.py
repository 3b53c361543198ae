"""Explorers in JupyterLab, in Chromium: all fits into the window, every control is answered by a picture, keyboard and upload work."""
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from crlsr.images import write_image
from tests import notebooks
from tests.house import explorers

EXPLORERS = sorted((notebooks.NBS / "explore").glob("*.ipynb"))


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    "Opens an explorer, all cells run."
    with explorers.browser(tmp_path_factory.mktemp("lab")) as open_explorer:
        yield open_explorer


def shown(lab: Any) -> str:
    return lab.locator(".jp-OutputArea-output:has(.widget-image)").inner_text()


def arrow(lab: Any, label: str) -> None:
    "One step to the right, by the keyboard."
    explorers.widget(lab, "hslider", label).locator(".noUi-handle").focus()
    lab.keyboard.press("ArrowRight")


def degradations(lab: Any, row: Callable, after: Callable, folder: Path) -> None:
    "Numbers appear where they apply; kernel and result follow the angle."
    after(lambda: row("dropdown", "source").locator("select").select_option(label="aniso"))
    after(lab.locator("button:text-is('by hand')").click)
    row("hslider", "θ°").wait_for(state="visible")
    assert not row("hslider", "radius").is_visible()
    before = explorers.sources(lab)
    after(lambda: arrow(lab, "θ°"))
    assert [a != b for a, b in zip(before, explorers.sources(lab))] == [False, True, False, True], "kernel and result follow the angle"
    assert "aniso:4,1,50" in shown(lab)
    after(lab.locator("button:text-is('JPEG')").click)
    row("hslider", "quality").wait_for(state="visible")


def upscale(lab: Any, row: Callable, after: Callable, folder: Path) -> None:
    "Two models beside each other; the lens moves in all pictures."
    files = explorers.models(folder)
    for name, model in (("model", "small"), ("second", "vector")):
        row("text", name).locator("input").fill(files[model])
        after(lambda: lab.keyboard.press("Enter"))
    assert lab.locator(".widget-image:visible").count() == 5
    before = explorers.sources(lab)
    after(lambda: arrow(lab, "across"))
    assert all(a != b for a, b in zip(before, explorers.sources(lab))), "the lens moves in all pictures"


def negatives(lab: Any, row: Callable, after: Callable, folder: Path) -> None:
    "The anchor moves by the keyboard; pool, filters, weights, form, temperature and features answer."
    before = explorers.sources(lab)
    after(lambda: arrow(lab, "anchor →"))
    assert [a != b for a, b in zip(before, explorers.sources(lab))] == [True, True, True, False] and "row 3, column 8" in shown(lab)
    after(lambda: arrow(lab, "anchor ↓"))
    after(lambda: row("dropdown", "negatives").locator("select").select_option(label="batch"))
    assert "3 of 3 take part" in shown(lab)
    after(lab.locator("button:text-is('far')").click)
    after(lab.locator("button:text-is('dissimilar')").press, key="Enter")
    after(lambda: row("dropdown", "weigh").locator("select").select_option(label="hard"))
    after(lambda: row("dropdown", "form").locator("select").select_option(label="decoupled"))
    assert 'bc_negatives = "batch+far+dissimilar+hard+decoupled"' in shown(lab)
    after(lambda: arrow(lab, "T"))
    after(lab.locator("button:text-is('untrained')").click)
    after(lambda: row("dropdown", "degrade by").locator("select").select_option(label="iso:2.4"))


def removers(lab: Any, row: Callable, after: Callable, folder: Path) -> None:
    "f_l and its distance follow the degradation, f_h does not."
    for label in ("blur σ", "noise"):
        before = explorers.sources(lab)
        after(lambda: arrow(lab, label))
        assert [a != b for a, b in zip(before, explorers.sources(lab))] == [True, True, False, True], "f_h stays"
    assert "iso:2.5+noise:6" in shown(lab)
    after(lab.locator("button:text-is('JPEG')").press, key="Enter")
    after(lambda: arrow(lab, "quality"))
    after(lambda: row("dropdown", "features").locator("select").select_option(label="as they are"))
    after(lambda: row("dropdown", "channels").locator("select").select_option(label="2 in grey"))
    after(lab.locator("button:text-is('untrained')").click)


def studies(lab: Any, row: Callable, after: Callable, folder: Path) -> None:
    "Table, figures and crops of a study of one's own, the lens, runs and buttons by the keyboard; a damaged folder leaves them."
    explorers.written(folder, "toy", [explorers.record(name, seed, gain, bc) for name, gain, bc in (("l1", 0, 0), ("arm", 0.1, 1)) for seed in (0, 1)])
    after(lambda: row("dropdown", "folder").locator("select").select_option(label="another …"), "got none")
    row("text", "path").locator("input").fill(str(folder))
    after(lambda: lab.keyboard.press("Enter"))
    assert "arm: +0.1" in shown(lab) and "screening: seeds 0–1, validation; no verdict; 4 of 4 runs finished" in shown(lab)
    assert lab.locator(".widget-image:visible").count() == 8 and explorers.overflow(lab) == [], "two figures, five crops, the whole photograph"
    for label in ("across", "down"):
        explorers.widget(lab, "hslider", label).locator(".noUi-handle").focus()
        for _ in range(12):  # away from the right end, by more than an lr pixel
            lab.keyboard.press("ArrowLeft")
        lab.wait_for_timeout(1000)
        explorers.settled(lab)
        before = explorers.sources(lab)
        after(lambda: [lab.keyboard.press("ArrowRight") for _ in range(24)])
        assert sum(a == b for a, b in zip(before, explorers.sources(lab))) == 2, "the lens moves in all pictures, figures stay"
    chosen = [f"seed {seed} · {name}" for name in ("l1", "arm") for seed in (0, 1)]
    after(lambda: row("select-multiple", "runs").locator("select").select_option(label=chosen))
    assert lab.locator(".widget-image:visible").count() == 9, "four runs leave no room for bicubic"
    runs = row("select-multiple", "runs").locator("select")
    after(lambda: (runs.focus(), lab.keyboard.press("Home")))
    after(lambda: lab.keyboard.press("Shift+ArrowDown"))
    assert [text.replace("\xa0", " ") for text in runs.evaluate("select => [...select.selectedOptions].map(option => option.text)")] == chosen[:2]
    after(lambda: runs.select_option(label=chosen))
    after(lab.locator("button:text-is('share')").press, key="Enter")
    after(lambda: row("dropdown", "test").locator("select").select_option(label="disk"))
    after(lambda: row("dropdown", "endpoint").locator("select").select_option(label="SSIM-Y"))
    assert "is no endpoint of the study" in shown(lab)
    after(lambda: row("dropdown", "photograph").locator("select").select_option(label="test/07"))
    assert lab.locator(".widget-image:visible").count() == 2 and explorers.overflow(lab) == [], "figures alone"
    before = explorers.sources(lab)
    row("text", "path").locator("input").fill("nowhere")
    after(lambda: lab.keyboard.press("Enter"), "no such folder")
    assert explorers.sources(lab) == before, "the last good pictures stay"


def own_photograph(lab: Any, row: Callable, after: Callable, folder: Path) -> None:
    "One's own photograph, by its path and by upload."
    last = row("dropdown", "photograph").locator("option").count() - 1
    after(lambda: row("dropdown", "photograph").locator("select").select_option(index=last), "got none")
    assert explorers.overflow(lab) == [], "nor does a photograph of one's own need more"
    before = explorers.sources(lab)
    row("text", "path").locator("input").fill("nowhere.png")
    after(lambda: lab.keyboard.press("Enter"), "nowhere.png: no such file")
    assert explorers.sources(lab) == before, "the last good pictures stay"
    write_image(torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(0)), folder / "mine.png")
    with lab.expect_file_chooser() as chooser:
        lab.locator("button.widget-upload, button.jupyter-widget-upload").click()
    after(lambda: chooser.value.set_files(folder / "mine.png"))
    assert explorers.sources(lab) != before


CHOICES = {"degradations": "source", "upscale": "photograph", "negatives": "negatives", "removers": "features", "studies": "endpoint"}  # a list of each explorer


def by_keys(lab: Any, row: Callable, after: Callable, label: str) -> None:
    "The arrows choose in a list, and JupyterLab does not move to another cell."
    select = row("dropdown", label).locator("select")
    before = select.input_value()
    select.focus()
    after(lambda: lab.keyboard.press("ArrowDown"), "")
    assert select.input_value() != before and select.evaluate("select => select === document.activeElement")
    after(lambda: lab.keyboard.press("ArrowUp"), "")
    assert select.input_value() == before


DRIVES = {drive.__name__: drive for drive in (degradations, upscale, negatives, removers, studies)}


@pytest.mark.slow
@pytest.mark.parametrize("path", EXPLORERS, ids=lambda path: path.stem)
def test_the_explorer_works_in_a_browser(opened, path, tmp_path):
    lab = opened(path)
    row, pressed = functools.partial(explorers.widget, lab), explorers.after

    def after(act: Callable, expected: str = "redrawn in", **options: str) -> str:
        return pressed(lab, functools.partial(act, **options), expected)

    assert explorers.overflow(lab) == [] and len(explorers.sources(lab)) >= (2 if path.stem == "studies" else 4), "controls and pictures fit into the window"
    assert lab.locator("text=Click to show javascript error").count() == 0
    by_keys(lab, row, after, CHOICES[path.stem])
    DRIVES[path.stem](lab, row, after, tmp_path)
    assert explorers.overflow(lab) == []
    if path.stem != "studies":  # whose photographs are those of the runs
        own_photograph(lab, row, after, tmp_path)
    lab.close()
