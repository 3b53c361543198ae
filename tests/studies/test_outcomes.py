"""What a folder of runs says: endpoints, partners, equal steps and equal time, against numbers taken by hand; and who has no answer."""
from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from crlsr.studies.outcomes import draw_findings, endpoints_of, in_short, probe_table, read_diagnoses, read_outcome, removal_table, removed_by, same_training

SEEDS = (10, 11, 12, 13)


def record(name, seed, gain, *, steps=1000, weight=0.0, images=12, presets=("iso", "disk"), unseen=("disk",), trained="iso", luck=0.01):
    figures = 25 + np.linspace(-2, 2, images) + gain + np.random.default_rng([seed, len(name), steps]).normal(0, luck, images)
    rows = [{"data": "set", "preset": preset, "psnr": float(figures.mean()), "ssim": 0.7, "bicubic": {"psnr": 24.0}, "images": [f"{i:02d}" for i in range(images)],
             "scores": {"draws": 1, "psnr": " ".join(f"{value:.6f}" for value in figures)}} for preset in presets]
    return {"name": name, "seed": seed, "metrics": rows, "unseen": [*unseen], "protocol": {}, "environment": {}, "minutes": {}, "parameters": {}, "pictures": {},
            "config": {"profile": "cpu", "model": {"scale": 4, "weight_bc": weight}, "train": {"preset": trained, "steps": steps, "seed": seed, "batch_size": 8}}}


def study(root, name, runs, **said):
    listed = [{"name": run["name"], "seed": run["seed"], "dir": f"{name}{i}"} for i, run in enumerate(runs)]
    for run, each in zip(runs, listed):
        (root / "shared" / each["dir"]).mkdir(parents=True)
        (root / "shared" / each["dir"] / "results.json").write_text(json.dumps(run))
    (root / name).mkdir()
    (root / name / "study.json").write_text(json.dumps({"study": name, "runs": listed, **said}))
    return root / name


def means(run):
    return np.mean([float(value) for value in run["metrics"][0]["scores"]["psnr"].split()])


def test_equal_steps_and_equal_time_are_those_taken_by_hand(tmp_path):
    l1, arm = ([record(name, seed, gain, weight=weight) for seed in SEEDS] for name, gain, weight in (("l1", 0.0, 0.0), ("arm", 0.05, 1.0)))
    longer = [record("l1 twice", seed, 0.04, steps=2000) for seed in SEEDS]
    folder = study(tmp_path, "s", l1 + arm, costs={"arm": 1.5})
    study(tmp_path, "control", longer)
    outcome = read_outcome(folder)
    share = math.log(1.5) / math.log(2)
    for place, base in (("steps", [means(run) for run in l1]), ("time", [(1 - share) * means(a) + share * means(b) for a, b in zip(l1, longer)])):
        differences = np.array([means(run) for run in arm]) - base
        one = next(one for one in (outcome.at_equal_steps if place == "steps" else outcome.at_equal_time)["l1"] if one.endpoint == "iso")
        assert one.claim.over_seeds.mean == pytest.approx(differences.mean(), abs=1e-6)
        low, high = stats.t.interval(0.95, len(SEEDS) - 1, differences.mean(), stats.sem(differences))
        assert one.claim.over_seeds.low == pytest.approx(low, abs=1e-5) and one.claim.over_seeds.high == pytest.approx(high, abs=1e-5)
    assert outcome.without == {} and outcome.missing == 0 and outcome.costs["arm"] == 1.5


def test_an_arm_stands_against_its_own_control_and_only_where_seeds_meet(tmp_path):
    runs = [record("l1", 0, 0.0), record("deep l1", 1, 0.0, weight=2.0), record("deep", 1, 0.1, weight=3.0), record("late", 7, 0.1, weight=4.0)]
    outcome = read_outcome(study(tmp_path, "s", runs, controls={"deep": "deep l1"}))
    assert outcome.controls == {"l1": "l1", "deep l1": "l1", "deep": "deep l1", "late": "l1"}
    assert [*outcome.at_equal_steps] == ["deep l1"] and {one.arm for one in outcome.at_equal_steps["deep l1"]} == {"deep"}
    assert outcome.alone == ["deep l1", "late"] and outcome.without == {}
    assert [run["name"] for run in outcome.judged("deep l1")] == ["deep l1", "deep"] and len(outcome.runs) == 4


