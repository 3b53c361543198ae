"""model: equal starts, which term teaches what, replay, files that fail with one line."""
import json
import math
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from crlsr.contrast import sample_positions
from crlsr.core import generator, seed_everything
from crlsr.model import CRLSR, Losses, ModelConfig, files as model_module, load_model_file, save_model
from crlsr.model.crlsr import compare_gradients, networks_of, remover_gradients
from crlsr.networks import Restorer
from tests.peak import peak

OFF = {"weight_bc": 0.0, "weight_srnce": 0.0, "weight_rec": 0.0}
TINY = ModelConfig.from_flat(scale=2, num_feat=8, num_block=3, num_embed=8, num_vectors=16, weight_bc=0.1, weight_srnce=0.1, weight_rec=0.1)


def build(config: ModelConfig, seed: int = 0, awake: bool = True) -> CRLSR:
    "A model; `awake` gives the decoder's last layer weights, which are zero at the start and would block every gradient."
    seed_everything(seed)
    model = CRLSR(config)
    if awake:
        torch.nn.init.normal_(model.restorer.decoder.tail.conv.weight, std=0.1, generator=generator("awake"))
    return model


def pair(scale: int, side: int = 8, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    draw = generator("pair", scale)
    return torch.rand(batch, 3, side, side, generator=draw), torch.rand(batch, 3, side * scale, side * scale, generator=draw)


def reached(model: CRLSR, term: torch.Tensor) -> set[str]:
    "The networks in which a term has a gradient other than zero."
    names = {}
    for name, part in networks_of(model).items():
        weights = list(part.parameters())
        if weights:
            gradients = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
            names[name] = any(g is not None and bool(g.any()) for g in gradients)
    return {name for name, hit in names.items() if hit}


# --- config ---

@pytest.mark.parametrize("wrong, word", [
    ({"weight_bcc": 1}, "weight_bc"), ({"scale": 5}, "scale"), ({"input": "hr"}, "input"), ({"num_feat": 0}, "num_feat"), ({"num_block": 0}, "num_block"),
    ({"weight_rec": -1}, "weight_rec"), ({"weight_bc": float("nan")}, "weight_bc"), ({"temperature": 0}, "temperature"), ({"num_vectors": 0}, "num_vectors"),
    ({"decoder_blocks": 7}, "decoder_blocks"), ({"training_blocks": -1}, "training_blocks"), ({"bc_negatives": "queue"}, "bc_negatives"), ({"share_heads": 1}, "share_heads"),
])
def test_config_refuses_with_one_line(wrong, word):
    with pytest.raises(ValueError, match=word) as error:
        ModelConfig.from_dict(wrong)
    assert "\n" not in str(error.value)


def test_config_survives_json():
    config = TINY.replace(decoder_blocks=0)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("num_block", range(1, 34))
def test_depths_use_every_block(num_block):
    config = ModelConfig.from_flat(num_block=num_block)
    (remover, decoder), training = config.network.depths, config.vectors.depth(config.network)
    assert remover + decoder == num_block and remover >= decoder >= 0 and training >= 1


# --- construction ---

@pytest.mark.parametrize("change", [OFF, {"weight_bc": 0}, {"weight_srnce": 0}, {"weight_rec": 0}, {"share_heads": False}, {"training_blocks": 3}, {"num_embed": 64}])
def test_every_variant_starts_from_the_same_inference_path(change):
    full, other = build(TINY, awake=False), build(TINY.replace(**change), awake=False)
    a, b = full.restorer.state_dict(), other.restorer.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    lr, _ = pair(2)
    assert torch.equal(full(lr), other(lr))


@pytest.mark.parametrize("change, missing", [
    ({"weight_bc": 0}, {"decoupling"}),
    ({"weight_srnce": 0}, {"refinement.heads", "refinement.loss"}),
    ({"weight_rec": 0}, {"refinement.rebuilder"}),
    ({"weight_srnce": 0, "weight_rec": 0}, {"refinement"}),
])
def test_weight_zero_builds_and_computes_nothing(change, missing):
    full, less = build(TINY), build(TINY.replace(**change))
    parts, gone = ({name for name, _ in model.named_modules()} for model in (full, less)), set()
    for name in sorted(set.difference(*parts)):
        gone |= set() if any(name.startswith(f"{outer}.") for outer in gone) else {name}
    assert gone == missing
    losses, _ = less.objective(*pair(2), generator(0))
    for term in ("bc", "srnce", "rec"):
        value = getattr(losses, term)
        assert (value.item() == 0 and not value.requires_grad) if f"weight_{term}" in change else value.item() > 0


def test_the_control_draws_nothing():
    draw = generator(0)
    state = draw.get_state()
    losses, _ = build(TINY.replace(**OFF)).objective(*pair(2), draw)
    assert torch.equal(draw.get_state(), state) and torch.equal(losses.total, losses.pixel)


# --- objective ---

@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("grid", ["lr", "upsampled"])
def test_scales_and_grids(scale, grid):
    model = build(TINY.replace(scale=scale, input=grid))
    lr, hr = pair(scale, side=5)
    losses, sr = model.objective(lr, hr, generator(0))
    side = 5 if grid == "lr" else 5 * scale
    assert model.features(lr).shape == (2, 8, side, side) and sr.shape == hr.shape
    assert torch.equal(sr, model(lr)) and all(torch.isfinite(term) for term in losses)
    losses.total.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_terms_are_what_their_names_say():
    model, (lr, hr) = build(TINY.replace(num_vectors=64, share_heads=False, weight_srnce=0.2, weight_rec=0.3)), pair(2)
    losses, sr = model.objective(lr, hr, generator(0))
    with torch.no_grad():  # all 64 positions, so their order does not matter
        vectors = lambda maps: maps.flatten(2).mT  # noqa: E731 - (B, C, H, W) -> (B, H*W, C)
        unit = lambda head, maps: F.normalize(head(vectors(maps)), dim=-1)  # noqa: E731
        f_l, e_h, e_s = model.features(lr), model.refinement.extractor(hr), model.refinement.extractor(sr)
        s = unit(model.decoupling.heads.low, f_l) @ unit(model.decoupling.heads.high, model.decoupling.details_remover(hr)).mT / 0.07
        own = s.diagonal(dim1=1, dim2=2)
        bc = ((s.logsumexp(2) - own).mean() + (s.logsumexp(1) - own).mean()) / 2
        a, p, n = unit(model.refinement.heads.high, e_h), unit(model.refinement.heads.high, e_s), unit(model.refinement.heads.low, f_l)
        near, far = (a * p).sum(-1) / 0.07, (a * n).sum(-1) / 0.07
        srnce = (torch.logaddexp(near, far) - near).mean()
        rec = (model.refinement.rebuilder(e_h) - hr).abs().mean()
        pixel = (sr - hr).abs().mean()
    expected = Losses(pixel + 0.1 * bc + 0.2 * srnce + 0.3 * rec, pixel, bc, srnce, rec, *torch.zeros(3))
    for name, value in losses._asdict().items():
        torch.testing.assert_close(value, getattr(expected, name), rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("anchor", ["hr", "sr", "both"])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("grid", ["lr", "upsampled"])
def test_each_term_teaches_its_networks_and_no_other(anchor, share, grid):
    model = build(TINY.replace(srnce_anchor=anchor, share_heads=share, input=grid, temperature=1.0))
    losses, _ = model.objective(*pair(2), generator(0))
    assert reached(model, losses.pixel) == {"degradation remover", "SR decoder"}
    assert reached(model, losses.bc) == {"degradation remover", "details remover", "heads of L_bc"}
    assert reached(model, losses.srnce) == {"degradation remover", "SR decoder", "E_f", "heads of L_srnce"}
    assert reached(model, losses.rec) == {"E_f", "D_rec"}


def test_both_removers_and_both_heads_learn_from_bc():
    model = build(TINY.replace(share_heads=False))
    losses, _ = model.objective(*pair(2), generator(0))
    losses.bc.backward()
    parts = (model.restorer.remover, model.decoupling.details_remover, model.decoupling.heads.low, model.decoupling.heads.high)
    assert all(p.grad is not None and p.grad.any() for part in parts for p in part.parameters() if p.ndim > 1)


def test_the_negative_is_moved_only_where_asked():
    lr, hr = pair(2)
    for detach in (True, False):
        model = build(TINY.replace(detach_negatives=detach, share_heads=False, temperature=1.0), awake=False)
        losses, _ = model.objective(lr, hr, generator(0))  # the decoder's zeros close the other way from L_srnce to the remover
        losses.srnce.backward()
        moved = [p.grad is not None and bool(p.grad.any()) for part in (model.restorer.remover, model.refinement.heads.low) for p in part.parameters()]
        assert not any(moved) if detach else all(moved[-2:]) and any(moved[:-4])


def test_convolutions_run_once_and_the_extractors_twice():
    model, calls = build(TINY), []
    convolutions = {name: part for name, part in model.named_modules() if isinstance(part, torch.nn.Conv2d)}
    for name, part in convolutions.items():
        part.register_forward_hook(lambda *_, name=name: calls.append(name))
    model.objective(*pair(2), generator(0))
    assert {name: calls.count(name) for name in convolutions} == {name: 1 + name.startswith("refinement.extractor") for name in convolutions}


def naive_total(model: CRLSR, lr: torch.Tensor, hr: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    "The weighted sum, written from the definitions: every network on its own, every head on every position, every loss by cross-entropy."
    def vectors(head, maps):
        return F.normalize(head(maps.flatten(2).mT), dim=-1)[:, at]  # (B, C, H, W) -> (B, H*W, D) -> (B, M, D)

    c, target = model.config, torch.arange(len(at)).expand(len(lr), -1)
    q, k = vectors(model.decoupling.heads.low, model.features(lr)), vectors(model.decoupling.heads.low, model.decoupling.details_remover(hr))
    table = q @ k.mT / c.vectors.temperature
    bc = (F.cross_entropy(table.mT, target) + F.cross_entropy(table, target)) / 2
    sr = model(lr)
    e_h, e_s, f_l = (vectors(model.refinement.heads.low, maps) for maps in (model.refinement.extractor(hr), model.refinement.extractor(sr), model.features(lr).detach()))
    f_l = f_l.detach()
    choice = torch.stack([(e_h * e_s).sum(-1), (e_h * f_l).sum(-1)], dim=1) / c.vectors.temperature  # (B, 2, M)
    srnce = F.cross_entropy(choice, torch.zeros_like(target))
    rec = (model.refinement.rebuilder(model.refinement.extractor(hr)) - hr).abs().mean()
    return (sr - hr).abs().mean() + c.decoupling.weight * bc + c.refinement.weight * srnce + c.refinement.weight_rec * rec


@pytest.mark.parametrize("window", [None, 5])
def test_gradients_equal_those_of_the_naive_step(window):
    config = TINY.replace(weight_bc=0.3, weight_srnce=0.4, weight_rec=0.5, temperature=0.2, scale=4, guidance_window=window)
    model, (lr, hr) = build(config), pair(4, batch=3)
    model.objective(lr, hr, generator(0))[0].total.backward()
    fast = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    draw = generator(0)
    if window is None:
        naive_total(model, lr, hr, sample_positions(8, 8, 16, draw)).backward()
    else:  # the networks of the hr side see a window, f_l and sr come from whole patches
        top, left = (int(torch.randint(4, (), generator=draw)) for _ in range(2))
        at = sample_positions(5, 5, 16, draw)
        cut = lambda maps, k: maps[..., k * top : k * (top + 5), k * left : k * (left + 5)]  # noqa: E731
        whole = model.features, model.forward
        f_l, sr = model.features(lr), model(lr)
        model.features, model.forward = lambda _: cut(f_l, 1), lambda _: cut(sr, 4)
        inside = naive_total(model, lr, cut(hr, 4), at)
        model.features, model.forward = whole
        (inside - (cut(sr, 4) - cut(hr, 4)).abs().mean() + (sr - hr).abs().mean()).backward()
    for name, p in model.named_parameters():
        assert (p.grad - fast[name]).abs().max() <= 1e-5 * p.grad.abs().max(), name


def test_positions_come_from_the_generator_alone():
    model, (lr, hr) = build(TINY), pair(2)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, _ = model.objective(lr, hr, generator(0, 7))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    again, _ = model.objective(lr, hr, generator(0, 7))
    other, _ = model.objective(lr, hr, generator(0, 8))
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not torch.equal(first.bc, other.bc) and not torch.equal(first.srnce, other.srnce)
    assert torch.equal(first.pixel, other.pixel) and torch.equal(first.rec, other.rec)


def test_both_losses_share_one_draw():
    used, expected = generator(0), generator(0)
    build(TINY).objective(*pair(2), used)
    sample_positions(8, 8, TINY.vectors.num_vectors, expected)
    assert torch.equal(used.get_state(), expected.get_state())


def test_a_term_keeps_its_value_when_another_is_off():
    full, only_bc = build(TINY), build(TINY.replace(weight_srnce=0, weight_rec=0))
    a, b = (model.objective(*pair(2), generator(0))[0].bc for model in (full, only_bc))
    assert torch.equal(a, b)


def test_more_vectors_than_positions_uses_all():
    a, b = (build(TINY.replace(num_vectors=m)).objective(*pair(2), generator(0))[0] for m in (64, 10_000))
    assert torch.equal(a.bc, b.bc)


def test_gradients_are_finite_at_a_low_temperature():
    model = build(TINY.replace(temperature=0.01))
    model.objective(*pair(2), generator(0))[0].total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_training_lowers_every_term_it_weighs():
    model, (lr, hr) = build(TINY.replace(weight_bc=0.05, weight_srnce=0.05, weight_rec=1.0, weight_decode=0.3, weight_gradient=0.5, temperature=0.3)), pair(2)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    rows = []
    for _ in range(25):
        losses, _ = model.objective(lr, hr, generator(0))
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        rows.append(losses)
    assert all(getattr(rows[-1], name) < getattr(rows[0], name) for name in Losses._fields if name != "head")


@pytest.mark.parametrize("lr_shape, hr_shape", [((2, 3, 8, 8), (2, 3, 8, 8)), ((2, 3, 8, 8), (1, 3, 16, 16)), ((3, 8, 8), (3, 16, 16)), ((2, 1, 8, 8), (2, 1, 16, 16)), ((2, 3, 8, 8), (2, 3, 16, 15))])
def test_shapes_that_do_not_fit(lr_shape, hr_shape):
    with pytest.raises(ValueError, match="lr, hr: got"):
        build(TINY).objective(torch.rand(lr_shape), torch.rand(hr_shape))


# --- files ---

@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = build(TINY)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(model, path, step=3, note="α")
    return model, path


def one_line(error) -> str:
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    return str(error.value)


def test_a_file_gives_the_model_back(saved):
    model, path = saved
    torch.manual_seed(1)
    state = torch.get_rng_state()
    loaded = load_model_file(path, expect_scale=2)
    assert torch.equal(torch.get_rng_state(), state), "loading drew from the caller's random numbers"
    assert loaded.config == model.config and not loaded.training
    assert loaded.meta["step"] == 3 and loaded.meta["note"] == "α"
    lr, hr = pair(2)
    assert all(torch.equal(a, b) for a, b in zip(loaded.objective(lr, hr, generator(0))[0], model.objective(lr, hr, generator(0))[0]))


def test_the_same_model_gives_the_same_bytes(saved, tmp_path):
    model, path = saved
    save_model(model, tmp_path / "again.safetensors", step=3, note="α")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_a_model_file_has_the_rights_of_any_new_file(saved, tmp_path):
    (tmp_path / "plain").touch()
    assert saved[1].stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failed_write_leaves_the_old_file(saved, tmp_path, monkeypatch):
    model, path = saved
    target = tmp_path / "model.safetensors"
    target.write_bytes(path.read_bytes())

    def breaks(where, content, honest=Path.write_bytes):
        assert [each.name.startswith(".crlsr-") for each in tmp_path.iterdir() if each != target] == [True], "what a kill would leave is known as ours"
        honest(where, content[:100])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", breaks)
    with pytest.raises(OSError, match="disk full"):
        save_model(model, target)
    assert target.read_bytes() == path.read_bytes() and list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("share", [0, 0.0001, 0.01, 0.5, 0.99, 0.9999])
def test_a_cut_file(saved, tmp_path, share):
    whole = saved[1].read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match="cut off") as error:
        load_model_file(tmp_path / "cut.safetensors")
    assert "cut.safetensors" in one_line(error)


def test_other_files(saved, tmp_path):
    model, path = saved
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_model_file(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("weights")
    with pytest.raises(ValueError, match="no safetensors file") as error:
        load_model_file(tmp_path / "text.safetensors")
    one_line(error)
    for metadata in (None, {"crlsr": "null"}, {"crlsr": '{"step": 1}'}, {"other": "1"}):
        save_file(load_file(path), tmp_path / "foreign.safetensors", metadata)
        with pytest.raises(ValueError, match="no config of crlsr") as error:
            load_model_file(tmp_path / "foreign.safetensors")
        one_line(error)


def test_a_config_that_this_version_does_not_know(saved, tmp_path):
    model, path = saved
    about = {"format": 2, "config": model.config.to_dict() | {"weight_bd": 1.0}}
    save_file(load_file(path), tmp_path / "new.safetensors", {"crlsr": json.dumps(about)})
    with pytest.raises(ValueError, match="unknown key 'weight_bd'; did you mean 'weight_bc'") as error:
        load_model_file(tmp_path / "new.safetensors")
    assert "new.safetensors" in one_line(error)


@pytest.mark.parametrize("form, word", [(None, "form 1, .* reads form 2; train"), (3, "form 3, .* reads form 2; update crlsr"), ("x", "form x, .* reads form 2")])
def test_a_file_of_another_form(saved, tmp_path, form, word):
    model, path = saved
    about = {"config": model.config.to_dict()} | ({} if form is None else {"format": form})
    save_file(load_file(path), tmp_path / "other.safetensors", {"crlsr": json.dumps(about)})
    with pytest.raises(ValueError, match=word) as error:
        load_model_file(tmp_path / "other.safetensors")
    assert "other.safetensors" in one_line(error)


def test_the_restorer_alone_reads_its_part_of_a_file(saved):
    model, path = saved
    restorer = Restorer(model.config.network)
    restorer.load_state_dict({name.removeprefix("restorer."): value for name, value in load_file(path).items() if name.startswith("restorer.")})
    lr, _ = pair(2)
    assert torch.equal(restorer(lr), model(lr))


def test_weights_of_another_config(saved, tmp_path):
    model, path = saved
    for change in ({"num_feat": 16}, {"weight_rec": 0.0}, {"num_block": 6}):
        about = {"format": 2, "config": model.config.replace(**change).to_dict()}
        save_file(load_file(path), tmp_path / "odd.safetensors", {"crlsr": json.dumps(about)})
        with pytest.raises(ValueError, match="weights do not fit") as error:
            load_model_file(tmp_path / "odd.safetensors")
        one_line(error)


def test_another_scale(saved):
    with pytest.raises(ValueError, match="scale 2, expected scale 4") as error:
        load_model_file(saved[1], expect_scale=4)
    one_line(error)


def test_loading_executes_nothing(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    (tmp_path / "bomb.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="no safetensors file"):
        load_model_file(tmp_path / "bomb.safetensors")
    assert not (tmp_path / "exploded").exists()


def rewritten(path, target, change=lambda about: None, weights=lambda weights: None):
    "A model file with other contents and the checksum that belongs to them."
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["crlsr"])
    tensors = load_file(path)
    del about["sha256"]
    change(about)
    weights(tensors)
    about["sha256"] = model_module.model_digest(about, tensors)
    save_file(tensors, target, {"crlsr": json.dumps(about)})


def test_any_flipped_bit_of_the_weights_is_noticed(saved, tmp_path):
    whole = saved[1].read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for place in range(start, len(whole), max(1, (len(whole) - start) // 40)):
        (tmp_path / "flipped.safetensors").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="is damaged: it holds something else than was written") as error:
            load_model_file(tmp_path / "flipped.safetensors")
        one_line(error)


@pytest.mark.parametrize("old, new", [(b'\\"step\\": 3', b'\\"step\\": 4'), (b'\\"weight\\": 0.', b'\\"weight\\": 1.')])
def test_what_a_file_says_is_in_the_checksum_as_well(saved, tmp_path, old, new):
    whole = saved[1].read_bytes()
    assert old in whole
    (tmp_path / "said.safetensors").write_bytes(whole.replace(old, new, 1))
    with pytest.raises(ValueError, match="damaged|do not fit"):
        load_model_file(tmp_path / "said.safetensors")


def test_a_file_without_a_checksum_is_refused(saved, tmp_path):
    with safe_open(saved[1], framework="pt") as file:
        about = json.loads(file.metadata()["crlsr"])
    del about["sha256"]
    save_file(load_file(saved[1]), tmp_path / "bare.safetensors", {"crlsr": json.dumps(about)})
    with pytest.raises(ValueError, match="has no checksum; train the model again"):
        load_model_file(tmp_path / "bare.safetensors")


@pytest.mark.parametrize("change", [{"num_feat": 20000}, {"num_block": 100000}, {"queue_size": 10**10, "bc_negatives": "queue", "ema_keys": 0.9}, {"num_embed": 10**9}, {"num_feat": 10**18},
                                    {"training_blocks": 10**6}])
def test_a_config_is_held_against_the_tensors_before_anything_is_built(saved, tmp_path, change):
    model, path = saved
    rewritten(path, tmp_path / "huge.safetensors", lambda about: about.update(config={**model.config.flat(), **change}))
    state, before = torch.get_rng_state(), peak()
    with pytest.raises(ValueError, match="weights do not fit the config") as error:
        load_model_file(tmp_path / "huge.safetensors")
    one_line(error)
    assert torch.equal(torch.get_rng_state(), state) and peak() - before < 200e6


FIRST = "restorer.remover.head.weight"


@pytest.mark.parametrize("change, words", [
    (lambda w: w.update({FIRST: w[FIRST].to(torch.int8)}), f"'{FIRST}' holds torch.int8, expected torch.float32"),
    (lambda w: w.update({FIRST: w[FIRST].to(torch.complex64)}), f"'{FIRST}' holds torch.complex64"),
    (lambda w: w[FIRST].view(-1)[3:4].fill_(math.nan), f"'{FIRST}' holds numbers that are not finite"),
    (lambda w: w[FIRST].view(-1)[3:4].fill_(-math.inf), f"'{FIRST}' holds numbers that are not finite"),
    (lambda w: w.update({FIRST: w[FIRST].double() + 1e300}), f"'{FIRST}' holds numbers that are not finite"),  # beyond float32
    (lambda w: w.update({"mine": torch.zeros(2)}), "'mine': .*expected none"),
    (lambda w: w.pop(FIRST), f"'{FIRST}': missing, expected"),
    (lambda w: w.update({FIRST: w[FIRST][:, :2].contiguous()}), f"weights do not fit the config .'{FIRST}'"),
])
def test_tensors_that_are_no_weights_of_this_model_are_named(saved, tmp_path, change, words):
    rewritten(saved[1], tmp_path / "odd.safetensors", weights=change)
    with pytest.raises(ValueError, match=words) as error:
        load_model_file(tmp_path / "odd.safetensors")
    one_line(error)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_finite_floats_of_another_precision_become_float32(saved, tmp_path, dtype):
    rewritten(saved[1], tmp_path / "other.safetensors", weights=lambda w: w.update({FIRST: w[FIRST].to(dtype)}))
    loaded = load_model_file(tmp_path / "other.safetensors").state_dict()
    assert loaded[FIRST].dtype == torch.float32 and torch.equal(loaded[FIRST], saved[0].state_dict()[FIRST].to(dtype).float())


@pytest.mark.parametrize("changes", [{}, {"bc_negatives": "queue", "ema_keys": 0.9, "queue_size": 64}, {"input": "upsampled"}, {"share_heads": False}, {"weight_bc": 0, "weight_srnce": 0, "weight_rec": 0}])
def test_nothing_is_left_without_memory(tmp_path, changes):
    model = CRLSR(ModelConfig.from_flat(num_feat=8, num_block=2, num_embed=8, num_vectors=8, **changes)).eval()
    save_model(model, tmp_path / "m.safetensors")
    loaded = load_model_file(tmp_path / "m.safetensors")
    assert not any(value.is_meta for value in (*loaded.parameters(), *loaded.buffers()))
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
    lr = torch.rand(1, 3, 7, 9, generator=generator("lr"))
    assert torch.equal(loaded(lr), model(lr))


# archives of torch.save

def test_an_archive_is_checked_to_its_last_byte_and_runs_nothing(tmp_path):
    path, told = tmp_path / "a.pt", {"w": torch.arange(1000.0)}
    torch.save(told, path)
    assert torch.equal(model_module.read_archive(path)["w"], told["w"]) and model_module.is_whole(path)
    whole = path.read_bytes()
    start = whole.find(told["w"].numpy().tobytes())
    for place in range(start, start + 4000, 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x20]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="cut short, altered or no checkpoint"):
            model_module.read_archive(path)
    assert not model_module.is_whole(tmp_path / "none.pt")
    with pytest.raises(FileNotFoundError, match="no file"):
        model_module.read_archive(tmp_path / "none.pt")
    torch.save([1], path)
    with pytest.raises(ValueError, match="no checkpoint"):
        model_module.read_archive(path)


def test_a_compressed_archive_is_no_checkpoint(tmp_path):
    "Of some kB it could grow to any size."
    torch.save({"w": torch.zeros(100_000)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as plain, zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert (tmp_path / "b.pt").stat().st_size < 10_000
    with pytest.raises(ValueError, match="no checkpoint"):
        model_module.read_archive(tmp_path / "b.pt")


def test_meta_may_not_replace_the_config(saved, tmp_path):
    with pytest.raises(ValueError, match="config"):
        save_model(saved[0], tmp_path / "x.safetensors", config={})
    assert not list(tmp_path.iterdir())


# --- how loud the terms are ---

def test_compared_gradients_of_straight_lines_and_where_nothing_arrives():
    w, v = (torch.randn(4, generator=generator(k)).requires_grad_() for k in "wv")
    a, b = (torch.randn(8, generator=generator(k)) for k in "ab")
    both, fixed = torch.cat([w, v]), torch.ones(3)
    lengths, cosines = compare_gradients([(both * a).sum(), (both * b).sum(), (w * b[:4]).sum()], iter([w, fixed, v]))
    assert lengths == pytest.approx([a.norm().item(), b.norm().item(), b[:4].norm().item()])  # the last one does not reach v
    assert cosines == pytest.approx([1.0, F.cosine_similarity(a, b, dim=0).item(), float(a[:4] @ b[:4] / (a.norm() * b[:4].norm()))])
    assert w.grad is None and v.grad is None
    assert compare_gradients([w.sum(), torch.tensor(3.0), v.sum()], [w]) == ([2.0, 0.0, 0.0], [1.0, 0.0, 0.0])
    assert compare_gradients([torch.tensor(3.0), w.sum()], [w]) == ([0.0, 2.0], [0.0, 0.0])
    assert compare_gradients([w.sum()], [fixed]) == compare_gradients([w.sum()], []) == ([0.0], [0.0])


def test_gradients_at_the_remover_by_hand():
    model, (lr, hr) = build(TINY.replace(temperature=1.0)), pair(2)
    found = remover_gradients(model, lr, hr, generator(0))
    losses, _ = model.objective(lr, hr, generator(0))
    leaves = list(model.restorer.remover.parameters())
    flat = [torch.cat([g.flatten() for g in torch.autograd.grad(weight * term, leaves, retain_graph=True)])
            for weight, term in ((1.0, losses.pixel), (TINY.decoupling.weight, losses.bc), (TINY.refinement.weight, losses.srnce))]
    assert found[:3] == pytest.approx([g.norm().item() for g in flat], rel=1e-4) and found.rec == 0
    cosines = [F.cosine_similarity(flat[0], g, dim=0).item() for g in flat[1:]]
    assert (found.cos_bc, found.cos_srnce) == pytest.approx(cosines, rel=1e-3, abs=1e-5) and min(abs(c) for c in cosines) > 1e-4
    assert all(p.grad is None for p in model.parameters()), "a look leaves no gradient"


def test_a_weight_of_zero_is_silent():
    found = remover_gradients(build(TINY.replace(**OFF)), *pair(2), generator(0))
    assert found.pixel > 0 and found[1:] == (0.0, 0.0, 0.0, 0.0, 0.0)
    first = remover_gradients(build(TINY.replace(training="staged")), *pair(2), generator(0), progress=0.1)
    assert first.pixel == first.srnce == first.cos_bc == 0 < first.bc


def test_loudness_follows_the_weight_and_the_course():
    model = build(TINY.replace(guidance_warmup=0.5))
    full, half = (remover_gradients(model, *pair(2), generator(0), progress) for progress in (1.0, 0.25))
    assert half.bc == pytest.approx(full.bc / 2, rel=1e-4) and half.pixel == pytest.approx(full.pixel, rel=1e-4) and half.cos_bc == pytest.approx(full.cos_bc, abs=1e-4)


def test_the_reconstruction_is_heard_only_through_a_shared_body():
    assert remover_gradients(build(TINY.replace(srnce_space="shared")), *pair(2), generator(0)).rec > 0


def test_looking_works_without_gradients_and_leaves_the_random_state():
    model, draw = build(TINY), torch.get_rng_state()
    with torch.no_grad():
        assert remover_gradients(model, *pair(2), generator(0)).bc > 0
    assert torch.equal(torch.get_rng_state(), draw)
