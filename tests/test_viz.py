"""viz: pixels are exact squares, titles keep apart, nothing loads matplotlib too early, a bar leaves no litter."""
from __future__ import annotations

import contextlib
import io
import logging
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from crlsr import viz
from crlsr.core import append_jsonl, generator, plain


def pixels(figure) -> np.ndarray:
    "The picture of a figure, (H, W, 3) uint8."
    return np.asarray(Image.open(io.BytesIO(viz.figure_png(figure))).convert("RGB"))


def panel(figure, index: int) -> np.ndarray:
    "The screen pixels of one panel."
    picture, place = pixels(figure), figure.axes[index].get_position()
    height, width = picture.shape[:2]
    rows = slice(round(height * (1 - place.y1)), round(height * (1 - place.y0)))
    return picture[rows, round(width * place.x0) : round(width * place.x1)]


def test_importing_loads_no_matplotlib_and_drawing_no_pyplot():
    code = """
import sys, torch
from crlsr import viz
assert not any(name.startswith("matplotlib") for name in sys.modules)
viz.figure_png(viz.plot_curves({"a": ([0, 1], [0, 1])}, xlabel="x", ylabel="y"))
viz.figure_png(viz.show_images({"a": torch.rand(3, 8, 8)}))
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    viz._figure_class.cache_clear()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install .*\[notebooks\]"$'):
        viz.show_images({"a": torch.rand(3, 8, 8)})


HOSTILE = ["cost $x^2$ and $", r"a\$b", "_first", "not \udce9 UTF-8", "$\\frac{$", "tab\tand\x1b[31m", "<b>&amp;"]


def test_names_are_drawn_as_they_are_written():
    drawn = {  # what is drawn -> where it was asked for
        "legend": lambda names: viz.plot_curves({name: ([0, 1], [0, 1]) for name in names}, xlabel=names[0], ylabel=names[1]).legends[0].get_texts(),
        "series": lambda names: viz.plot_groups({"group": dict.fromkeys(names, 1.0)}, ylabel=names[0]).legends[0].get_texts(),
        "bars": lambda names: viz.plot_bars(dict.fromkeys(names, 1.0), ylabel=names[0]).axes[0].get_xticklabels(),
        "titles": lambda names: [axes.title for axes in viz.show_images({name: torch.rand(3, 8, 90) for name in names}, ncols=1).axes],
    }
    for kind, texts in drawn.items():
        shown = texts(HOSTILE)
        viz.figure_png(shown[0].figure)  # a formula that makes no sense would be an error here
        assert len(shown) == len(HOSTILE), f"{kind}: a name is hidden"
        for text, name in zip(shown, HOSTILE):
            plainly, formula = text._preprocess_math(text.get_text())
            letters = "".join(plainly.split()).removeprefix("\u200b")
            assert not formula and letters in (expected := "".join(plain(name).split()), expected.replace("\\t", "")), (kind, plainly)


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 4), st.sampled_from([1.0, 1.6, 2.2]))
def test_every_pixel_is_one_square(height, width, count, inches):
    if not 0.2 <= width / height <= 4:
        return
    images = {f"image {i}": torch.rand(3, height, width, generator=generator("squares", height, width, i)) for i in range(count)}
    figure = viz.show_images(images, height=inches)
    for i, image in enumerate(images.values()):
        shown = panel(figure, i)
        zoom = shown.shape[0] // height
        if zoom == 0:
            continue  # larger than its panel: averaged down
        assert shown.shape[:2] == (zoom * height, zoom * width)
        blocks = shown.reshape(height, zoom, width, zoom, 3)
        assert (blocks == blocks[:, :1, :, :1]).all()
        expected = (image * 255).double().round().permute(1, 2, 0).numpy()
        assert np.abs(blocks[:, 0, :, 0] - expected).max() == 0


def test_an_image_larger_than_its_panel_is_averaged():
    board = (torch.arange(600)[:, None] + torch.arange(600)).remainder(2).float()
    shown = panel(viz.show_images({"": board}, height=1.0), 0).astype(float)
    assert abs(shown.mean() - 127.5) < 3 and shown[5:-5, 5:-5].std() < 20


@pytest.mark.parametrize("count", [1, 4, 6])
def test_titles_neither_overlap_nor_leave_the_page(count):
    images = {f"{i}: a rather long title of thirty-five letters\n27.{i} dB": torch.rand(3, 16, 16) for i in range(count)}
    for figure in (viz.show_images(images), viz.compare_crops(images, (0, 0, 8, 8)), viz.show_kernels({k: v[:1] for k, v in images.items()})):
        figure.set_dpi(110)
        viz.figure_png(figure)
        boxes = [ax.title.get_window_extent() for ax in figure.axes if ax.get_title()]
        panels = [ax.get_window_extent() for ax in figure.axes]
        page = figure.bbox
        assert page.width <= 837
        for i, box in enumerate(boxes):
            assert box.y1 <= page.y1 + 1 and box.y0 >= -1
            assert not any(box.overlaps(other) for other in boxes[i + 1 :] + panels)


def test_crops_of_all_sizes_show_the_same_place():
    lr = torch.rand(3, 20, 30, generator=generator("crops"))
    hr = lr.repeat_interleave(4, 1).repeat_interleave(4, 2)
    figure = viz.compare_crops({"lr": lr, "half": hr[:, ::2, ::2], "hr": hr}, (9, 42, 33, 35), overview=False)
    first, second, third = (panel(figure, i) for i in range(3))
    assert np.array_equal(first, second) and np.array_equal(first, third)
    expected = (lr[:, 2:10, 10:18] * 255).round().permute(1, 2, 0).numpy()
    zoom = len(first) // 8
    assert np.array_equal(first[::zoom, ::zoom], expected)


def test_the_overview_marks_the_box():
    hr = torch.full((3, 80, 120), 0.5)
    shown = panel(viz.compare_crops({"hr": hr}, (40, 60, 20, 30)), 0).astype(int)
    marked = np.argwhere(np.abs(shown - [0xD5, 0x5E, 0x00]).max(axis=2) < 60)
    top, left = marked.min(0) / shown.shape[:2]
    bottom, right = marked.max(0) / shown.shape[:2]
    assert np.allclose([top, left, bottom, right], [0.5, 0.5, 0.75, 0.75], atol=0.04)


def test_errors_are_red_where_the_first_is_brighter():
    a, b = torch.zeros(3, 4, 8), torch.zeros(3, 4, 8)
    a[:, :, :4] = 0.5
    b[:, :, 4:] = 0.5
    shown = panel(viz.show_error(a, b), 0).astype(int)
    half = shown.shape[1] // 2
    assert (shown[:, : half - 1, 0] > shown[:, : half - 1, 2]).all() and (shown[:, half + 1 :, 0] < shown[:, half + 1 :, 2]).all()
    assert (panel(viz.show_error(a, a), 0) > 240).all(), "no error is white"


@pytest.mark.parametrize("limit", [0.3, 0.123, 9.87e-4, 1.39e-7, 3.14e-12, 12345.0])
def test_the_numbers_beside_a_colour_bar_are_not_cut_off(limit):
    figure = viz.show_error(torch.full((20, 30), limit), torch.zeros(20, 30), limit=limit)
    figure.canvas.draw()
    labels = [text for text in figure.axes[-1].get_yticklabels() if text.get_text()]
    assert len(labels) == 3
    for text in labels:
        box = text.get_window_extent()
        assert box.x1 <= figure.bbox.width and abs(float(text.get_text()) - text.get_position()[1]) <= 0.05 * limit


def test_pictures_are_repeatable():
    figure = viz.show_images({"a": torch.rand(3, 24, 24, generator=generator("bits"))})
    assert viz.figure_png(figure) == viz.figure_png(figure) and viz.figure_png(figure, small=True) == viz.figure_png(figure, small=True)


@pytest.mark.parametrize("kind", ["photograph", "plot"])
def test_small_pictures_are_close_and_much_smaller(kind):
    cat = torch.from_numpy(data.chelsea()).permute(2, 0, 1) / 255
    figure = viz.compare_crops({"hr": cat}, (80, 120, 48, 48)) if kind == "photograph" else viz.plot_bars({"a": 1.0}, ylabel="b")
    small = viz.figure_png(figure, small=True)
    difference = pixels(figure).astype(float) - np.asarray(Image.open(io.BytesIO(small)).convert("RGB"))
    assert 10 * np.log10(255**2 / max(1e-9, (difference**2).mean())) > 38 and len(small) < (0.6 if kind == "photograph" else 0.8) * len(viz.figure_png(figure))


@pytest.mark.parametrize(
    "draw, message",
    [
        (lambda: viz.show_images({}), "images: got none"),
        (lambda: viz.show_images({"a": torch.rand(2, 3, 8, 8)}), r"got shape \(2, 3, 8, 8\)"),
        (lambda: viz.show_images({"a": torch.zeros(3, 8, 8, dtype=torch.uint8)}), "got uint8"),
        (lambda: viz.compare_crops({"sr": torch.rand(3, 30, 30), "hr": torch.rand(3, 64, 64)}, (0, 0, 8, 8)), r"images\['sr'\]"),
        (lambda: viz.compare_crops({"hr": torch.rand(3, 64, 64)}, (60, 0, 8, 8)), "box: got"),
        (lambda: viz.show_error(torch.rand(3, 8, 8), torch.rand(3, 8, 9)), "expected one shape"),
    ],
)
def test_mistakes_are_named(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_plots_take_what_studies_have():
    steps = np.arange(0, 100, 10)
    curves = {f"method {i}": (steps, steps * 0.01 + i, np.full(10, 0.2)) for i in range(8)}
    for figure in (
        viz.plot_curves(curves, xlabel="step", ylabel="loss", log_y=True),
        viz.plot_curves({"": (torch.arange(3), torch.rand(3))}, xlabel="x", ylabel="y"),
        viz.plot_bars({f"a long name of method {i}": (i - 3.0, 0.3) for i in range(9)}, ylabel="gain / dB"),
        viz.show_matrix(torch.zeros(3, 3), xlabel="x", ylabel="y"),
        viz.show_matrix(torch.rand(40, 4), xlabel="x", ylabel="y", title="tall"),
        viz.show_matrix(torch.randn(4, 200), xlabel="x", ylabel="y", title="wide"),
    ):
        assert pixels(figure).shape[1] <= 837


BAR = """
import sys
from crlsr.viz import progress_bar
with progress_bar(12, "training", done=2, show=len(sys.argv) < 2) as bar:
    bar.update()
