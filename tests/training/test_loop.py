"""loop: runs that survive interruptions bit for bit, what they leave, and what they say when they cannot go on."""
import json
import math
import sys
import types

import pytest
import torch

import crlsr
from crlsr.core import generator, read_jsonl
from crlsr.data import ImagePool, PatchSampler, embedded_images
from crlsr.degradation import Degradation
from crlsr.evaluation import evaluate
from crlsr.images import write_image
from crlsr.inference import load_model
from crlsr.model import Losses, load_model_file
from crlsr.model.crlsr import untrained_networks
from crlsr.model.shares import active_shares
from crlsr.training import fit, loop, profile
from crlsr.training.interruptions import load_checkpoint, save_checkpoint
from crlsr.training.profiles import learning_rate_at
from crlsr.training.step import LAPS, new_state, train_step

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


# a loss that is no number

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
    assert sorted(p.name for p in folder.iterdir()) == [".lock", "checkpoint-previous.pt", "checkpoint.pt", "config.json", "data.json", "log.jsonl", "model.safetensors"]
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
    state = new_state(*tiny())
    sampler = PatchSampler(ImagePool(config.data), Degradation.parse(config.preset, scale=4), config.patch_size, config.batch_size, config.seed)
    for row in rows[:2]:
        pair = [train_step(state, sampler.batch(state.step), config) for _ in range(2)]
        for name in (*Losses._fields, "grad_norm"):
            assert row[name] == pytest.approx(sum(f[name] for f in pair) / 2, rel=1e-4)
        assert row["learning_rate"] == learning_rate_at(row["step"] - 1, config) and row["seconds"] > 0
        weights = tiny()[0]
        assert row["total"] == pytest.approx(row["pixel"] + weights.decoupling.weight * row["bc"] + weights.refinement.weight * row["srnce"] + weights.refinement.weight_rec * row["rec"], rel=1e-5)


@pytest.mark.parametrize("pieces", [(1, 1), (3, 4, 2), (11,), (12,), (0, 5)])
def test_interrupted_runs_end_the_same(whole_run, tmp_path, pieces):
    for count in pieces:
        fit(*tiny(), tmp_path / "run", max_steps=count, progress=False)
    result = fit(*tiny(), tmp_path / "run", progress=False)
    assert result.finished
    assert_same_run(whole_run.run_dir, tmp_path / "run")
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (whole_run.run_dir / "model.safetensors").read_bytes()


@pytest.mark.parametrize("changes", [{"share_bc": 0.2, "share_srnce": 0.1, "decoder_base": "features"}, {"share_bc": 0.2, "guidance_every": 3, "weight_decode": 0.1},
                                     {"share_aware": -0.1, "decoder_base": "features", "preset": "iso | motion"},
                                     {"share_gradient": 0.1, "decoder_base": "features", "weight_bc": 0, "weight_srnce": 0, "weight_rec": 0}])
def test_a_run_by_shares_goes_on_bit_for_bit_and_tells_them(tmp_path, changes):
    "The factor measured at step 25 (or 27) counts when the run goes on at step 28."
    configs = tiny(steps=32, log_every=8, **changes)
    whole = fit(*configs, tmp_path / "whole", progress=False)
    for count in (10, 18, 4):
        part = fit(*configs, tmp_path / "run", max_steps=count, progress=False)
    assert part.finished and part.model.factors.min() > 0
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    first, last = whole.log[0], whole.log[-1]
    shares = active_shares(whole.log)
    assert {f"share_{term}" for term in shares} == {name for name in last if name.startswith("share_")} == {name for name in changes if name.startswith("share_")}
    if "share_aware" in changes:
        assert first["share_aware"] == 0 < last["head"] and shares["aware"]["part"] == 1, "at step 0 the head has read nothing"
        assert last["weight_aware"] < -1e-6 and part.model.awareness.images > 4
    elif "share_gradient" in changes:
        assert first["share_gradient"] == pytest.approx(0.1, rel=1e-4) and first["gradient"] > 0 and shares["gradient"]["part"] == 1
    elif changes.get("decoder_base"):
        assert first["share_bc"] == pytest.approx(0.2, rel=1e-4) and first["weight_bc"] > 0 and abs(first["cos_f_l_bc"]) <= 1
        assert shares["bc"]["part"] == 1 and 0 < shares["bc"]["share"] != pytest.approx(0.2, rel=1e-6)
    else:
        assert first["bc"] == 0 < last["bc"], "on the base lr the pixel loss has no gradient at f_l in step 0"


