"""The figures that the README of the accepted results corrects itself with, computed from the results beside it."""
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

REFERENCE = Path(__file__).parents[2] / "data/reference"
TEXT = (REFERENCE / "README.md").read_text(encoding="utf-8")
PRESETS = ("iso", "aniso+noise:0..25", "multimodal")
FIRST = "active until 0.6, hr side fixed"


@pytest.fixture(scope="module")
def runs() -> dict[str, dict[int, dict]]:
    """Setting → seed → the run's results, with the rows of its log."""
    found: dict[str, dict[int, dict]] = defaultdict(dict)
    for path in sorted(REFERENCE.glob("losses/*/results.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        lines = (path.parent / "log.jsonl").read_text(encoding="utf-8").splitlines()
        results["log"] = [json.loads(line) for line in lines]
        found[results["name"]][results["seed"]] = results
    assert sum(map(len, found.values())) == 21
    return found


def figure(results: dict, preset: str) -> float:
    return next(row["psnr"] for row in results["metrics"] if row["preset"] == preset)


def differences(runs: dict, name: str, control: str, preset: str) -> np.ndarray:
    shared = sorted(set(runs[name]) & set(runs[control]))
    return np.array([
        figure(runs[name][s], preset) - figure(runs[control][s], preset) for s in shared])


def quoted(values: np.ndarray) -> str:
    """Mean and Student's 95 % interval as the page writes them, with a true minus sign."""
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    return f"{values.mean():+.3f} [{low:+.3f}, {high:+.3f}]".replace("-", "−")


@pytest.mark.parametrize("name", [FIRST, "active until 0.6", "active until 0.3", "l1 (equal time)"])
def test_differences_to_the_control(runs, name):
    row = next(line for line in TEXT.splitlines() if line.startswith((f"| {name} |", f"| {name}, 1.6")))
    for preset in PRESETS:
        assert quoted(differences(runs, name, "l1", preset)) in row


def test_equal_time_against_the_first_setting(runs):
    for preset in PRESETS:
        assert quoted(differences(runs, "l1 (equal time)", FIRST, preset)) in TEXT


def test_correlation_of_paired_seeds(runs):
    seeds = sorted(runs[FIRST])
    values = [
        np.corrcoef([[figure(runs[name][s], preset) for s in seeds] for name in (FIRST, "l1")])[0, 1]
        for preset in PRESETS]
    text = "{:.2f}, {:.2f} and {:.2f}".format(*values).replace("-", "−")
    assert f"over six seeds is {text} " in TEXT


def test_cosines_and_shares_while_active(runs):
    mean = defaultdict(list)
    for results in runs[FIRST].values():
        rows = [r for r in results["log"] if r.get("grad_pixel") and (r["grad_bc"] or r["grad_srnce"])]
        pixel = sum(r["grad_pixel"] for r in rows)
        for term in ("bc", "srnce"):
            mean[f"cos_{term}"].append(np.mean([r[f"cos_{term}"] for r in rows]))
            mean[f"share_{term}"].append(100 * sum(r[f"grad_{term}"] for r in rows) / pixel)
    value = {name: float(np.mean(values)) for name, values in mean.items()}
    assert f"{value['cos_bc']:.2f} (L_bc) and {value['cos_srnce']:.2f} (L_srnce)" in TEXT
    assert f"{value['share_bc']:.1f} % and {value['share_srnce']:.1f} %, not" in TEXT


def test_minutes_count_the_last_call_only(runs):
    every = [results["minutes"] for seeds in runs.values() for results in seeds.values()]
    short = sum(minutes["all"] < minutes["training"] for minutes in every)
    assert short == 4 and "in four of them" in TEXT


def test_one_photograph_of_twenty(runs):
    means = {True: [], False: []}
    for seed, longer in runs["l1 (equal time)"].items():
        images = [
            {image["name"]: image["psnr"] for row in results["metrics"] if row["preset"] == "iso"
             for image in row["images"]} for results in (longer, runs["l1"][seed])]
        for every in means:
            names = [name for name in images[0] if every or "70011" not in name]
            assert len(names) == 19 + every
            means[every].append(np.mean([images[0][name] - images[1][name] for name in names]))
    with_it, without = (float(np.mean(means[every])) for every in (True, False))
    assert f"plain L1 gains {with_it:+.3f} dB by 1.6" in TEXT
    assert f"without that photograph {without:+.3f}." in TEXT
