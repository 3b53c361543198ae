"""step: one step against a plain loop; short types, memory order, pieces, compiling and measurements: what they may change and what they must not."""
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from crlsr.core import generator, read_jsonl, seed_everything
from crlsr.data import ImagePool, PatchSampler, embedded_images
from crlsr.degradation import Degradation
from crlsr.images import write_image
from crlsr.inference import load_model
from crlsr.model import CRLSR
from crlsr.model.crlsr import networks_of, remover_gradients, untrained_networks
from crlsr.training import fit, profile
from crlsr.training.interruptions import load_checkpoint
from crlsr.training.profiles import ema_decay_at, learning_rate_at
from crlsr.training.step import LAPS, PROBES, new_state, time_figures, train_step

TINY = {"num_feat": 8, "num_block": 2, "num_embed": 8, "num_vectors": 8, "batch_size": 4, "patch_size": 6, "steps": 8, "warmup_steps": 2, "log_every": 2,
        "checkpoint_every": 4, "threads": 1, "device": "cpu", "channels_last": False, "learning_rate": 1e-3}
L1 = {"weight_bc": 0, "weight_srnce": 0, "weight_rec": 0}
cuda = pytest.mark.gpu


def tiny(**changes):
    return profile("smoke", TINY | changes)


def batches(config, count):
    sampler = PatchSampler(ImagePool(config.data), Degradation.parse("iso", 4), config.patch_size, config.batch_size, config.seed)
    return [sampler.batch(step) for step in range(count)]


def trained(count=3, **changes):
    state, config = new_state(*tiny(**changes)), tiny(**changes)[1]
    return state, [train_step(state, batch, config) for batch in batches(config, count)]


def flat(state):
    return torch.cat([p.detach().double().cpu().flatten() for p in state.model.parameters()])


@pytest.fixture(scope="module", autouse=True)
def few_photographs(tmp_path_factory):
    "Two small files, so that a start takes no time."
    folder = tmp_path_factory.mktemp("few")
    for name in ("astronaut", "coffee"):
        write_image(embedded_images()[name][:, 100:160, 100:160], folder / f"{name}.png")
    TINY["data"] = str(folder)


@pytest.fixture(scope="module")
def plain():
    return {name: trained(**changes) for name, changes in (("float64", {"precision": "float64"}), ("float32", {}))}


# a step by hand

def test_steps_follow_a_plain_loop():
    model_config, config = tiny(clip_norm=0.003, ema=0.9, steps=6, channels_last=True)
    sampler = PatchSampler(ImagePool(config.data), Degradation.parse(config.preset, scale=4), config.patch_size, config.batch_size, config.seed)
    state = new_state(model_config, config)

    seed_everything(config.seed)
    net = CRLSR(model_config)
    average = [p.detach().clone() for p in net.parameters()]
    memory = [(torch.zeros_like(p), torch.zeros_like(p)) for p in net.parameters()]
    (b1, b2), eps, cut = config.betas, 1e-8, 0
    for t in range(config.steps):
        batch = sampler.batch(t)
        figures = train_step(state, batch, config)
        losses, _ = net.objective(batch.lr, batch.hr, generator=generator(config.seed, "objective", t))
        net.zero_grad()
        losses.total.backward()
        path = {id(p) for p in net.restorer.parameters()}
        lengths = [torch.cat([p.grad.flatten() for p in net.parameters() if (id(p) in path) == inside]).norm().item() for inside in (True, False)]
        cut += [lengths[0] > config.clip_norm, lengths[1] > config.clip_norm] == [figures["clipped"], figures["clipped_guidance"]]
        with torch.no_grad():
            for p, (m, v), a in zip(net.parameters(), memory, average):
                g = p.grad * min(1.0, config.clip_norm / (lengths[id(p) not in path] + 1e-6))
                m.mul_(b1).add_((1 - b1) * g)
                v.mul_(b2).add_((1 - b2) * g * g)
                p -= learning_rate_at(t, config) * (m / (1 - b1 ** (t + 1))) / ((v / (1 - b2 ** (t + 1))).sqrt() + eps)
                d = ema_decay_at(t, config.ema)
                a.copy_(d * a + (1 - d) * p)
        assert figures["total"] == pytest.approx(losses.total.item(), rel=1e-4)
        assert [figures["grad_norm"], figures["grad_norm_guidance"]] == pytest.approx(lengths, rel=1e-3)
    assert cut == state.step == config.steps and min(sum(row[i] for row in state.pending) for i in (-3, -2)) > 0
    for ours, theirs in ((state.model.parameters(), net.parameters()), (state.average.parameters(), average)):
        for a, b in zip(ours, theirs, strict=True):
            assert torch.allclose(a, b, atol=1e-5)


