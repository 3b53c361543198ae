"""evaluation.evidence: endpoints against loops, verdicts against the tests they are made of, equal time against numpy's interpolation, shrinkage against closed forms."""
import math
import statistics

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from crlsr.evaluation.claims import Claim, dunnett, holm, judge
from crlsr.evaluation.comparison import Interval, bootstrap_interval, student_interval
from crlsr.evaluation.evidence import (Endpoint, Finding, Gate, at_equal_time, endpoint_differences, falls, findings, findings_at_equal_time, findings_table,
                                       map_table, counted_cost, oracle_gate, overfit_gate, shrunken, unseen_presets)
from crlsr.evaluation.scoring import DIGITS, pack_scores

ONE = Endpoint("one", "B", ("p",))
BOTH = Endpoint("both", "B", ("p", "q"))


def run(name, seed, psnr, steps=100, q=None, **more):
    "A record with (photographs, draws) of preset p, and of q one draw."
    def row(preset, table):
        scores = pack_scores([[dict.fromkeys(DIGITS, 0.5) | {"psnr": value} for value in of] for of in np.round(table, 3)])
        return {"data": "B", "preset": preset, "images": [f"i{i:03d}" for i in range(len(table))], "scores": scores}
    metrics = [row("p", psnr)] + ([row("q", q)] if q is not None else [])
    return {"name": name, "seed": seed, "metrics": metrics, "config": {"train": {"steps": steps}}, **more}


def arm(name, gain, seeds=(1, 2, 3, 4), steps=100, spread=0.01, of=(20, 2)):
    draw = np.random.default_rng([len(name), steps, *name.encode()])
    base = np.random.default_rng(7).normal(26, 2, of)
    return [run(name, seed, base + gain + spread * draw.normal() + spread * draw.normal(size=of), steps, base[:, :1] + 2 * gain) for seed in seeds]


@pytest.mark.parametrize("training, tests, new", [
    ("multimodal", ["iso", "motion", "disk", "bicubic+noise:40", "bicubic+jpeg:10..25", "bicubic+jpeg:50..90", "high_order", "spatial"],
     ["disk", "bicubic+noise:40", "bicubic+jpeg:10..25", "high_order", "spatial"]),
    ("bicubic | iso", ["bicubic", "iso", "iso:2.4", "aniso+noise:0..25", "spatial"], ["aniso+noise:0..25", "spatial"]),
    ("iso:2.4", ["iso:2.4", "iso:1.2", "bicubic"], ["iso:1.2"]),
    ("aniso+noise:0..25", ["aniso+noise:20", "aniso+noise:26", "aniso+noise:30"], ["aniso+noise:30"]),  # 26 is within a twentieth of the range
])
def test_what_training_never_drew(training, tests, new):
    assert unseen_presets(training, tests) == new == unseen_presets(training, tests)


def test_an_endpoint_is_the_mean_over_presets_draws_and_photographs():
    ours, base = arm("ours", 0.1), arm("base", 0.0)
    table = endpoint_differences(ours, base, BOTH)
    assert table.shape == (4, 20, 2)  # the single draw of q stands for both
    p, q = (endpoint_differences(ours, base, Endpoint("", "B", (preset,))) for preset in "pq")
    for s in range(4):
        for i in range(20):
            for d in range(2):
                assert table[s, i, d] == pytest.approx((p[s, i, d] + q[s, i, 0]) / 2, abs=1e-12)
    assert q.mean() == pytest.approx(0.2, abs=1e-3)


def test_presets_of_unlike_draws_count_alike():
    draw = np.random.default_rng(3)
    ours, base = ([run("a", seed, draw.normal(26, 1, (5, 4)), q=draw.normal(26, 1, (5, 3))) for seed in (1, 2)] for _ in range(2))
    table = endpoint_differences(ours, base, BOTH)
    p, q = (endpoint_differences(ours, base, Endpoint("", "B", (preset,))) for preset in "pq")
    assert (p.shape, q.shape, table.shape) == ((2, 5, 4), (2, 5, 3), (2, 5, 1))
    np.testing.assert_allclose(table[..., 0], (p.mean(2) + q.mean(2)) / 2)