def test_averages_of_some_moments_are_kept_through_interruptions(whole_run, tmp_path):
    kept = tiny(keep_at=(0.01, 0.5, 1.0))
    whole = fit(*kept, tmp_path / "whole", progress=False)
    assert_same_weights = lambda a, b: all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())  # noqa: E731
    assert assert_same_weights(whole.model, whole_run.model), "to keep is to look"
    half = fit(*kept, tmp_path / "half", max_steps=6, progress=False)
    for count in (5, 3, 9):
        fit(*kept, tmp_path / "run", max_steps=count, progress=False)
    names = {"kept-0.01.safetensors": 1, "kept-0.5.safetensors": 6, "kept-1.safetensors": 12}
    assert {path.name for path in (tmp_path / "run").glob("kept-*")} == names.keys()
    for name, step in names.items():
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        assert load_model_file(tmp_path / "run" / name).meta["step"] == step
    assert assert_same_weights(half.model, load_model_file(tmp_path / "run" / "kept-0.5.safetensors"))
    assert assert_same_weights(whole.model, load_model_file(tmp_path / "run" / "kept-1.safetensors"))
    (tmp_path / "stranger").mkdir()
    (tmp_path / "stranger" / "kept-0.5.safetensors").write_text("somebody else's")
    with pytest.raises(ValueError, match="holds kept-0.5.safetensors, and neither config.json"):
        fit(*kept, tmp_path / "stranger", progress=False)


def test_the_extractor_learns_alone_and_stands_still_afterwards(tmp_path):
    "E_f is that of a run without L_srnce at step 4, and stays; L_srnce begins there."
    settings = dict(extractor_steps=4, freeze_extractor=True, log_every=1, keep_at=(4 / 12, 1.0), ema=0.0)
    run = fit(*tiny(**settings), tmp_path / "run", progress=False)
    early, late = (load_model_file(tmp_path / "run" / f"kept-{share:g}.safetensors").refinement for share in settings["keep_at"])
    for name in ("extractor", "rebuilder"):
        assert all(torch.equal(a, b) for a, b in zip(getattr(early, name).parameters(), getattr(late, name).parameters()))
    assert not all(torch.equal(a, b) for a, b in zip(early.heads.parameters(), late.heads.parameters()))
    fresh = new_state(*tiny(**settings)).model.refinement.extractor
    assert not any(torch.equal(a, b) for a, b in zip(fresh.parameters(), early.extractor.parameters()))
    assert [row["rec"] > 0 for row in run.log] == [True] * 4 + [False] * 8 == [row["srnce"] == 0 for row in run.log]
    assert run.log[0]["bc"] > 0 and run.log[0]["pixel"] > 0
    for wrong, words in (({"extractor_steps": 4}, "with weight_rec above 0, freeze_extractor"), ({**settings, "extractor_steps": 12}, "expected less than 12"),
                         ({**settings, "guidance_end": 0.25}, "expected less than 3"), ({"guidance_every": 2, "training": "staged"}, "guidance_every: got 2, expected 1 with training")):
        with pytest.raises(ValueError, match=words):
            tiny(**wrong)


def test_every_third_step_is_guided_and_the_others_are_plain(tmp_path):
    run = fit(*tiny(guidance_every=3, log_every=1, weight_decode=0.1), tmp_path / "run", progress=False)
    for term in ("bc", "srnce", "rec", "decode"):
        assert [row[term] > 0 for row in run.log] == [True, False, False] * 4
    for row in run.log:
        assert row["step"] % 3 == 1 or row["total"] == pytest.approx(row["pixel"], rel=1e-6)


def test_a_run_killed_before_its_first_checkpoint_starts_again(whole_run, tmp_path):
    folder = tmp_path / "run"
    fit(*tiny(), folder, max_steps=1, progress=False)
    (folder / "checkpoint.pt").unlink()
    (folder / "model.safetensors").unlink()
    (folder / "log.jsonl").write_text('{"step": 2, "total": 1.0}\n{"step": 4, "tot')
    assert fit(*tiny(), folder, progress=False).finished
    assert_same_run(whole_run.run_dir, folder)


def test_a_finished_run_is_only_read(whole_run, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "ImagePool", lambda *a: pytest.fail("photographs were read"))
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


@pytest.mark.parametrize("changes", [{"scale": 2}, {"scale": 3, "warmup_steps": 0}, {"input": "upsampled"}, {"share_heads": False, "srnce_anchor": "both"}])
def test_other_settings_train(tmp_path, changes):
    result = fit(*tiny(steps=2, log_every=1, **changes), tmp_path / "run", progress=False)
    assert [row["step"] for row in result.log] == [1, 2] and all(math.isfinite(row["total"]) for row in result.log)