def test_without_averaging_the_average_is_the_model():
    model_config, config = tiny(ema=0.0, **L1)
    state = new_state(model_config, config)
    sampler = PatchSampler(ImagePool(config.data), Degradation.parse("iso", scale=4), 6, 4, 0)
    train_step(state, sampler.batch(0), config)
    assert all(torch.equal(a, b) for a, b in zip(state.model.parameters(), state.average.parameters()))


# pieces and memory order: rounding only

@pytest.mark.parametrize("changes", [{"accumulate": 2}, {"accumulate": 4}, {"channels_last": True}, {"accumulate": 2, "channels_last": True}])
def test_pieces_and_memory_order_change_rounding_only(plain, changes):
    state, figures = trained(precision="float64", **changes)
    assert torch.allclose(flat(state), flat(plain["float64"][0]), rtol=0, atol=1e-9)
    for ours, theirs in zip(figures, plain["float64"][1]):
        assert ours == pytest.approx(theirs, rel=1e-9)


def test_float32_is_close_to_float64(plain):
    for single, double in zip(plain["float32"][1], plain["float64"][1]):
        assert single["total"] == pytest.approx(double["total"], rel=1e-3)


@pytest.mark.parametrize("changes, message", [
    ({"accumulate": 3}, r"accumulate: got 3, expected a number that divides batch_size \(4\)"),
    ({"accumulate": 0}, "accumulate: got 0"),
    ({"precision": "bf16"}, "precision: got 'bf16', expected one of 'float32', 'bfloat16'"),
    ({"probe_every": -1}, "probe_every: got -1"),
    ({"workers": -1}, "workers: got -1"),
])
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


# short types

def test_bfloat16_computes_short_and_keeps_long(plain, monkeypatch):
    seen = set()
    honest = torch.nn.Conv2d.forward

    def forward(self, x):
        out = honest(self, x)
        seen.add(out.dtype)
        return out

    monkeypatch.setattr(torch.nn.Conv2d, "forward", forward)
    state, figures = trained(precision="bfloat16")
    assert torch.bfloat16 in seen
    assert {p.dtype for p in state.model.parameters()} == {p.dtype for p in state.average.parameters()} == {torch.float32}
    for short, long in zip(figures, plain["float32"][1]):
        assert short["pixel"] == pytest.approx(long["pixel"], rel=0.02) and short["bc"] == pytest.approx(long["bc"], rel=0.05)
        assert short["skipped"] == 0 and short["total"] != long["total"]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_runs_in_short_types_go_on_bit_for_bit(tmp_path, precision):
    config = tiny(precision=precision)
    whole = fit(*config, tmp_path / "whole", progress=False)
    for count in (3, None):
        pieces = fit(*config, tmp_path / "pieces", max_steps=count, progress=False)
    a, b = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("whole", "pieces"))
    assert whole.finished and pieces.finished and a["scaler"] == b["scaler"] and bool(a["scaler"]) == (precision == "float16")
    assert all(torch.equal(a[part][name], b[part][name]) for part in ("weights", "ema") for name in a[part])
    lr = torch.rand(1, 3, 6, 6, generator=generator("lr"))
    assert torch.equal(load_model(tmp_path / "whole")(lr), whole.model(lr)) and whole.model(lr).dtype == torch.float32


def test_float16_leaves_out_a_step_whose_gradient_is_too_long():
    state, config = new_state(*tiny(precision="float16", **L1)), tiny(precision="float16", **L1)[1]
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = flat(state)
    (batch,) = batches(config, 1)
    figures = train_step(state, batch, config)
    assert figures["skipped"] == 1 and not math.isfinite(figures["grad_norm"]) and math.isfinite(figures["total"])
    assert torch.equal(flat(state), before) and state.scaler.get_scale() == 2.0**39 and state.step == 1
    state.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    with pytest.raises(FloatingPointError, match="step 2: total is nan"):
        train_step(state, batch._replace(hr=batch.hr * math.nan), config)


# guards