def test_findings_are_dunnett_over_arms_and_holm_over_endpoints():
    runs = [*arm("l1", 0.0), *arm("a", 0.02), *arm("bb", 0.005), *arm("few", 0.5, seeds=(1, 2))]
    found = {(one.arm, one.endpoint): one for one in findings(runs, "l1", [ONE, BOTH])}
    assert list(found) == [(name, endpoint) for name in ("a", "bb", "few") for endpoint in ("one", "both")]
    raw, claims = {}, {}
    for endpoint in (ONE, BOTH):
        tables = {name: endpoint_differences([r for r in runs if r["name"] == name], runs[:4], endpoint) for name in ("a", "bb", "few")}
        claims[endpoint.name] = judge(tables)
        # the same arms as values of their own, not as differences
        control = np.random.default_rng(1).normal(size=4)
        raw[endpoint.name] = dunnett({name: tables[name].mean((1, 2)) + control for name in ("a", "bb")}, control)
    for name in ("a", "bb"):
        p = holm({endpoint: raw[endpoint][name].p for endpoint in raw})
        for endpoint, value in p.items():
            assert found[name, endpoint].p == pytest.approx(value, abs=1e-9)
            np.testing.assert_allclose(found[name, endpoint].claim[1], claims[endpoint][name][1])
    assert math.isnan(found["few", "one"].p) and found["few", "one"].verdict == "undecided"  # two seeds, whatever they show
    text = findings_table([*found.values()])
    assert text.count("\n") == 7 and "| few | one | **undecided** | +0." in text and "| – | 2 | +0." in text
    assert text == findings_table(findings(runs, "l1", [ONE, BOTH]))  # byte for byte
    few = findings_table([one for one in found.values() if one.arm == "few"]).splitlines()
    assert few[0] == "| arm | endpoint | verdict | mean | over photographs | seeds | trimmed | wins |" and all(line.count(" | ") == 7 and "–" not in line for line in few), "without the columns of those with more seeds"
    assert findings_table([]).splitlines()[0] == text.splitlines()[0]


@pytest.mark.parametrize("low, p, p_equal, verdict", [
    (0.01, 0.01, 0.9, "better"), (0.01, 0.2, 0.9, "undecided"), (0.01, math.nan, 0.9, "undecided"), (-0.01, 0.5, 0.01, "equivalent"), (-0.01, 0.01, 0.3, "undecided"),
    (0.01, 0.01, 0.01, "better"), (math.nan, math.nan, math.nan, "undecided"),
])
def test_a_verdict_takes_all_of_it(low, p, p_equal, verdict):
    interval = Interval(0.02, low, 0.05, 20)
    assert Finding("a", "e", Claim(interval, interval, interval, 0.02, 0.6, p_equal), p).verdict == verdict
    mirrored = Interval(-0.02, -0.05, -low, 20)
    expected = {"better": "worse"}.get(verdict, verdict)
    assert Finding("a", "e", Claim(mirrored, mirrored, mirrored, -0.02, 0.4, p_equal), p).verdict == expected


@pytest.mark.parametrize("cost", [0.7, 1.0, 1.1, 1.25, 1.5, 2.0])
def test_equal_time_is_a_straight_line_in_log_steps(cost):
    ours, counts = arm("ours", 0.1), (100, 125, 200)
    curve = [one for k, count in enumerate(counts) for one in arm("l1", 0.03 * k, steps=count)]
    table = at_equal_time(ours, curve, cost, ONE)
    for s in range(4):
        scores = [endpoint_differences(ours, [r for r in curve if r["config"]["train"]["steps"] == count], ONE)[s] for count in counts]
        for i in range(20):
            expected = np.interp(math.log(100 * max(cost, 1)), np.log(counts), [score[i, 0] for score in scores])
            assert table[s, i, 0] == pytest.approx(expected, abs=1e-9)


def test_equal_time_says_nothing_beyond_the_curve():
    ours, curve = arm("ours", 0.1), [*arm("l1", 0.0), *arm("l1", 0.1, steps=200)]
    assert at_equal_time(ours, curve, 2.01, ONE) is None and at_equal_time(arm("o", 0.0, steps=50), curve, 1.5, ONE) is None
    found, without = findings_at_equal_time([*ours, *arm("dear", 0.0), *arm("unknown", 0.0), *arm("other seeds", 0.0, seeds=(7, 8, 9)), *curve], curve, "l1", [ONE],
                                            {"ours": 1.2, "dear": 3.0, "other seeds": 1.0})
    assert [one.arm for one in found] == ["ours"] and without.keys() == {"dear", "unknown", "other seeds"}
    assert "beyond" in without["dear"] and "not known" in without["unknown"] and "no seed 7" in without["other seeds"]
    with pytest.raises(ValueError, match="cost: got 0, expected a positive number"):
        at_equal_time(ours, curve, 0, ONE)
    assert counted_cost([{"cost": {"gflop_of_l1": c}} for c in (1.0, 1.4, 1.1)]) == 1.1 and math.isnan(counted_cost(ours))


