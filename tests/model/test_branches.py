"""decoupling and refining in a model: every field of the config does what it says; which gradients are there and which are not."""
import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crlsr.contrast import Geometry, PositionNegatives, bidirectional_contrastive_loss, gather_vectors, sample_positions
from crlsr.core import generator, seed_everything
from crlsr.degradation.blur import blur
from crlsr.degradation.kernels import gaussian_kernel
from crlsr.images import resize
from crlsr.model import CRLSR, Labels, ModelConfig, load_model_file, save_model
from crlsr.model.crlsr import remover_gradients
from crlsr.model.decoupling import MomentumCopy, Temperature, look, parse_negatives, vectors_of
from crlsr.networks import Features

TINY = ModelConfig.from_flat(scale=2, num_feat=8, num_block=3, num_embed=8, num_vectors=16, weight_bc=0.1, weight_srnce=0.1, weight_rec=0.1, temperature=1.0)
LABELS = Labels(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]))


def build(config: ModelConfig) -> CRLSR:
    "A model whose decoder is not zero, so that every gradient has a way."
    seed_everything(0)
    model = CRLSR(config)
    torch.nn.init.normal_(model.restorer.decoder.tail.conv.weight, std=0.1, generator=generator("awake"))
    return model


def pair(scale: int = 2, side: int = 10, batch: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    draw = generator("pair", scale)
    return torch.rand(batch, 3, side, side, generator=draw), torch.rand(batch, 3, side * scale, side * scale, generator=draw)


def moved(term: torch.Tensor, *parts: torch.nn.Module | torch.Tensor) -> list[bool]:
    "For each part, whether the term has a gradient in it."
    result = []
    for part in parts:
        leaves = [part] if isinstance(part, torch.Tensor) else [p for p in part.parameters() if p.requires_grad]
        found = torch.autograd.grad(term, leaves, retain_graph=True, allow_unused=True) if term.requires_grad and leaves else [None]
        result.append(any(g is not None and bool(g.any()) for g in found))
    return result


def terms(model: CRLSR, labels: Labels | None = None, progress: float = 1.0, seed: int = 0):
    return model.objective(*pair(model.scale), generator(seed), progress=progress, labels=labels)[0]


# --- L_bc ---

EVERY = ["positions", "both_sides", "batch", "queue", "far", "dissimilar", "hard", "debiased", "decoupled", "transport", "same_degradation", "two_degradations",
         "simsiam", "vicreg", "barlow", "l1", "far+hard", "batch+debiased", "queue+decoupled", "batch+dissimilar+transport"]


def config_of(names: str, **changes) -> ModelConfig:
    parts = parse_negatives(names)
    return TINY.replace(bc_negatives=names, ema_keys=0.9 if "queue" in parts else None, far_distance=3, **changes)


@pytest.mark.parametrize("names", EVERY)
def test_every_construction_trains_both_removers(names):
    model = build(config_of(names))
    terms(model, LABELS).total.backward()
    model.after_step()  # fills a queue
    losses = terms(model, LABELS, seed=1)
    assert torch.isfinite(losses.bc) and moved(losses.bc, model.restorer.remover, model.decoupling.details_remover, model.restorer.decoder) == [True, True, False]
    values = {other: terms(build(config_of(other)), LABELS).bc.item() for other in ("positions", "decoupled")}
    assert names in values or losses.bc.item() not in values.values()


@pytest.mark.parametrize("names", ["same_degradation", "two_degradations"])
def test_constructions_that_need_labels_say_so(names):
    with pytest.raises(ValueError, match="degradation" if names == "same_degradation" else "image"):
        terms(build(config_of(names)))


def test_the_numbers_of_the_constructions_reach_them():
    def bc(**changes) -> float:
        return terms(build(TINY.replace(temperature=0.2, **changes))).bc.item()

    for names, field, values in (("hard", "hard_beta", (0.0, 1.0)), ("far", "far_distance", (0, 4)), ("debiased", "debias_prior", (0.01, 0.3)), ("dissimilar", "dissimilar_threshold", (-0.1, 0.9))):
        one, two = (bc(bc_negatives=names, **{field: value}) for value in values)
        assert one != pytest.approx(two, rel=1e-4), names
    assert bc(bc_negatives="hard", hard_beta=0.0) == pytest.approx(bc(), rel=1e-6) == pytest.approx(bc(bc_negatives="far", far_distance=0), rel=1e-6)


@pytest.mark.parametrize("grid", ["lr", "upsampled"])
@pytest.mark.parametrize("layer", [None, 0, 2])
def test_far_starts_where_nothing_overlaps(grid, layer):
    "What two networks of positive weights see of their images, in positions to each side."
    model = build(TINY.replace(bc_layer=layer, input=grid, bc_negatives="far"))
    for p in model.parameters():
        p.data.abs_()
    lr = torch.full((1, 3, 31 if grid == "lr" else 16, 31 if grid == "lr" else 16), 0.9, requires_grad=True)
    hr = torch.full((1, 3, 2 * lr.shape[-1], 2 * lr.shape[-1]), 0.9, requires_grad=True)
    reach = [6 if layer is None else 1 + 2 * layer, 4]  # head 1, each block 2, tail 1
    images = (lr, hr) if grid == "lr" else (hr, hr)  # on the hr grid, the remover sees the enlarged image: that much counts
    f_l = model.restorer.remover.body.tapped(model.restorer.remover.head(images[0] - 0.5), 2 if layer is None else layer)[layer is None]
    for features, image, step, positions in ((f_l, images[0], 1, reach[0]), (model.decoupling.details_remover(hr), hr, 2 if grid == "lr" else 1, reach[1])):
        seen = torch.autograd.grad(features[..., 15, 15].sum(), image)[0].abs().sum((0, 1)).any(1).nonzero()
        assert (seen.max() - seen.min() + 1).item() == step * (2 * positions + 1)
    assert model.decoupling.overlap == sum(reach) + 1 == model.decoupling.loss.negatives.steps[0].distance


@pytest.mark.parametrize("kind", ["positions", "channels", "images"])
def test_what_is_compared(kind):
    model, (lr, hr) = build(TINY.replace(bc_vectors=kind, num_vectors=100)), pair()
    bc, f_l, f_h = terms(model).bc, model.features(lr), model.decoupling.details_remover(hr)
    head = (lambda x: x) if kind == "channels" else model.decoupling.heads.low
    table = {"positions": lambda f: f.flatten(2).mT, "channels": lambda f: f.flatten(2), "images": lambda f: f.mean((2, 3))[None]}[kind]
    q, k = (F.normalize(head(table(f)), dim=-1) for f in (f_l, f_h))
    logits = q @ k.mT
    own = logits.diagonal(dim1=1, dim2=2)
    expected = ((logits.logsumexp(2) - own).mean() + (logits.logsumexp(1) - own).mean()) / 2
    torch.testing.assert_close(bc, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_layer_where_l_bc_attaches(layer):
    model = build(TINY.replace(bc_layer=layer))
    bc = terms(model).bc
    body = model.restorer.remover.body
    assert moved(bc, model.restorer.remover.head, *body.blocks, body.tail) == [True, *(index < layer for index in range(2)), False]
    assert torch.equal(terms(model).pixel, terms(build(TINY)).pixel)


@pytest.mark.parametrize("stop, expected", [("none", [True, True]), ("low", [False, True]), ("high", [True, False])])
def test_stop_gradient(stop, expected):
    model = build(TINY.replace(stop_gradient=stop, share_heads=False))
    bc = terms(model).bc
    assert moved(bc, model.restorer.remover, model.decoupling.details_remover) == expected
    assert moved(bc, model.decoupling.heads.low, model.decoupling.heads.high) == [True, True], "heads go on learning"
    assert torch.equal(bc, terms(build(TINY.replace(share_heads=False))).bc)


def test_one_encoder_for_both_sides():
    model, (lr, hr) = build(TINY.replace(shared_encoder=True)), pair()
    assert model.decoupling.details_remover.body is None and not any(name.startswith("decoupling.details_remover.body") for name in model.state_dict())
    f_h = model.decoupling.hr_features(hr, model.restorer.remover.body)
    torch.testing.assert_close(f_h, model.restorer.remover.body(model.decoupling.details_remover.head(hr - 0.5)), rtol=1e-5, atol=1e-6)  # pixels in another order
    body = model.restorer.remover.body
    assert moved(f_h.sum(), body, model.decoupling.details_remover, model.restorer.remover.head) == [True, True, False]
    for stop, head_of_lr, head_of_hr in (("none", True, True), ("low", False, True), ("high", True, False)):
        model = build(TINY.replace(shared_encoder=True, stop_gradient=stop))
        assert moved(terms(model).bc, model.restorer.remover.head, model.decoupling.details_remover, model.restorer.remover.body) == [head_of_lr, head_of_hr, True]
    inner = build(TINY.replace(shared_encoder=True, bc_layer=1))
    torch.testing.assert_close(inner.decoupling.hr_features(hr, inner.restorer.remover.body), inner.restorer.remover.body.blocks[0](inner.decoupling.details_remover.head(hr - 0.5)), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="body"):
        inner.decoupling.details_remover(hr)


@pytest.mark.parametrize("shared", [False, True])
def test_slow_keys(shared):
    config = TINY.replace(ema_keys=0.75, shared_encoder=shared, share_heads=False, num_vectors=100)
    model, (lr, hr) = build(config), pair()
    torch.testing.assert_close(terms(model).bc, terms(build(config.replace(ema_keys=None))).bc)  # the copy starts as its source
    assert not any(p.requires_grad for p in model.decoupling.slow.parameters())
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1)
    model.after_step()
    head = "decoupling.details_remover.head.conv.weight"
    torch.testing.assert_close(model.decoupling.slow["details"].head.conv.weight, 0.75 * before[head] + 0.25 * model.state_dict()[head])
    body = (model.restorer.remover.body if shared else model.decoupling.details_remover.body).tail.weight
    slow = (model.decoupling.slow["body"] if shared else model.decoupling.slow["details"].body).tail.weight
    torch.testing.assert_close(slow, body - 0.075)
    with torch.no_grad():  # the direction that looks for f_h sees slow keys, the other one live queries
        slow, body = model.decoupling.slow, model.restorer.remover.body
        vectors = [f.flatten(2).mT for f in (model.features(lr), model.decoupling.hr_features(hr, body), slow["details"](hr, slow["body"] if shared else None))]
        q_l, q_h, k_h = model.decoupling.heads.low(vectors[0]), model.decoupling.heads.high(vectors[1]), model.decoupling.slow["heads"].high(vectors[2])
    expected = bidirectional_contrastive_loss(q_l, q_h, 1.0, PositionNegatives(), geometry=Geometry(), keys=(q_l, k_h))
    torch.testing.assert_close(terms(model).bc, expected)


def test_the_queue_fills_after_the_step_and_resumes_exactly():
    config = TINY.replace(bc_negatives="queue", ema_keys=0.9, queue_size=100)
    model = build(config)
    assert terms(model).bc.item() == 0, "empty: nobody repels"
    queue = model.decoupling.loss.negatives.construction
    assert int(queue.count) == 0 and len(model.decoupling.new_keys) == 1
    model.after_step()
    assert int(queue.count) == 64 and not model.decoupling.new_keys and terms(model).bc.item() > 0
    model.after_step()
    other = build(config)
    other.load_state_dict(model.state_dict())
    first, again = terms(model, seed=5), terms(other, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(first, again)) and int(other.decoupling.loss.negatives.construction.count) == 128
    model.after_step(), other.after_step()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))


