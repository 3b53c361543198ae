"""diagnosis.figures: what is drawn, read back from the figure, against data whose answer is known."""
import math

import numpy as np
import pytest
import scipy.stats
import torch

from crlsr.diagnosis.figures import compass_points, decoded, gradient_compass, honest_interval, luck_intervals, saturation_step, skip_dilemma, strength_table, strengths
from crlsr.images import resize
from crlsr.model import CRLSR, ModelConfig


def png(figure):
    assert figure._repr_png_()[:8] == b"\x89PNG\r\n\x1a\n"
    return figure


def test_intervals_count_one_kind_of_luck_each():
    d = np.random.default_rng(0).normal(0.1, 1, (5, 12, 4))
    found = luck_intervals(d)
    for name, axes in (("seeds", (1, 2)), ("draws", (0, 1))):
        values = d.mean(axes)
        low, high = scipy.stats.t.interval(0.95, len(values) - 1, values.mean(), scipy.stats.sem(values))
        np.testing.assert_allclose(found[name], (d.mean(), low, high, len(values)))
    theirs = scipy.stats.bootstrap((d.mean((0, 2)),), np.mean, n_resamples=10_000, method="percentile", rng=0).confidence_interval
    np.testing.assert_allclose(found["photographs"][1:3], theirs)
    assert found["seeds and photographs"].n == 5 and list(found) == ["seeds", "photographs", "draws", "seeds and photographs"]
    with pytest.raises(ValueError, match=r"differences: got shape \(5, 12\)"):
        luck_intervals(d[..., 0])