@pytest.mark.parametrize("changes, said", [
    ({}, []),
    ({"steps": 30, "training": "staged", "stage_share": 0.9}, []),
    ({"steps": 30, "stop_gradient": "high"}, ["untrained after step 20: details remover"]),
    ({"stop_gradient": "high"}, ["untrained after step 12: details remover"]),  # the end
    ({"steps": 50, "training": "staged", "stop_gradient": "high"}, ["untrained after step 45: details remover"]),
    ({"freeze_extractor": True, "weight_rec": 0.0}, ["untrained after step 12: E_f (frozen)"]),
    ({"stop_gradient": "high", "freeze_extractor": True, "weight_rec": 0.0}, ["untrained after step 12: details remover, E_f (frozen)"]),
])
def test_networks_without_a_teacher_are_named_once(tmp_path, caplog, changes, said):
    caplog.set_level("INFO", logger="crlsr")
    result = fit(*tiny(**changes), tmp_path / "run", progress=False)
    lines = [record for record in caplog.records if "untrained" in record.getMessage()]
    assert [record.getMessage().split(";")[0] for record in lines] == said
    assert [record.levelname for record in lines] == ["WARNING" if "details" in line else "INFO" for line in said]
    assert untrained_networks(result.model, 0) == [name for line in said for name in line.split(": ")[1].split(", ")]


def test_a_run_in_pieces_names_them_when_it_is_time(tmp_path, caplog):
    for steps in (8, 4, 10, None):
        caplog.clear()
        fit(*tiny(steps=30, stop_gradient="high"), tmp_path / "run", max_steps=steps, progress=False)
        assert [record.getMessage().split(":")[0] for record in caplog.records] == {8: [], 4: [], 10: ["untrained after step 20"], None: ["untrained after step 23"]}[steps]


def test_validation_rows_hold_the_psnr_of_evaluate(tmp_path):
    result = fit(*tiny(preset="iso:2.4", val_data="embedded:heldout", validate_every=5, log_every=100, **L1), tmp_path / "run", progress=False)
    assert [(row["step"], "psnr" in row) for row in result.log] == [(5, True), (10, True), (12, True)]
    assert result.log[-1]["psnr"] == pytest.approx(evaluate(result.model, "embedded:heldout", "iso:2.4")["psnr"], abs=1e-6)


def test_validation_does_not_touch_the_training(whole_run, tmp_path):
    watched = fit(*tiny(val_data="embedded:heldout", validate_every=3), tmp_path / "run", progress=False)
    assert all(torch.equal(a, b) for a, b in zip(watched.model.parameters(), whole_run.model.parameters()))


def test_training_learns_and_both_models_start_equal():
    states = [new_state(*tiny(num_feat=16, **changes)) for changes in ({}, L1)]
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


# what a run tells

def test_rows_hold_shares_of_time_and_images_per_second(whole_run):
    for row in read_jsonl(whole_run.run_dir / "log.jsonl"):
        shares = [row[f"time_{name}"] for name in LAPS]
        assert sum(shares) == pytest.approx(1, abs=1e-3) and min(shares) >= 0 and row["time_backward"] > 0 and row["images_per_second"] > 0
        assert row["time_validation"] < 0.05  # there was none to look at


def test_tensorboard_gets_the_rows_where_it_is_installed(tmp_path, monkeypatch):
    written = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            written.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def close(self):
            written.append("closed")

    fake = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    config = tiny(log_every=1)
    fit(*config, tmp_path / "run", max_steps=3, progress=False)
    fit(*config, tmp_path / "run", max_steps=3, progress=False)
    assert [entry[1] for entry in written if len(entry) == 2] == [1, 4] and written.count("closed") == 2
    rows = read_jsonl(tmp_path / "run" / "log.jsonl")
    assert [(value, step) for name, value, step in (e for e in written if len(e) == 3) if name == "pixel"] == [(row["pixel"], row["step"]) for row in rows]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # not installed
    fit(*config, tmp_path / "run", max_steps=2, progress=False)
    assert len(read_jsonl(tmp_path / "run" / "log.jsonl")) == 8


def test_the_bar_of_a_run_goes_to_stderr(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)  # where a person looks
    fit(*tiny(**L1), tmp_path / "run", max_steps=3)
    out, err = capfd.readouterr()
    assert out == "" and "training" in err and "3/12" in err


def test_bar_and_curves_of_a_run_are_one_output_in_a_notebook(tmp_path):
    import nbformat
    from nbclient import NotebookClient
    from tests.kernels import Forked

    settings = TINY | L1 | {"log_every": 1, "num_feat": 4, "val_data": "embedded:heldout", "validate_every": 6}
    code = f"from crlsr.training import fit, profile\nresult = fit(*profile('smoke', {settings!r}), {str(tmp_path / 'run')!r})\nassert result.finished"
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(nb, timeout=120, kernel_name="python3", kernel_manager_class=Forked, startup_timeout=600).execute()
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