def test_a_look_does_not_fill_the_queue_and_accumulation_fills_it_twice():
    model = build(TINY.replace(bc_negatives="queue", ema_keys=0.9))
    terms(model)
    remover_gradients(model, *pair(), generator(0))
    assert len(model.decoupling.new_keys) == 1
    terms(model, seed=1)
    model.after_step()
    assert int(model.decoupling.loss.negatives.construction.count) == 2 * 64


@pytest.mark.parametrize("names", ["batch", "queue"])
def test_the_hook_gathers_other_processes(names):
    model = build(config_of(names))
    before = terms(model).bc
    elsewhere = torch.randn(4, 16, 8, generator=generator("elsewhere"))
    model.decoupling.gather = lambda x: torch.cat([x, elsewhere if x.ndim == 3 else x + 10])
    if names == "batch":
        assert terms(model).bc > before and terms(model, LABELS).bc > 0
    model.after_step()
    assert names == "batch" or int(model.decoupling.loss.negatives.construction.count) == 2 * 64 and torch.equal(model.decoupling.loss.negatives.construction.high[64:128], elsewhere.flatten(0, 1))
    assert copy.deepcopy(model).decoupling.loss.negatives is not model.decoupling.loss.negatives


def test_learned_temperatures():
    model = build(TINY.replace(learn_temperature=True, temperature=0.5))
    fixed = terms(build(TINY.replace(temperature=0.5)))
    losses = terms(model)
    torch.testing.assert_close(torch.stack(losses), torch.stack(fixed))
    for term, own, other in ((losses.bc, model.decoupling.loss.temperature, model.refinement.loss.temperature), (losses.srnce, model.refinement.loss.temperature, model.decoupling.loss.temperature)):
        assert moved(term, own, other) == [True, False]
    model.decoupling.loss.temperature.log.data.fill_(3.0)
    model.refinement.loss.temperature.log.data.fill_(-30.0)
    model.after_step()
    assert model.decoupling.loss.temperature().item() == pytest.approx(1.0) and model.refinement.loss.temperature().item() == pytest.approx(0.01)
    assert not list(Temperature(0.1, False).parameters())


