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


def test_of_a_diagnosis_the_differences_to_plain_l1_are_taken(out):
    rows = [{"group": "degradation", "target": "noise", "features": features, "minus": minus, "r2": 0.1} for features in ("f_l", "head") for minus in ("plain L1", "chance")]
    (out / "shared" / "seed0-ab" / "diagnosis.json").write_text(json.dumps({"kind": "diagnosis", "probes": [1] * 99, "model": str(out / "shared/x/model.safetensors"), "differences": rows}))
    assert reference.take(out, "s", out / "kept") == (2, 1)
    assert json.loads((out / "kept" / "shared" / "seed0-ab" / "diagnosis.json").read_text()) == {"kind": "diagnosis", "model": "shared/x/model.safetensors", "differences": rows[:1]}


def test_the_model_of_the_first_seed_is_taken_where_a_page_draws_it(out, monkeypatch):
    for seed in range(2):
        (out / "shared" / f"seed{seed}-ab" / "model.safetensors").write_bytes(bytes([seed]))
    monkeypatch.setattr(reference, "MODELS", {"s": ("l1",)})
    reference.take(out, "s", out / "kept")
    assert [(path.parent.name, path.read_bytes()) for path in (out / "kept").rglob("*.safetensors")] == [("seed0-ab", b"\0")]


@pytest.mark.parametrize("change, message", [
    ({"numerics": 4}, "several numerics, \\['4', '5'\\]"), ({"clean": False}, "checkout with changes"), ({"note": "/home/me/runs"}, "names a place of this machine: …/home/me/runs")])
def test_one_run_that_cannot_be_taken_stops_all(out, change, message):
    path = out / "shared" / "seed1-ab" / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        reference.take(out, "s", out / "kept")
    assert not (out / "kept").exists()