"""


@pytest.mark.parametrize("show", [True, False])
def test_a_terminal_gets_a_bar_that_goes_on_where_it_was(show):
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    child = subprocess.run([sys.executable, "-c", BAR, *([] if show else ["no"])], stderr=theirs, stdout=subprocess.PIPE, check=True, timeout=120)
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # the end of a terminal that nobody writes to
        while block := os.read(ours, 4096):
            seen += block
    os.close(ours)
    assert child.stdout == b"" and ((b"training" in seen and b"3/12" in seen and b"\r" in seen) if show else seen == b"")


def test_a_log_gets_plain_lines_thirty_seconds_apart(caplog, capfd, monkeypatch, tmp_path):
    caplog.set_level(logging.INFO, "crlsr")
    start, now = time.time(), [0.0]
    monkeypatch.setattr(viz.time, "monotonic", lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: start + now[0])
    told = []
    with viz.progress_bar(360, "training", done=20) as bar:
        for _ in range(170):  # two steps in a second
            now[0] += 1.0
            bar.update(2)
            if len(caplog.messages) > len(told):
                told.append(now[0])
        viz.draw_curves(bar, tmp_path / "no log", final=True)  # draws nothing outside a notebook, reads nothing
    assert told == [30, 60, 90, 120, 150] and caplog.messages[0] == "training: 80 of 360, 02:20 left"
    assert len(caplog.messages) == 5 and capfd.readouterr() == ("", "")


def test_what_is_short_or_not_shown_writes_nothing_in_a_log(caplog, capfd):
    caplog.set_level(logging.INFO, "crlsr")
    for show in (True, False):
        with viz.progress_bar(12, "training", show=show) as bar:
            bar.update()
    assert capfd.readouterr() == ("", "") and caplog.messages == []


def test_bar_and_curves_are_one_output_in_a_notebook(tmp_path):
    import nbformat
    from nbclient import NotebookClient
    from tests.kernels import Forked

    log = tmp_path / "log.jsonl"
    for step in (1, 2, 3):
        append_jsonl(log, {"step": step, "pixel": 0.1 / step, "psnr": 25.0 + step})
    code = f"""
from pathlib import Path
from crlsr.viz import draw_curves, progress_bar
with progress_bar(12, "training") as bar:
    for _ in range(12):
        bar.update()
        draw_curves(bar, Path({str(log)!r}))
    draw_curves(bar, Path({str(log)!r}), final=True)
"""
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(nb, timeout=120, kernel_name="python3", kernel_manager_class=Forked, startup_timeout=600).execute()
    (output,) = nb.cells[0].outputs
    assert output.output_type == "display_data"
    assert "training: 100%" in output.data["text/plain"] and "12/12" in output.data["text/plain"]
    page = output.data["text/html"]
    assert page.count("<img") == 2 and "mean |sr" in page and "PSNR on luma" in page and "12/12" in page
