"""recipe, checkpoint, training: settings, schedules, and runs that survive interruptions bit for bit."""
import copy
import dataclasses
import json
import math
import os
import time

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

import crlsr
from crlsr.core import append_jsonl, generator, read_jsonl, seed_everything
from crlsr.data import ImagePool, PatchSampler, embedded_images
from crlsr.degradation import Degradation
from crlsr.evaluation import evaluate
from crlsr.images import write_image
from crlsr.inference import load_model
from crlsr.model import CRLSR, Losses, ModelConfig, load_model_file
from crlsr.training import PROFILES, TrainConfig, fit, loop as training, profile
from crlsr.training.interruptions import (
    CHECKPOINT_KEYS, check_same_config, latest_checkpoint, load_checkpoint, previous_path, save_checkpoint, trim_log,
)
from crlsr.training.profiles import ema_decay_at, learning_rate_at, update_average

L1 = {"weight_bc": 0, "weight_srnce": 0, "weight_rec": 0}
TINY = {"num_feat": 8, "num_block": 2, "num_embed": 8, "num_vectors": 16, "batch_size": 2, "patch_size": 8, "steps": 12, "warmup_steps": 3,
        "log_every": 2, "checkpoint_every": 4, "threads": 1, "device": "cpu"}


def tiny(**changes):
    return profile("smoke", TINY | changes)


def without_time(rows):
    return [{key: value for key, value in row.items() if key not in ("seconds", "images_per_second") and not key.startswith("time_")} for row in rows]


def assert_same_run(one, other):
    a, b = load_checkpoint(one / "checkpoint.pt"), load_checkpoint(other / "checkpoint.pt")
    assert a["step"] == b["step"]
    for part in ("weights", "ema"):
        assert a[part].keys() == b[part].keys() and all(torch.equal(a[part][name], b[part][name]) for name in a[part])
    for i, memory in a["optimizer"]["state"].items():
        assert all(torch.equal(value, b["optimizer"]["state"][i][key]) for key, value in memory.items())
    assert without_time(read_jsonl(one / "log.jsonl")) == without_time(read_jsonl(other / "log.jsonl"))


@pytest.fixture(scope="module", autouse=True)
def few_photographs(tmp_path_factory):
    "Two small files, so that a start takes no time."
    folder = tmp_path_factory.mktemp("few")
    for name in ("astronaut", "coffee"):
        write_image(embedded_images()[name][:, 100:260, 100:260], folder / f"{name}.png")
    TINY["data"] = str(folder)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    return fit(*tiny(), folder, progress=False)


# settings

def test_the_settings_that_others_build_on_exist_and_have_one_owner():
    names = [{f.name for f in dataclasses.fields(c)} for c in (ModelConfig, TrainConfig)]
    assert not names[0] & names[1]
    promised = ("seed steps batch_size patch_size learning_rate checkpoint_every num_feat num_block scale input preset weight_bc weight_srnce "
                "weight_rec temperature num_vectors bc_negatives srnce_negatives srnce_anchor share_heads").split()
    assert set(promised) <= names[0] | names[1]


@pytest.mark.parametrize("name, model, train", [
    ("cpu", {"scale": 4, "num_feat": 32, "num_block": 6}, {"patch_size": 24, "batch_size": 8, "steps": 2500}),
    ("gpu", {"num_feat": 64, "num_block": 16}, {"patch_size": 48, "batch_size": 32, "steps": 100_000}),
    ("paper", {"num_feat": 64, "num_block": 32}, {"patch_size": 48, "batch_size": 32, "steps": 500_000}),
    ("smoke", {"scale": 4}, {"data": "embedded:train", "val_data": None}),
])
def test_profiles(name, model, train):
    for config, expected in zip(profile(name), (model, train)):
        assert {key: getattr(config, key) for key in expected} == expected
    assert set(PROFILES) == {"smoke", "cpu", "gpu", "paper"}


@given(st.fixed_dictionaries({}, optional={
    "steps": st.integers(1, 10**6), "learning_rate": st.floats(1e-6, 1), "num_feat": st.integers(1, 99), "share_heads": st.booleans(),
    "preset": st.sampled_from(["iso", "aniso+noise:0..25"]), "schedule": st.sampled_from(["cosine", "onecycle"]), "val_data": st.none()}))
