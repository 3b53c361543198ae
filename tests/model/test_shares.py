"""shares: a term's gradient at f_l has the length that was set; what follows f_h, and what f_h follows."""
import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from crlsr.contrast import feature_l1_loss, gather_vectors
from crlsr.core import generator
from crlsr.model import CRLSR, Labels, ModelConfig
from crlsr.model.crlsr import gradient_loss, in_force, networks_of, only_looking, remover_gradients, untrained_networks
from crlsr.model.decoupling import look
from crlsr.model.shares import active_shares, set_shares, share_gradients
from crlsr.networks import Features
from tests.model.test_branches import EVERY, LABELS, TINY, build, config_of, moved, pair

SHARES = {"share_bc": 0.2, "share_srnce": 0.05}


def measured(config: ModelConfig, progress: float = 1.0, seed: int = 3) -> CRLSR:
    model = build(config)
    set_shares(model, share_gradients(model, *pair(model.scale), generator(seed), model.config.weights_at(progress)))
    return model


def lengths_at_f_l(model: CRLSR, seed: int = 3) -> tuple[float, float, float]:
    "Of pixel loss, L_bc and L_srnce, by gradients of a leaf in the place of f_l."
    lr, hr = pair(model.scale)
    f_l = model.features(lr).detach().requires_grad_()
    sr = model.restorer.decoder(f_l, lr)
    view = look(hr, sr, Features(f_l, f_l), model.config.vectors, model.scale, generator(seed))
    body = model.restorer.remover.body
    terms = (sr - hr).abs().mean(), model.decoupling(view, body), model.refinement(view, body)[0]
    return tuple(torch.autograd.grad(term, f_l, retain_graph=True)[0].norm().item() for term in terms)


@pytest.mark.parametrize("changes", [{}, {"decoder_base": "features"}, {"guidance_window": 6}, {"shared_encoder": True, "srnce_space": "shared"},
                                     {"bc_negatives": "l1", "srnce_negatives": "none"}, {"input": "upsampled", "num_vectors": 8}])
def test_a_weighted_gradient_at_f_l_has_its_share(changes):
    model = measured(TINY.replace(**SHARES, **changes))
    pixel, bc, srnce = lengths_at_f_l(model)
    now = in_force(model, model.config.weights_at(1.0))
    assert now.bc * bc / pixel == pytest.approx(0.2, rel=1e-3) and now.srnce * srnce / pixel == pytest.approx(0.05, rel=1e-3)
    assert now.pixel == 1 and now.rec == 0.1


def test_an_inner_layer_is_measured_where_the_loss_attaches():
    model, (lr, hr) = measured(TINY.replace(share_bc=0.3, bc_layer=1)), pair()
    inner, f_l = model.restorer.remover.tapped(lr, 1)
    sr = model.restorer.decoder(f_l, lr)
    bc = model.decoupling(look(hr, sr, Features(f_l, inner), model.config.vectors, 2, generator(3)))
    own, pixel = (torch.autograd.grad(term, inner, retain_graph=True)[0].norm() for term in (bc, F.l1_loss(sr, hr)))
    assert model.factors.item() * own / pixel == pytest.approx(0.3, rel=1e-3)


def test_the_course_scales_a_share_and_the_weight_is_not_read():
    model = measured(TINY.replace(**SHARES, guidance_warmup=0.5))
    full, half = (in_force(model, model.config.weights_at(p)) for p in (1.0, 0.25))
    assert half.bc == pytest.approx(full.bc / 2) and half.srnce == pytest.approx(full.srnce / 2)
    other = measured(TINY.replace(**SHARES, guidance_warmup=0.5, weight_bc=7.0, weight_srnce=0.0))
    assert torch.equal(other.factors, model.factors)
    assert other.objective(*pair(), generator(0))[0].total == model.objective(*pair(), generator(0))[0].total


