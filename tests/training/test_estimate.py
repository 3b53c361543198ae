"""estimate: what a run will cost: operations against closed forms, memory against watched tensors, time against runs."""
import os
import statistics
import time
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from crlsr.app.cli import main
from crlsr.data import ImagePool, PatchSampler
from crlsr.degradation import Degradation
from crlsr.training import estimate as module, fit, profile
from crlsr.training.estimate import Device, Estimate, StepCost, _counted, _duration, cost_against_l1, describe_estimate, estimate, step_cost
from crlsr.training.profiles import TrainConfig
from crlsr.training.step import new_state, train_step

SMALL = {"num_feat": 8, "num_block": 2, "patch_size": 8, "data": "embedded:train", "val_data": None}
L1 = {"weight_bc": 0.0, "weight_srnce": 0.0, "weight_rec": 0.0}
MEMORY = "memory: weights, average, gradients"  # begins the note of a machine without a record of the peak


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


class Watched(TorchDispatchMode):
    "Bytes of the tensors that are made inside a `with` block: how many are alive at most."

    def __init__(self):
        super().__init__()
        self.live, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for storage in [t.untyped_storage() for t in tree_leaves(result) if isinstance(t, torch.Tensor)]:
            key, size = storage._cdata, storage.nbytes()
            if key not in self.known:
                self.known.add(key)
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self.freed, key, size)
        return result

    def freed(self, key, size):
        self.known.discard(key)
        self.live -= size


@pytest.mark.parametrize("images", [1, 5, 16])
@pytest.mark.parametrize("patience", [0, 1e9])
def test_operations_of_the_control_follow_a_closed_form(images, patience):
    "Three forward passes, less the gradient of the input, and the bicubic enlargement of lr by two matrices, whose input needs no gradient either."
    state, sampler, train = made({**L1, "batch_size": images})
    every, first = forward_flops(state.model, torch.rand(images, 3, 8, 8))
    cost = step_cost(state, sampler, train, patience)
    bicubic = 2 * 3 * images * (32 * 8 * 8 + 32 * 8 * 32)
    assert cost.flops == pytest.approx(3 * every - first + bicubic, rel=1e-12) and cost.images == (images if patience else min(2, images))


@pytest.mark.parametrize("changes", [
    {}, {"srnce_negatives": "blurred"}, {"accumulate": 2, "precision": "bfloat16"}, {"input": "upsampled"}, {"guidance_window": 4}])