# --- L_srnce ---

SRNCE = ["content", "residual", "unexplained", "bicubic", "blurred", "positions", "past", "margin", "none"]


@pytest.mark.parametrize("space", ["heads", "shared"])
@pytest.mark.parametrize("names", SRNCE)
@pytest.mark.parametrize("anchor", ["hr", "sr", "both"])
def test_every_refinement_teaches_decoder_and_extractor(names, space, anchor):
    model = build(TINY.replace(srnce_negatives=names, srnce_space=space, srnce_anchor=anchor))
    losses = terms(model)
    assert torch.isfinite(losses.srnce) and losses.srnce > 0
    assert moved(losses.srnce, model.restorer.decoder, model.refinement.extractor, model.decoupling.details_remover) == [True, True, False]
    assert (model.refinement.heads is not None) == (names != "none")


def test_a_union_by_name_repels_from_all_its_parts():
    "bicubic+positions: the smooth image at the same place, and hr at all others."
    model, (lr, hr) = build(TINY.replace(srnce_negatives="bicubic+positions", num_vectors=9)), pair(side=12)
    losses, sr = model.objective(lr, hr, generator(0))
    at = sample_positions(12, 12, 9, generator(0))
    with torch.no_grad():
        e_h, e_s, smooth = (F.normalize(model.refinement.heads.low(gather_vectors(model.refinement.extractor(image), at)), dim=-1)
                            for image in (hr, sr, resize(lr, scale=2)))
    expected = []
    for b in range(len(lr)):
        for i in range(9):
            positive, others = e_h[b, i] @ e_s[b, i], [e_h[b, i] @ smooth[b, i], *(e_h[b, i] @ e_h[b, j] for j in range(9) if j != i)]
            expected.append(torch.stack([positive, *others]).logsumexp(0) - positive)
    torch.testing.assert_close(losses.srnce, torch.stack(expected).mean(), rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="srnce_negatives: got 'positions[+]none', but margin and none stand alone"):
        TINY.replace(srnce_negatives="positions+none")


