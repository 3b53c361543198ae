"""comparison: intervals against scipy and closed forms, pairing, the table."""
import math
import random
import warnings

import hypothesis.strategies as st
import mistune
import numpy as np
import pytest
import scipy.stats
from bs4 import BeautifulSoup
from hypothesis import given

from crlsr.evaluation.comparison import (bootstrap_interval, comparison_table, equal_time_steps, paired_differences, student_interval, untrained_by_model,
                                         untrained_note)

finite = st.floats(-100, 100)


def run(name, seed, psnr, data="test", preset="iso"):
    images = [{"name": key, "psnr": value, "ssim": value / 100} for key, value in psnr.items()]
    return {"name": name, "seed": seed, "metrics": [{"data": data, "preset": preset, "images": images}]}


@given(st.lists(finite, min_size=3, max_size=12).filter(lambda v: np.std(v) > 1e-6), st.floats(0.5, 0.99))
def test_student_interval_is_scipys(values, level):
    low, high = scipy.stats.t.interval(level, len(values) - 1, loc=np.mean(values), scale=scipy.stats.sem(values))
    ours = student_interval(values, level)
    np.testing.assert_allclose((ours.mean, ours.low, ours.high), (np.mean(values), low, high), rtol=1e-9, atol=1e-9)
    assert ours.n == len(values)


