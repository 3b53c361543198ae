"""tables: means, intervals and wins against scipy and by hand; the crop; names that are no markup."""
import math

import mistune
import numpy as np
import pytest
import scipy.stats
import torch
from bs4 import BeautifulSoup
from PIL import Image

from crlsr.data import embedded_images
from crlsr.evaluation import evaluate_grid, grid_table
from crlsr.evaluation.tables import compare_rows, detail_box, picture_grid
from crlsr.images import luma

SMALL = {name: image[:, 60:124, 100:172] for name, image in embedded_images("heldout").items()}


def rows(model, table, run=None, preset="iso", data="test", metric="psnr", seed=0, **more):
    "Rows of one model; table is (runs, photographs), or (photographs,) of a model without training."
    table = np.atleast_2d(table)
    return [{"data": data, "preset": preset, "model": model, "image": f"p{i:02}", "seed": seed, "place": i, "sha256": f"{i}", "scale": 4,
             metric: float(value), **({"run": r} if run else {}), **more} for r, line in enumerate(table) for i, value in enumerate(line)]


def known(seeds, photographs):
    rng = np.random.default_rng(seeds * 100 + photographs)
    control = rng.normal(28, 3, photographs)
    return control, control + rng.normal(0.1, 0.1, (seeds, photographs)) + rng.normal(0, 0.05, (seeds, 1))


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
@pytest.mark.parametrize("photographs", [2, 9, 10, 24])
def test_means_intervals_and_wins_are_scipys(seeds, photographs):
    control, ours = known(seeds, photographs)
    of_control, one = compare_rows(rows("bicubic", control) + rows("ours", ours, run=True), "bicubic")
    gain = ours - control
    assert of_control.seeds is None and of_control.spread.mean == pytest.approx(control.mean()) and (of_control.spread.n, one.spread.n) == (1, seeds)
    assert one.spread.mean == pytest.approx(ours.mean()) and (seeds == 1 or one.spread.sd == pytest.approx(np.std(ours.mean(1), ddof=1)))
    assert one.seeds.mean == pytest.approx(gain.mean()) and one.wins == (gain.mean(0) > 0).sum() and one.photographs.n == photographs
    if seeds >= 3:
        np.testing.assert_allclose(one.seeds[1:3], scipy.stats.ttest_rel(ours.mean(1), np.full(seeds, control.mean())).confidence_interval(), rtol=1e-9)
    else:
        assert math.isnan(one.seeds.low)
    if photographs >= 10:
        theirs = scipy.stats.bootstrap((gain.mean(0),), np.mean, n_resamples=10_000, method="percentile", rng=0).confidence_interval
        np.testing.assert_allclose(one.photographs[1:3], theirs, rtol=1e-9)
    else:
        assert math.isnan(one.photographs.low)


@pytest.mark.parametrize("seeds, photographs, intervals, legend", [
    (1, 9, 0, "No intervals: they take 3 seeds, or 10 photographs."), (3, 9, 1, "Upright: 95 % interval over seeds (Student's t)."),
    (2, 10, 1, "*Slanted*: bootstrap over photographs, these checkpoints only."), (3, 10, 2, "Upright: 95 % interval over seeds (Student's t). *Slanted*: bootstrap over photographs, these checkpoints only."),
])
def test_a_table_shows_only_intervals_that_there_are(seeds, photographs, intervals, legend):
    control, ours = known(seeds, photographs)
    table = grid_table(rows("bicubic", control) + rows("ours", ours, run=True), "bicubic")
    head, _, first, second, _, said = table.splitlines()
    assert head == "| data | degradation | model | PSNR-Y, dB | PSNR-Y, dB, minus bicubic | better on |"
    assert first == f"| test | iso | bicubic | {control.mean():.2f} | – | – |" and second.count("[") == intervals and said == legend and "nan" not in table
    assert second.endswith(f" {((ours - control).mean(0) > 0).sum()}/{photographs} |") and f"{(ours - control).mean():+.3f}" in second
    assert ("±" in second) == (seeds > 1)
    plain = grid_table(rows("bicubic", control) + rows("ours", ours, run=True))
    assert "minus" not in plain and len(plain.splitlines()) == 4


@pytest.mark.parametrize("metric, control, ours, wins", [
    ("psnr", [20, 30, 25], [21, 29, 25], 1), ("lpips", [0.2, 0.3, 0.1], [0.1, 0.4, 0.1], 1), ("detail_correlation", [0.2, 0.3, 0.1], [0.3, 0.4, 0.0], 2),
    ("detail_energy", [0.5, 0.5, 2.0], [1.9, 2.1, 0.6], 2), ("detail_energy", [0.0, 1.0, 1.0], [0.1, 1.0, 0.9], 1),
])
def test_wins_know_what_is_better(metric, control, ours, wins):
    one = compare_rows(rows("c", control, metric=metric) + rows("o", ours, metric=metric), "c", metric)[1]
    assert one.wins == wins and one.seeds.mean == pytest.approx(np.mean(ours) - np.mean(control))