@pytest.mark.parametrize("names, made", [
    ("bicubic", lambda model, lr, hr: [resize(lr, scale=2)]), ("blurred", lambda model, lr, hr: [blur(hr, gaussian_kernel(s)) for s in (0.8, 1.6, 2.4)]),
    ("past", lambda model, lr, hr: [model.refinement.past["restorer"](lr)]),
    ("past+bicubic", lambda model, lr, hr: [resize(lr, scale=2), model.refinement.past["restorer"](lr)]),
    ("blurred+bicubic", lambda model, lr, hr: [resize(lr, scale=2), *(blur(hr, gaussian_kernel(s)) for s in (0.8, 1.6, 2.4))]),
])
def test_negatives_made_from_further_images(names, made):
    model, (lr, hr) = build(TINY.replace(srnce_negatives=names, num_vectors=100)), pair(side=12)
    losses, sr = model.objective(lr, hr, generator(0))
    with torch.no_grad():
        unit = lambda image: F.normalize(model.refinement.heads.low(model.refinement.extractor(image).flatten(2).mT), dim=-1)  # noqa: E731 - (B, M, D)
        at = sample_positions(12, 12, 100, generator(0))
        e_h, e_s, *others = (unit(image)[:, at] for image in (hr, sr, *made(model, lr, hr)))
        logits = torch.stack([(e_h * other).sum(-1) for other in (e_s, *others)], dim=-1)
    torch.testing.assert_close(losses.srnce, (logits.logsumexp(-1) - logits[..., 0]).mean(), rtol=1e-5, atol=1e-6)