def test_a_share_builds_the_branch_and_a_share_of_zero_does_not():
    off = TINY.replace(weight_bc=0.0, weight_srnce=0.0, weight_rec=0.0)
    assert CRLSR(off.replace(share_bc=0.1)).decoupling is not None and CRLSR(off.replace(share_srnce=0.1)).refinement.heads is not None
    none = CRLSR(TINY.replace(share_bc=0.0, share_srnce=0.0, weight_rec=0.0))
    assert none.decoupling is None is none.refinement and none.factors is None and "factors" not in none.state_dict()


@pytest.mark.parametrize("base", ["lr", "features"])
@pytest.mark.parametrize("term, names", [*(("bc", names) for names in EVERY), *(("srnce", names) for names in ("content", "residual", "unexplained", "bicubic", "blurred", "positions", "past", "bicubic+positions", "margin", "none"))])
def test_every_construction_has_its_share_after_two_looks(term, names, base):
    "Also where negatives have to be gathered first: what is never heard gathers none."
    off = {"weight_bc": 0.0, "weight_srnce": 0.0, "decoder_base": base}
    model = build((config_of(names) if term == "bc" else TINY.replace(srnce_negatives=names)).replace(**off, **{f"share_{term}": 0.01}))
    level = model.config.weights_at(1.0)
    for step in range(3):
        sums = share_gradients(model, *pair(model.scale), generator(step), level, LABELS)
        set_shares(model, sums)
        model.objective(*pair(model.scale), generator(step), labels=LABELS)[0].total.backward()
        model.after_step()
    pixel, own, _ = sums[0].tolist()
    assert model.factors.item() * (own / pixel) ** 0.5 == pytest.approx(0.01, rel=1e-4)


@given(st.floats(1e-5, 1e5), st.floats(1e-5, 1e5), st.floats(0.001, 1))
def test_a_term_is_made_quieter_or_left_but_never_louder(pixel, own, share):
    model = build(TINY.replace(share_bc=share))
    set_shares(model, torch.tensor([[pixel**2, own**2, 0.0]], dtype=torch.float64))
    factor = model.factors.item()
    assert factor == pytest.approx(min(1.0, share * pixel / own), rel=1e-5) and factor <= 1
    assert factor * own / pixel <= share * (1 + 1e-5)


@pytest.mark.parametrize("number", [2, 4])
def test_pieces_add_up_to_the_whole(number):
    model, (lr, hr) = build(TINY.replace(**SHARES)).double(), [x.double() for x in pair()]
    weights = model.config.weights_at(1.0)
    whole = share_gradients(model, lr, hr, generator(3), weights)
    pieces = sum(share_gradients(model, *both, generator(3), weights) for both in zip(lr.chunk(number), hr.chunk(number)))
    one, many = copy.deepcopy(model), copy.deepcopy(model)
    set_shares(one, whole), set_shares(many, pieces)
    assert torch.allclose(one.factors, many.factors, rtol=1e-9) and one.factors.min() > 0
    assert torch.allclose(pieces[:, 2] / pieces[:, 0], whole[:, 2] / whole[:, 0], rtol=1e-6)  # the angle as well


def test_only_what_has_a_weight_now_is_measured():
    model = measured(TINY.replace(**SHARES))
    before = model.factors.tolist()
    weights = model.config.weights_at(1.0)._replace(srnce=0.0)
    found = share_gradients(model, *[x.flip(0) * 0.9 for x in pair()], generator(4), weights)
    set_shares(model, found)
    assert found[1].tolist() == [0, 0, 0] and model.factors[1] == before[1] and model.factors[0] != before[0]