def test_trained_controls_are_partners_of_their_seed():
    control, ours = np.array([[20.0, 30.0], [24.0, 31.0]]), np.array([[21.0, 30.5], [24.5, 33.0]])
    one = compare_rows(rows("c", control, run=True) + rows("o", ours[::-1], run=True), "c")[1]
    np.testing.assert_allclose(one.seeds.mean, (ours[::-1] - control).mean())
    with pytest.raises(ValueError, match="control: has no seed"):
        compare_rows(rows("c", control[:1], run=True) + rows("o", ours, run=True), "c")
    with pytest.raises(ValueError, match="control: has no seed"):  # other draws of the degradation
        compare_rows(rows("c", control[0], seed=1) + rows("o", ours[0]), "c")


def test_what_does_not_pair_is_an_error():
    with pytest.raises(ValueError, match="control: got 'x', expected one of c, o"):
        compare_rows(rows("c", [1, 2]) + rows("o", [1, 2]), "x")
    with pytest.raises(ValueError, match="other photographs of test"):
        compare_rows(rows("c", [1, 2]) + rows("o", [1, 2, 3]), "c")
    changed = [row | {"sha256": "another"} for row in rows("o", [1, 2])]
    with pytest.raises(ValueError, match="rows: image 'p00' of test is not the same everywhere"):
        compare_rows(rows("c", [1, 2]) + changed, "c")
    with pytest.raises(ValueError, match="metric: got 'pnsr'.*did you mean 'psnr'"):
        compare_rows(rows("c", [1, 2]), None, "pnsr")
    with pytest.raises(ValueError, match="several protocols in one table"):
        grid_table(rows("c", [1, 2], protocol="a") + rows("o", [1, 2], protocol="b"))
    with pytest.raises(ValueError, match="rows: got none with a figure"):
        grid_table([])
    with pytest.raises(ValueError, match="none was measured"):
        compare_rows(rows("c", [1, 2]), "c", "lpips")


def test_a_figure_that_was_not_measured_is_a_gap():
    mixed = rows("old", [20.0, 21.0]) + rows("new", [20.0, 21.0], detail_energy=0.5)
    head, _, old, new = grid_table(mixed).splitlines()
    assert head.endswith("| PSNR-Y, dB | detail energy |") and old.endswith("| 20.50 | – |") and new.endswith("| 20.50 | 0.500 |")


@pytest.mark.parametrize("name", ["a|b", "`a`", "<b>x</b>", "a\nb", "*x*", "\udce9", "$x$", "0.7*multimodal | 0.3*spatial"])
def test_names_stay_in_their_cell_and_are_no_markup(name):
    made = [row | {"data": name, "preset": name} for row in rows(name, [20, 21]) + rows("o", [20, 22])]
    html = mistune.create_markdown(escape=False, plugins=["table", "strikethrough", "url", "math"])(grid_table(made, name))
    soup = BeautifulSoup(html, "html.parser")
    assert len(soup.find_all(["th", "td"])) == 18 and not soup.find_all(["b", "a", "code", "em"])
    shown = name.replace("\n", "\\n").replace("\udce9", "\\udce9")
    assert sum(cell.get_text() == shown for cell in soup.find_all("td")) == 5


# --- pictures -----------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_crop_is_where_most_energy_lies_above_the_limit(scale):
    hr = SMALL["coffee"][:, :60, :72]
    side, best = 24, None
    y = luma((hr[None].double() * 255).round() / 255)[0, 0].numpy()
    spectrum = np.fft.fft2(y - y.mean())
    for i in range(60):
        for j in range(72):
            if 2 * scale * min(i, 60 - i) <= 60 and 2 * scale * min(j, 72 - j) <= 72:
                spectrum[i, j] = 0
    energy = np.fft.ifft2(spectrum).real ** 2
    places = {(top, left): energy[top : top + side, left : left + side].sum() for top in range(0, 60 - side + 1, scale) for left in range(0, 72 - side + 1, scale)}
    best = max(places, key=places.get)
    assert detail_box(hr, scale, side) == (*best, side, side)
    assert detail_box(hr, scale, 1000) == (0, 0, 60, 72) and detail_box(torch.full((3, 24, 24), 0.5), scale, 12)[2:] == (12, 12)


def test_a_picture_has_a_row_for_each_set_and_degradation():
    sets = {"s": SMALL, "one$": {"$x$": SMALL["coffee"]}}
    one = picture_grid(["bicubic"], {"s": SMALL}, ["iso:1.2"], side=32)
    four = picture_grid({"bicubic": "bicubic"}, sets, ["iso:1.2", "0.7*multimodal | 0.3*spatial"], side=32)
    assert isinstance(one, Image.Image) and one.mode == "RGB" and four.height > 3.5 * one.height
    again = picture_grid(["bicubic"], {"s": SMALL}, ["iso:1.2"], side=32)
    assert again.tobytes() == one.tobytes()
    assert four.crop((0, 0, one.width, one.height)).tobytes() == one.tobytes()
    black = picture_grid(["bicubic"], {"s": {"a": SMALL["coffee"] * 0}}, ["bicubic"], side=32)
    assert np.asarray(black.convert("L")).min() == 0


def test_the_table_of_a_real_grid():
    grid = evaluate_grid({"bicubic": "bicubic"}, {"s": SMALL}, ["iso:1.2", "multimodal | spatial"])
    table = grid_table(grid["rows"]).splitlines()
    mean = np.mean([row["psnr"] for row in grid["rows"][:2]])
    assert table[2].startswith(f"| s | iso\\:1.2 | bicubic | {mean:.2f} |") and table[3].startswith("| s | multimodal \\| spatial | bicubic |")
