"""evaluation.claims: intervals and tests against scipy, loops and printed tables; what is refused; what a verdict needs."""
import itertools
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings

from crlsr.evaluation.claims import Claim, crossed_interval, dunnett, equivalence, holm, judge, pooled_intervals
from crlsr.evaluation.comparison import Interval, student_interval

values = st.lists(st.floats(-5, 5), min_size=3, max_size=9)


def numbers(*shape, seed=0, scale=1.0):
    return np.random.default_rng(seed).normal(scale=scale, size=shape)


# --- pooled over arms ----------------------------------------------------------------------------------------------------

@given(values)
def test_one_arm_is_students_interval(sample):
    ours, theirs = pooled_intervals({"a": sample})["a"], student_interval(sample)
    np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_pooling_is_the_least_squares_fit_of_arm_means():
    arms = {"a": numbers(3), "b": numbers(5, seed=1), "c": numbers(4, seed=2)}
    design = np.zeros((12, 3))
    design[np.arange(12), np.repeat([0, 1, 2], [3, 5, 4])] = 1
    _, squares, *_ = np.linalg.lstsq(design, np.concatenate(list(arms.values())), rcond=None)
    for (name, interval), n in zip(pooled_intervals(arms, 0.9).items(), (3, 5, 4)):
        half = scipy.stats.t.ppf(0.95, 9) * math.sqrt(squares[0] / 9 / n)
        np.testing.assert_allclose(interval, (arms[name].mean(), arms[name].mean() - half, arms[name].mean() + half, n))


def test_an_arm_of_two_seeds_lends_its_spread_and_has_no_interval():
    with_it = pooled_intervals({"a": [0.0, 0.1, 0.2], "b": [0.0, 1.0]})
    assert math.isnan(with_it["b"].low) and with_it["b"].mean == 0.5
    assert with_it["a"].high - with_it["a"].low > 2 * (pooled_intervals({"a": [0.0, 0.1, 0.2]})["a"].high - 0.1)


@pytest.mark.parametrize("arms, level", [({}, 0.95), ({"a": []}, 0.95), ({"a": [1, 2, 3]}, 0), ({"a": [1, 2, 3]}, 1.0)])
def test_pooling_nothing_is_refused(arms, level):
    with pytest.raises(ValueError, match="arms, level: got"):
        pooled_intervals(arms, level)


# --- rows and columns ----------------------------------------------------------------------------------------------------

@settings(max_examples=20, deadline=None)
@given(st.integers(3, 6), st.integers(10, 14), st.integers(0, 10**6))
def test_crossed_variance_against_loops(S, P, seed):
    d = numbers(S, P, seed=seed) + numbers(S, 1, seed=seed + 1) + numbers(1, P, seed=seed + 2)
    mean = sum(d[i, j] for i, j in itertools.product(range(S), range(P))) / (S * P)
    m_r = P * sum((sum(d[i]) / P - mean) ** 2 for i in range(S)) / (S - 1)
    m_c = S * sum((sum(d[:, j]) / S - mean) ** 2 for j in range(P)) / (P - 1)
    m_e = sum((d[i, j] - sum(d[i]) / P - sum(d[:, j]) / S + mean) ** 2 for i, j in itertools.product(range(S), range(P))) / ((S - 1) * (P - 1))
    square = max(m_r + m_c - m_e, m_r, m_c) / (S * P)
    freedom = (square * S * P) ** 2 / (m_r**2 / (S - 1) + m_c**2 / (P - 1) + m_e**2 / ((S - 1) * (P - 1)))
    ours, degrees = crossed_interval(d)
    np.testing.assert_allclose((ours.mean, ours.high - ours.mean, degrees), (mean, scipy.stats.t.ppf(0.975, freedom) * math.sqrt(square), freedom))


def test_without_luck_of_photographs_it_is_the_interval_over_seeds():
    d = np.repeat(numbers(8, 1), 200, 1) + numbers(8, 200, seed=1, scale=1e-6)
    ours, theirs = crossed_interval(d)[0], student_interval(d.mean(1))
    np.testing.assert_allclose(ours[:3], theirs[:3], atol=1e-5)


def test_too_few_of_either_have_no_interval():
    for shape in ((2, 50), (8, 9)):
        interval, freedom = crossed_interval(numbers(*shape))
        assert math.isnan(interval.low) and math.isnan(freedom) and interval.n == min(shape)


@pytest.mark.parametrize("shape, level", [((5,), 0.95), ((3, 4, 5), 0.95), ((0, 12), 0.95), ((4, 12), 1.0), ((4, 12), -1)])
def test_crossing_what_is_no_table_is_refused(shape, level):
    with pytest.raises(ValueError, match="differences, level: got shape .* expected .seeds, photographs"):
        crossed_interval(np.zeros(shape), level)


# --- many arms, many endpoints -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seed", range(4))
def test_unpaired_dunnett_is_scipys(seed):
    groups = [numbers(n, seed=10 * seed + n) + n / 5 for n in (4, 6, 5)]
    control = numbers(7, seed=seed + 100)
    ours = dunnett({str(i): g for i, g in enumerate(groups)}, control, paired=False)
    theirs = scipy.stats.dunnett(*groups, control=control, random_state=0)
    # unlike counts have unlike correlations; ours takes one half for all
    np.testing.assert_allclose([c.p for c in ours.values()], theirs.pvalue, atol=0.02)
    np.testing.assert_allclose([c.interval.mean for c in ours.values()], [g.mean() - control.mean() for g in groups])