def test_a_look_changes_nothing():
    model = build(TINY.replace(**SHARES, bc_negatives="queue", ema_keys=0.9, queue_size=64))
    state, draw = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    share_gradients(model, *pair(), generator(3), model.config.weights_at(1.0))
    with only_looking(model):
        model.objective(*pair(), generator(0))
    model.decoupling.after_step()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items() if "slow" not in name)
    assert torch.equal(torch.get_rng_state(), draw) and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("changes, words", [
    ({"share_bc": -0.1}, "share_bc: got -0.1, expected 0 or more"), ({"share_gradient": -0.1}, "share_gradient: got -0.1, expected 0 or more"), ({"weight_gradient": -1.0}, "weight_gradient: got -1.0"),
    ({"share_gradient": 0.1, "training": "staged"}, "share_gradient: got 0.1, expected None with training 'staged'"), ({"share_srnce": float("nan")}, "share_srnce: got nan"),
    ({"share_bc": 0.1, "stop_gradient": "low"}, "share_bc: got 0.1 with stop_gradient 'low'"),
    ({"share_srnce": 0.1, "training": "staged"}, "share_srnce: got 0.1, expected None with training 'staged'"),
    ({"weight_decode": -1.0}, "weight_decode: got -1.0"), ({"shuffle_targets": True, "bc_negatives": "dissimilar"}, "shuffle_targets: got True"),
])
def test_what_does_not_fit_is_refused_by_name(changes, words):
    with pytest.raises(ValueError, match=words):
        TINY.replace(**changes)


# --- a target worth following ---

@pytest.mark.parametrize("base", ["lr", "features"])
@pytest.mark.parametrize("shared", [False, True])
def test_decode_is_the_error_of_what_the_decoder_makes_of_f_h(base, shared):
    model, (lr, hr) = build(TINY.replace(weight_decode=0.5, decoder_base=base, shared_encoder=shared)), pair()
    found, _ = model.objective(lr, hr, generator(0))
    f_h = model.hr_features(hr)
    by_hand = (model.restorer.decoder(f_h, lr if base == "lr" else None) - hr).abs().mean()
    torch.testing.assert_close(found.decode, by_hand)
    plain, _ = build(TINY.replace(decoder_base=base, shared_encoder=shared)).objective(lr, hr, generator(0))
    assert plain.decode == 0 and found.bc == plain.bc
    torch.testing.assert_close(found.total, plain.total + 0.5 * by_hand)


def test_decode_moves_the_decoder_in_the_first_tenth_only_and_the_details_remover_always():
    model, (lr, hr) = build(TINY.replace(weight_decode=0.5)), pair()
    parts = model.decoupling.details_remover, model.restorer.decoder, model.restorer.remover
    for progress, decoder in ((0.0, True), (0.09, True), (0.1, False), (0.5, False)):
        decode = model.objective(lr, hr, generator(0), progress=progress)[0].decode
        assert moved(decode, *parts) == [True, decoder, False]
    leaf = model.decoupling.details_remover.head.conv.weight
    early, late = (torch.autograd.grad(model.objective(lr, hr, generator(0), progress=p)[0].decode, leaf)[0] for p in (0.0, 0.5))
    assert torch.equal(early, late), "the decoder is the same one, only its weights stand"


def test_decode_sees_the_window_that_l_bc_sees():
    model, (lr, hr) = build(TINY.replace(weight_decode=0.5, guidance_window=5)), pair()
    found, _ = model.objective(lr, hr, generator(0))
    rng = generator(0)
    top, left = (int(torch.randint(6, (), generator=rng)) for _ in range(2))
    near, piece = lr[..., top : top + 5, left : left + 5], hr[..., 2 * top : 2 * top + 10, 2 * left : 2 * left + 10]
    torch.testing.assert_close(found.decode, F.l1_loss(model.restorer.decoder(model.hr_features(piece), near), piece))


def test_with_decode_a_target_that_l_bc_does_not_move_is_trained():
    for decode, expected in ((0.0, True), (0.1, False)):
        torch.manual_seed(0)
        model = CRLSR(TINY.replace(stop_gradient="high", weight_decode=decode))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(3):
            losses, _ = model.objective(*pair(), generator(0))
            optimizer.zero_grad()
            losses.total.backward()
            optimizer.step()
        losses, _ = model.objective(*pair(), generator(0))
        assert ("details remover" in untrained_networks(model, 0)) == expected
        assert moved(losses.bc, model.decoupling.details_remover, model.restorer.remover) == [False, True]


