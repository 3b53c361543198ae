"""The explorer of negatives: pushes against a softmax by hand, pictures that show them, look-alikes by brute force, a quick redraw."""
import base64
import json
import re

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab

from crlsr.data.sets import embedded_file
from crlsr.images import luma, read_image, resize, write_image
from tests import notebooks
from tests.house import explorers

NEGATIVES = notebooks.NBS / "explore" / "negatives.ipynb"
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
def found_of(s):
    batch, beside = seen(s), branch(s.network)[1]
    return look_at(s.names, batch, s.anchor, s.temperature, beside.overlap), batch, beside
def state():
    s, drawn = explorer.setting, explorer.drawn
    return {"names": s.names, "says": drawn.says, "captions": drawn.captions, "texts": drawn.texts, "message": explorer.panels.message.value,
            "bars": drawn.bars, "pictures": {name: text(picture) for name, picture in drawn.pictures.items()},
            "html": [image.value[:400] for image in explorer.panels.images.values()],
            "grey": [c.far.disabled, c.weigh.disabled, c.form.disabled, c.temperature.disabled], "own": c.path.layout.display != "none"}
"""
RED, BLUE = (213, 94, 0), (0, 114, 178)


@pytest.fixture(scope="module")
def run():
    "Runs code in the kernel of the explorer, all cells executed; returns what the code's last line prints as JSON."
    with explorers.kernel(NEGATIVES, HELPERS) as execute:
        yield execute


def picture(state: dict, name: str) -> np.ndarray:
    array = np.frombuffer(base64.b64decode(state["pictures"][name]), np.uint8)
    return array.reshape(-1, 256, 3)


def cells(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    "How many pixels of a colour each of the 256 cells has."
    return (image == colour).all(-1).reshape(16, 16, 16, 16).sum((1, 3)).ravel()


@pytest.mark.parametrize("pool, sides, images", [("positions", ["h"], [0]), ("both_sides", ["h", "l"], [0]), ("batch", ["h"], [0, 1, 2, 3]), ("same_degradation", ["h"], [2])])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_pushes_are_the_softmax(run, pool, sides, images, temperature):
    got = run(f"""
s = Setting(pool={pool!r}, row=6, column=10, temperature={temperature})
found, batch, beside = found_of(s)
print(json.dumps([{{f"{{side}} {{n}}": p.tolist() for (side, n), p in found.push.items()}}, batch.q_l.tolist(), batch.q_h.tolist(), s.anchor]))""")
    push, q_l, q_h, anchor = got[0], np.array(got[1]), np.array(got[2]), got[3]
    q_l, q_h = (q / np.linalg.norm(q, axis=-1, keepdims=True) for q in (q_l, q_h))
    logits = {(side, n): (q_h if side == "h" else q_l)[n] @ q_l[0, anchor] / temperature for side in sides for n in images}
    positive = float(q_h[0, anchor] @ q_l[0, anchor] / temperature)
    for (side, n), values in logits.items():
        if n < 2:  # the anchor itself, its positive, and its twin under the other degradation are no negatives
            values[anchor] = -np.inf
    total = sum(np.exp(values).sum() for values in logits.values()) + np.exp(positive)
    for (side, n), values in logits.items():
        expected = np.exp(values) / total
        if (side, n) == ("h", 0):
            expected[anchor] = np.exp(positive) / total - 1
        assert np.allclose(push[f"{side}r {n}"], expected, atol=1e-5)
    repel = sum(np.clip(p, 0, None).sum() for p in push.values())
    assert abs(repel + push["hr 0"][anchor]) < 1e-4, "push and pull are equal"


def test_other_forms_against_their_formulas(run):
    got = run("""
rows = {}
for form in ("", "decoupled"):
    found, batch, beside = found_of(Setting(form=form, row=6, column=10))
    rows[form] = found.push["hr", 0].tolist()
found, batch, beside = found_of(Setting(pool="two_degradations", row=6, column=10))
rows["two"] = [[side, n, p[106].item(), p.clamp_min(0).sum().item()] for (side, n), p in found.push.items()]
print(json.dumps(rows))""")
    plain, free = (np.array(got[name]) for name in ("", "decoupled"))
    assert abs(free[106] + 1) < 1e-5, "without the positive in the denominator it pulls with all its weight"
    others = np.arange(256) != 106
    assert np.allclose(free[others], plain[others] / plain[others].sum(), atol=1e-5)
    pulls = {(side, n): value for side, n, value, _ in got["two"] if value < -1e-6}
    assert set(pulls) <= {("hr", 0), ("hr", 1), ("lr", 1)} and ("hr", 0) in pulls, "only the same place of the same scene pulls"
    assert sum(repel for *_, repel in got["two"]) > 0


def test_the_step_lowers_the_loss_most(run):
    got = run("""
