"""The explorer of removers: features and distances against direct computation, probes against a ridge by hand, a quick redraw."""
import base64
import json
import re

import numpy as np
import pytest
import torch

from crlsr.core import generator
from crlsr.data.sets import embedded_file
from crlsr.degradation import Degradation
from crlsr.images import read_image, resize, write_image
from crlsr.inference import load_model
from tests import notebooks
from tests.house import explorers

REMOVERS = notebooks.NBS / "explore" / "removers.ipynb"
HELPERS = """
import base64, json
c = explorer.controls
initial = {widget: widget.value for widget in c.inputs}
def reset(**changes):  # every control as at first but these, drawn once
    explorer.redraw = lambda: None
    for widget, value in {**initial, **{getattr(c, name): value for name, value in changes.items()}}.items():
        widget.value = value
    del explorer.redraw
    explorer.redraw()
def text(array): return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
def state():
    s, drawn = explorer.setting, explorer.drawn
    return {"preset": s.preset, "says": drawn.says, "captions": drawn.captions, "texts": drawn.texts, "message": explorer.panels.message.value,
            "readings": drawn.readings, "rulers": explorer.readings.value, "pictures": {name: text(picture) for name, picture in drawn.pictures.items()},
            "html": [image.value[:400] for image in explorer.panels.images.values()],
            "own": c.path.layout.display != "none", "quality": c.jpeg.layout.display != "none"}
"""


@pytest.fixture(scope="module")
def run():
    "Runs code in the kernel of the explorer, all cells executed; returns what the code's last line prints as JSON."
    with explorers.kernel(REMOVERS, HELPERS) as execute:
        yield execute


def picture(state: dict, name: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(state["pictures"][name]), np.uint8).reshape(256, 256, 3)


def coffee() -> torch.Tensor:
    photo = resize(read_image(embedded_file("coffee"))[None], scale=256 / 400).clamp(0, 1)
    return photo[..., :256, 64:320]


@pytest.mark.parametrize("changes, preset", [
    ("", "iso:2.4+noise:5"), ("sigma=0, noise=0", "bicubic"), ("sigma=0, noise=12", "bicubic+noise:12"), ("noise=0, save=True, jpeg=30", "iso:2.4+jpeg:30")])
def test_f_l_and_its_distance_are_those_of_the_model(run, changes, preset):
    got = run(f"reset(head=False, {changes})\nprint(json.dumps(state()))")
    assert got["preset"] == preset and "redrawn in" in got["message"]
    hr, net = coffee(), load_model("crlsr-x4")
    with torch.no_grad():
        lr, clean_lr = (Degradation.parse(text, scale=4)(hr, generator(0, "evaluate", 0))[0] for text in (preset, "bicubic"))
        now, clean = (net.restorer.features(x) for x in (lr, clean_lr))
    eight = (lr[0] * 255).round().byte().permute(1, 2, 0).numpy().repeat(4, 0).repeat(4, 1)
    assert np.array_equal(picture(got, "lr"), eight)
    far = (now - clean).square().sum(1).sqrt()[0] / clean.square().sum(1).sqrt().mean()
    mean, most = (float(word) for word in re.findall(r"\d+\.\d+", got["captions"]["change"]))
    assert abs(mean - far.mean()) < 0.006 and abs(most - far.max()) < 0.006
    bright = picture(got, "change")[2::4, 2::4].astype(float) @ [0.299, 0.587, 0.114]
    order = np.argsort(far.numpy().ravel(), kind="stable")
    shown = bright.ravel()[order]
    assert (np.maximum.accumulate(shown) - shown).max() < 2 and (np.ptp(shown) > 100) == (preset != "bicubic"), "farther is brighter"


def test_colours_are_one_linear_map_of_the_features(run):
    got = run("""
reset(head=False)
s, rows = explorer.setting, []
for which in ("f_l", "f_h"):
    features = low(degraded(square(file_of(s)), s.preset), TAUGHT) if which == "f_l" else high(file_of(s), TAUGHT)
    rows.append([features[0].flatten(1).T[::16].tolist(), text(explorer.drawn.pictures[which][2::4, 2::4].reshape(-1, 3)[::16])])
print(json.dumps(rows))""")
    features = np.concatenate([np.array(row[0]) for row in got])
    colours = np.concatenate([np.frombuffer(base64.b64decode(row[1]), np.uint8).reshape(-1, 3) for row in got]).astype(float)
    inside = ((colours > 0) & (colours < 255)).all(1)
    design = np.concatenate([features[inside], np.ones((inside.sum(), 1))], 1)
    fit, *_ = np.linalg.lstsq(design, colours[inside], rcond=None)
    assert inside.sum() > 150 and np.abs(design @ fit - colours[inside]).max() < 1.0, "the same map for both sides"


def test_one_component_is_grey_and_is_that_channel(run):
    rows = run("reset()\na = state()\nrows = []\nfor n in '123':\n    c.channels.value = n\n    rows.append(state())\nprint(json.dumps([a, rows]))")
    colours = picture(rows[0], "f_l")
    for n, state in enumerate(rows[1]):
        grey = picture(state, "f_l")
        assert all(np.array_equal(grey[..., k], colours[..., n]) for k in range(3))