def test_nobody_follows_without_l_bc():
    config = TINY.replace(weight_decode=0.5, weight_bc=0.0)
    assert config.weights_at(0.0).decode == 0 and "details remover" not in networks_of(CRLSR(config))
    over = TINY.replace(weight_decode=0.5, guidance_end=0.6)
    assert [over.weights_at(p).decode for p in (0.0, 0.59, 0.6)] == [0.5, 0.5, 0.0]


def test_shuffled_targets_are_those_of_the_image_half_a_batch_further():
    lr, hr = pair()
    straight, shuffled = (build(TINY.replace(bc_negatives="l1", shuffle_targets=flag)) for flag in (False, True))
    found, expected = shuffled.objective(lr, hr, generator(0))[0].bc, straight.objective(lr, hr, generator(0))[0].bc
    assert found != expected
    view = look(hr, hr, straight.restorer.tapped(lr), straight.config.vectors, 2, generator(0))
    v_l, v_h = (gather_vectors(f, view.positions) for f in (straight.features(lr), straight.hr_features(hr)))
    torch.testing.assert_close(expected, feature_l1_loss(v_l, v_h))
    torch.testing.assert_close(found, feature_l1_loss(v_l, v_h[[2, 3, 0, 1]]))
    with pytest.raises(ValueError, match="shuffle_targets: got 1 image, expected 2 or more"):
        shuffled.objective(lr[:1], hr[:1], generator(0))


def test_shares_of_a_log_are_means_over_the_part_in_which_the_term_was_on():
    rows = [{"step": 10, "bc": 0.0}, {"step": 30, "bc": 1.0, "share_bc": 0.3, "cos_f_l_bc": 0.5}, {"step": 40, "bc": 1.0},
            {"step": 50, "bc": 1.0, "share_bc": 0.1, "cos_f_l_bc": 0.1}, {"step": 100, "bc": 0.0}]
    found = active_shares(rows)["bc"]
    assert found["share"] == pytest.approx((20 * 0.3 + 10 * 0.3 + 10 * 0.1) / 40) and found["part"] == 0.4
    assert found["cos_f_l"] == pytest.approx((30 * 0.5 + 10 * 0.1) / 40)
    assert active_shares([{"step": 5, "bc": 2.0, "srnce": 1.0}]) == active_shares([]) == {}


# --- to know, or to forget ---

KNOWN = Labels(torch.arange(4), torch.arange(4), targets=torch.tensor([[0.5, 0.1, 0.0], [1.0, 0.7, 0.4], [float("nan")] * 3, [-1.0, -1.0, 1.0]]))
AWARE = TINY.replace(weight_bc=0.0, weight_srnce=0.0, weight_rec=0.0)