def test_the_past_model_follows_slowly():
    model = build(TINY.replace(srnce_negatives="past", past_momentum=0.5))
    weight = model.restorer.decoder.tail.conv.weight
    before = model.refinement.past["restorer"].decoder.tail.conv.weight.clone()
    weight.data.add_(1.0)
    model.after_step()
    torch.testing.assert_close(model.refinement.past["restorer"].decoder.tail.conv.weight, 0.5 * before + 0.5 * weight)
    assert not any(p.requires_grad for p in model.refinement.past.parameters())


def test_one_space_for_extractor_and_content():
    model, (_, hr) = build(TINY.replace(srnce_space="shared", share_heads=False)), pair()
    body = model.restorer.remover.body
    assert model.refinement.extractor.body is None and model.refinement.heads.high is None
    torch.testing.assert_close(model.refinement.extract(hr, body), body(model.refinement.extractor.head(hr - 0.5)), rtol=1e-5, atol=1e-6)
    assert moved(terms(model).rec, body, model.refinement.extractor, model.restorer.remover.head) == [True, True, False]
    assert build(TINY.replace(srnce_space="shared", weight_srnce=0.0)).refinement.extractor.body is not None, "nothing to compare with: a body of its own"
    with pytest.raises(ValueError, match="body"):
        model.refinement.extractor(hr)


@pytest.mark.parametrize("space", ["heads", "shared"])
@pytest.mark.parametrize("names", ["content", "bicubic", "margin", "none"])
def test_freeze_extractor(names, space):
    model = build(TINY.replace(freeze_extractor=True, srnce_negatives=names, srnce_space=space, detach_negatives=False))
    losses = terms(model)
    assert moved(losses.srnce, model.refinement.extractor, model.restorer.decoder) == [False, True]
    assert moved(losses.rec, model.refinement.extractor) == [True]
    free = terms(build(TINY.replace(srnce_negatives=names, srnce_space=space, detach_negatives=False)))
    torch.testing.assert_close(torch.stack(losses), torch.stack(free))


def test_detach_anchor():
    "The decoder is zero here, so sr is bicubic and the anchor hr is the only way of the gradient into E_f(hr)."
    for anchor in ("hr", "sr"):
        model, (lr, hr) = build(TINY.replace(srnce_anchor=anchor, detach_anchor=True)), pair()
        e_h = gather_vectors(model.refinement.extract(hr), torch.arange(9))
        sr = model(lr).detach().requires_grad_()
        f_l = model.features(lr)
        view = look(hr, sr, Features(f_l, f_l), model.config.vectors, 2)._replace(positions=torch.arange(9))
        srnce, _ = model.refinement(view, rec=False)
        assert moved(srnce, sr, model.refinement.extractor) == [anchor == "hr", True] and e_h.shape == (4, 9, 8)


# --- the course of training ---