def test_f_h_stays_and_f_l_moves(run):
    states = run("rows = []\nfor sigma in (0, 1.5, 4):\n    reset(sigma=sigma, noise=0)\n    rows.append(state())\nprint(json.dumps(rows))")
    assert len({state["pictures"]["f_h"] for state in states}) == 1 and len({state["pictures"]["f_l"] for state in states}) == 3
    means = [float(re.search(r"mean (\d+\.\d+)", state["captions"]["change"])[1]) for state in states]
    assert means[0] == 0 < means[1] < means[2] and "Nothing but shrinking" in states[0]["says"]
    for state in states:
        for image, text in zip(state["html"], state["texts"].values()):
            assert f"alt='{text}'" in image and len(text) > 25


def test_probes_read_what_a_ridge_by_hand_reads(run):
    got = run("""
x, y, groups = draws("train", 32, TAUGHT)
probe = probes(TAUGHT).probe["f_l"]
s = Setting()
row = pooled(degraded(square(file_of(s)), s.preset), low(degraded(square(file_of(s)), s.preset), TAUGHT), high(file_of(s), TAUGHT), TAUGHT)["f_l"]
reset()
print(json.dumps([x["f_l"].tolist(), y.tolist(), row.tolist(), probe.penalty.tolist(), explorer.drawn.readings["f_l"], groups.tolist(), probes(TAUGHT).r2]))""")
    x, y, row = (np.array(part) for part in got[:3])
    assert len(x) == 192 and set(got[5]) == set(range(6)) and y[:, 0].min() >= 0 and y[:, 0].max() <= 4 and y[:, 1].max() <= 25
    for target in range(2):
        z, new = ((part - x.mean(0)) / x.std(0) for part in (x, row[0]))
        weights = np.linalg.solve(z.T @ z + len(x) * got[3][target] * np.eye(x.shape[1]), z.T @ (y[:, target] - y[:, target].mean()))
        assert abs(new @ weights + y[:, target].mean() - got[4][target]) < 1e-3 * max(1, abs(got[4][target]))
    assert got[6]["f_l"][1] > 0.8 and max(got[6]["f_h"]) < 0.3, "f_l knows the noise, f_h cannot"


def test_readings_follow_the_sliders(run):
    rows = run("rows = []\nfor sigma, noise in ((0, 0), (2, 10), (4, 20)):\n    reset(sigma=sigma, noise=noise)\n    rows.append(state() | {'pictures': 0})\nprint(json.dumps(rows))")
    for n in range(2):
        read = [row["readings"]["f_l"][n] for row in rows]
        assert read[0] < read[1] < read[2]
        still = [row["readings"]["f_h"][n] for row in rows]
        assert max(still) == min(still), "hr knows nothing of it"
    assert "true 2.0" in rows[1]["says"] and f"σ {rows[1]['readings']['f_l'][0]:.1f}" in rows[1]["says"] and rows[1]["rulers"].count("R²") == 9


def test_every_control_changes_a_picture(run):
    rows = run("""
rows = []
for name, value in (("photo", "chelsea"), ("sigma", 1.0), ("noise", 20), ("save", True), ("head", False), ("channels", "2"), ("network", "untrained")):
    reset()
    before = state()["pictures"]
    getattr(c, name).value = value
    now = state()
    rows.append([name, any(before[p] != now["pictures"][p] for p in before), explorer.panels.message.value, now["quality"]])
print(json.dumps(rows))""")
    for name, changed, message, quality in rows:
        assert changed and "redrawn in" in message and quality == (name == "save"), name


@pytest.mark.parametrize("shape, message", [((3, 40, 300), "got 40x300 pixels, expected at least 64x64"), (None, "no such file"), ((3, 150, 500), "redrawn in")])
def test_a_photograph_of_ones_own(run, tmp_path, shape, message):
    path = tmp_path / "Söme <photo>.png"
    if shape:
        write_image(torch.rand(shape, generator=torch.Generator().manual_seed(0)), path)
    got = run(f"reset()\na = state()\nc.photo.value = ''\nb = state()\nc.path.value = {str(path)!r}\nprint(json.dumps([a, b, state()]))")
    assert got[1]["own"] and "got none" in got[1]["message"]
    line = re.sub("<[^>]+>", "", got[2]["message"])
    assert message in line and "\n" not in line and "<photo>" not in got[2]["message"]
    assert (got[2]["pictures"] == got[0]["pictures"]) == (message != "redrawn in"), "the last good pictures stay"


def test_a_redraw_is_quick(run):
    times = run("""
reset()
times = {}
for name, values in (("sigma", (0.5, 1.5, 3.5)), ("noise", (0, 10, 20)), ("head", (False, True, False)), ("channels", ("1", "2", "123"))):
    times[name] = timed(getattr(c, name), values)
    reset()
print(json.dumps(times))""")
    print({name: f"{value:.0f} ms" for name, value in times.items()})
    assert max(times.values()) <= 200, f"at most 200 ms of processor time, got {times}"