@pytest.mark.parametrize("share", [0.2, -0.2])
def test_the_head_s_gradient_enters_the_remover_by_its_share_and_sign(share):
    model, (lr, hr) = build(AWARE.replace(share_aware=share)), pair()
    weights = model.config.weights_at(1.0)
    before = model.objective(lr, hr, progress=1.0, labels=KNOWN)[0]
    set_shares(model, share_gradients(model, lr, hr, None, weights, KNOWN))
    assert moved(before.head, model.restorer.remover) == [False] and model.factors < 1e-9, "a head that has read nothing asks for nothing"
    model.after_step()
    assert model.awareness.images == 3, "the third image is not known, and looking is not reading"
    sums = share_gradients(model, lr, hr, None, weights, KNOWN)
    set_shares(model, sums)
    losses, _ = model.objective(lr, hr, progress=1.0, labels=KNOWN)
    assert 0 < losses.head < before.head and losses.total == losses.pixel + losses.head
    f_l = model.features(lr).detach().requires_grad_()
    pooled = torch.cat([f_l.mean((2, 3)), f_l.flatten(2).std(2, correction=0)], 1)
    rows = pooled.detach()[[0, 1, 3]]
    known = KNOWN.targets[[0, 1, 3]]
    x, y = (rows - rows.mean(0)) / rows.std(0, correction=0), known - known.mean(0)
    inner = torch.linalg.solve(x.mT @ x + 4 * torch.eye(x.shape[1]), x.mT @ y)  # ridge regression at a price of four images
    told = known.mean(0) + (pooled - rows.mean(0)) / rows.std(0, correction=0) @ inner
    of_image = ((told - KNOWN.targets) / known.std(0, correction=0)).nan_to_num().square().mean(1)  # 0 of the third, which is not known
    torch.testing.assert_close(losses.head, of_image.mean(), rtol=1e-3, atol=1e-6)
    entering, = torch.autograd.grad((of_image if share > 0 else 1 - torch.exp(-of_image)).mean(), f_l, retain_graph=True)
    pixel, = torch.autograd.grad(F.l1_loss(model.restorer.decoder(f_l, lr), hr), f_l)
    sign = 1 if share > 0 else -1
    by_hand = torch.stack([pixel.norm() ** 2, entering.norm() ** 2, sign * (pixel * entering).sum()])  # what is kept at a share is what enters
    torch.testing.assert_close(sums[0].float(), by_hand, rtol=1e-3, atol=1e-9)
    factor = share * pixel.norm() / entering.norm()
    assert in_force(model, weights).aware == pytest.approx(factor.item(), rel=1e-3)
    remover = [*model.restorer.remover.parameters()]
    expected = torch.autograd.grad(model.features(lr), remover, factor * entering)
    for ours, other in zip(torch.autograd.grad(losses.head, remover), expected):
        torch.testing.assert_close(ours, other, rtol=1e-3, atol=1e-6)


def test_without_a_share_there_is_no_head_and_with_one_targets_are_needed():
    assert CRLSR(AWARE).awareness is None is CRLSR(AWARE.replace(share_aware=0.0)).awareness
    model = build(AWARE.replace(share_aware=0.1))
    with pytest.raises(ValueError, match="labels: got no targets"):
        model.objective(*pair())
    assert remover_gradients(model, *pair()).pixel > 0, "a diagnosis needs no targets"
    over = AWARE.replace(share_aware=0.1, guidance_end=0.5)
    assert over.weights_at(0.6).head == 0 == over.weights_at(0.6).aware and over.weights_at(0.4).head == 1


def test_the_restorer_starts_as_the_control_s():
    "The head is drawn last."
    torch.manual_seed(0)
    control = CRLSR(TINY).state_dict()
    torch.manual_seed(0)
    aware = CRLSR(TINY.replace(share_aware=0.1)).state_dict()
    assert all(torch.equal(aware[name], value) for name, value in control.items())


# --- image gradients ---

PLAIN = AWARE.replace(decoder_base="features")


def looped(sr: torch.Tensor, hr: torch.Tensor) -> float:
    "Every difference between neighbours, one by one."
    found = []
    for plane, target in zip(sr.flatten(0, 1).tolist(), hr.flatten(0, 1).tolist()):
        for y, x in itertools.product(range(len(plane)), range(len(plane[0]))):
            for v, u in ((y, x + 1), (y + 1, x)):
                if v < len(plane) and u < len(plane[0]):
                    found.append(abs((plane[v][u] - plane[y][x]) - (target[v][u] - target[y][x])))
    return sum(found) / len(found)


@pytest.mark.parametrize("size", [(6, 6), (5, 8), (1, 4), (7, 1)])
def test_image_gradients_against_a_loop_and_numpy(size):
    sr, hr = torch.rand(2, 2, 3, *size, generator=generator(0), dtype=torch.float64)
    found = gradient_loss(sr, hr)
    theirs = np.concatenate([(np.diff(sr.numpy(), axis=axis) - np.diff(hr.numpy(), axis=axis)).ravel() for axis in (-1, -2)])
    assert found.item() == pytest.approx(looped(sr, hr)) == pytest.approx(np.abs(theirs).mean())
    assert gradient_loss(hr + 0.3, hr) == pytest.approx(0, abs=1e-15), "brightness is the pixel loss's"
    torch.testing.assert_close(gradient_loss(sr.mT, hr.mT), found), torch.testing.assert_close(gradient_loss(hr, sr), found)
    assert torch.autograd.gradcheck(gradient_loss, (sr.requires_grad_(), hr))