def test_one_paired_arm_is_the_paired_t_test():
    arm, control = numbers(7, seed=1) + 0.4, numbers(7, seed=2)
    (ours,), theirs = dunnett({"a": arm}, control).values(), scipy.stats.ttest_rel(arm, control)
    np.testing.assert_allclose(ours.p, theirs.pvalue, rtol=1e-3)
    np.testing.assert_allclose(ours.interval[1:3], theirs.confidence_interval(), rtol=1e-3)


@given(st.integers(0, 10**6), st.floats(-100, 100))
def test_luck_that_all_arms_share_changes_nothing(seed, luck):
    arms, control = {str(i): numbers(5, seed=seed + i) for i in range(3)}, numbers(5, seed=seed + 9)
    shared = luck * numbers(5, seed=seed + 17)
    plain, lucky = dunnett(arms, control), dunnett({name: v + shared for name, v in arms.items()}, control + shared)
    for name in arms:
        np.testing.assert_allclose(lucky[name].interval, plain[name].interval, atol=1e-6)
        np.testing.assert_allclose(lucky[name].p, plain[name].p, atol=1e-6)


def test_more_arms_need_a_larger_difference():
    control = numbers(6, seed=3)
    rest = {str(i): numbers(6, seed=20 + i) for i in range(12)}
    one, many = dunnett({"a": control + 1 + 0.3 * numbers(6)}, control)["a"], dunnett({"a": control + 1 + 0.3 * numbers(6), **rest}, control)["a"]
    assert one.p < many.p and one.interval.low > many.interval.low


@pytest.mark.parametrize("arms, control, paired", [({}, [1, 2, 3], True), ({"a": [1, 2]}, [1, 2, 3], False), ({"a": [1, 2, 3, 4]}, [1, 2, 3], True)])
def test_dunnett_refuses_what_it_cannot_judge(arms, control, paired):
    with pytest.raises(ValueError, match="arms, control: got"):
        dunnett(arms, control, paired)


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=8))
def test_holm_against_its_definition(p):
    found, order = holm(p), sorted(p, key=p.get)
    assert list(found) == list(p)
    for rank, name in enumerate(order):
        assert found[name] == max(min(1.0, (len(p) - i) * p[order[i]]) for i in range(rank + 1))


def test_holm_refuses_what_is_no_probability():
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"p: got .* for 'b', expected a number in 0..1"):
            holm({"a": 0.5, "b": wrong})


# --- no effect -----------------------------------------------------------------------------------------------------------

@given(values, st.floats(0.01, 3))
def test_equivalence_is_two_one_sided_tests(sample, margin):
    if np.std(sample) < 1e-6:
        sample = [*sample, sample[0] + 1]
    theirs = max(scipy.stats.ttest_1samp(sample, -margin, alternative="greater").pvalue, scipy.stats.ttest_1samp(sample, margin, alternative="less").pvalue)
    np.testing.assert_allclose(equivalence(student_interval(sample), len(sample) - 1, margin), theirs, atol=1e-9)


def test_equivalence_at_its_ends():
    assert math.isnan(equivalence(Interval(0.0, math.nan, math.nan, 2), 1))
    assert equivalence(Interval(0.01, 0.01, 0.01, 5), 4) == 0 and equivalence(Interval(0.03, 0.03, 0.03, 5), 4) == 1
    with pytest.raises(ValueError, match="margin: got 0, expected a number > 0"):
        equivalence(Interval(0.0, -1.0, 1.0, 5), 4, 0)


# --- verdicts ------------------------------------------------------------------------------------------------------------

def claim(seeds, photographs, together, p_equal=1.0):
    return Claim(*(Interval((a + b) / 2, a, b, 8) for a, b in (seeds, photographs, together)), 0.0, 0.5, p_equal)


@pytest.mark.parametrize("arguments, verdict", [
    (((1, 2), (1, 2), (1, 2)), "better"), (((-2, -1), (-2, -1), (-2, -1)), "worse"),
    (((1, 2), (1, 2), (-1, 3)), "open"), (((1, 2), (-1, 2), (1, 2)), "open"), (((-1, 2), (1, 2), (1, 2)), "open"),
    (((1, 2), (-2, -1), (1, 2)), "open"), (((-1, 1), (-1, 1), (-1, 1), 0.01), "no effect"), (((1, 2), (1, 2), (1, 2), 0.01), "better"),
    (((math.nan, math.nan), (1, 2), (1, 2)), "open"), (((-1, 1), (-1, 1), (-1, 1), math.nan), "open"),
])
def test_what_a_verdict_needs(arguments, verdict):
    assert claim(*arguments).verdict == verdict


def test_judging_pools_seeds_averages_draws_and_trims_photographs():
    tables = {"a": numbers(4, 20, seed=1), "b": numbers(3, 20, seed=2)}
    found = judge(tables)
    pooled = pooled_intervals({name: d.mean(1) for name, d in tables.items()})
    for name, d in tables.items():
        assert found[name].over_seeds == pooled[name]
        np.testing.assert_allclose(found[name].trimmed, scipy.stats.trim_mean(d.mean(0), 0.1))
        assert found[name].wins == (d.mean(0) > 0).mean()
    with_draws = judge({name: np.stack([d - 1, d + 1], -1) for name, d in tables.items()})
    np.testing.assert_allclose(with_draws["a"].together, found["a"].together, atol=1e-12)


@pytest.mark.parametrize("wrong", [np.zeros(4), np.zeros((0, 5)), np.array([[1.0, math.nan]]), np.zeros((1, 2, 3, 4))])
def test_judging_refuses_other_arrays(wrong):
    with pytest.raises(ValueError, match="differences: got shape .* for 'a', expected finite"):
        judge({"a": wrong})
