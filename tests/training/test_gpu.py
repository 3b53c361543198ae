"""What only a GPU can show: compiled steps, a killed run that goes on, and how near `estimate` comes to time and memory. Run by `make test-gpu`."""
from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time

import pytest
import torch

from crlsr.core import read_jsonl
from crlsr.data import ImagePool, PatchSampler
from crlsr.degradation import Degradation
from crlsr.inference import load_model
from crlsr.training import fit, profile
from crlsr.training.estimate import estimate
from crlsr.training.step import new_state, train_step

pytestmark = pytest.mark.gpu
SMALL = {"device": "cuda", "num_feat": 16, "num_block": 3, "steps": 40, "batch_size": 4, "warmup_steps": 5, "checkpoint_every": 5, "log_every": 5, "data": "embedded:train", "val_data": None}


def test_compiled_steps_learn_like_plain_ones(tmp_path):
    plain, fused = (fit(*profile("smoke", SMALL | {"compile": on}), tmp_path / str(on), progress=False) for on in (False, True))
    assert [row["step"] for row in plain.log] == [row["step"] for row in fused.log]
    assert [row["pixel"] for row in fused.log] == pytest.approx([row["pixel"] for row in plain.log], rel=0.05)


def test_a_killed_run_goes_on_and_ends_as_one_that_was_left_alone(tmp_path):
    settings = SMALL | {"steps": 400, "checkpoint_every": 20, "deterministic": True}
    code = f"from crlsr.training import fit, profile; import sys; fit(*profile('smoke', {settings!r}), sys.argv[1], progress=False)"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # which deterministic products need
    start = [sys.executable, "-c", code]
    subprocess.run([*start, str(whole)], check=True, env=environment)
    child = subprocess.Popen([*start, str(killed)], env=environment)
    while child.poll() is None and not (killed / "checkpoint.pt").exists():
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "it ended before it was killed: no test of anything"
    subprocess.run([*start, str(killed)], check=True, env=environment)
    a, b = (load_model(folder).state_dict() for folder in (whole, killed))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert [row["step"] for row in read_jsonl(killed / "log.jsonl")] == [row["step"] for row in read_jsonl(whole / "log.jsonl")]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_estimate_is_near_to_what_steps_take(precision):
    model, config = profile("cpu", {"device": "cuda", "precision": precision, "batch_size": 32, "data": "embedded:train", "val_data": None, "workers": 0})
    told = estimate(model, config)
    state = new_state(model, config)
    sampler = PatchSampler(ImagePool(config.data), Degradation.parse(config.preset, model.network.scale), config.patch_size, config.batch_size, config.seed, config.pairing)
    batch, times = sampler.batch(0), []
    for step in range(12):
        if step == 2:
            torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
        start = time.perf_counter()
        train_step(state, batch, config)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    assert told.cost.seconds[0] / 2 < statistics.median(times[2:]) < told.cost.seconds[1] * 2
    assert told.cost.bytes == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.3)