def test_the_map_is_sorted_marked_and_says_the_mean_without():
    d = np.zeros((3, 11, 2)) + np.arange(11)[::-1, None] / 100
    d[:, 4] = -1.0
    names = [f"p{i}" for i in range(11)]
    figure = png(honest_interval(d, names, "p4"))
    left, right, _ = figure.axes
    shown = np.asarray(left.images[0].get_array())
    np.testing.assert_allclose(shown, np.sort(d.mean(2), 1))
    assert left.texts[0].get_text() == "p4" and left.texts[0].xy[0] == 0  # the worst
    cross = [line for line in right.lines if line.get_marker() == "x"][0]
    assert cross.get_xdata()[0] == pytest.approx(np.delete(d, 4, 1).mean())
    dots = [line.get_xdata()[0] for line in right.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(dots, d.mean())
    with pytest.raises(ValueError, match="expected 11, one of them marked"):
        honest_interval(d, names, "p11")


def test_the_compass_knows_where_a_loss_pulls():
    rows = [{"step": 100 * k, "share_bc": 0.2 - 0.02 * k, "cos_f_l_bc": math.cos(math.radians(10 * k)), "grad_pixel": 4.0, "grad_srnce": 1.0, "cos_srnce": -1.0,
             "share_gradient": 0.1, "cos_f_l_gradient": 0.5}
            for k in range(1, 6)]
    points = compass_points(rows)
    np.testing.assert_allclose(points["bc"], [(100 * k, 0.2 - 0.02 * k, 10 * k) for k in range(1, 6)])
    np.testing.assert_allclose(points["srnce"], [(100 * k, 0.25, 180) for k in range(1, 6)])
    assert compass_points([{"step": 1, "grad_pixel": 1.0, "grad_bc": 0.0, "cos_bc": 0.0}]) == {}  # silent from first to last
    figure = png(gradient_compass({"a": rows, "none": [{"step": 1}], "b": rows}))
    assert [axes.get_title() for axes in figure.axes] == ["a", "b"]
    np.testing.assert_allclose(points["gradient"], [(100 * k, 0.1, 60) for k in range(1, 6)])
    bc, srnce, gradient = figure.axes[0].collections
    assert [entry.get_text() for entry in figure.legends[0].get_texts()] == ["L_bc", "L_srnce", "image gradients"]
    np.testing.assert_allclose(gradient.get_offsets()[0], (math.pi / 3, 0.1))
    np.testing.assert_allclose(bc.get_offsets(), [(math.radians(10 * k), 0.2 - 0.02 * k) for k in range(1, 6)])
    np.testing.assert_allclose(srnce.get_offsets()[0], (math.pi, 0.25))
    once = [*rows, *({"step": 600 + k, "share_bc": 0.15, "cos_f_l_bc": 0.0} for k in range(60)), {"step": 700, "share_bc": 50.0, "cos_f_l_bc": 1.0}]
    compass = gradient_compass({"one outlier": once})
    np.testing.assert_allclose(compass.axes[0].collections[0].get_offsets()[-1], (0, 0.25))  # on the rim, the 95 % of all shares
    assert compass.axes[0].get_rmax() == pytest.approx(1.08 * 0.25)
    with pytest.raises(ValueError, match="runs: got 1, none with a measured gradient"):
        gradient_compass({"none": [{"step": 1}]})


def test_a_loss_is_saturated_from_where_nothing_is_left_for_good():
    draw = np.random.default_rng(0)
    own = np.exp(-np.arange(40) / 4) * draw.uniform(0.5, 2, 40)  # the loss's own strength
    weights = 10 ** draw.uniform(-4, 0, 40)  # whatever a share or a schedule made of it
    rows = [{"step": 25 * k, "share_srnce": own[k] * weights[k], "weight_srnce": weights[k]} for k in range(40)] + [{"step": 2000, "share_srnce": 0.1}, {"step": 3000, "weight_bc": 1.0}]
    medians = [sorted([own[min(max(i, 0), 39)] for i in range(k - 2, k + 3)])[2] for k in range(40)]
    (term, path), = strengths(rows).items()
    assert term == "srnce"
    np.testing.assert_allclose(path, [(25 * k, medians[k] / medians[0]) for k in range(40)])
    for left in (0.5, 0.01, 1e-3):
        by_hand = next((25 * k for k in range(40) if all(m < left * medians[0] for m in medians[k:])), None)
        assert saturation_step(path, left) == by_hand is not None
    assert saturation_step(path, 1e-9) is None
    silent = [{"step": k, "share_bc": share, "weight_bc": 1.0} for k, share in enumerate([0.0, 0.0, 0.5, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0])]
    assert strengths(silent)["bc"][0].tolist() == [2, 1] and saturation_step(strengths(silent)["bc"]) == 5, "no gradient is the least that can be left; before the first one nothing is"
    assert strengths(silent[:2]) == {}
    filling = [{"step": k, "share_bc": share, "weight_bc": weight} for k, (share, weight) in enumerate([(8e-11, 3e-4), *[(0.04, 3e-3)] * 5])]
    np.testing.assert_allclose(strengths(filling)["bc"], [(k, 1) for k in range(1, 6)], err_msg="a queue that fills had a floor for a factor, and was not heard")
    table = strength_table({"a_b": [rows, rows[:3]], "none": [[{"step": 1}]]}).splitlines()
    had = [np.mean([row["share_srnce"] for row in part]) for part in (rows[:40], rows[:3])]
    assert len(table) == 3 and table[2] == f"| a\\_b | L\\_srnce | {had[0]:.1%} and {had[1]:.1%} | {path[-1, 1]:.1%} and {strengths(rows[:3])['srnce'][-1, 1]:.1%} | {saturation_step(path)} and never |"
    many = strength_table({"a": [rows, rows[:3], rows]}).splitlines()[2].split(" | ")[2:]
    assert many[0] == f"{min(had):.1%} to {max(had):.1%}" and many[2] == f"{saturation_step(path)} to never |"
    assert strength_table({"a": [rows[:3]] * 4}).splitlines()[2].split(" | ")[2:] == [f"{had[1]:.1%}", f"{strengths(rows[:3])['srnce'][-1, 1]:.1%}", "never |"]


def test_noise_passes_a_base_of_lr_and_not_one_of_features():
    torch.manual_seed(0)
    hr = resize(torch.rand(1, 3, 6, 6), scale=8).clamp(0, 1)[0]  # smooth
    clean = resize(hr[None], scale=1 / 4)[0]
    noisy = clean + 0.2 * torch.randn(clean.shape)
    models = {base: CRLSR(ModelConfig.from_dict({"num_feat": 8, "num_block": 2, "decoder_base": base})).eval() for base in ("lr", "features")}
    moved = {base: (decoded(net, noisy, hr)["D(f_h)"] - decoded(net, clean, hr)["D(f_h)"]).abs().max().item() for base, net in models.items()}
    assert moved["features"] == 0 and moved["lr"] > 0.1  # nothing of lr reaches the one
    figure = png(skip_dilemma(models, noisy.clamp(0, 1), hr, {"lr": {"noise": 0.98}, "features": {"noise": 0.6, "σ": 0.4}}))
    pictures = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in pictures[:4]] == ["lr", "D(f_h)", "sr", "hr"] and len(pictures) == 8
    np.testing.assert_allclose(pictures[4].images[0].get_array(), noisy.clamp(0, 1).permute(1, 2, 0))
    heights = [bar.get_height() for bar in figure.axes[-1].patches]
    np.testing.assert_equal(heights, [0.98, math.nan, 0.6, 0.4])
    with pytest.raises(ValueError, match="models, probes: got 2 and 1"):
        skip_dilemma(models, clean, hr, {"lr": {}})
    plain = CRLSR(ModelConfig.from_dict({"num_feat": 8, "num_block": 2, "weight_bc": 0.0, "weight_srnce": 0.0, "weight_rec": 0.0}))
    with pytest.raises(ValueError):
        decoded(plain, clean, hr)