def test_stages_move_what_they_say():
    model = build(TINY.replace(training="staged", stage_share=0.5, freeze_remover=True))
    first = terms(model, progress=0.2)
    assert first.srnce.item() == 0 and first.pixel.item() > 0 and not first.pixel.requires_grad
    assert moved(first.total, model.restorer.remover, model.decoupling.details_remover, model.refinement.extractor, model.restorer.decoder) == [True, True, True, False]
    second = terms(model, progress=0.7)
    assert second.bc.item() == 0 and second.srnce.item() > 0
    assert moved(second.total, model.restorer.remover, model.decoupling.details_remover, model.restorer.decoder) == [False, False, True]
    again = terms(model, progress=0.2)
    assert moved(again.total, model.restorer.remover) == [True] and torch.equal(first.bc, again.bc)
    free = build(TINY.replace(training="staged", stage_share=0.5))
    assert moved(terms(free, progress=0.7).total, free.restorer.remover, free.decoupling.details_remover, free.restorer.decoder) == [True, True, True]


def test_a_frozen_remover_stays_also_where_the_extractor_shares_its_body():
    model = build(TINY.replace(training="staged", freeze_remover=True, srnce_space="shared"))
    losses = terms(model, progress=0.9)
    losses.total.backward()
    assert all(p.grad is None for p in model.restorer.remover.parameters()) and any(p.grad is not None for p in model.refinement.extractor.parameters())
    assert remover_gradients(model, *pair(), generator(0), 0.9)[:4] == (0.0, 0.0, 0.0, 0.0)


def test_warm_up_and_end_scale_the_total():
    model = build(TINY.replace(guidance_warmup=0.5, guidance_end=0.9))
    start, half, end = (terms(model, progress=p) for p in (0.0, 0.25, 0.9))
    assert start.bc.item() == start.srnce.item() == 0 < start.rec.item()
    torch.testing.assert_close(half.total, half.pixel + 0.05 * half.bc + 0.05 * half.srnce + 0.1 * half.rec)
    assert torch.equal(end.total, end.pixel) and end.rec.item() == 0


def test_a_step_without_any_term_moves_nothing():
    model = build(TINY.replace(training="staged", guidance_warmup=0.4, weight_rec=0.0))
    losses = terms(model, progress=0.0)
    losses.total.backward()
    assert losses.total.item() == 0 and all(p.grad is None for p in model.parameters())


# --- window ---

@pytest.mark.parametrize("grid", ["lr", "upsampled"])
def test_the_window_shows_one_place(grid):
    config = TINY.replace(guidance_window=6, input=grid, num_vectors=1000)
    model, (lr, hr) = build(config), pair()
    losses, sr = model.objective(lr, hr, generator(3))
    draw = generator(3)
    top, left = (int(torch.randint(5, (), generator=draw)) for _ in range(2))
    k = 1 if grid == "lr" else 2
    window = hr[..., 2 * top : 2 * top + 12, 2 * left : 2 * left + 12]
    f_l = model.features(lr)[..., k * top : k * (top + 6), k * left : k * (left + 6)]
    q, key = (F.normalize(model.decoupling.heads.low(f.flatten(2).mT), dim=-1) for f in (f_l, model.decoupling.details_remover(window)))
    logits = q @ key.mT
    own = logits.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(losses.bc, ((logits.logsumexp(2) - own).mean() + (logits.logsumexp(1) - own).mean()) / 2, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses.rec, (model.refinement.rebuilder(model.refinement.extract(window)) - window).abs().mean())
    assert torch.equal(losses.pixel, F.l1_loss(model(lr), hr)) and sr.shape == hr.shape


@pytest.mark.parametrize("size", [None, 10, 11])
def test_a_window_that_covers_the_patch_changes_nothing(size):
    first, second = terms(build(TINY)), terms(build(TINY.replace(guidance_window=size)))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_the_window_moves_from_step_to_step():
    model = build(TINY.replace(guidance_window=4))
    assert len({terms(model, seed=seed).rec.item() for seed in range(8)}) > 4


