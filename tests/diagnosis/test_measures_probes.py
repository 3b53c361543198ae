"""measures: probes; ridge against numpy's lstsq and plain loops, held-out R² on features whose answer is known, targets of a degradation."""
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crlsr.core import generator
from crlsr.degradation import Degradation
from crlsr.diagnosis.measures import (
    blur_targets, content_maps, degradation_labels, edge_bank, fit_ridge, held_out, held_out_r2, local_pool, position_rows,
    varying_targets,
)
from crlsr.images import resize


def draw(*shape, key=0):
    return torch.randn(*shape, generator=generator("probes test", key), dtype=torch.float64)


def augmented(x, y, penalty):
    "Ridge as ordinary least squares with D more rows: numpy's lstsq knows nothing of our algebra."
    z = (x - x.mean(0)) / x.std(0)
    rows = np.concatenate([z, math.sqrt(len(x) * penalty) * np.eye(x.shape[1])])
    return np.linalg.lstsq(rows, np.concatenate([y - y.mean(0), np.zeros((x.shape[1], y.shape[1]))]), rcond=None)[0]


@pytest.mark.parametrize("n, d, t", [(50, 4, 3), (20, 40, 1), (9, 1, 2)])
@pytest.mark.parametrize("penalty", [1e-3, 0.3, 20.0])
def test_weights_and_predictions_equal_least_squares(n, d, t, penalty):
    x, y, new = draw(n, d, key="x") * 3 + 5, draw(n, t, key="y"), draw(7, d, key="new")
    probe = fit_ridge(x, y, penalties=[penalty])
    expected = augmented(x.numpy(), y.numpy(), penalty)
    np.testing.assert_allclose(probe.weight.numpy(), expected, atol=1e-9)
    by_hand = (new.numpy() - x.numpy().mean(0)) / x.numpy().std(0) @ expected + y.numpy().mean(0)
    np.testing.assert_allclose(probe.predict(new).numpy(), by_hand, atol=1e-9)


def test_the_penalty_is_the_largest_within_one_standard_error():
    x, groups = draw(60, 5, key="x"), torch.arange(60) // 6
    y = x[:, :2] + torch.tensor([0.1, 3.0]) * draw(60, 2, key="noise")
    choices = [1e-4, 1e-2, 1.0, 100.0]
    z, r = ((a - a.mean(0)).numpy() / s for a, s in ((x, x.numpy().std(0)), (y, 1)))
    chosen = []
    for target in range(2):
        errors = np.empty((5, len(choices)))
        for fold in range(5):
            hidden = groups.numpy() % 5 == fold
            for i, penalty in enumerate(choices):
                rows = np.concatenate([z[~hidden], math.sqrt((~hidden).sum() * penalty) * np.eye(5)])
                w = np.linalg.lstsq(rows, np.concatenate([r[~hidden, target], np.zeros(5)]), rcond=None)[0]
                errors[fold, i] = ((r[hidden, target] - z[hidden] @ w) ** 2).mean()
        excess = errors - errors[:, [errors.mean(0).argmin()]]
        good = [i for i in range(len(choices)) if excess[:, i].mean() <= excess[:, i].std(ddof=1) / math.sqrt(5)]
        chosen.append(choices[max(good)])
    assert fit_ridge(x, y, groups, penalties=choices).penalty.tolist() == chosen
    assert fit_ridge(x, y, groups, penalties=choices[::-1]).penalty.tolist() == chosen, "the order of the choices does not matter"
    assert chosen[0] < chosen[1], "the clean target is trusted more than the noisy one"


def test_constant_features_are_ignored_and_a_constant_target_is_nan():
    x, y, groups = draw(40, 3, key="x"), draw(40, 1, key="y"), torch.arange(40) % 4
    with_constant = torch.cat([x, torch.full((40, 1), 7.0)], 1)
    torch.testing.assert_close(held_out_r2(with_constant, y, groups), held_out_r2(x, y, groups))
    torch.testing.assert_close(held_out_r2(torch.ones(40, 2), y, groups), torch.zeros(1, dtype=torch.float64), atol=1e-12, rtol=0)
    assert held_out_r2(x, torch.ones(40), groups).isnan().all()


