"""What is taken into data/reference: finished runs of one numerics from a clean checkout, without places of a machine; or nothing at all."""
from __future__ import annotations

import json

import pytest

from crlsr.core import read_jsonl
from tests import reference


@pytest.fixture
def out(tmp_path):
    "Three runs of a study, the last without a result."
    runs = [{"name": "l1", "seed": seed, "dir": f"seed{seed}-ab"} for seed in range(3)]
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "study.json").write_text(json.dumps({"study": "s", "runs": runs}))
    for seed in range(3):
        folder = tmp_path / "shared" / f"seed{seed}-ab"
        folder.mkdir(parents=True)
        if seed < 2:
            (folder / "results.json").write_text(json.dumps({"name": "l1", "seed": seed, "numerics": 5, "clean": True}))
        (folder / "log.jsonl").write_text(json.dumps({"step": 50, "pixel": 0.123456789, "cos_bc": 1 / 3, "time_data": 0.2, "seconds": 9.9}) + "\n")
    return tmp_path


def test_finished_runs_are_taken_without_times_and_to_six_digits(out):
    assert reference.take(out, "s", out / "kept") == (2, 1)
    assert sorted(path.parent.name for path in (out / "kept").rglob("results.json")) == ["seed0-ab", "seed1-ab"]
    assert read_jsonl(out / "kept" / "shared" / "seed0-ab" / "log.jsonl") == [{"step": 50, "pixel": 0.123457, "cos_bc": 0.333333}]


@pytest.mark.parametrize("change, message", [
    ({"numerics": 4}, "several numerics, \\['4', '5'\\]"), ({"clean": False}, "checkout with changes"), ({"note": "/home/me/runs"}, "names a place of this machine: …/home/me/runs")])
def test_one_run_that_cannot_be_taken_stops_all(out, change, message):
    path = out / "shared" / "seed1-ab" / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        reference.take(out, "s", out / "kept")
    assert not (out / "kept").exists()