def test_texts_and_dictionaries_change_a_profile_alike(changes):
    texts = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changes.items()]
    assert profile("gpu", changes) == profile("gpu", texts) == profile("gpu", iter(texts))
    for config in profile("gpu", changes):
        assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("changes, message", [
    ({"stepps": 1}, r"unknown setting 'stepps'; did you mean 'steps'\?"),
    (["num_feats=3"], "did you mean 'num_feat'"),
    ({"qqqq": 1}, "known: scale, input"),
    ({"steps": "many"}, "TrainConfig.steps"),
    ({"steps": 0}, "steps: got 0, expected at least 1"),
    ({"learning_rate": 0.0}, "learning_rate: got 0.0"),
    ({"learning_rate": math.nan}, "learning_rate: got nan"),
    ({"clip_norm": math.nan}, "clip_norm"),
    ({"ema": 1.0}, "ema: got 1.0"),
    ({"betas": [0.9, 1.0]}, r"betas\[1\]: got 1.0"),
    ({"schedule": "cosine2"}, "did you mean 'cosine'"),
    (["steps"], "expected key=value"),
])
def test_wrong_settings_are_refused_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        profile("smoke", changes)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="did you mean 'smoke'"):
        profile("smoek", changes)


# schedules

@given(steps=st.integers(2, 60), share=st.floats(0.05, 0.5), peak=st.floats(1e-5, 1))
def test_schedules_are_those_of_torch(steps, share, peak):
    warmup = max(1, int(share * steps))
    config = TrainConfig(steps=steps, learning_rate=peak, warmup_steps=warmup)

    def run(make, count):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
        scheduler, sizes = make(optimizer), []
        for _ in range(count):
            sizes.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return sizes

    rise = [peak * (t + 1) / warmup for t in range(warmup)]
    fall = run(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, steps - warmup), steps - warmup)
    assert [learning_rate_at(t, config) for t in range(steps)] == pytest.approx(rise + fall, rel=1e-6, abs=1e-12)
    if warmup > 1:
        cycle = run(lambda o: torch.optim.lr_scheduler.OneCycleLR(o, peak, total_steps=steps, pct_start=warmup / steps, cycle_momentum=False), steps)
        ours = [learning_rate_at(t, config.replace(schedule="onecycle")) for t in range(steps)]
        assert ours == pytest.approx(cycle, rel=1e-6, abs=1e-12)


@given(steps=st.integers(1, 60), warmup=st.integers(0, 200), schedule=st.sampled_from(["cosine", "onecycle"]))
def test_step_sizes_are_positive_and_reach_the_peak_once(steps, warmup, schedule):
    config = TrainConfig(steps=steps, warmup_steps=warmup, learning_rate=1.0, schedule=schedule)
    sizes = [learning_rate_at(t, config) for t in range(steps)]
    assert all(0 < size <= 1 for size in sizes)
    top = sizes.index(max(sizes))
    assert sizes[:top] == sorted(sizes[:top]) and sizes[top:] == sorted(sizes[top:], reverse=True)
    if steps > 1 or schedule == "cosine":
        assert max(sizes) == pytest.approx(1.0)


@given(decay=st.floats(0, 0.9999), steps=st.integers(1, 40))
def test_the_average_is_a_weighted_mean_of_all_weights(decay, steps):
    model = torch.nn.BatchNorm1d(2).double()  # has buffers, an integer one among them
    average = copy.deepcopy(model)
    path, share = [model.weight.detach().clone()], [1.0]
    for t in range(steps):
        with torch.no_grad():
            model.weight.copy_(torch.randn(2, dtype=torch.float64, generator=generator("walk", t)))
            model.num_batches_tracked += 1
        d = ema_decay_at(t, decay)
        assert 0 <= d <= decay
        update_average(average, model, d)
        path.append(model.weight.detach().clone())
        share = [s * d for s in share] + [1 - d]
    assert sum(share) == pytest.approx(1)
    assert torch.allclose(average.weight, sum(s * w for s, w in zip(share, path)), atol=1e-12)
    assert average.num_batches_tracked == steps


# checkpoints

def state_of(**changes):
    return {key: 1 for key in CHECKPOINT_KEYS} | {"weights": {"w": torch.arange(5000.0)}} | changes