def test_image_gradients_enter_by_their_weight_and_build_nothing():
    plain, weighed, (lr, hr) = build(TINY), build(TINY.replace(weight_gradient=0.5)), pair()
    assert weighed.state_dict().keys() == plain.state_dict().keys()
    off, on = (model.objective(lr, hr, generator(0))[0] for model in (plain, weighed))
    torch.testing.assert_close(on.gradient, torch.tensor(looped(plain(lr), hr)))
    torch.testing.assert_close(on.total, off.total + 0.5 * on.gradient)
    assert off.gradient == 0 and on[1:6] == off[1:6], "nothing else is drawn differently"
    assert moved(on.gradient, weighed.restorer.remover, weighed.restorer.decoder, weighed.decoupling, weighed.refinement) == [True, True, False, False]


def test_plain_l1_does_not_compute_image_gradients(monkeypatch):
    calls = []
    monkeypatch.setattr("crlsr.model.crlsr.gradient_loss", lambda sr, hr: calls.append(1) or (sr - hr).square().mean())
    for changes in ({}, {"share_gradient": 0.0, "weight_gradient": 1.0}, {"weight_gradient": 1.0, "guidance_end": 0.5}):
        losses, _ = build(PLAIN.replace(**changes)).objective(*pair(), progress=0.5)
        assert calls == [] and losses.gradient == 0 and losses.total == losses.pixel
    build(PLAIN.replace(weight_gradient=1.0)).objective(*pair())
    assert calls == [1]


@pytest.mark.parametrize("changes", [{}, {"decoder_base": "lr"}, {"input": "upsampled"}, {"guidance_window": 5}, {"weight_gradient": 7.0}])
def test_the_image_gradients_pull_at_f_l_by_their_share(changes):
    model, (lr, hr) = measured(PLAIN.replace(share_gradient=0.2, **changes)), pair()
    f_l = model.features(lr).detach().requires_grad_()
    error = model.restorer.decoder(f_l, lr) - hr
    terms = error.abs().mean(), torch.cat([error.diff(dim=axis).flatten() for axis in (2, 3)]).abs().mean()
    pixel, own = (torch.autograd.grad(term, f_l, retain_graph=True)[0].norm() for term in terms)
    factor = in_force(model, model.config.weights_at(1.0)).gradient
    assert model.config.shares == {"gradient": 0.2} and factor * own / pixel == pytest.approx(0.2, rel=1e-3)
    losses, _ = model.objective(lr, hr)
    torch.testing.assert_close(losses.total, terms[0] + factor * terms[1])


def test_image_gradients_follow_the_course_of_l_srnce():
    both = TINY.replace(weight_srnce=1.0, weight_gradient=1.0)
    for changes in ({"guidance_warmup": 0.2, "guidance_end": 0.7}, {"training": "staged", "stage_share": 0.5}, {"training": "staged", "freeze_remover": True}):
        course = [both.replace(**changes).weights_at(k / 20) for k in range(21)]
        assert [at.gradient for at in course] == [at.srnce for at in course] and min(at.gradient for at in course) == 0
    shared = TINY.replace(share_gradient=0.1, share_srnce=0.1, guidance_warmup=0.5)
    assert shared.weights_at(0.25).gradient == shared.weights_at(0.25).srnce == 0.5 and list(shared.shares) == ["srnce", "gradient"]
    model = measured(TINY.replace(**SHARES, share_gradient=0.1))
    alone = measured(TINY.replace(**SHARES))
    assert torch.equal(model.factors[:2], alone.factors) and model.factors[2] > 0, "the others' factors are what they were"
