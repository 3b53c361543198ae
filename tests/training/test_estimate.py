"""estimate: what a run will cost: operations against closed forms, memory against watched steps, time against runs."""
import math
import os
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from crlsr.app.cli import main
from crlsr.core import generator
from crlsr.data import ImagePool, PatchSampler
from crlsr.degradation import Degradation
from crlsr.model import ModelConfig
from crlsr.training import estimate as module, fit, profile
from crlsr.training.estimate import Device, Estimate, LiveTensors, StepCost, decodings, describe_estimate, estimate, phases, step_cost
from crlsr.training.step import new_state

SMALL = {"num_feat": 8, "num_block": 2, "patch_size": 8, "data": "embedded:train", "val_data": None}
L1 = {"weight_bc": 0.0, "weight_srnce": 0.0, "weight_rec": 0.0}


def made(changes):
    model, train = profile("smoke", {**SMALL, **changes})
    sampler = PatchSampler(ImagePool("embedded:train"), Degradation.parse("bicubic", 4), train.patch_size, train.batch_size, 0, train.pairing)
    return new_state(model, train), sampler, train


def forward_flops(model, lr):
    "2 k^2 C C' H W for each convolution of the inference path, by hooks; and those of the first one, whose input needs no gradient."
    counts = []

    def hook(layer, inputs, output):
        counts.append(2 * layer.weight[0].numel() * output.numel())

    handles = [layer.register_forward_hook(hook) for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert not any(isinstance(layer, (nn.Linear, nn.ConvTranspose2d)) for layer in model.restorer.modules())
    model(lr)
    for handle in handles:
        handle.remove()
    return sum(counts), counts[0]


@pytest.mark.parametrize("images", [1, 5, 16])
def test_operations_of_the_control_follow_a_closed_form(images):
    "Three forward passes, less the gradient of the input, and the bicubic enlargement of lr by two matrices, whose input needs no gradient either."
    state, sampler, train = made({**L1, "batch_size": images})
    every, first = forward_flops(state.model, torch.rand(images, 3, 8, 8))
    cost = step_cost(state, sampler, train)
    bicubic = 2 * 3 * images * (32 * 8 * 8 + 32 * 8 * 32)
    assert cost.flops == pytest.approx(3 * every - first + bicubic, rel=1e-12) and cost.measured == (images <= 6)


@pytest.mark.parametrize("changes", [
    {}, {"bc_negatives": "batch"}, {"bc_negatives": "two_degradations", "pairing": "two_degradations"}, {"srnce_negatives": "blurred"},
    {"accumulate": 2, "precision": "bfloat16"}, {"input": "upsampled"}])
def test_small_batches_tell_about_the_full_one(changes):
    state, sampler, train = made({**changes, "batch_size": 16})
    extended = step_cost(state, sampler, train)
    piece = train.replace(accumulate=1, batch_size=16 // train.accumulate)
    flops, peak, operations = module._watched(state, sampler.batch(0, range(piece.batch_size)), piece, 0)
    assert not extended.measured
    assert extended.flops == pytest.approx(flops * train.accumulate, rel=1e-9)
    assert extended.bytes == pytest.approx(peak, rel=0.12) and extended.operations == pytest.approx(operations * train.accumulate, rel=0.05)


def test_memory_of_known_tensors():
    kept = []
    with LiveTensors() as live:
        for _ in range(3):
            kept.append(torch.zeros(256))
        view = kept[0][:5]
        kept[1].add_(1)
        assert live.live == live.peak == 3 * 1024
        del kept[2]
        assert live.live == 2 * 1024 and live.peak == 3 * 1024
        kept.append(torch.zeros(64))
        kept.pop(0)  # its view keeps it alive
        assert live.live == 2 * 1024 + 256 and len(view) == 5
    assert live.peak == 3 * 1024


def test_a_chain_of_features_is_kept_for_the_backward_pass():
    "n convolutions: their n inputs are alive when the backward pass starts; without gradients two at a time are."
    layers = nn.Sequential(*[nn.Conv2d(8, 8, 3, padding=1) for _ in range(6)])
    x, size = torch.rand(1, 8, 32, 32, generator=generator("x")), 8 * 32 * 32 * 4
    with LiveTensors() as with_gradients:
        layers(x)
    with LiveTensors() as without, torch.no_grad():
        layers(x)
    assert with_gradients.peak == 6 * size and without.peak == 2 * size


@given(st.integers(2, 40), st.integers(0, 300), st.integers(0, 10**6))
def test_decodings_are_the_expected_number_of_photographs(images, draws, seed):
    drawn = torch.randint(images, (3000, draws), generator=torch.Generator().manual_seed(seed))
    seen = torch.zeros(3000, images).scatter_(1, drawn, 1.0).sum(1) if draws else torch.zeros(3000)
    error = 4 * max(0.02, float(seen.std())) / 3000**0.5
    assert abs(decodings(images, images, draws) - float(seen.mean())) < error + 1e-6
    assert decodings(images, images / 2, draws) == draws / 2 and decodings(1, 1, 7) == 1


@given(st.sampled_from([{}, {"guidance_end": 0.5}, {"guidance_warmup": 0.25, "guidance_end": 0.75}, {"training": "staged", "stage_share": 0.25}, L1]), st.integers(1, 5000))
def test_phases_cover_the_run(changes, steps):
    config = ModelConfig.from_flat(**changes)
    parts = phases(config, steps)
    assert math.isclose(sum(share for _, share in parts), 1) and all(0 <= step < steps for step, _ in parts)
    kinds = [tuple(weight > 0 for weight in config.weights_at(step / steps)) for step, _ in parts]
    assert len(set(kinds)) == len(kinds)
    if steps >= 64:
        for kind, (_, share) in zip(kinds, parts):
            truth = sum(tuple(weight > 0 for weight in config.weights_at(k / steps)) == kind for k in range(steps)) / steps
            assert abs(share - truth) < 2 / 64


def test_every_part_of_a_run_is_counted(monkeypatch):
    "With every measured call set to one second, the seconds are how often things happen."
    monkeypatch.setattr(module, "_seconds", lambda run, device, repeats=3: 1.0)
    model, train = profile("smoke", {**SMALL, **L1, "batch_size": 4, "steps": 100, "checkpoint_every": 30, "val_data": "embedded:heldout", "validate_every": 40})
    found = estimate(model, train, patience=1e9)
    assert found.seconds["steps"] == 100 and found.seconds["checkpoints"] == 4
    assert found.seconds["data"] == pytest.approx(100 + 6, abs=0.01)  # a batch each step, and six photographs once
    assert 3 < found.seconds["validation"] < 3 + 30  # three looks of one second, and the preparation that was really timed
    assert found.batch_seconds == pytest.approx(1.06, abs=1e-3)
    assert found.hours == sum(found.seconds.values()) / 3600 and found.flops_per_second == found.cost.flops and found.notes == ()
    assert estimate(model, train.replace(workers=2), patience=1e9).seconds["data"] == 0
    slow = estimate(model, train.replace(batch_size=8), patience=0.1)  # two images in a second: eight in four
    assert slow.seconds["steps"] == 400 and slow.notes == ("a step was timed on 2 images and extended to 8",)


def test_missing_photographs_are_noted_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, train = profile("smoke", {**SMALL, "data": "DF2K", "val_data": str(tmp_path / "none"), "steps": 10, "batch_size": 2})
    found = estimate(model, train, patience=0.5)
    assert [note.split(" is not")[0] for note in found.notes[:2]] == ["data 'DF2K'", f"val_data '{tmp_path / 'none'}'"]
    assert list(tmp_path.iterdir()) == [] and "validation" not in found.seconds
    with pytest.raises(ValueError, match="preset"):
        estimate(model, train.replace(preset="nothing"))
    threads = torch.get_num_threads()
    estimate(model, train.replace(threads=1), patience=0.1)
    assert torch.get_num_threads() == threads


def example(**changes):
    values = dict(parameters=(2_000_000, 500_000), cost=StepCost(1e12, 10 * 2**30, 1000.0, True), state_bytes=2**30, steps=100_000, precision="float32",
                  seconds={"steps": 5e5, "data": 100.0}, batch_seconds=1.0, machine="this CPU, 2 threads", notes=("a remark",))
    return Estimate(**{**values, **changes})


def test_lines_say_what_follows_from_the_figures():
    card = Device("card", single=10, half=100, gib=16, share_single=0.5, share_half=0.25)
    lines = describe_estimate(example(), [card])
    assert "2.00 M" in lines[0] and "1000.0 GFLOP, 11264 MiB" in lines[1] and "counted and measured" in lines[1]
    assert "5.8 days for 100,000 steps, 200 GFLOP/s" in lines[2] and lines[-1] == "note: a remark"
    assert lines[5].split() == "card 5.6 hours at 50 % of 10 TFLOP/s; fits in 16 GiB; data needs 5 workers".split()
    assert "2.2" not in lines[5] and "at 25 % of 100" in describe_estimate(example(precision="bfloat16"), [card])[5]
    large = example().cost._replace(bytes=60 * 2**30)
    assert "needs accumulate=8 in 16 GiB" in describe_estimate(example(cost=large), [card])[5]
    tiny = example(cost=StepCost(1e6, 1e6, 2000.0, True))
    assert "33.3 minutes" in describe_estimate(tiny, [card])[5]  # 2,000 operations of 10 microseconds rule
    assert len(describe_estimate(example(precision="float64"), [card])) == 5
    assert "extended to the batch" in describe_estimate(example(cost=StepCost(1e12, 1e9, 1e3, False)), [])[1]


def test_the_command_prints_an_estimate(capsys):
    words = [word for key, value in {**SMALL, "val_data": "None", "steps": 20, "batch_size": 2}.items() for word in ("--set", f"{key}={value}")]
    assert main(["estimate", "--profile", "smoke", *words]) == 0
    out = capsys.readouterr().out
    assert out.startswith("smoke: x4, 2 patches of 8x8 a step") and "GFLOP" in out and "extrapolated" in out
    assert main(["estimate", "--profile", "smok"]) == 1 and "did you mean 'smoke'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smoke", "cpu"])
def test_an_estimate_is_within_thirty_percent_of_the_run(name, tmp_path, monkeypatch):
    if name == "cpu":
        if not os.environ.get("CRLSR_TEST_DATA"):
            pytest.skip("CRLSR_TEST_DATA is not set")
        monkeypatch.setenv("CRLSR_DATA", os.environ["CRLSR_TEST_DATA"])
    model, train = profile(name)
    guesses = [3600 * estimate(model, train).hours]
    start = time.perf_counter()
    fit(model, train, tmp_path / "run", progress=False)
    took = time.perf_counter() - start
    guesses.append(3600 * estimate(model, train).hours)
    print(f"{name}: estimated {guesses[0]:.0f} s before and {guesses[1]:.0f} s after, took {took:.0f} s")
    assert 0.7 < sum(guesses) / 2 / took < 1.3  # before and after: other programs may come and go meanwhile