def test_vectors_of_by_loops():
    features, at = torch.randn(2, 3, 4, 5, generator=generator("f")), torch.tensor([7, 0, 19])
    positions, channels = (vectors_of(features, at, kind) for kind in ("positions", "channels"))
    for b in range(2):
        for m, index in enumerate(at.tolist()):
            for c in range(3):
                value = features[b, c, index // 5, index % 5]
                assert positions[b, m, c] == value == channels[b, c, m]
    torch.testing.assert_close(vectors_of(features, at, "images")[0], features.mean((2, 3)))
    assert math.isclose(vectors_of(features, at, "images")[0, 1, 2].item(), features[1, 2].mean().item(), rel_tol=1e-5)


# --- files, precision, devices ---

EXTRAS = {"bc_negatives": "queue+dissimilar", "ema_keys": 0.9, "queue_size": 50, "srnce_negatives": "past", "learn_temperature": True, "share_heads": False}


def test_a_file_keeps_all_that_training_goes_on_from(tmp_path):
    model = build(TINY.replace(**EXTRAS))
    terms(model)
    model.after_step()
    save_model(model, tmp_path / "m.safetensors")
    loaded = load_model_file(tmp_path / "m.safetensors")
    assert int(loaded.decoupling.loss.negatives.construction.count) == 50 and loaded.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(terms(loaded, seed=3), terms(model, seed=3)))


@pytest.mark.parametrize("change", [{}, {"bc_negatives": "batch+hard"}, EXTRAS, {"srnce_negatives": "unexplained", "srnce_space": "shared", "shared_encoder": True}, {"bc_negatives": "vicreg", "srnce_negatives": "none"}])
def test_half_precision_and_double(change):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = terms(build(TINY.replace(temperature=0.07, **change)))
    half.total.backward()
    model, (lr, hr) = build(TINY.replace(temperature=0.07, **change)).double(), pair()
    double, _ = model.objective(lr.double(), hr.double(), generator(0))
    double.total.backward()
    assert all(term.dtype == torch.float64 for term in double) and all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    torch.testing.assert_close(torch.stack([*half]).double(), torch.stack([*double]), rtol=0.15, atol=0.03)


@pytest.mark.gpu
@pytest.mark.parametrize("change", [{}, EXTRAS, {"bc_negatives": "two_degradations"}, {"bc_negatives": "batch+far+transport", "srnce_negatives": "blurred", "guidance_window": 8}])
def test_on_a_gpu_as_on_the_cpu(change, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # which keeps 10 bits of each factor
    model, (lr, hr) = build(TINY.replace(**change)), pair()
    here, _ = model.objective(lr, hr, generator(0), labels=LABELS)
    there, _ = copy.deepcopy(model).cuda().objective(lr.cuda(), hr.cuda(), generator(0), labels=LABELS)
    torch.testing.assert_close(torch.stack([*there]).cpu(), torch.stack([*here]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attempt, message", [
    (lambda: vectors_of(torch.ones(2, 3, 4, 4), torch.arange(2), "channel"), "kind: got 'channel', expected one of 'positions', 'channels', 'images'; did you mean 'channels'"),
    (lambda: Temperature(0.0, False), "temperature: got 0.0"), (lambda: Temperature(math.inf, False), "temperature: got inf"), (lambda: Temperature(math.nan, True), "temperature: got nan"),
    (lambda: MomentumCopy({"a": nn.Linear(2, 2)}, 1.0), "momentum: got 1.0, expected at least 0 and below 1"), (lambda: MomentumCopy({}, -0.1), "momentum: got -0.1"),
])
def test_parts_that_cannot_work_are_not_made(attempt, message):
    with pytest.raises(ValueError, match=message):
        attempt()


def test_printed_parts_show_their_settings():
    learned = Temperature(0.1, True)
    assert repr(Temperature(0.1, False)) == "Temperature(value=0.1, learn=False)" and repr(learned) == "Temperature(value=0.1, learn=True)"
    assert "momentum=0.9" in repr(MomentumCopy({"a": nn.Linear(2, 2)}, 0.9))
    with torch.no_grad():
        learned.log.fill_(math.log(0.5))
    assert repr(learned) == "Temperature(value=0.5, learn=True)"
