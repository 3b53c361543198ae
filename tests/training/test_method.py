"""The same engine trains a model of another method: the control that estimates."""
import json

import pytest
import torch

from crlsr.core import generator
from crlsr.data import ImagePool, PatchSampler, embedded_images
from crlsr.degradation import Degradation
from crlsr.images import write_image
from crlsr.inference import load_model
from crlsr.model import EstimatingSR, Labels, load_model_file
from crlsr.model.crlsr import untrained_networks
from crlsr.training import estimate as module, fit, profile
from crlsr.training.interruptions import load_checkpoint
from crlsr.training.estimate import cost_against_l1
from crlsr.training.loop import Validation
from crlsr.training.step import new_state, train_step

SETTINGS = {"method": "estimating", "pairing": "same_degradation", "num_feat": 8, "num_block": 2, "vector_feat": 8, "encoder_feat": 4, "num_keys": 16,
            "steps": 12, "batch_size": 4, "patch_size": 8, "warmup_steps": 2, "log_every": 4, "checkpoint_every": 5, "threads": 1, "device": "cpu", "encoder_warmup": 0.25}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("few")
    for name in ("astronaut", "coffee"):
        write_image(embedded_images()[name][:, 100:180, 100:180], folder / f"{name}.png")
    return str(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, photographs):
    return fit(*profile("smoke", SETTINGS | {"data": photographs, "val_data": photographs}), tmp_path_factory.mktemp("whole") / "run", progress=False)


def test_a_run_says_what_it_is(whole):
    record = json.loads((whole.run_dir / "config.json").read_text())
    assert record["train"]["method"] == "estimating" and record["model"]["num_keys"] == 16
    assert [set(row) & {"contrast", "bc", "srnce", "rec"} for row in whole.log] == [{"contrast"}] * 3
    assert whole.log[-1]["contrast"] > 0 and whole.log[-1]["psnr"] > 0
    lr = torch.rand(1, 3, 9, 7, generator=generator("lr"))
    for model in (load_model(whole.run_dir), load_model(whole.run_dir / "checkpoint.pt"), load_model_file(whole.run_dir / "model.safetensors")):
        assert isinstance(model, EstimatingSR) and torch.equal(model(lr), whole.model(lr))
    assert untrained_networks(whole.model, 0) == []


@pytest.mark.parametrize("changes", [{}, {"vector": "shuffled"}, {"vector": "oracle"}, {"local_vector": True, "accumulate": 2}])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, photographs, changes):
    config = profile("smoke", SETTINGS | {"data": photographs} | changes)
    fit(*config, tmp_path / "whole", progress=False)
    for _ in range(3):
        stopped = fit(*config, tmp_path / "stopped", progress=False, max_steps=5)
    assert stopped.finished
    a, b = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("whole", "stopped"))
    for part in ("weights", "ema"):
        assert all(torch.equal(value, b[part][name]) for name, value in a[part].items())
    assert fit(*config, tmp_path / "whole", progress=False).finished  # read, not trained
    with pytest.raises(ValueError, match="holds a run of other settings"):
        fit(*profile("smoke", SETTINGS | {"data": photographs, "key_momentum": 0.5} | changes), tmp_path / "whole", progress=False)


def test_a_step_of_the_engine_is_the_plain_one():
    model_config, config = profile("smoke", SETTINGS | {"encoder_warmup": 0.0, "clip_norm": 0.0})
    state, other = new_state(model_config, config), new_state(model_config, config).model
    optimizer = torch.optim.Adam([p for p in other.parameters() if p.requires_grad], lr=config.learning_rate / 2, betas=config.betas)
    batch = PatchSampler(ImagePool("embedded:train"), Degradation.parse("iso", scale=4), 8, 4, 0, "same_degradation").batch(0)
    train_step(state, batch, config)
    losses, _ = other.objective(batch.lr, batch.hr, progress=0.0, labels=Labels(batch.image, batch.degradation, batch.params))
    losses.total.backward()
    optimizer.step()
    other.after_step()
    for (name, ours), theirs in zip(state.model.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_an_oracle_is_validated_with_the_truth(photographs):
    model_config, config = profile("smoke", SETTINGS | {"vector": "oracle"})
    model = new_state(model_config, config).average
    with torch.no_grad():  # or every vector does the same
        for part in [*model.restorer.backbone.modulations, model.restorer.backbone.plain.decoder.tail]:
            for weight in part.parameters():
                weight.normal_(std=0.1)
    blurred, sharp = (Validation({"a": torch.rand(3, 64, 64, generator=generator("v"))}, Degradation.parse(text, scale=4)) for text in ("iso:3", "iso:1"))
    before = blurred(model)
    blurred.pairs = [(lr, hr, sharp.pairs[0][2]) for lr, hr, _ in blurred.pairs]
    assert blurred(model) != before


def test_options_about_other_losses_are_refused_or_say_nothing(tmp_path, photographs):
    for wrong in ({"pairing": "none"}, {"probe_every": 2}, {"guidance_every": 2}, {"extractor_steps": 3, "freeze_extractor": True}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: got .* 'estimating'"):
            profile("smoke", SETTINGS | wrong)
    plain, other = (fit(*profile("smoke", SETTINGS | {"data": photographs} | changes), tmp_path / name, progress=False)
                    for name, changes in (("plain", {}), ("other", {"share_bc": 0.2, "share_aware": -0.1, "keep_at": (0.5, 1.0)})))
    weights = plain.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in other.model.state_dict().items())
    assert not {name for row in other.log for name in row if name.startswith("share_")}
    kept = load_model_file(other.run_dir / "kept-1.safetensors")
    assert isinstance(kept, EstimatingSR) and all(torch.equal(value, weights[name]) for name, value in kept.state_dict().items())
    half = load_model_file(other.run_dir / "kept-0.5.safetensors").state_dict()
    assert any(not torch.equal(value, weights[name]) for name, value in half.items())


def test_its_cost_is_compared_with_plain_l1():
    settings = SETTINGS | {"vector": "oracle"}  # no contrast: what remains is a tuned restorer
    found = cost_against_l1(*profile("smoke", settings), patience=0)
    contrasted = cost_against_l1(*profile("smoke", SETTINGS | {"encoder_warmup": 0.0}), patience=0)
    assert 1 < found["gflop_of_l1"] < contrasted["gflop_of_l1"]


def test_what_a_run_costs_is_estimated():
    found = module.estimate(*profile("smoke", SETTINGS), patience=0)
    assert found.cost.flops > 0 and 0 < found.parameters[1] < found.parameters[0]
