"""A run that reads others is found again by what those runs are, wherever they lie."""
import shutil

import pytest

from crlsr.studies import Study, load_study
from crlsr.studies.running import run_jobs
from crlsr.studies.studies import plan_jobs


def test_a_run_that_reads_others_is_executed_once(tmp_path, executed):
    study = Study("d", "?", "smoke", {"a": {"model": "{smoke: crlsr}/model.safetensors", "controls": ["plain={smoke: l1}/model.safetensors"]}},
                  {"data": "embedded:heldout"}, notebook="nbs/reproduce/diagnose.ipynb", report="")
    with pytest.raises(RuntimeError, match="needs crlsr seed 0 of another study"):
        run_jobs(plan_jobs(study, tmp_path / "runs"))
    run_jobs(plan_jobs(load_study("smoke"), tmp_path / "runs"))
    assert executed == ["l1", "crlsr"] and [job.finished for job in plan_jobs(study, tmp_path / "runs")] == [False]
    for _ in range(2):
        run_jobs(plan_jobs(study, tmp_path / "runs"))
        assert executed == ["l1", "crlsr", "a"] and [job.finished for job in plan_jobs(study, tmp_path / "runs")] == [True]
    shutil.move(tmp_path / "runs", tmp_path / "moved")
    assert [job.finished for job in plan_jobs(study, tmp_path / "moved")] == [True], "no place is part of it"
    run_jobs(plan_jobs(study.replace(variants={"a": {"model": "{smoke: crlsr}/model.safetensors"}}), tmp_path / "moved"))
    assert executed == ["l1", "crlsr", "a", "a"], "compared with nothing: another run"