numbers = st.lists(st.floats(-1, 1), min_size=4, max_size=20)


@given(numbers, st.floats(0.01, 2))
def test_shrinkage_is_the_positive_part_estimate_of_james_and_stein(values, error):
    k, grand = len(values), statistics.fmean(values)
    squares = sum((x - grand) ** 2 for x in values)
    share = max(0.0, 1 - (k - 3) * error**2 / squares) if squares else 0.0
    ours = shrunken(dict(enumerate(values)), dict.fromkeys(range(k), error))
    np.testing.assert_allclose([*ours.values()], [grand + share * (x - grand) for x in values], atol=1e-9)


def test_shrinkage_by_efron_and_morris_and_with_unlike_errors():
    first = [.400, .378, .356, .333, .311, .311, .289, .267, .244, .244, .222, .222, .222, .222, .222, .200, .178, .156]
    error = math.sqrt(statistics.fmean(first) * (1 - statistics.fmean(first)) / 45)
    ours = shrunken(dict(enumerate(first)), dict.fromkeys(range(18), error))
    for player, printed in ((0, .294), (17, .242)):  # Clemente, Alvis: Scientific American, May 1977
        assert ours[player] == pytest.approx(printed, abs=6e-4)
    means, errors = {"a": 0.0, "b": 1.0, "c": 2.0, "d": 3.0, "e": 4.0}, {"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.5, "e": 1.0}
    true = 10 / 2 - statistics.fmean(e**2 for e in errors.values())
    assert shrunken(means, errors)["e"] == pytest.approx(2 + 2 * true / (true + 1)) and shrunken(means, errors)["a"] == pytest.approx(2 - 2 * true / (true + 0.25))
    for bad in ({}, {"a": 1.0}, {**errors, "a": 0.0}):
        with pytest.raises(ValueError, match="means, errors: got"):
            shrunken(means, bad)


def test_a_map_shows_each_arm_as_measured_and_shrunken():
    names = ["a", "bb", "ccc", "dddd", "eeeee"]
    runs = [*arm("l1", 0.0), *(one for k, name in enumerate(names) for one in arm(name, 0.01 * k, seeds=(1, 2)))]
    lines = [line.strip("| ").split(" | ") for line in map_table(runs, "l1", ONE).splitlines()[2:]]
    *lines, between = lines
    assert [line[0] for line in lines] == names and between[0] == "*between arms (sd)*"
    values = {name: endpoint_differences([r for r in runs if r["name"] == name], runs[:4], ONE).mean((1, 2)) for name in names}
    error = math.sqrt(statistics.fmean(np.var(v, ddof=1) for v in values.values()) / 2)
    moved = shrunken({name: v.mean() for name, v in values.items()}, dict.fromkeys(names, error))
    assert "-0.000" not in map_table(runs, "l1", ONE)
    for line in lines:
        np.testing.assert_allclose([float(cell) for cell in line[2:]], [values[line[0]].mean(), error, moved[line[0]]], atol=5.1e-4)
    np.testing.assert_allclose([float(between[2]), float(between[4])], [np.std([v.mean() for v in values.values()], ddof=1), np.std([*moved.values()], ddof=1)], atol=5.1e-4)
    with pytest.raises(ValueError, match="one seed of each arm"):
        map_table([r for r in runs if r["seed"] == 1], "l1", ONE)


def looks(values):
    "A log, with a row between looks."
    return [row for k, value in enumerate(values) for row in ({"step": 10 * k, "psnr": float(value)}, {"step": 10 * k + 5, "pixel": 0.1})]


def test_the_oracle_gate_follows_the_rule_and_shows_both_intervals():
    oracle, control = arm("oracle", 0.09), arm("l1", 0.0)
    gate, d = oracle_gate(oracle, control, ONE), endpoint_differences(oracle, control, ONE)
    assert gate.over_seeds == student_interval([one.mean() for one in d]) and gate.over_photographs == bootstrap_interval(d.mean(2))
    assert gate.passed == (d.mean() >= 0.1) and oracle_gate(oracle, control, ONE, float(d.mean()) - 1e-9).passed and not oracle_gate(oracle, control, ONE, float(d.mean()) + 1e-9).passed


@pytest.mark.parametrize("seeds, photographs, passed, firm", [
    ((0.12, 0.11, 0.13), (0.105, 0.14), True, True), ((0.12, 0.09, 0.15), (0.105, 0.14), True, False), ((0.12, 0.11, 0.13), (0.09, 0.15), True, False),
    ((0.12, math.nan, math.nan), (0.11, 0.13), True, False), ((0.08, 0.07, 0.09), (0.06, 0.099), False, True), ((0.08, 0.05, 0.11), (0.06, 0.099), False, False),
    ((0.1, 0.1, 0.1), (0.1, 0.1), True, True), ((0.12, 0.11, 0.13), None, True, False), ((0.08, math.nan, math.nan), (0.06, 0.09), False, False),
])
def test_a_gate_says_whether_both_intervals_agree_with_its_verdict(seeds, photographs, passed, firm):
    gate = Gate("x gains", 0.1, Interval(*seeds, 3), photographs and Interval(seeds[0], *photographs, 20))
    assert (gate.passed, gate.firm) == (passed, firm)
    assert gate.text().startswith(f"{'passed' if passed else 'failed'}: x gains, mean {seeds[0]:.3f} dB of 0.1 needed (3 seeds); interval over seeds ")
    assert gate.text().endswith("the intervals agree" if firm else "the intervals do not both agree")
    assert gate.text().count("not known") == math.isnan(seeds[1]) + (photographs is None)


def test_a_curve_of_noise_does_not_fall_and_a_true_fall_is_found():
    draw = np.random.default_rng(5)
    for runs, luck in ((2, "white"), (3, "white"), (5, "walk")):
        noise = draw.normal(0, 0.05, (800, runs, 12))
        curves = 27 + (noise.cumsum(2) / 2 if luck == "walk" else noise)
        ours = np.array([falls([looks(run) for run in study]).mean() for study in curves])
        own_best = (curves.max(2) - curves[..., -1]).mean(1)
        error = ours.std() / math.sqrt(len(ours))
        assert abs(ours.mean()) < 3.5 * error < 0.01 < 0.04 < own_best.mean(), f"{runs} runs, {luck}"
        assert (ours >= 0.1).mean() < (own_best >= 0.1).mean(), f"{runs} runs, {luck}: how often the gate opens"
    course = np.interp(range(12), (0, 6, 11), (-1.0, 0.0, -0.2))
    found = np.array([falls([looks(27 + course + draw.normal(0, 0.02, 12)) for _ in range(3)]).mean() for _ in range(200)])
    assert 0.18 < found.mean() < 0.201


def test_a_fall_is_measured_at_the_step_that_the_others_call_best():
    curves = [[1.0, 5.0, 2.0, 3.0], [4.0, 1.0, 2.0, 1.5], [3.0, 2.0, 2.0, 2.5]]
    by_hand = []
    for i, curve in enumerate(curves):
        others = [sum(other[k] for j, other in enumerate(curves) if j != i) for k in range(4)]
        by_hand.append(curve[others.index(max(others))] - curve[-1])
    assert by_hand == [1.0 - 3.0, 1.0 - 1.5, 2.0 - 2.5]
    np.testing.assert_allclose(falls([looks(curve) for curve in curves]), by_hand)
    gate = overfit_gate([looks(curve) for curve in curves], -1.1)
    assert gate.passed and gate.over_seeds == student_interval(by_hand) and gate.over_photographs is None and not gate.firm
    assert falls([looks([1.0, 3.0]), looks([2.0, 2.5])]).tolist() == [0, 0]  # the last step is the best
    for bad in ([], [looks([1.0])], [looks([1.0, 2.0]), looks([1.0])], [[{"step": 1}], [{"step": 1}]]):
        with pytest.raises(ValueError, match="logs: got"):
            falls(bad)


def test_a_control_that_is_not_there():
    with pytest.raises(ValueError, match="control: got 'x', expected one of l1, a"):
        findings([*arm("l1", 0.0), *arm("a", 0.0)], "x", [ONE])
    with pytest.raises(ValueError, match="has no psnr for B under q"):
        findings([run("l1", 1, np.ones((3, 1))), run("a", 1, np.ones((3, 1)))], "l1", [BOTH])