def test_the_batch_that_was_no_number_is_kept_with_the_weights_that_met_it(tmp_path, monkeypatch):
    honest = PatchSampler.batch

    def batch(self, step, indices=None):
        whole = honest(self, step, indices)
        return whole._replace(hr=whole.hr * math.inf) if step == 5 else whole

    monkeypatch.setattr(PatchSampler, "batch", batch)
    model_config, config = tiny()
    with pytest.raises(FloatingPointError, match=r"stopped at step 6: .*seed 0, step 5, indices 0\.\.3.*run/bad-step-6.pt$") as caught:
        fit(model_config, config, tmp_path / "run", progress=False)
    assert "\n" not in str(caught.value) and load_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] == 4
    kept = torch.load(tmp_path / "run" / "bad-step-6.pt", weights_only=True)
    assert (kept["step"], kept["seed"], kept["indices"]) == (5, 0, [0, 1, 2, 3])
    state = new_state(model_config, config)
    state.model.load_state_dict(kept["weights"])
    losses, _ = state.model.objective(kept["lr"], kept["hr"], generator(0, "objective", 5))
    assert not math.isfinite(losses.total.item())


def test_a_gradient_that_is_no_number_stops_even_where_the_loss_is_one(monkeypatch):
    state, config = new_state(*tiny(**L1)), tiny(**L1)[1]
    state.model.restorer.remover.head.weight.register_hook(lambda g: g * math.nan)
    before = flat(state)
    with pytest.raises(FloatingPointError, match="step 1: grad_norm is nan"):
        train_step(state, batches(config, 1)[0], config)
    assert torch.equal(before, flat(state))


def test_cut_gradients_are_counted_in_the_log(tmp_path):
    result = fit(*tiny(clip_norm=1e-6), tmp_path / "run", progress=False)
    assert [(row["clipped"], row["clipped_guidance"], row["skipped"]) for row in result.log] == [(2, 2, 0)] * 4
    result = fit(*tiny(clip_norm=0.0), tmp_path / "free", progress=False)
    assert [(row["clipped"], row["clipped_guidance"]) for row in result.log] == [(0, 0)] * 4


def test_clipping_leaves_the_control_and_the_full_model_the_same_recipe():
    "However long the gradient of the training-only networks is, the inference path's step is cut by its own length only."
    (model_config, config), (one,) = tiny(clip_norm=1.0, weight_bc=1e-9, weight_srnce=0, weight_rec=1e6), batches(tiny()[1], 1)
    figures = train_step(new_state(model_config, config), one, config)
    control = train_step(new_state(model_config.replace(**L1), config), one, config)
    assert figures["clipped_guidance"] == 1 and figures["clipped"] == control["clipped"] == 0
    assert figures["grad_norm"] == pytest.approx(control["grad_norm"], rel=1e-4)


# networks without a teacher

@pytest.mark.parametrize("changes, expected", [
    ({}, []),
    (L1, []),
    ({"weight_bc": 0}, []),
    ({"weight_srnce": 0}, []),
    ({"weight_srnce": 0, "weight_rec": 0}, []),
    ({"stop_gradient": "low"}, []),
    ({"stop_gradient": "high"}, ["details remover"]),
    ({"stop_gradient": "high", "shared_encoder": True}, ["details remover"]),
    ({"stop_gradient": "high", "share_heads": False}, ["details remover"]),
    ({"stop_gradient": "high", "guidance_end": 0.9}, ["details remover"]),
    ({"shared_encoder": True}, []),
    ({"srnce_space": "shared"}, []),
    ({"ema_keys": 0.9}, []),
    ({"bc_negatives": "simsiam"}, []),
    ({"bc_negatives": "simsiam", "stop_gradient": "high"}, ["details remover"]),
    ({"bc_negatives": "vicreg"}, []),
    ({"bc_negatives": "barlow"}, []),
    ({"bc_negatives": "l1"}, []),
    ({"bc_vectors": "channels"}, []),
    ({"bc_vectors": "images"}, []),
    ({"srnce_negatives": "none"}, []),
    ({"freeze_extractor": True}, []),
    ({"freeze_extractor": True, "weight_rec": 0}, ["E_f (frozen)"]),
    ({"training": "staged", "stage_share": 0.9}, ["SR decoder", "heads of L_srnce"]),
    ({"training": "staged", "stage_share": 0.25}, []),
    ({"training": "staged", "stage_share": 0.0, "freeze_remover": True, "weight_srnce": 0}, ["degradation remover (frozen)", "details remover", "heads of L_bc"]),
    ({"guidance_warmup": 1.0}, []),
    ({"guidance_end": 1e-6, "weight_srnce": 0}, []),
])
def test_networks_that_no_loss_moves_are_those_without_a_gradient(changes, expected):
    "Of four steps of eight; the other way to see it are the gradients of every step."
    model_config, config = tiny(**changes)
    state, moved = new_state(model_config, config), set()
    assert untrained_networks(state.model, config.seed) == [
        name + " (frozen)" * (name == "E_f" and bool(changes.get("freeze_extractor")) or name == "degradation remover" and bool(changes.get("freeze_remover")))
        for name in networks_of(state.model)]
    for batch in batches(config, 4):
        train_step(state, batch, config)
        moved |= {name for name, network in networks_of(state.model).items() if any(p.grad is not None and p.grad.any() for p in network.parameters())}
    found = untrained_networks(state.model, config.seed)
    assert {name.removesuffix(" (frozen)") for name in found} == networks_of(state.model).keys() - moved
    assert found == expected == untrained_networks(state.average, config.seed)


