"""Explorers: clean sources, controls that do what they say, pictures that equal direct computation, a quick redraw."""
import base64
import hashlib
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from crlsr.app.batch import draw_records
from crlsr.core import generator
from crlsr.data.sets import embedded_file
from crlsr.degradation import Degradation, kernel_of, parameter_maps
from crlsr.images import read_image, write_image
from tests import notebooks
from tests.house import explorers

EXPLORERS = sorted((notebooks.NBS / "explore").glob("*.ipynb"))
DEGRADATIONS = notebooks.NBS / "explore" / "degradations.ipynb"


@pytest.mark.parametrize("path", EXPLORERS, ids=lambda path: path.stem)
def test_rules(path):
    assert notebooks.lint_explorer(path) == []


@pytest.mark.parametrize("change, message", [
    (lambda nb: nb["metadata"].update(widgets={}), "no widget state"),
    (lambda nb: nb["metadata"]["kernelspec"].update(name="mine"), "kernelspec python3"),
    (lambda nb: nb["cells"][3].update(execution_count=3), "execution counts"),
    (lambda nb: nb["cells"][3].update(outputs=[{"output_type": "stream", "name": "stdout", "text": "hello"}]), "keeps none"),
    (lambda nb: nb["cells"][3].update(source="import os\nx = 1"), "imports mixed"),
    (lambda nb: nb["cells"][3].update(source="%matplotlib inline"), "magic"),
    (lambda nb: nb["cells"][3].update(source="path = '/home/me/cat.png'"), "path of one machine"),
    (lambda nb: nb["cells"][3].update(source="def f(x):\n    return x"), "no docstring"),
    (lambda nb: nb["cells"][3].update(source="x = 1\n" * 41), "41 lines"),
    (lambda nb: nb["cells"][4].update(id=nb["cells"][3]["id"]), "cell ids"),
])
def test_the_lint_can_fail(tmp_path, change, message):
    nb = notebooks.read(DEGRADATIONS)
    assert nb["cells"][3]["cell_type"] == "code"
    change(nb)
    (tmp_path / "broken.ipynb").write_text(json.dumps(nb), encoding="utf-8")
    assert any(message in line for line in notebooks.lint_explorer(tmp_path / "broken.ipynb"))


HELPERS = """
import base64, hashlib, json
c = explorer.controls
initial = {widget: widget.value for widget in c.inputs}
def reset():  # every control as at first, drawn once
    explorer.redraw = lambda: None
    for widget, value in initial.items():
        widget.value = value
    del explorer.redraw
    explorer.redraw()
def digest(lr): return hashlib.sha256(lr.numpy().tobytes()).hexdigest()
def state():
    s, shown = explorer.setting, lambda widget: widget.layout.display != "none"
    return {"preset": s.degradation.preset, "scale": s.scale, "seed": s.seed, "code": IMPORTS + "\\n" + code_of(s), "lr": digest(explorer.drawn.lr),
            "pictures": {name: base64.b64encode(image.value).decode() for name, image in explorer.panels.images.items()},
            "captions": explorer.drawn.captions, "message": explorer.message.value, "text": explorer.text.value,
            "numbers": [name for name, widget in c.numbers.items() if shown(widget)], "enabled": [name for name, widget in c.numbers.items() if not widget.disabled],
            "form": shown(c.form), "path": shown(c.path), "quality": shown(c.jpeg), "by_hand": shown(c.hand_row)}
"""


@pytest.fixture(scope="module")
def run():
    "Runs code in the kernel of the explorer, all cells executed; returns what the code's last line prints as JSON."
    with explorers.kernel(DEGRADATIONS, HELPERS) as execute:
        yield execute


def picture(state: dict, name: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(state["pictures"][name]))).convert("RGB"))


def brightness(array: np.ndarray) -> np.ndarray:
    return array.astype(float) @ np.array([0.299, 0.587, 0.114])


def rises_with(shown: np.ndarray, values: np.ndarray) -> bool:
    "Whether a larger value never looks darker, but for the rounding of colours."
    order = np.argsort(values.ravel(), kind="stable")
    bright = shown.ravel()[order]
    return bool((np.maximum.accumulate(bright) - bright).max() < 2 and np.ptp(bright) > 20)


def chelsea(scale: int) -> torch.Tensor:
    side = 256 // scale * scale
    top, left = round((300 - side) / 2), round((451 - side) / 2)
    return read_image(embedded_file("chelsea"))[None, :, top : top + side, left : left + side]