def test_runs_that_are_lost_are_counted_and_a_cost_that_nobody_knows_is_said(tmp_path):
    l1, arm = ([record(name, seed, 0.0, weight=weight) for seed in SEEDS] for name, weight in (("l1", 0.0), ("arm", 1.0)))
    folder = study(tmp_path, "s", l1 + arm)
    study(tmp_path, "control", [record("twice", seed, 0.0, steps=2000) for seed in SEEDS])
    (tmp_path / "shared" / "s7" / "results.json").unlink()
    outcome = read_outcome(folder)
    assert outcome.missing == 1 and len(outcome.groups["arm"]) == 3 and outcome.without == {"arm": "its cost is not known"}
    assert not outcome.at_equal_time and outcome.at_equal_steps["l1"][0].claim.over_seeds.n == 3
    with pytest.raises(ValueError, match="nothing: has no results.json of a training"):
        read_outcome(tmp_path / "nothing")


def test_endpoints_follow_the_training_and_what_is_asked():
    runs = [record("l1", 0, 0.0, presets=("disk", "iso", "bicubic"), unseen=("disk",))]
    assert [(one.name, one.presets) for one in endpoints_of(runs)] == [("iso", ("iso",)), ("new sources", ("disk",))]
    assert [one.presets for one in endpoints_of(runs, "bicubic", ("iso", "disk"))] == [("bicubic",), ("disk", "iso")]
    assert [one.presets for one in endpoints_of([record("l1", 0, 0.0, trained="bicubic | iso", unseen=("disk",))])][0] == ("iso",)
    with pytest.raises(ValueError, match="primary: got 'motion', expected one of disk, iso, bicubic"):
        endpoints_of(runs, "motion")


@pytest.mark.parametrize("change, same", [({"steps": 9}, True), ({"seed": 4}, True), ({"keep_at": [1]}, True), ({"batch_size": 4}, False), ({"preset": "disk"}, False)])
def test_a_curve_differs_in_steps_alone(change, same):
    one, other = record("a", 0, 0.0), record("b", 1, 0.0)
    other["config"]["train"] |= change
    assert same_training(one, other) is same and same_training(other, one | {"config": one["config"] | {"model": {"scale": 2}}}) is False


def test_what_is_said_in_short_is_what_the_findings_hold(tmp_path):
    runs = [record(name, seed, gain, weight=weight) for name, gain, weight in (("l1", 0.0, 0.0), ("arm", 0.2, 1.0)) for seed in SEEDS]
    outcome = read_outcome(study(tmp_path, "s", runs))
    claim = outcome.at_equal_steps["l1"][0].claim
    assert in_short(outcome)[0] == (f"arm, iso, equal steps: better, {claim.over_seeds.mean:+.3f} dB, seeds [{claim.over_seeds.low:+.3f}, {claim.over_seeds.high:+.3f}], "
                                    f"photographs [{claim.over_photographs.low:+.3f}, {claim.over_photographs.high:+.3f}]")
    found = outcome.at_equal_steps["l1"]
    lines = [line.get_xdata() for line in draw_findings(found).axes[0].lines]
    assert [*lines[0]] == pytest.approx([claim.together.low, claim.together.high]) and lines[1][0] == pytest.approx(claim.over_seeds.mean)
    for none, asked in ((found, "motion"), ([], "")):
        with pytest.raises(ValueError, match=f"endpoint: got '{asked}'"):
            draw_findings(none, asked)


def test_an_interval_over_photographs_alone_is_drawn_as_one(tmp_path):
    runs = [record(name, 10, gain, weight=weight) for name, gain, weight in (("l1", 0.0, 0.0), ("arm", 0.2, 1.0))]
    found = read_outcome(study(tmp_path, "s", runs)).at_equal_steps["l1"]
    axes = draw_findings(found).axes[0]
    assert [*axes.lines[0].get_xdata()] == pytest.approx([*found[0].claim.over_photographs[1:3]])
    assert axes.lines[0].get_color() == "0.6" and "over photographs alone" in axes.get_xlabel()


@pytest.mark.parametrize("change, message", [
    (lambda run: run["protocol"].update(crop_border=2), "s1 was scored by another protocol than s0"),
    (lambda run: run["metrics"][0]["bicubic"].update(psnr=24.5), "s1 was scored on other images than s0"),
])
def test_what_was_scored_otherwise_is_not_compared(tmp_path, change, message):
    runs = [record("l1", 0, 0.0), record("arm", 0, 0.0, weight=1.0)]
    change(runs[1])
    with pytest.raises(ValueError, match=message):
        read_outcome(study(tmp_path, "s", runs))