rows = []
for s in (Setting(), Setting(drop=("dissimilar",), weigh="hard"), Setting(pool="batch", weigh="transport"), Setting(pool="queue", form="debiased")):
    found, batch, beside = found_of(s)
    row, own = row_of(negatives_of(s.names, batch, beside.overlap), s.anchor), batch.images[0]
    q = own.q_l[0, s.anchor].double()
    q = q / q.norm()
    loss = lambda v: directed_loss(v[None, None], own.q_h[:, s.anchor : s.anchor + 1].double(), row._replace(vectors=row.vectors.double()), s.temperature).item()
    size = 1e-4
    rng = torch.Generator().manual_seed(0)
    others = [torch.randn(64, generator=rng, dtype=torch.float64) for _ in range(8)]
    others = [(v - (v @ q) * q) for v in others]
    slope = lambda v: (loss(q + size * v / v.norm()) - loss(q - size * v / v.norm())) / (2 * size)
    rows.append([slope(found.step.double()), found.length, min(slope(v) for v in others)])
print(json.dumps(rows))""")
    for slope, length, other in got:
        assert slope < 0 and slope < other and abs(slope + length) < 0.02 * length + 1e-6


def test_look_alikes_by_brute_force(run):
    got = run("print(json.dumps([alike(seen(Setting()), at)[0].tolist() for at in (55, 200)]))")
    photo = read_image(embedded_file("rocket"))[None]
    photo = resize(photo, scale=256 / 427).clamp(0, 1)
    left = (photo.shape[-1] - 256) // 2
    grey = np.pad(luma(photo)[0, 0, :256, left : left + 256].numpy(), 4, mode="edge")
    patch = lambda n: grey[(n // 16 * 4 + 2) * 4 :, (n % 16 * 4 + 2) * 4 :][:12, :12]  # noqa: E731
    for at, row in zip((55, 200), got):
        expected = [float(np.sqrt(((patch(n) - patch(at)) ** 2).mean())) < 8 / 255 for n in range(256)]
        assert row == expected and row[at]
    assert sum(got[0]) > 10


def test_pictures_show_the_pushes(run):
    got = run("""
reset(down=3, across=7)
found, _, _ = found_of(explorer.setting)
reset(far=True)
far_found, _, beside = found_of(explorer.setting)
print(json.dumps([found.push["hr", 0].tolist(), state(), far_found.dropped["hr", 0].tolist(), beside.overlap]))""")
    push, state, dropped, overlap = np.array(got[0]), got[1], np.array(got[2]), got[3]
    hr, anchor = picture(state, "hr"), 3 * 16 + 7
    rows, columns = np.divmod(np.arange(256), 16)
    near = np.maximum(abs(rows - 3), abs(columns - 7)) * 4 < overlap
    assert (dropped == near).all(), "far drops what is nearer than the overlap, in positions of the feature map"
    red, blue = cells(hr, RED), cells(hr, BLUE)
    inner = np.setdiff1d(np.arange(256), [anchor + a + b for a in (-16, 0, 16) for b in (-1, 0, 1)])  # the frame hides some
    assert (red[near] == 0).all() and (red[inner][~near[inner]] > 0).all() and blue[anchor] > 100 and (blue[inner] == 0).all()
    kept = inner[~near[inner]]
    order = kept[np.argsort(push[kept])]
    assert (np.diff(red[order]) >= -16).all() and red[order[-1]] > 2 * red[order[0]], "a larger push has a larger square, but for the white line"
    assert (hr.reshape(16, 16, 16, 16, 3).mean((1, 3, 4)).ravel()[near][0]) < 90, "what is dropped is dark"
    for picture_, text in zip(state["html"], state["texts"].values()):
        assert f"alt='{text}'" in picture_ and len(text) > 40


def test_every_name_alone_has_its_bar(run):
    got = run("reset()\nbars = dict(explorer.drawn.bars)\nprint(json.dumps([bars, {n: on_look_alikes(found_of(Setting(**({'pool': n} if n in POOLS else {'drop': (n,)} if n in ('far', 'dissimilar') "
              "else {'weigh': n} if n in ('hard', 'transport') else {'form': n})))[0], alike(seen(Setting()), Setting().anchor))[0] for n in SINGLE}, explorer.drawn.says]))")
    assert got[0] == got[1] and len(got[0]) == 12 and all(0 <= share <= 1 for share in got[0].values())
    assert got[0]["dissimilar"] < got[0]["positions"] and got[0]["same_degradation"] < 0.05 < 0.2 < got[0]["positions"]
    assert got[2].startswith(f"{got[0]['positions']:.0%} of the push"), "the point stands above the pictures"


def test_controls_lead_to_the_names(run):
    rows = run("""