def test_student_interval_by_the_printed_table():
    "Three runs: t = 4.303; five: 2.776; both sides, 95 %. Equal differences have an interval of no width, without a warning."
    for values, t in (([0.1, 0.2, 0.6], 4.303), ([1.0, 2.0, 4.0, 8.0, 16.0], 2.776)):
        mean = sum(values) / len(values)
        half = t * math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
        ours = student_interval(values)
        np.testing.assert_allclose((ours.mean, mean - ours.low, ours.high - mean), (mean, half, half), rtol=2e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert student_interval([0.5] * 4)[:3] == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("n, whole", [(1, False), (2, False), (3, True)])
def test_fewer_than_three_values_have_no_interval(n, whole):
    ours = student_interval([0.25, 0.75, 0.5][:n])
    assert ours.mean == pytest.approx([0.25, 0.5, 0.5][n - 1]) and ours.n == n
    assert (math.isfinite(ours.low), math.isfinite(ours.high), "[" in ours.text()) == (whole, whole, whole)


@pytest.mark.parametrize("values, level", [([], 0.95), ([1.0], 0.0), ([1.0, 2.0], 1.0)])
def test_no_values_or_no_level(values, level):
    with pytest.raises(ValueError, match="values, level: got"):
        student_interval(values, level)


def test_bootstrap_is_scipys_percentile_bootstrap():
    table = np.random.default_rng(3).normal(0.1, 1.0, (3, 40))
    ours = bootstrap_interval(table, level=0.9, seed=5)
    theirs = scipy.stats.bootstrap((table.mean(0),), np.mean, confidence_level=0.9, n_resamples=10_000, method="percentile", rng=5).confidence_interval
    np.testing.assert_allclose((ours.low, ours.high), theirs, rtol=1e-12)
    assert ours.mean == pytest.approx(table.mean()) and ours.n == 40
    assert bootstrap_interval(table) == bootstrap_interval(table) != bootstrap_interval(table, seed=1)


def test_bootstrap_by_an_explicit_loop():
    "Two seeds, twelve photographs: draw twelve with replacement, take the mean, again and again; the middle 95 % of the sorted means."
    table = np.random.default_rng(4).normal(0.0, 0.3, (2, 12))
    photographs = [(a + b) / 2 for a, b in zip(*table.tolist())]
    draw, means = random.Random(0), []
    for _ in range(20_000):
        means.append(sum(draw.choice(photographs) for _ in photographs) / 12)
    means.sort()
    ours = bootstrap_interval(table, draws=20_000)
    width = means[19_500] - means[500]
    assert abs(ours.low - means[500]) < 0.03 * width and abs(ours.high - means[19_500]) < 0.03 * width


@pytest.mark.parametrize("photographs, whole", [(1, False), (2, False), (9, False), (10, True), (11, True)])
def test_bootstrap_of_fewer_than_ten_photographs_has_no_interval(photographs, whole):
    ours = bootstrap_interval(np.array([[0.5] * photographs, [0.25] * photographs]))
    assert (ours.mean, ours.n) == (0.375, photographs)
    assert (ours.low == ours.high == 0.375) if whole else (math.isnan(ours.low) and math.isnan(ours.high) and ours.text() == "+0.375")


@pytest.mark.parametrize("table, level, found", [(np.zeros(7), 0.95, r"\(7,\) and 0.95"), (np.zeros((0, 3)), 0.95, r"\(0, 3\)"), (np.zeros((2, 3)), 95, r"\(2, 3\) and 95")])
def test_bootstrap_of_another_shape_or_level(table, level, found):
    with pytest.raises(ValueError, match=rf"differences, level: got shape {found}"):
        bootstrap_interval(table, level)


def test_pairs_are_of_one_seed_and_one_photograph_whatever_the_order():
    control = [run("l1", 1, {"b": 20.0, "a": 10.0}), run("l1", 0, {"a": 11.0, "b": 21.0}), run("l1", 9, {"a": 0.0, "b": 0.0})]
    model = [run("m", 0, {"b": 21.5, "a": 11.25}), run("m", 1, {"a": 10.0, "b": 19.0})]
    np.testing.assert_array_equal(paired_differences(model, control, "test", "iso"), [[0.25, 0.5], [0.0, -1.0]])
    np.testing.assert_allclose(paired_differences(model, control, "test", "iso", "ssim"), [[0.0025, 0.005], [0.0, -0.01]], atol=1e-12)


@pytest.mark.parametrize("model, message", [
    ([run("m", 4, {"a": 1.0})], "control: has no seed 4"),
    ([run("m", 0, {"c": 1.0})], "m seed 0: was scored on other photographs"),
    ([run("m", 0, {"a": 1.0}, preset="aniso")], "m seed 0: has no psnr for test under iso"),
    ([], "runs: got none"),
])
def test_what_does_not_pair_is_an_error(model, message):
    with pytest.raises(ValueError, match=message):
        paired_differences(model, [run("l1", 0, {"a": 1.0})], "test", "iso")


def test_any_figure_that_the_photographs_have_is_compared():
    runs = study(3, 10)
    for each in runs:
        for image in each["metrics"][0]["images"]:
            image["detail_energy"] = image["psnr"] / 10
    table = comparison_table(runs, "l1", "test", ["iso"], "detail_energy")
    assert table.startswith("| detail energy, minus l1 |") and "| m | 3 | +0.020 [+0.020, +0.020] |" in table
    with pytest.raises(ValueError, match="l1 seed 0: has no lpips for test under iso|m seed 0: has no lpips for test under iso"):
        comparison_table(runs, "l1", "test", ["iso"], "lpips")
    with pytest.raises(ValueError, match="metric: got 'pnsr', .*did you mean 'psnr'"):
        comparison_table(runs, "l1", "test", ["iso"], "pnsr")


def study(seeds, photographs, name="m"):
    figures = {f"p{i}": 10.0 + 10 * (i % 2) for i in range(photographs)}
    return [run("l1", s, {k: v + s for k, v in figures.items()}) for s in range(seeds)] + [
        run(name, s, {k: v + s + 0.1 + 0.2 * (v > 15) for k, v in figures.items()}) for s in range(seeds)]


def test_the_table_names_every_model_but_the_control():
    table = comparison_table(study(3, 10), "l1", "test", ["iso"])
    head, _, seeds, photographs, _, legend = table.splitlines()
    assert head == "| PSNR-Y, dB, minus l1 | n | iso |" and seeds == "| m | 3 | +0.200 [+0.200, +0.200] |"
    assert photographs.startswith("|  |  | *+0.200 [+0.1") and photographs.endswith("]* |")
    assert legend == "Upright: 95 % interval over seeds (Student's t). *Slanted*: bootstrap over photographs, these checkpoints only."
    with pytest.raises(ValueError, match="control: got 'x', expected one of l1, m"):
        comparison_table(study(3, 10), "x", "test", ["iso"])


@pytest.mark.parametrize("seeds, photographs, intervals, said", [
    (1, 2, 0, "No intervals: they take 3 seeds, or 10 photographs."), (2, 9, 0, "No intervals: they take 3 seeds, or 10 photographs."),
    (3, 9, 1, "Upright: 95 % interval over seeds (Student's t)."), (1, 10, 1, "*Slanted*: bootstrap over photographs, these checkpoints only."),
])
def test_the_table_shows_and_explains_only_intervals_that_there_are(seeds, photographs, intervals, said):
    table = comparison_table(study(seeds, photographs), "l1", "test", ["iso"])
    assert table.count("[") == intervals and table.splitlines()[-1] == said and "nan" not in table and "<" not in table


@pytest.mark.parametrize("name", ["a|b", "`a`", "<b>x</b>", "a\nb", "[x](javascript:y)", "*x*", "\udce9", "$x$", "a\\|b"])
def test_names_stay_in_their_cell_and_are_no_markup(name):
    runs = [each | {"untrained": [name]} for each in study(2, 2, name)]
    for table in (comparison_table(runs, "l1", "test", ["iso"]), comparison_table(runs, name, "test", ["iso"])):
        html = mistune.create_markdown(escape=False, plugins=["table", "strikethrough", "url", "math"])(table)
        cells = BeautifulSoup(html, "html.parser").find_all(["th", "td"])
        assert len(cells) == 6 and not BeautifulSoup(html, "html.parser").find_all(["b", "a", "code", "em"])
        shown = name.replace("\n", "\\n").replace("\udce9", "\\udce9")
        assert any(shown in cell.get_text() for cell in cells)


def test_a_row_of_a_network_that_nothing_trained_is_marked_and_the_network_named():
    bare = [run("l1", s, {"a": 10.0 + s, "b": 20.0}) for s in (0, 1)] + [run("m", s, {"a": 10.1 + s, "b": 20.3}) for s in (0, 1)]
    assert "†" not in comparison_table(bare, "l1", "test", ["iso"]) and untrained_by_model(bare) == {} and untrained_note({}) == ""
    assert comparison_table([each | {"untrained": []} for each in bare], "l1", "test", ["iso"]) == comparison_table(bare, "l1", "test", ["iso"])
    marked = [each | ({"untrained": ["heads.high", "d_rec"][: 1 + each["seed"]]} if each["name"] == "m" else {}) for each in bare]
    lines = comparison_table(marked, "l1", "test", ["iso"]).splitlines()
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")][2:] == ["| m†"] and "l1†" not in lines[0]
    assert lines[-1].endswith("† Untrained, since no gradient reached it: d\\_rec, heads.high of m.")
    assert comparison_table(marked, "m", "test", ["iso"]).startswith("| PSNR-Y, dB, minus m† |"), "the control is marked in the head"


def test_equal_time():
    assert [equal_time_steps(3000, r) for r in (1.0, 1.6, 0.5)] == [3000, 4800, 1500]
    with pytest.raises(ValueError, match="steps, time_ratio: got 10 and 0"):
        equal_time_steps(10, 0.0)