def test_known_answers():
    groups = torch.arange(1200) % 24
    y, other, noise = draw(1200, 1, key="y"), draw(1200, 15, key="other"), draw(1200, 1, key="noise")
    assert abs(held_out_r2(draw(1200, 16, key="independent"), y, groups).item()) < 0.03
    assert held_out_r2(torch.cat([other, y], 1), y, groups).item() > 0.998
    assert held_out_r2(torch.cat([other, -1e-3 * y + 5], 1), y, groups).item() > 0.998, "size, sign and offset of a channel do not matter"
    for level in (0.5, 1.0, 2.0):
        found = held_out_r2(torch.cat([other, y + level * noise], 1), y, groups).item()
        assert abs(found - 1 / (1 + level**2)) < 0.06
    both = held_out_r2(torch.cat([other, y], 1), torch.cat([y, draw(1200, 1, key="else")], 1), groups)
    assert both[0] > 0.998 and abs(both[1]) < 0.03, "targets are read independently"


def test_groups_are_never_split():
    photo = torch.arange(12).repeat_interleave(40)
    identity = draw(12, 11, key="identity")[photo]
    brightness = draw(12, 1, key="brightness")[photo]
    single = held_out_r2(identity, brightness, torch.arange(480)).item()
    assert single > 0.9 and held_out_r2(identity, brightness, photo).item() < 0.2


def test_two_groups_are_enough_and_labels_are_only_names():
    x, y = draw(60, 3, key="x"), draw(60, 1, key="y")
    two = torch.arange(60) % 2
    torch.testing.assert_close(held_out_r2(x, x[:, :1], two), torch.ones(1, dtype=torch.float64), atol=0.05, rtol=0)
    torch.testing.assert_close(held_out_r2(x, y, two), held_out_r2(x, y, 10 * two - 3))


@given(st.integers(0, 10**6), st.sampled_from([1, 2, 5]))
def test_r2_never_exceeds_one_and_is_not_far_below_zero(key, d):
    x, y, groups = draw(48, d, key=key), draw(48, 1, key=f"y{key}"), torch.arange(48) % 6
    assert -1 < held_out_r2(x, y, groups).item() <= 1


@pytest.mark.parametrize("call, message", [
    (lambda: fit_ridge(torch.ones(3), torch.ones(3)), "x, y"),
    (lambda: fit_ridge(torch.ones(3, 2), torch.ones(4)), r"got \(3, 2\) and \(4, 1\)"),
    (lambda: held_out_r2(torch.ones(4, 2), torch.ones(4), torch.ones(3)), "groups: got"),
    (lambda: held_out_r2(torch.ones(4, 2), torch.ones(4), torch.ones(4)), r"got 1 group\(s\)"),
    (lambda: held_out_r2(torch.ones(4, 2), torch.ones(4), torch.arange(4), folds=1), r"1 fold\(s\)"),
    (lambda: local_pool(torch.ones(1, 1, 8, 8), 4), "size: got 4"),
])
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "expected" in str(error.value) and "\n" not in str(error.value)


@given(st.floats(0.1, 4), st.floats(0.1, 4), st.floats(-7, 7))
def test_targets_do_not_depend_on_how_a_kernel_is_written(a, b, theta):
    def of(s1, s2, angle):
        return blur_targets(*(torch.tensor(v, dtype=torch.float64) for v in (s1, s2, angle)))

    first = of(a, b, theta)
    for same in (of(b, a, theta + math.pi / 2), of(a, b, theta + math.pi), of(b, a, theta - math.pi / 2)):
        for name, value in first.items():
            torch.testing.assert_close(value, same[name], atol=1e-9, rtol=1e-9)
    assert first["sigma short"] <= first["sigma"] <= first["sigma long"]
    torch.testing.assert_close(first["cos 2θ"].hypot(first["sin 2θ"]).item(), abs(a * a - b * b) / (a * a + b * b), atol=1e-9, rtol=1e-6)


def test_a_round_kernel_has_no_direction_and_no_blur_no_nan():
    targets = blur_targets(torch.tensor([2.0, 0.0]), torch.tensor([2.0, 0.0]), torch.tensor([1.0, 1.0]))
    assert targets["cos 2θ"].tolist() == targets["sin 2θ"].tolist() == [0, 0] and targets["sigma"].tolist() == [2, 0]


def names_that_vary(params):
    return list(varying_targets(degradation_labels(params))[0])