@pytest.mark.parametrize("moves, preset", [
    ("c.source.value = 'bicubic'", "bicubic"),
    ("c.source.value = 'iso'; c.seed.value = 7", "iso"),
    ("c.source.value = 'aniso'; c.by_hand.value = True; c.numbers['θ°'].value = 70", "aniso:4,1,70"),
    ("c.source.value = 'disk'; c.by_hand.value = True; c.scale.value = 3", "disk:3"),
    ("c.source.value = 'motion'; c.by_hand.value = True; c.noise.value = (5, 20); c.seed.value = 3", "motion:12,45+noise:5..20"),
    ("c.source.value = 'multimodal'; c.save.value = True; c.jpeg.value = (30, 60); c.seed.value = 11", "multimodal+jpeg:30..60"),
    ("c.form.value = 'blocks'; c.scale.value = 2; c.seed.value = 5", "spatial:blocks"),
    ("c.form.value = 'sv5'; c.noise.value = (10, 10)", "spatial:sv5+noise:10"),
])
def test_controls_lead_to_the_preset_and_its_result(run, moves, preset):
    got = run(f"reset()\n{moves}\nprint(json.dumps(state()))")
    assert got["preset"] == preset and f">{preset}</div>" in got["text"] and "redrawn in" in got["message"]
    hr = chelsea(got["scale"])
    lr, (params,) = Degradation.parse(preset, scale=got["scale"])(hr, generator(got["seed"], "evaluate", 0))
    assert got["lr"] == hashlib.sha256(lr.numpy().tobytes()).hexdigest()
    scope: dict = {}
    exec(got["code"], scope)  # the text that the explorer shows
    assert torch.equal(scope["lr"], lr) and scope["params"] == [params]
    eight = (lr[0] * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(picture(got, "lr"), eight.repeat(got["scale"], 0).repeat(got["scale"], 1))
    assert np.array_equal(picture(got, "hr"), (hr[0] * 255).round().byte().permute(1, 2, 0).numpy())
    first = draw_records(["chelsea"], preset, scale=got["scale"], seed=got["seed"])[0]
    assert first["params"] == params, "`crlsr degrade` draws something else for the same preset and seed"


def test_kernel_and_map_are_those_of_the_parameters(run):
    got = run("reset(); c.source.value = 'aniso'; c.by_hand.value = True\nprint(json.dumps(state()))")
    kernel = kernel_of(Degradation.parse("aniso:4,1,45")(chelsea(4), generator(0))[1][0]).numpy()
    shown = picture(got, "kernel")[2:254, 2:254][6::12, 6::12]  # one sample of each enlarged pixel
    assert shown.shape[:2] == kernel.shape and rises_with(brightness(shown), kernel)
    assert len(np.unique(picture(got, "map").reshape(-1, 3), axis=0)) == 1 and "everywhere" in got["captions"]["map"]
    for name in ("sigma1", "sigma2", "noise_level"):
        got = run(f"reset(); c.seed.value = 4; c.map.value = {name!r}\nprint(json.dumps(state()))")
        values = parameter_maps(Degradation.parse("spatial")(chelsea(4), generator(4, "evaluate", 0))[1][0], 64, 64)[name].numpy()
        shown = picture(got, "map")
        assert shown.shape == (256, 256, 3) and rises_with(brightness(shown[2::4, 2::4]), values)
        assert f"{values.min():.3g} to {values.max():.3g}" in got["captions"]["map"]
    got = run("reset(); c.source.value = 'aniso'; c.by_hand.value = True; c.map.value = 'theta'; c.numbers['θ°'].value = 180\na = state()\n"
              "c.numbers['θ°'].value = 0\nprint(json.dumps([a, state()]))")
    assert np.array_equal(picture(got[0], "map"), picture(got[1], "map")), "an angle of 180° is an angle of 0°"


def test_any_setting_is_replayed_by_its_text(run):
    same = run("""
import random
dice, same = random.Random(0), []
for _ in range(16):
    name = dice.choice(list(SOURCES))
    numbers = tuple(float(NUMBERS[n][-1]) for n in getattr(SOURCES[name], "numbers", ())) if dice.random() < 0.5 else ()
    noise, jpeg = dice.choice([(0.0, 0.0), (3.0, 9.0)]), dice.choice([None, (20, 20), (30, 90)])
    s = Setting(dice.choice(["astronaut", "rocket", "coffee"]), "", dice.choice([1, 2]), dice.random(), dice.random(), dice.choice([2, 3, 4]),
                name, numbers, dice.choice(Spatial.forms), noise, jpeg, dice.randrange(100))
    scope = {}
    exec(IMPORTS + "\\n" + code_of(s), scope)
    same.append(torch.equal(scope["lr"], draw(s).lr) and Degradation.parse(s.degradation.preset, s.scale).preset == s.degradation.preset)
print(json.dumps(same))""")
    assert len(same) == 16 and all(same)


def test_only_what_applies_is_offered(run):
    rows = run("""
reset(); rows = []
for name in SOURCES:
    c.by_hand.value, c.source.value, c.scale.value = False, name, 2 + len(rows) % 3
    drawn = state()
    c.by_hand.value = True
    rows.append([name, list(getattr(SOURCES[name], "numbers", ())), {**drawn, "pictures": 0}, state()["enabled"]])
print(json.dumps(rows))""")
    assert len(rows) == 11
    for name, numbers, shown, enabled in rows:
        assert "redrawn" in shown["message"], f"{name}: {shown['message']}"
        assert sorted(shown["numbers"]) == sorted(numbers) and shown["by_hand"] == bool(numbers), name
        assert not set(numbers) & set(shown["enabled"]), "drawn numbers cannot be moved"
        assert set(numbers) <= set(enabled), "numbers by hand can"
        assert shown["form"] == (name == "spatial") and not shown["path"] and not shown["quality"]
        assert shown["preset"] == name
    assert run("reset(); c.save.value = True\nprint(json.dumps(c.jpeg.layout.display != 'none'))")


def test_the_seed_is_grey_exactly_where_it_makes_no_difference(run):
    rows = run("""
cases, rows = [dict(source=name) for name in SOURCES] + [dict(source="spatial", form=form) for form in Spatial.forms], []
cases += [dict(source="aniso", numbers=(4.0, 1.0, 45.0), **more) for more in (dict(), dict(noise=(0.0, 5.0)), dict(jpeg=(50, 50)), dict(jpeg=(10, 90)))]
cases += [dict(source="spatial", form="sv1", noise=(5.0, 5.0)), dict(source="bicubic", jpeg=(60, 60))]
for case in cases:
    s = Setting(**case)
    results = {digest(s.degradation(hr_of(s), generator(seed, "evaluate", 0))[0]) for seed in range(4)}
    rows.append([repr(case), len(results) > 1, s.random])
print(json.dumps(rows))""")
    for case, differs, random in rows:
        assert differs == random, case
    assert run("reset(); c.source.value = 'bicubic'\na = c.seed.disabled\nc.noise.value = (0, 9)\nprint(json.dumps([a, c.seed.disabled]))") == [True, False]


def test_a_file_of_ones_own(run, tmp_path):
    generator_ = torch.Generator().manual_seed(0)
    photo = torch.rand(3, 150, 500, generator=generator_)
    write_image(photo, tmp_path / "Söme photo.png")
    got = run(f"reset(); c.photo.value = ''\na = state()\nc.path.value = {str(tmp_path / 'Söme photo.png')!r}\nb = state()\nc.shrink.value = 2\nprint(json.dumps([a, b, state()]))")
    assert got[0]["path"] and "photograph: got none, expected one to be uploaded, or its path" in got[0]["message"]
    assert got[1]["captions"]["hr"].startswith("148 × 256") and got[2]["captions"]["hr"].startswith("72 × 248")
    for state in got[1:]:
        scope: dict = {}
        exec(state["code"], scope)
        assert hashlib.sha256(scope["lr"].numpy().tobytes()).hexdigest() == state["lr"]


@pytest.mark.parametrize("name, content, message", [
    ("none.png", None, "no such file"), ("<i>.png", b"no image at all", "is not an image"), ("empty.jpg", b"", "is empty"),
    ("small.png", "40x300", "got 40x300 pixels, expected at least 64x64"), (".", None, "is a folder"), ("n" * 300, None, "too long"),
])
def test_a_file_that_cannot_be_read(run, tmp_path, name, content, message):
    if content == "40x300":
        write_image(torch.rand(3, 40, 300), tmp_path / name)
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    got = run(f"reset(); a = state()\nc.photo.value = ''; c.path.value = {str(tmp_path / name)!r}\nprint(json.dumps([a, state()]))")
    line = re.sub("<[^>]+>", "", got[1]["message"])
    assert message in line and "\n" not in line and "<i>" not in got[1]["message"]
    assert got[1]["pictures"] == got[0]["pictures"] and got[1]["text"] == got[0]["text"], "the last good pictures stay"


def test_keep_and_compare(run):
    got = run("reset(); explorer.kept.clear()\nc.keep.click(); c.source.value = 'iso'; c.scale.value = 2; c.keep.click()\n"
              "print(json.dumps([list(explorer.kept), [list(v.shape) for v in explorer.kept.values()], explorer.message.value]))")
    assert got[0] == ["spatial, ×4, seed 0", "iso, ×2, seed 0"] and got[1] == [[3, 64, 64], [3, 128, 128]] and "kept" in got[2]


def test_a_redraw_is_quick(run):
    times = run("""
times = {}
reset()
for name in ("iso", "multimodal", "spatial", "high_order", "shuffled"):
    c.source.value, c.seed.value = name, 0
    times[name] = timed(c.seed, range(1, 8))
print(json.dumps(times))""")
    slowest = max(times, key=times.get)
    print({name: f"{value:.0f} ms" for name, value in times.items()})
    assert times[slowest] <= 200, f"{slowest}: {times[slowest]:.0f} ms of processor time, at most 200"