# measurements

def test_probes_are_measured_when_due_and_move_nothing(tmp_path):
    settings = {"bc_negatives": "queue", "ema_keys": 0.9, "queue_size": 32}
    quiet = fit(*tiny(**settings), tmp_path / "quiet", progress=False)
    for count in (3, None):
        probed = fit(*tiny(**settings, probe_every=3), tmp_path / "probed", max_steps=count, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(quiet.model.state_dict().values(), probed.model.state_dict().values(), strict=True))
    assert [set(PROBES) <= row.keys() for row in probed.log] == [True, True, False, True]  # steps 1, 4 and 7 of rows 1-2, 3-4, 5-6, 7-8
    assert not any(set(PROBES) & row.keys() for row in quiet.log)
    model_config, config = tiny(**settings)
    found = remover_gradients(new_state(model_config, config).model, *batches(config, 1)[0][:2], generator(0, "objective", 0), 0.0)
    first = {name: probed.log[0][name] for name in PROBES}
    assert first == pytest.approx(dict(zip(PROBES, (found.pixel, found.bc, found.srnce, found.cos_bc, found.cos_srnce))), rel=1e-5)
    assert read_jsonl(tmp_path / "probed" / "log.jsonl") == probed.log


@pytest.mark.slow
def test_a_compiled_run_is_close_to_a_plain_one(tmp_path):
    results = [fit(*tiny(compile=compile, steps=3, **L1), tmp_path / str(compile), progress=False) for compile in (False, True)]
    a, b = (torch.cat([p.flatten() for p in result.model.parameters()]) for result in results)
    assert torch.allclose(a, b, atol=1e-4) and results[1].model.state_dict().keys() == results[0].model.state_dict().keys()


def test_deterministic_mode_changes_no_bit_on_a_cpu_and_is_given_back(tmp_path):
    settings = {"bc_negatives": "queue", "ema_keys": 0.9, "queue_size": 32, "steps": 3}
    runs = [fit(*tiny(**settings, deterministic=on), tmp_path / str(on), progress=False) for on in (False, True)]
    assert all(torch.equal(a, b) for a, b in zip(*(run.model.parameters() for run in runs), strict=True))
    assert not torch.are_deterministic_algorithms_enabled()


# times

@given(st.dictionaries(st.sampled_from(LAPS), st.floats(0, 1e4)), st.integers(0, 1000))
def test_time_figures_add_up(spent, images):
    figures = time_figures(spent, images)
    total, training_time = sum(spent.values()), sum(s for name, s in spent.items() if name not in ("validation", "rest"))
    assert sum(figures[f"time_{name}"] for name in LAPS) == pytest.approx(1 if total > 0 else 0, abs=1e-3)
    assert figures["images_per_second"] == (pytest.approx(images / training_time, rel=1e-2, abs=0.01) if training_time > 1e-6 else figures["images_per_second"])


# the same on a GPU

@cuda
@pytest.mark.parametrize("changes", [{}, {"precision": "bfloat16"}, {"precision": "float16"}, {"channels_last": True}, {"accumulate": 2}, {"workers": 1}])
def test_a_gpu_trains_like_a_cpu(tmp_path, changes):
    results = [fit(*tiny(device=device, **changes), tmp_path / device, progress=False) for device in ("cpu", "cuda")]
    for a, b in zip(results[0].log, results[1].log):
        assert a["pixel"] == pytest.approx(b["pixel"], rel=0.05) and b["images_per_second"] > 0
    assert next(results[1].model.parameters()).is_cuda


@cuda
def test_a_deterministic_gpu_run_goes_on_bit_for_bit(tmp_path):
    config = tiny(device="cuda", deterministic=True)
    try:
        whole = fit(*config, tmp_path / "whole", progress=False)
        for count in (3, None):
            pieces = fit(*config, tmp_path / "pieces", max_steps=count, progress=False)
        assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), pieces.model.parameters()))
    finally:
        torch.use_deterministic_algorithms(False)