def test_checkpoints_come_back_whole_and_run_no_code(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(state_of(config={"betas": (0.9, 0.99), "none": None}, pending=[[1.0, 2.0]]), path)
    back = load_checkpoint(path)
    assert back["config"] == {"betas": (0.9, 0.99), "none": None} and back["pending"] == [[1.0, 2.0]]
    assert torch.equal(back["weights"]["w"], torch.arange(5000.0))

    class Trojan:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save(state_of(config=Trojan()), path)
    with pytest.raises(ValueError, match="cut short, altered or no checkpoint"):
        load_checkpoint(path)
    assert not (tmp_path / "ran").exists()


@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_cut_checkpoint_is_refused(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "checkpoint.pt"
    save_checkpoint(state_of(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(cut * len(content))])
    with pytest.raises(ValueError, match=r"^checkpoint: .*cut short, altered") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


@given(place=st.integers(0, 19_999), bit=st.integers(0, 7))
def test_an_altered_tensor_is_refused(tmp_path_factory, place, bit):
    path = tmp_path_factory.mktemp("altered") / "checkpoint.pt"
    save_checkpoint(state_of(), path)
    content = bytearray(path.read_bytes())
    content[content.find(torch.arange(5000.0).numpy().tobytes()) + place] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(ValueError, match="altered"):
        load_checkpoint(path)


def test_foreign_and_incomplete_checkpoints_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        load_checkpoint(tmp_path / "none.pt")
    torch.save({"weights": {}}, tmp_path / "foreign.pt")
    with pytest.raises(ValueError, match="is not one of crlsr, expected the entries config, weights"):
        load_checkpoint(tmp_path / "foreign.pt")
    with pytest.raises(ValueError, match="lacks optimizer"):
        save_checkpoint({k: v for k, v in state_of().items() if k != "optimizer"}, tmp_path / "c.pt")
    assert not (tmp_path / "c.pt").exists()


def test_only_where_a_run_happens_may_change():
    configs = {"model": tiny()[0].to_dict(), "train": tiny()[1].to_dict()}
    for part, config in configs.items():
        for key, value in config.items():
            other = {**configs, part: {**config, key: "other"}}
            if key in ("device", "threads", "workers", "checkpoint_every"):
                check_same_config(configs, other, "run")
            else:
                with pytest.raises(ValueError, match=rf"run: .*\({key} = "):
                    check_same_config(configs, other, "run")


@given(st.lists(st.integers(1, 50), unique=True).map(sorted), st.integers(0, 50))
def test_a_trimmed_log_has_no_row_too_many_or_too_few(tmp_path_factory, steps, step):
    log = tmp_path_factory.mktemp("log") / "log.jsonl"
    for s in steps:
        append_jsonl(log, {"step": s})
    rows = trim_log(log, step)
    assert [row["step"] for row in rows] == [s for s in steps if s <= step] and read_jsonl(log) == rows


# one step

def test_steps_follow_a_plain_loop():
    model_config, config = tiny(clip_norm=0.003, ema=0.9, steps=6)
    sampler = PatchSampler(ImagePool(config.data), Degradation.parse(config.preset, scale=4), config.patch_size, config.batch_size, config.seed)
    state = training.new_state(model_config, config)

    seed_everything(config.seed)
    net = CRLSR(model_config)
    average = [p.detach().clone() for p in net.parameters()]
    memory = [(torch.zeros_like(p), torch.zeros_like(p)) for p in net.parameters()]
    (b1, b2), eps, cut = config.betas, 1e-8, 0
    for t in range(config.steps):
        batch = sampler.batch(t)
        figures = training.train_step(state, batch, config)
        losses, _ = net.objective(batch.lr, batch.hr, generator=generator(config.seed, "objective", t))
        net.zero_grad()
        losses.total.backward()
        path = {id(p) for part in (net.degradation_remover, net.decoder) for p in part.parameters()}
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
    state = training.new_state(model_config, config)
    sampler = PatchSampler(ImagePool(config.data), Degradation.parse("iso", scale=4), 8, 2, 0)
    training.train_step(state, sampler.batch(0), config)
    assert all(torch.equal(a, b) for a, b in zip(state.model.parameters(), state.average.parameters()))


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_before_the_weights_change(tmp_path, monkeypatch, poison):
    model_config, config = tiny(**L1)
    honest = PatchSampler.batch

    def batch(self, step, indices=None):
        whole = honest(self, step, indices)
        return whole._replace(hr=whole.hr * poison) if step == 6 else whole

    monkeypatch.setattr(PatchSampler, "batch", batch)
    with pytest.raises(FloatingPointError, match=r"step 7: total is (nan|inf).*learning_rate \(now 0.002\)") as caught:
        fit(model_config, config, tmp_path / "run", progress=False)
    assert "\n" not in str(caught.value)
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] == 4
    monkeypatch.setattr(PatchSampler, "batch", honest)
    assert fit(model_config, config, tmp_path / "run", progress=False).finished


# runs

def test_a_run_leaves_what_others_need(whole_run):
    folder = whole_run.run_dir
    assert sorted(p.name for p in folder.iterdir()) == [".lock", "checkpoint-previous.pt", "checkpoint.pt", "config.json", "log.jsonl", "model.safetensors"]
    assert json.loads((folder / "config.json").read_text())["train"]["steps"] == 12
    raw = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert {"config", "weights", "ema", "optimizer", "step", "seed", "version"} <= raw.keys()
    assert (raw["step"], raw["seed"], raw["version"]) == (12, 0, crlsr.__version__)
    saved = load_model_file(folder / "model.safetensors")
    assert saved.meta["step"] == 12 and saved.meta["preset"] == "iso"
    lr = torch.rand(1, 3, 9, 7, generator=generator("lr"))
    for model in (saved, load_model(folder), load_model(folder / "checkpoint.pt")):
        assert torch.equal(model(lr), whole_run.model(lr))
    assert whole_run.finished and not whole_run.model.training and whole_run.minutes > 0


def test_log_rows_are_means_of_the_steps(whole_run):
    rows = whole_run.log
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
    _, config = tiny()
    state = training.new_state(*tiny())
    sampler = PatchSampler(ImagePool(config.data), Degradation.parse(config.preset, scale=4), config.patch_size, config.batch_size, config.seed)
    for row in rows[:2]:
        pair = [training.train_step(state, sampler.batch(state.step), config) for _ in range(2)]
        for name in (*Losses._fields, "grad_norm"):
            assert row[name] == pytest.approx(sum(f[name] for f in pair) / 2, rel=1e-4)
        assert row["learning_rate"] == learning_rate_at(row["step"] - 1, config) and row["seconds"] > 0
        weights = tiny()[0]
        assert row["total"] == pytest.approx(row["pixel"] + weights.weight_bc * row["bc"] + weights.weight_srnce * row["srnce"] + weights.weight_rec * row["rec"], rel=1e-5)


@pytest.mark.parametrize("pieces", [(1, 1), (3, 4, 2), (11,), (12,), (0, 5)])
def test_interrupted_runs_end_the_same(whole_run, tmp_path, pieces):
    for count in pieces:
        fit(*tiny(), tmp_path / "run", max_steps=count, progress=False)
    result = fit(*tiny(), tmp_path / "run", progress=False)
    assert result.finished
    assert_same_run(whole_run.run_dir, tmp_path / "run")
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (whole_run.run_dir / "model.safetensors").read_bytes()


def test_a_run_killed_before_its_first_checkpoint_starts_again(whole_run, tmp_path):
    folder = tmp_path / "run"
    fit(*tiny(), folder, max_steps=1, progress=False)
    (folder / "checkpoint.pt").unlink()
    (folder / "log.jsonl").write_text('{"step": 2, "total": 1.0}\n{"step": 4, "tot')
    assert fit(*tiny(), folder, progress=False).finished
    assert_same_run(whole_run.run_dir, folder)


def test_a_finished_run_is_only_read(whole_run, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "ImagePool", lambda *a: pytest.fail("photographs were read"))
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in whole_run.run_dir.iterdir()}
    again = fit(*tiny(), whole_run.run_dir, progress=False)
    assert again.finished and again.log == whole_run.log and again.minutes == whole_run.minutes
    assert before == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in whole_run.run_dir.iterdir()}