def test_labels_keep_what_varies_and_say_why_the_rest_does_not():
    def params(**fields):
        return SimpleNamespace(**{"sigma1": 1.0, "sigma2": 1.0, "theta": 0.0, "noise_level": 0.0} | fields)

    iso = [params(sigma1=s, sigma2=s) for s in (1.0, 2.0, 3.0)]
    assert names_that_vary(iso) == ["sigma"] and degradation_labels(iso)["sigma"].tolist() == [1, 2, 3]
    assert varying_targets(degradation_labels(iso))[1] == {
        "sigma long": "the same as sigma", "sigma short": "the same as sigma", "cos 2θ": "always 0", "sin 2θ": "always 0", "noise": "always 0",
        "jpeg": "defined in no draw"}
    assert names_that_vary([params(noise_level=n) for n in (0.0, 5.0)]) == ["noise"]
    assert names_that_vary([params(), params()]) == []
    assert set(names_that_vary([params(sigma1=3.0, theta=t) for t in (0.1, 1.2)])) == {"cos 2θ", "sin 2θ"}


def test_a_label_means_one_thing_in_all_rows():
    def draws(*texts):
        return [Degradation.parse(text, scale=4).sample(generator("labels", text)) for text in texts]

    mixed = draws("bicubic", "iso:2", "aniso:3,1,30+noise:10", "motion:12,0", "disk:3", "iso:2+noise:10+jpeg:60", "motion:12,0+noise:5+jpeg:80")
    labels = degradation_labels(mixed)
    for name in ("sigma", "sigma long", "sigma short", "cos 2θ", "sin 2θ"):
        assert labels[name].isnan().tolist() == [False] * 3 + [True] * 2 + [False, True], "a motion and a disk have no σ among Gaussians"
    assert labels["noise"].isnan().tolist() == [False] * 5 + [True] * 2, "a JPEG changes the noise"
    assert labels["noise"][:5].tolist() == [0, 0, 10, 0, 0] and labels["sigma"][:2].tolist() == [0, 2]
    assert labels["jpeg"].isnan().tolist() == [True] * 5 + [False] * 2 and labels["jpeg"][5:].tolist() == [60, 80]
    alone = degradation_labels(draws("motion:12,0", "motion:18,90"))
    np.testing.assert_allclose(alone["sigma long"], [12 / math.sqrt(12), 18 / math.sqrt(12)], rtol=0.02)
    assert alone["cos 2θ"][0] > 0.95 and alone["cos 2θ"][1] < -0.95
    packed = degradation_labels(draws("iso:2+noise:10+jpeg:60", "iso:2+noise:5+jpeg:80"))
    assert packed["noise"].tolist() == [10, 5], "all alike: the level before the JPEG"


def test_varying_targets_drops_repetitions_of_maps_too():
    maps = {"a": draw(2, 3, 3, key="a"), "b": torch.ones(2, 3, 3)}
    assert list(varying_targets({**maps, "again": maps["a"].clone()})[0]) == ["a"]
    holes = maps["a"].clone()
    holes[0, 0] = math.nan
    kept, why = varying_targets({"holes": holes, "same": holes.clone(), "flat": torch.where(holes.isnan(), holes, 7.0)})
    assert list(kept) == ["holes"] and why == {"same": "the same as holes", "flat": "always 7"}


def test_what_single_groups_say_is_a_jackknife_of_r2():
    x, groups = draw(600, 4, key="x"), torch.arange(600) % 20
    y = x[:, :2] + torch.tensor([0.3, 2.0]) * (1 + groups[:, None] / 10) * draw(600, 2, key="noise")
    r2, each = held_out(x, y, groups)
    assert torch.equal(r2, held_out_r2(x, y, groups)) and each.shape == (20, 2)
    torch.testing.assert_close(each.mean(0), r2)
    errors, totals = (np.zeros((20, 2)) for _ in range(2))
    for fold in range(5):
        seen = (groups % 5 != fold).numpy()
        probe = fit_ridge(x[seen], y[seen], groups[seen])
        guess = probe.predict(x[~seen]).clamp(y[seen].amin(0), y[seen].amax(0)).numpy()
        for sums, part in ((errors, guess), (totals, y[seen].mean(0).numpy())):
            np.add.at(sums, groups[~seen].numpy(), (y[~seen].numpy() - part) ** 2)
    np.testing.assert_allclose(r2.numpy(), 1 - errors.sum(0) / totals.sum(0), rtol=1e-9)
    without = 1 - (errors.sum(0) - errors) / (totals.sum(0) - totals)  # R² of the other 19
    jackknife = 19 / 20 * ((without - without.mean(0)) ** 2).sum(0)
    np.testing.assert_allclose(each.var(0).numpy() / 20, jackknife, rtol=0.15)
    assert held_out(x, torch.ones(600), groups)[1].isnan().all()