def test_two_images_tell_about_the_full_batch(changes):
    state, sampler, train = made({**changes, "batch_size": 16})
    told = step_cost(state, sampler, train, 0)
    piece = train.replace(accumulate=1, batch_size=16 // train.accumulate)
    flops, peak = _counted(state, sampler.batch(0, range(piece.batch_size)), piece)
    assert told.images == 2 and told.flops == pytest.approx(flops * train.accumulate, rel=1e-9) and told.bytes == pytest.approx(peak, rel=0.1)


def test_what_pairs_of_images_cost_is_missing_from_two_images_and_said():
    state, sampler, train = made({"bc_negatives": "batch", "batch_size": 16})
    whole, told = (step_cost(state, sampler, train, patience).flops for patience in (1e9, 0))
    assert 0.2 * whole < told < 0.5 * whole  # of a network this small
    model, train = profile("smoke", {**SMALL, "batch_size": 16, "steps": 10})
    assert any("what pairs of images cost is left out" in note for note in estimate(model, train, patience=0).notes)


@pytest.mark.parametrize("changes", [{}, L1, {"bc_negatives": "batch"}, {"input": "upsampled"}, {"precision": "bfloat16"}, {"weight_srnce": 0.0}])
def test_what_is_kept_is_most_of_what_is_alive_at_the_peak(changes):
    state, sampler, train = made({"batch_size": 4, "patch_size": 16, "num_feat": 32, "num_block": 4, **changes})
    batch = sampler.batch(0)
    train_step(state, batch, train)  # makes Adam's memory
    with Watched() as watched:
        train_step(state, batch, train)
    weights = sum(p.nbytes for p in state.model.parameters())
    alive = watched.peak + 4 * weights  # weights, average and Adam's numbers were there before; gradients were watched
    assert 0.7 * alive < _counted(state, batch, train)[1] < 1.05 * alive


def test_the_parts_of_a_run_are_weighed():
    "A quarter of the run with L_bc and reconstruction only, then all terms."
    state, sampler, train = made({"training": "staged", "stage_share": 0.25, "batch_size": 2, "steps": 1000})
    parts = []
    for step in (100, 900):
        state.step = step
        parts.append(_counted(state, sampler.batch(0), train))
    cost = step_cost(state, sampler, train)
    assert cost.flops == pytest.approx(0.25 * parts[0][0] + 0.75 * parts[1][0], rel=1e-12) and parts[0][0] < 0.9 * parts[1][0]
    assert cost.bytes == pytest.approx(max(parts[0][1], parts[1][1]))


def test_every_part_of_a_run_is_counted(monkeypatch):
    "With every measured call set to one second, the seconds are how often things happen."
    monkeypatch.setattr(module, "_seconds", lambda run, device, repeats=3: [1.0] * repeats)
    model, train = profile("smoke", {**SMALL, **L1, "batch_size": 4, "steps": 100, "checkpoint_every": 30, "val_data": "embedded:heldout", "validate_every": 40})
    found = estimate(model, train, patience=1e9)
    assert found.seconds["steps"] == 100 and found.seconds["checkpoints"] == 4 and "probes" not in found.seconds
    assert found.seconds["data"] == pytest.approx(100 + 6)  # a batch each step, and six photographs once
    assert 3 < found.seconds["validation"] < 3 + 30  # three looks of one second, and the preparation that was really timed
    assert found.data_seconds == pytest.approx(106) and found.cost.seconds == (1, 1)
    total = sum(found.seconds.values()) / 3600
    assert found.hours == pytest.approx((total / 1.25, total * 1.25)) and [note.split(",")[0] for note in found.notes] == [MEMORY.split(",")[0]]
    assert estimate(model, train.replace(workers=2), patience=1e9).seconds["data"] == 0
    assert estimate(model, train.replace(probe_every=10), patience=1e9).seconds["probes"] == 20  # ten looks, two steps each
    slow = estimate(model, train.replace(batch_size=8), patience=0.1)  # two images in a second: eight in four
    assert slow.seconds["steps"] == 400 and slow.notes[0] == "a step was measured on 2 images and extended to 8; what pairs of images cost is left out"
    assert slow.hours[1] / slow.hours[0] == pytest.approx(1.6**2)


def test_steps_that_differ_widen_the_range(monkeypatch):
    monkeypatch.setattr(module, "_seconds", lambda run, device, repeats=3: [1.0, 1.5, 2.0][:repeats])
    model, train = profile("smoke", {**SMALL, **L1, "batch_size": 2, "steps": 10})
    found = estimate(model, train, patience=1e9)
    assert found.cost.seconds == (1, 2) and found.seconds["steps"] == 15 and found.hours[1] / found.hours[0] == pytest.approx(4)


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


@pytest.mark.parametrize("precision, capability, tf32, expected", [
    ("float32", (8, 0), True, "in float32 with convolutions in TF32"), ("float32", (8, 0), False, "in float32"), ("float32", (7, 5), True, "in float32"),
    ("bfloat16", (9, 0), True, "in bfloat16 with weights in float32"), ("float16", (7, 0), True, "in float16 with weights in float32"),
    ("float64", (9, 0), True, "in float64")])
def test_the_precision_has_a_name(monkeypatch, precision, capability, tf32, expected):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", tf32)
    config = TrainConfig(precision=precision)
    assert module._machine(config, torch.device("cuda")) == f"the GPU card, {expected}"
    assert module._machine(config, torch.device("cpu")).endswith(expected.replace(" with convolutions in TF32", ""))


def example(cost=StepCost(1e12, 11 * 2**30, (4.0, 6.0), 8), machine="this CPU, 2 threads, in float32", **changes):
    config = TrainConfig(steps=100_000, **changes)
    return Estimate(config, (2_000_000, 500_000), cost, {"steps": 5e5, "data": 100.0}, 1e5, machine, ("a remark",))


def test_lines_say_what_follows_from_the_figures():
    card = Device("card", single=10, tf32=0, half=100, gib=16)
    lines = describe_estimate(example(), [card])
    assert "2.00 M" in lines[0] and "0.50 M more" in lines[0] and "1000.0 GFLOP, 11264 MiB of tensors at the peak" in lines[1]
    assert lines[2] == "on this CPU, 2 threads, in float32: 3.9 to 8.7 days for 100,000 steps, 200 GFLOP/s" and lines[-1] == "note: a remark"
    assert lines[3] == "  steps 5.8 days, data 1.7 minutes" or lines[3] == "  steps 5.8 days, data 100 seconds"
    assert lines[5].split() == "card 5.6 to 19 hours in float32, at 15 to 50 % of 10 TFLOP/s; fits in 16 GiB; data needs up to 5 workers".split()
    ampere = card._replace(tf32=50)
    assert "in TF32, at 5 to 25 % of 50" in describe_estimate(example(), [ampere])[5]
    assert "in float32" in describe_estimate(example(precision="bfloat16"), [card])[5]  # it has none
    assert "in 16 bits, at 3 to 15 % of 100" in describe_estimate(example(precision="bfloat16"), [ampere])[5]
    assert "in 16 bits, at 3 to 15 % of 100" in describe_estimate(example(precision="float16"), [card])[5]
    large = example().cost._replace(bytes=60 * 2**30)
    assert "needs accumulate=8 in 16 GiB" in describe_estimate(example(large), [card])[5]
    assert "needs accumulate=16 in 16 GiB" in describe_estimate(example(large, accumulate=2), [card])[5]
    tiny = describe_estimate(example(StepCost(1e6, 1e6, (1.0, 1.0), 8)), [card])[5]
    assert "8.3 to 50 minutes" in tiny and "at 0.00033 to 0.002 %" in tiny  # a step is never quicker than 5 ms
    assert len(describe_estimate(example(precision="float64"), [card])) == 5


@pytest.mark.parametrize("seconds, text", [
    ((0.25,), "0.2 seconds"), ((5,), "5.0 seconds"), ((59,), "59 seconds"), ((119, 121), "2.0 to 2.0 minutes"), ((7199,), "120 minutes"), ((7200,), "2.0 hours"),
    ((1, 86400), "0.0 to 24 hours"), ((5e4, 5e6), "0.6 to 58 days")])
def test_a_range_has_one_unit(seconds, text):
    assert _duration(*seconds) == text


def test_the_command_prints_an_estimate(capsys):
    words = [word for key, value in {**SMALL, "val_data": "None", "steps": 20, "batch_size": 2}.items() for word in ("--set", f"{key}={value}")]
    assert main(["estimate", "--profile", "smoke", *words]) == 0
    out = capsys.readouterr().out
    assert out.startswith("smoke: x4, 2 patches of 8x8 a step") and "GFLOP" in out and "extrapolated" in out and ", in float32: " in out and f"note: {MEMORY}" in out
    assert main(["estimate", "--profile", "smok"]) == 1 and "did you mean 'smoke'" in capsys.readouterr().err


def test_fused_code_is_counted_unfused(monkeypatch):
    "A compiled state is timed, a plain one counted; compiling itself is played."
    state, sampler, train = made({"batch_size": 2})
    compiled, calls = train.replace(compile=True), []
    monkeypatch.setattr(module, "_counted", lambda which, batch, config, honest=_counted: (calls.append(which is state), honest(which, batch, config))[1])
    monkeypatch.setattr(nn.Module, "compile", lambda self: pytest.fail("the plain state was compiled"))
    assert step_cost(state, sampler, compiled).flops == step_cost(state, sampler, train).flops and calls == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smoke", "cpu"])
def test_a_run_ends_in_the_estimated_range(name, tmp_path, monkeypatch):
    if name == "cpu":
        if not os.environ.get("CRLSR_TEST_DATA"):
            pytest.skip("CRLSR_TEST_DATA is not set")
        monkeypatch.setenv("CRLSR_DATA", os.environ["CRLSR_TEST_DATA"])
    model, train = profile(name)
    guesses = [estimate(model, train).hours]
    start = time.perf_counter()
    fit(model, train, tmp_path / "run", progress=False)
    took = (time.perf_counter() - start) / 3600
    guesses.append(estimate(model, train).hours)
    low, high = (statistics.mean(each) for each in zip(*guesses))  # before and after: other programs may come and go meanwhile
    print(f"{name}: estimated {guesses}, took {took:.3f} hours")
    assert low < took < high


def test_a_step_s_cost_is_its_mean_over_the_course_of_the_run():
    "Guided steps, steps between them, and those that measure shares, each as often as it happens: counted one by one."
    model, train = profile("smoke", {"num_feat": 8, "num_block": 2, "batch_size": 2, "patch_size": 8, "steps": 320, "guidance_every": 2, "share_bc": 0.1, "guidance_end": 0.5,
                                     "decoder_base": "features", "weight_srnce": 0.0, "weight_rec": 0.0, "channels_last": False})
    state = new_state(model, train)
    sampler = PatchSampler(ImagePool("embedded:train"), Degradation.parse("iso", 4), 8, 2, 0)
    found = step_cost(state, sampler, train)
    state.model.factors.fill_(1e-9)
    state.step = 0
    each = {}
    for name, step in {"measured": 50, "guided": 52, "plain": 51, "over": 200}.items():
        state.step = step
        state.model.factors.fill_(1e-9)
        each[name] = _counted(state, sampler.batch(0), train)[0]
    assert each["measured"] > each["guided"] > each["plain"] == each["over"]
    expected = 0.5 * each["plain"] + 0.5 * (0.5 * each["plain"] + each["measured"] / 25 + (0.5 - 1 / 25) * each["guided"])
    assert found.flops == pytest.approx(expected, rel=1e-6)
    against = cost_against_l1(model, train)
    assert against["gflop_of_l1"] == pytest.approx(found.flops / each["plain"], rel=1e-6) and against["seconds"] > 0 < against["seconds_of_l1"]
