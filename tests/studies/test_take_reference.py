"""What is taken into data/reference: finished runs of one numerics from a clean checkout, without places of a machine; or nothing at all."""
from __future__ import annotations

import json

import pytest

from crlsr.core import read_jsonl
from crlsr.studies import load_study
from crlsr.studies.studies import plan_jobs
from tests import reference


@pytest.fixture
def out(tmp_path):
    "Three finished runs of a study."
    runs = [{"name": "l1", "seed": seed, "dir": f"seed{seed}-ab"} for seed in range(3)]
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "study.json").write_text(json.dumps({"study": "s", "runs": runs}))
    for seed in range(3):
        folder = tmp_path / "shared" / f"seed{seed}-ab"
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps({"name": "l1", "seed": seed, "numerics": 5, "clean": True}))
        (folder / "log.jsonl").write_text(json.dumps({"step": 50, "pixel": 0.123456789, "cos_bc": 1 / 3, "time_data": 0.2, "seconds": 9.9}) + "\n")
    return tmp_path


def test_finished_runs_are_taken_without_times_and_to_six_digits(out):
    assert reference.take(out, "s", out / "kept") == (3, 0)
    assert sorted(path.parent.name for path in (out / "kept/studies").rglob("results.json")) == ["seed0-ab", "seed1-ab", "seed2-ab"]
    assert read_jsonl(out / "kept/studies/shared" / "seed0-ab" / "log.jsonl") == [{"step": 50, "pixel": 0.123457, "cos_bc": 0.333333}]


def test_of_a_diagnosis_the_differences_to_plain_l1_are_taken(out):
    rows = [{"group": "degradation", "target": "noise", "features": features, "minus": minus, "r2": 0.1} for features in ("f_l", "head") for minus in ("plain L1", "chance")]
    (out / "shared" / "seed0-ab" / "diagnosis.json").write_text(json.dumps({"kind": "diagnosis", "probes": [1] * 99, "model": str(out / "shared/x/model.safetensors"), "differences": rows}))
    assert reference.take(out, "s", out / "kept") == (3, 0)
    assert json.loads((out / "kept/studies/shared" / "seed0-ab" / "diagnosis.json").read_text()) == {"kind": "diagnosis", "model": "shared/x/model.safetensors", "differences": rows[:1]}


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


def test_an_unfinished_study_waits_where_nothing_reads_it_until_it_is_whole(out):
    last = out / "shared/seed2-ab/results.json"
    text = last.read_bytes()
    last.unlink()
    assert reference.take(out, "s", out / "kept") == (2, 1) and not (out / "kept/studies").exists()
    assert sorted(path.parent.name for path in (out / "kept/under_way").rglob("results.json")) == ["seed0-ab", "seed1-ab"]
    last.write_bytes(text)
    assert reference.take(out, "s", out / "kept") == (3, 0) and not (out / "kept/under_way").exists()


def test_of_two_studies_under_way_the_other_keeps_its_runs(out):
    (out / "t").mkdir()
    (out / "t/study.json").write_text(json.dumps({"study": "t", "runs": [{"name": "l1", "seed": 0, "dir": "seed0-ab"}, {"name": "l1", "seed": 9, "dir": "seed9-ab"}]}))
    last = out / "shared/seed2-ab/results.json"
    text = last.read_bytes()
    last.unlink()
    assert (reference.take(out, "s", out / "kept"), reference.take(out, "t", out / "kept")) == ((2, 1), (1, 1))
    last.write_bytes(text)
    reference.take(out, "s", out / "kept")
    assert [path.relative_to(out / "kept/under_way").as_posix() for path in sorted((out / "kept/under_way").rglob("*.json"))] == ["shared/seed0-ab/results.json", "t/study.json"]


def test_a_study_goes_on_from_what_was_kept(tmp_path):
    """Of a real study two runs are finished, started one by one; laid in an empty folder they are found as finished, and only they."""
    study = load_study("smoke")
    jobs = plan_jobs(study, tmp_path / "a")
    for job in jobs[:1]:
        job.dir.mkdir(parents=True)
        (job.dir / "results.json").write_text(json.dumps({"name": job.variant, "seed": job.seed, "numerics": 5, "clean": True}))
    assert reference.take(tmp_path / "a", "smoke", tmp_path / "kept") == (1, len(jobs) - 1)
    assert reference.lay(tmp_path / "b", tmp_path / "kept") == 1
    assert [job.finished for job in plan_jobs(study, tmp_path / "b")] == [True] + [False] * (len(jobs) - 1)
    (tmp_path / "b/shared" / jobs[0].dir.name / "results.json").write_text('{"own": 1}')
    assert reference.lay(tmp_path / "b", tmp_path / "kept") == 0
    assert (tmp_path / "b/shared" / jobs[0].dir.name / "results.json").read_text() == '{"own": 1}', "what is there stays"