@pytest.mark.parametrize("changes, message", [
    ({"scale": 2}, "scale = 4 there, 2 here"),
    ({"num_feat": 12, "seed": 3}, "num_feat = 8 there, 12 here; seed = 0 there, 3 here"),
    ({"steps": 20}, "steps = 12 there, 20 here"),
])
def test_a_folder_of_another_run_is_refused(whole_run, changes, message):
    with pytest.raises(ValueError, match=f"other settings .*{message}") as caught:
        fit(*tiny(**changes), whole_run.run_dir, progress=False)
    assert "\n" not in str(caught.value)


def test_broken_folders_are_named_in_one_line(tmp_path):
    config = tiny(**L1)
    fit(*config, tmp_path / "run", max_steps=2, progress=False)
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    state = load_checkpoint(checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(ValueError, match="checkpoint.pt is cut short"):
        fit(*config, tmp_path / "run", progress=False)
    state["weights"].popitem()
    save_checkpoint(state, checkpoint)
    with pytest.raises(ValueError, match=r"written by crlsr .*do not fit") as caught:
        fit(*config, tmp_path / "run", progress=False)
    assert "\n" not in str(caught.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file, expected a folder"):
        fit(*config, tmp_path / "file", progress=False)


@pytest.mark.parametrize("changes, error, message", [
    ({"data": "no/such/folder"}, FileNotFoundError, "no/such/folder"),
    ({"preset": "isso"}, ValueError, "did you mean 'iso'"),
    ({"device": "gpu0"}, ValueError, "device: 'gpu0' cannot be used here"),
    ({"patch_size": 4000}, ValueError, "smaller than"),
])
def test_a_run_that_cannot_start_leaves_no_run_behind(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        fit(*tiny(**changes), tmp_path / "run", progress=False)
    assert fit(*tiny(**L1), tmp_path / "run", max_steps=1, progress=False).log == []


@pytest.mark.parametrize("changes", [{"scale": 2}, {"scale": 3, "schedule": "onecycle"}, {"input": "upsampled"}, {"share_heads": False, "srnce_anchor": "both"}])
def test_other_settings_train(tmp_path, changes):
    result = fit(*tiny(steps=2, log_every=1, **changes), tmp_path / "run", progress=False)
    assert [row["step"] for row in result.log] == [1, 2] and all(math.isfinite(row["total"]) for row in result.log)


def test_validation_rows_hold_the_psnr_of_evaluate(tmp_path):
    result = fit(*tiny(preset="iso:2.4", val_data="embedded:heldout", validate_every=5, log_every=100, **L1), tmp_path / "run", progress=False)
    assert [(row["step"], "psnr" in row) for row in result.log] == [(5, True), (10, True), (12, True)]
    assert result.log[-1]["psnr"] == pytest.approx(evaluate(result.model, "embedded:heldout", "iso:2.4")["psnr"], abs=1e-6)


def test_validation_does_not_touch_the_training(whole_run, tmp_path):
    watched = fit(*tiny(val_data="embedded:heldout", validate_every=3), tmp_path / "run", progress=False)
    assert all(torch.equal(a, b) for a, b in zip(watched.model.parameters(), whole_run.model.parameters()))


def test_training_learns_and_both_models_start_equal():
    states = [training.new_state(*tiny(num_feat=16, **changes)) for changes in ({}, L1)]
    full, control = (s.model.state_dict() for s in states)
    assert control and all(torch.equal(full[name], value) for name, value in control.items())


def test_threads_are_given_back(tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        fit(*tiny(**L1), tmp_path / "run", max_steps=1, progress=False)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_bar_goes_to_stderr(tmp_path, capfd):
    fit(*tiny(**L1), tmp_path / "run", max_steps=3)
    out, err = capfd.readouterr()
    assert out == "" and "training" in err and "3/12" in err


def test_bar_and_curves_are_one_output_in_a_notebook(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    settings = TINY | L1 | {"log_every": 1, "num_feat": 4, "val_data": "embedded:heldout", "validate_every": 6}
    code = f"from crlsr.training import fit, profile\nresult = fit(*profile('smoke', {settings!r}), {str(tmp_path / 'run')!r})\nassert result.finished"
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(nb, timeout=120, kernel_name="python3").execute()
    outputs = [output for output in nb.cells[0].outputs if output.output_type != "stream"]  # remarks on colour profiles
    assert len(outputs) == 1 and outputs[0].output_type == "display_data"
    assert "training: 100%" in outputs[0].data["text/plain"] and "12/12" in outputs[0].data["text/plain"]
    page = outputs[0].data["text/html"]
    assert page.count("<img") == 2 and "mean |sr" in page and "PSNR on luma" in page and "12/12" in page


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, L1], ids=["crl-sr", "plain-l1"])
def test_the_smoke_profile_beats_bicubic_by_half_a_decibel(tmp_path, changes):
    result = fit(*profile("smoke", changes), tmp_path / "run", progress=False)
    held_out = embedded_images("heldout")
    gain = evaluate(result.model, held_out, "iso:2.4")["psnr"] - evaluate("bicubic", held_out, "iso:2.4")["psnr"]
    assert gain >= 0.5


@pytest.mark.gpu
def test_a_gpu_run_goes_on_there_and_loads_on_the_cpu(tmp_path):
    config = tiny(device="cuda")
    fit(*config, tmp_path / "run", max_steps=5, progress=False)
    result = fit(*config, tmp_path / "run", progress=False)
    assert result.finished and next(result.model.parameters()).is_cuda
    lr = torch.rand(1, 3, 8, 8, generator=generator("lr"))
    assert torch.allclose(load_model(tmp_path / "run")(lr), result.model(lr.cuda()).cpu(), atol=1e-3)