def test_a_test_set_under_two_spellings_is_one(tmp_path):
    runs = [record("l1", 0, 0.0), record("arm", 0, 0.0, weight=1.0)]
    for row in runs[1]["metrics"]:
        row["data"] = "set/"
    assert {row["data"] for run in read_outcome(study(tmp_path, "s", runs)).runs for row in run["metrics"]} == {"set"}


def difference(target, group, r2, low, high):
    return {"target": target, "group": group, "features": "f_l", "minus": "plain L1", "r2": r2, "low": low, "high": high}


def diagnosed(root, runs):
    "A study of diagnoses: (name, seed, R² of noise by place, differences) each; None for one that did not finish."
    folder = root / "asks"
    folder.mkdir()
    listed = [{"name": name, "seed": seed, "dir": f"seed{seed}-{i}"} for i, (name, seed, *_) in enumerate(runs)]
    (folder / "study.json").write_text(json.dumps({"study": "asks", "runs": listed}))
    for each, (name, seed, noise, rows) in zip(listed, runs):
        place = root / "shared" / each["dir"]
        place.mkdir(parents=True)
        if noise is not None:
            (place / "results.json").write_text(json.dumps({"kind": "diagnosis", "name": "?", "seed": seed, "metrics": {"degradation": {"noise": noise}}}))
            (place / "diagnosis.json").write_text(json.dumps({"differences": rows}))
    return folder


def test_diagnoses_are_told_apart_by_arm_and_moment(tmp_path):
    less, content = difference("noise", "degradation", -0.1, -0.2, -0.05), difference("luma", "content", 0.1, -0.1, 0.2)
    folder = diagnosed(tmp_path, [
        ("a, at b, at 0.2", 0, {"f_l": 0.5, "head": 0.1}, [less]), ("a, at b, at 1", 0, {"f_l": 0.25}, [less, content]), ("a, at b, at 1", 1, {"f_l": 0.75}, [less, content]),
        ("alone", 0, {"f_l": -0.125}, []), ("lost, at 1", 0, None, None)])
    found = read_diagnoses(folder)
    assert {key: [one["seed"] for one in records] for key, records in found.items()} == {("a, at b", "0.2"): [0], ("a, at b", "1"): [0, 1], ("alone", ""): [0]}
    assert probe_table(found, "noise").splitlines() == [
        "| noise in f_l | at 0.2 | R² | at 1 |", "| --- | ---: | ---: | ---: |", "| a, at b | 0.50 | – | 0.25 and 0.75 |", "| alone | – | -0.12 | – |"]
    assert probe_table(found, "noise", "head").splitlines()[2:] == ["| a, at b | 0.10 |"] and probe_table(found, "sigma") == ""
    assert removal_table(found).splitlines()[2:] == ["| a, at b | -0.10 [-0.20, -0.05] and -0.10 [-0.20, -0.05] | – | +0.10 [-0.10, +0.20] and +0.10 [-0.10, +0.20] | noise |"] and removal_table(found, "0.6") == ""


ENDS = st.sampled_from([-0.2, -0.01, 0.0, 0.03])


@given(st.lists(st.fixed_dictionaries({"noise": ENDS, "sigma": ENDS, "luma": ENDS}), min_size=1, max_size=3))
def test_removed_is_less_in_every_seed_where_content_is_not(highs):
    group = {"noise": "degradation", "sigma": "degradation", "luma": "content"}
    records = [{"differences": [difference(target, group[target], high - 0.1, high - 0.2, high) for target, high in each.items()]
                + [difference("luma", "two degradations", -1, -1, -1)]} for each in highs]
    by_hand = []
    for target in ("noise", "sigma"):
        below, luma_below = 0, 0
        for each in highs:
            below += each[target] < 0
            luma_below += each["luma"] < 0
        if below == len(highs) and luma_below < len(highs):
            by_hand.append(target)
    assert removed_by(records) == by_hand
    assert removed_by([*records, {"differences": []}]) == [], "a seed that was not asked said nothing"
    assert removed_by([{"differences": [row for row in one["differences"] if row["group"] != "content"]} for one in records]) == [], "nobody knows what went with it"
