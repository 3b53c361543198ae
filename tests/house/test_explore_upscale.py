"""The explorer of upscaling: what it shows is what `upscale` gives, only what is looked at is computed, and a redraw is quick."""
import base64
import html
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from crlsr.core import generator
from crlsr.data.sets import embedded_file
from crlsr.degradation import Degradation
from crlsr.images import modcrop, read_image, write_image
from crlsr.inference import OVERLAP, load_model, upscale
from crlsr.metrics import psnr
from tests import notebooks
from tests.house import explorers

UPSCALE = notebooks.NBS / "explore" / "upscale.ipynb"
HELPERS = """
import base64, json
c = explorer.controls
initial = {widget: widget.value for widget in c.inputs}
def reset(**changes):  # every control as at first but these, drawn once
    explorer.redraw = lambda: None
    for widget, value in {**initial, c.model: "", **{getattr(c, name): value for name, value in changes.items()}}.items():
        widget.value = value
    del explorer.redraw
    explorer.redraw()
def state():
    shown, panels = lambda widget: widget.layout.display != "none", explorer.panels
    visible = [image for image in panels.images if image.layout.visibility == "visible"]
    return {"pictures": [base64.b64encode(image.value).decode() for image in visible], "whole": base64.b64encode(panels.whole.value).decode(),
            "titles": list(explorer.drawn.pictures), "captions": explorer.drawn.captions, "message": panels.message.value, "cost": explorer.drawn.cost,
            "code": IMPORTS + "\\n" + code_of(explorer.setting), "own": [shown(c.upload_row), shown(c.path)], "grey": [c.memory.disabled, c.overlap.disabled]}
"""


@pytest.fixture(scope="module")
def run():
    "Runs code in the kernel of the explorer, all cells executed; returns what the code's last line prints as JSON."
    with explorers.kernel(UPSCALE, HELPERS) as execute:
        yield execute


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    "Models of every kind, with weights of their own: name -> file."
    return explorers.models(tmp_path_factory.mktemp("models"))