def test_edge_bank_equals_loops():
    image = draw(2, 3, 5, 6, key="image").abs()
    found, pad = edge_bank(image), np.pad(image.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    assert found.shape == (2, 33, 5, 6) and torch.equal(found[:, :3], image)
    for b, c, i, j in [(0, 0, 0, 0), (1, 2, 4, 5), (0, 1, 2, 3)]:
        p = pad[b, c, i : i + 3, j : j + 3]
        expected = [p[1, 2] - p[1, 0], p[2, 1] - p[0, 1], p[1, 0] - 2 * p[1, 1] + p[1, 2], p[0, 1] - 2 * p[1, 1] + p[2, 1],
                    p[0, 0] - p[0, 2] - p[2, 0] + p[2, 2]]
        np.testing.assert_allclose(found[b, 3 + 5 * c : 8 + 5 * c, i, j].numpy(), expected, atol=1e-12)
    assert torch.equal(found[:, 18:], found[:, 3:18].abs()) and (found[:, 3:18] < 0).any()


def test_a_slope_is_read_from_signed_differences_and_not_from_their_sizes():
    hr, group = draw(6, 3, 48, 48, key="hr").sigmoid(), torch.arange(6).repeat_interleave(144)
    bank = edge_bank(resize(hr, scale=1 / 4))
    slopes = torch.stack([content_maps(hr, 4)[name].flatten() for name in ("horizontal edge", "vertical edge")], 1)
    signed, sizes = (held_out_r2(part.movedim(1, -1).flatten(0, 2), slopes, group) for part in (bank, bank[:, 18:]))
    assert (signed > 0.99).all(), "the slope of luma is a sum of three signed differences"
    assert (sizes < 0.1).all(), "what is turned around has the same sizes and the opposite slope"


def test_rows_are_where_they_should_be():
    features = draw(2, 3, 4, 5, key="features")
    positions = torch.tensor([0, 7, 19])
    rows = position_rows(features, positions)
    for b in range(2):
        for m, p in enumerate(positions.tolist()):
            assert torch.equal(rows[3 * b + m], features[b, :, p // 5, p % 5])
    assert torch.equal(position_rows(features[:, 0], positions), rows[:, 0])


@pytest.mark.parametrize("size", [1, 3, 5])
def test_local_pool_equals_loops(size):
    features = draw(2, 3, 4, 6, key="local") + 100
    found, r = local_pool(features, size), size // 2
    pad = np.pad(features.numpy(), ((0, 0), (0, 0), (r, r), (r, r)), mode="edge")
    for b, c, i, j in [(0, 0, 0, 0), (1, 2, 3, 5), (0, 1, 2, 3)]:
        window = pad[b, c, i : i + size, j : j + size]
        assert found[b, c, i, j].item() == pytest.approx(window.mean()) and found[b, 3 + c, i, j].item() == pytest.approx(window.std(), abs=1e-7)


def test_noise_has_no_sign():
    level = torch.rand(20, 1, 1, 1, generator=generator("level"), dtype=torch.float64) * torch.linspace(0, 2, 16)
    noisy, groups = level * draw(20, 3, 16, 16, key="unit"), torch.arange(20).repeat_interleave(256)
    y = level.expand(20, 1, 16, 16).flatten()
    single, around = (held_out_r2(f.permute(0, 2, 3, 1).flatten(0, 2), y, groups).item() for f in (noisy, local_pool(noisy)))
    assert abs(single) < 0.03 and around > 0.7


def test_content_of_a_ramp():
    hr = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)
    maps = content_maps(hr, 4)
    assert {m.shape for m in maps.values()} == {(1, 8, 8)}
    slope = 4 / 31 * 219 / 255  # 4 hr pixels of 1/31, on studio-range luma
    torch.testing.assert_close(maps["horizontal edge"][0, 2:-2, 2:-2], torch.full((4, 4), slope), atol=5e-4, rtol=0)
    assert maps["vertical edge"].abs().max() < 1e-6
    turned = content_maps(hr.mT, 4)
    torch.testing.assert_close(turned["vertical edge"], maps["horizontal edge"].mT)