rows = []
for change in (dict(), dict(pool="batch", far=True, weigh="hard"), dict(dissimilar=True, form="debiased"), dict(pool="two_degradations", far=True, weigh="hard", form="decoupled"),
               dict(pool="vicreg", far=True, weigh="transport", form="debiased"), dict(pool="l1"), dict(pool="barlow"), dict(pool="simsiam"), dict(network="untrained"), dict(pool="same_degradation")):
    reset(**change)
    rows.append(state() | {"pictures": 0})
print(json.dumps(rows))""")
    assert [row["names"] for row in rows] == ["positions", "batch+far+hard", "positions+dissimilar+debiased", "two_degradations+decoupled", "vicreg", "l1", "barlow", "simsiam", "positions", "same_degradation"]
    assert [row["grey"] for row in rows[:2]] == [[False] * 4] * 2 and rows[3]["grey"] == [True, True, False, False] and rows[4]["grey"] == [True] * 4
    assert all("redrawn in" in row["message"] for row in rows) and all("nobody repels" in row["says"] for row in rows[4:8])
    assert rows[1]["captions"]["others"] == "3 of 3 take part" and rows[0]["captions"]["others"] == "none takes part" and rows[9]["captions"]["others"] == "1 of 3 take part"


def test_every_control_is_answered(run):
    rows = run("""
rows = []
for name, value in (("photo", "coffee"), ("across", 12), ("down", 14), ("pool", "batch"), ("far", True), ("dissimilar", True), ("weigh", "hard"),
                    ("form", "decoupled"), ("temperature", 0.5), ("network", "untrained"), ("preset", "iso:2.4")):
    reset()
    before = state()
    getattr(c, name).value = value
    now = state()
    rows.append([name, before["pictures"] != now["pictures"], before["captions"] != now["captions"], now["message"]])
print(json.dumps(rows))""")
    for name, picture_, caption, message in rows:
        assert (picture_ or name == "form") and caption and "redrawn in" in message, name


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
for name, values in (("across", (2, 9, 13)), ("pool", ("batch", "two_degradations", "vicreg")), ("weigh", ("transport", "hard", "")), ("preset", ("spatial", "multimodal", "bicubic")),
                     ("temperature", (0.2, 0.5, 1.0))):
    times[name] = timed(getattr(c, name), values)
    reset()
print(json.dumps(times))""")
    print({name: f"{value:.0f} ms" for name, value in times.items()})
    assert max(times.values()) <= 200, f"at most 200 ms of processor time, got {times}"


SIGHT = {  # Machado, Oliveira and Fernandes 2009, severity 1, of linear RGB
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def as_seen(colour: tuple[int, int, int], kind: str) -> np.ndarray:
    "CIELAB of a colour as an eye of this kind sees it."
    linear = np.array([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(colour) / 255])
    linear = np.clip(np.array(SIGHT[kind]) @ linear, 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return rgb2lab(srgb.reshape(1, 1, 3)).ravel()


@pytest.mark.parametrize("kind", SIGHT)
def test_blue_and_red_stay_apart_for_every_eye(run, kind):
    assert run("print(json.dumps([BLUE.tolist(), RED.tolist()]))") == [list(BLUE), list(RED)]
    blue, red = as_seen(BLUE, kind), as_seen(RED, kind)
    assert np.linalg.norm(blue - red) > 60
    for grey in (110, 150, 190, 224):  # of the photograph that stepped back
        assert min(np.linalg.norm(as_seen((grey,) * 3, kind) - colour) for colour in (blue, red)) > 20