def arrays(state: dict) -> dict[str, np.ndarray]:
    return {title: np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")) for title, picture in zip(state["titles"], state["pictures"], strict=True)}


def lens_of(shape: tuple[int, ...], side: int, across: float, down: float) -> tuple[slice, slice]:
    starts = [round(at * (length - min(side, length))) for at, length in zip((down, across), shape)]
    return tuple(slice(start, start + min(side, length)) for start, length in zip(starts, shape))


def part(image: torch.Tensor, box: tuple[slice, slice], scale: int, times: int) -> np.ndarray:
    "What the lens shows of an sr image (1, 3, H, W): uint8, each pixel a square."
    inside = [slice(scale * side.start, scale * side.stop) for side in box]
    return image[(0, ..., *inside)].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy().repeat(times, 0).repeat(times, 1)


@pytest.mark.parametrize("name, tile, overlap", [("small", 32, 0), ("small", 64, OVERLAP), ("small", "auto", "exact"), ("double", 32, 4), ("vector", 32, 2), ("map", 32, 2)])
def test_the_lens_shows_what_upscale_gives(run, files, name, tile, overlap):
    got = run(f"reset(model={files[name]!r}, tile={tile!r}, overlap={overlap!r}, memory='4M', across=0.3, down=0.8)\nprint(json.dumps(state()))")
    model = load_model(files[name])
    lr = read_image(embedded_file("chelsea"))[None]
    box, shown = lens_of(lr.shape[-2:], 64, 0.3, 0.8), arrays(got)
    assert list(shown) == ["lr", "bicubic", name] and got["grey"] == [tile != "auto", False]
    times = 256 // (64 * model.scale)
    assert np.array_equal(shown["lr"], part(lr, box, 1, model.scale * times))
    for title, net in (("bicubic", load_model("bicubic", expect_scale=model.scale)), (name, model)):
        sr = upscale(lr, net, tile=tile, memory="4M", overlap=overlap)
        assert np.abs(shown[title].astype(int) - part(sr, box, model.scale, times)).max() <= (0 if title == name else 1), title
    scope: dict = {}
    exec(got["code"], scope)  # the text that the explorer shows
    assert np.abs(shown[name].astype(int) - part(scope["sr"], box, model.scale, times)).max() <= 1


def test_a_degraded_photograph_is_judged_under_the_lens(run, files):
    got = run(f"reset(photo='coffee', preset='iso:2.4', model={files['small']!r}, lens=32)\nprint(json.dumps(state()))")
    hr = modcrop(read_image(embedded_file("coffee"))[None], 4)
    lr, _ = Degradation.parse("iso:2.4", scale=4)(hr, generator(0, "evaluate", 0))
    box, shown = lens_of(lr.shape[-2:], 32, 0.5, 0.5), arrays(got)
    assert list(shown) == ["lr", "bicubic", "small", "hr"]
    assert np.array_equal(shown["hr"], part(hr, box, 4, 2))
    for title in ("bicubic", "small"):
        values = torch.from_numpy(shown[title][::2, ::2].copy()).permute(2, 0, 1)[None] / 255
        reference = torch.from_numpy(shown["hr"][::2, ::2].copy()).permute(2, 0, 1)[None] / 255
        assert got["captions"][title] == f"{psnr(values, reference, crop_border=0, luma=True).item():.2f} dB"
    second = run(f"c.second.value = {files['vector']!r}\nprint(json.dumps(state()))")
    assert second["titles"] == ["lr", "bicubic", "small", "vector"], "a second model takes the place of hr"


def test_only_what_is_looked_at_is_computed_and_only_once(run, files):
    script = f"""
reset(model={files['small']!r}, tile=16, lens=16, across=0, down=0)
rows = []
for across in (0, 1, 0):
    c.across.value = across
    seen = views(explorer.setting, photograph(file_of(explorer.setting), 1, "", 4)[0])["small"]
    rows.append([int(seen.done.sum()), seen.done.size, seen.seconds, base64.b64encode(explorer.panels.whole.value).decode()])
print(json.dumps(rows))"""
    first, second, third = run(script)
    assert first[0] == 1 and first[1] == 19 * 29 and second[0] == 3, "the last 16 columns lie in two tiles"
    assert third[:3] == second[:3] and len({row[3] for row in (first, second, third)}) == 3
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(third[3]))).convert("RGB")).astype(int)
    full = np.asarray(Image.open(embedded_file("chelsea")).convert("RGB").resize(image.shape[1::-1])).astype(int)
    bright, dark = slice(4, 6), slice(100, 180)  # inside the frame of the lens
    assert np.abs(image[dark, dark] - full[dark, dark] // 2).mean() < 2 and np.abs(image[bright, bright] - full[bright, bright]).mean() < 4


def test_bicubic_alone_and_a_small_photograph(run, tmp_path):
    got = run("reset()\nprint(json.dumps(state()))")
    assert got["titles"] == ["lr", "bicubic"] and "bicubic alone" in got["message"] and got["own"] == [False, False]
    write_image(torch.rand(3, 20, 9, generator=torch.Generator().manual_seed(0)), tmp_path / "Söme photo.png")
    got = run(f"reset(photo='', path={str(tmp_path / 'Söme photo.png')!r}, tile=None)\nprint(json.dumps(state()))")
    assert got["own"] == [True, True] and got["grey"] == [True, True] and "20 × 9 pixels" in got["captions"]["lr"] and "1 of 1 computed" in got["cost"]
    scope: dict = {}
    exec(got["code"], scope)
    assert np.array_equal(arrays(got)["bicubic"], part(scope["sr"], (slice(0, 20), slice(0, 9)), 4, 3))


def test_a_photograph_that_is_uploaded(run, tmp_path):
    write_image(torch.rand(3, 70, 90, generator=torch.Generator().manual_seed(0)), tmp_path / "mine.png")
    got = run(f"""
import datetime
reset(photo="")
before = state()
c.upload.value = [{{"name": "../mine.png", "type": "image/png", "size": 1, "content": open({str(tmp_path / 'mine.png')!r}, "rb").read(), "last_modified": datetime.datetime.now()}}]
print(json.dumps([before, state(), c.path.value.startswith(explorer.folder.name)]))""")
    assert "photograph: got none" in got[0]["message"] and got[1]["captions"]["lr"].startswith("64 × 64") and "lr 70 × 90" in got[1]["cost"] and got[2]


@pytest.mark.parametrize("before, change, message", [
    ("", "c.model.value = 'crlsr-x9'", "model: 'crlsr-x9' is no file"), ("c.model.value = {small!r}", "c.second.value = {double!r}", "is for scale 2, expected scale 4"),
    ("", "c.photo.value = ''; c.path.value = '<i>none.png'", "no such file"), ("", "c.model.value = {broken!r}", "model file"),
])
def test_what_cannot_be_drawn_is_said_in_one_line(run, files, tmp_path, before, change, message):
    (tmp_path / "broken.safetensors").write_bytes(b"\x80\x04no model")
    before, change = (code.format(**files, broken=str(tmp_path / "broken.safetensors")) for code in (before, change))
    got = run(f"reset()\n{before}\na = state()\n{change}\nprint(json.dumps([a, state()]))")
    line = html.unescape(re.sub("<[^>]+>", "", got[1]["message"]))
    assert message in line and "\n" not in line and "<i>" not in got[1]["message"]
    assert got[1]["pictures"] == got[0]["pictures"], "the last good pictures stay"


def test_a_tile_that_needs_too_much_is_refused(run, tmp_path):
    write_image(torch.zeros(3, 1500, 2000), tmp_path / "large.png")
    got = run(f"reset(photo='', path={str(tmp_path / 'large.png')!r})\na = state()\nc.tile.value = None\nprint(json.dumps([a, state()]))")
    assert "redrawn" in got[0]["message"] and "GiB, expected at most 2" not in got[0]["message"]
    assert ("expected at most 2" in got[1]["message"]) == (1500 * 2000 * 9 * 16 * 4 > 2 * 2**30)


def test_a_lens_over_what_is_computed_moves_quickly(run, files):
    times = run(f"""
reset(model={files['small']!r}, preset="iso:1.2", second="bicubic", tile=None)
own = []
for across in (0.1, 0.3, 0.5, 0.7, 0.9):
    begin = time.process_time()
    c.across.value = across
    own.append(1000 * (time.process_time() - begin))
print(json.dumps(own))""")
    print([f"{value:.0f} ms" for value in times])
    assert np.median(times) <= 200, "at most 200 ms of processor time"
