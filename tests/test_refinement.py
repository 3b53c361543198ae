"""refinement: L_srnce against loops and closed forms, who is moved by which anchor, and what is detached."""
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from crlsr.contrast import Negatives
from crlsr.core import generator
from crlsr.refinement import ConditionalContrastiveLoss, ContentNegatives, conditional_contrastive_loss

ANCHORS = ("hr", "sr", "both")


def draw(*shape, key=0):
    return torch.randn(*shape, generator=generator("refinement", key), dtype=torch.float64)


def loops(e_h, e_s, f_l, temperature, anchor):
    losses = []
    for b, i in itertools.product(range(e_h.shape[0]), range(e_h.shape[1])):
        h, s, c = (x[b, i].tolist() for x in (e_h, e_s, f_l))
        pairs = {"hr": [(h, s)], "sr": [(s, h)], "both": [(h, s), (s, h)]}[anchor]
        for query, positive in pairs:
            logits = []
            for other in (positive, c):
                dot = sum(query[d] * other[d] for d in range(len(query)))
                logits.append(dot / math.hypot(*query) / math.hypot(*other) / temperature)
            losses.append(math.log(math.exp(logits[0]) + math.exp(logits[1])) - logits[0])
    return sum(losses) / len(losses)


@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize("temperature", [0.03, 0.07, 1.0])
@pytest.mark.parametrize("shape", [(1, 1, 2), (2, 5, 3)])
def test_equals_its_loops(anchor, temperature, shape):
    e_h, e_s, f_l = (draw(*shape, key=key) for key in "hsl")
    value = ConditionalContrastiveLoss(temperature, anchor)(e_h, e_s, f_l)
    assert abs(value.item() - loops(e_h, e_s, f_l, temperature, anchor)) < 1e-10


@given(st.floats(0, 180), st.floats(0, 180), st.floats(0.02, 5))
def test_closed_form_of_one_negative(positive, negative, temperature):
    direction = lambda degrees: torch.tensor([[[math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]]], dtype=torch.float64)
    gap = (math.cos(math.radians(negative)) - math.cos(math.radians(positive))) / temperature
    value = conditional_contrastive_loss(direction(0), direction(positive), direction(negative), temperature)
    assert math.isclose(value.item(), max(gap, 0) + math.log1p(math.exp(-abs(gap))), rel_tol=1e-9, abs_tol=1e-9)


@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
def test_sr_that_is_only_content_costs_log_2(temperature):
    e_h, f_l = draw(2, 3, 4, key="h"), draw(2, 3, 4, key="l")
    assert math.isclose(conditional_contrastive_loss(e_h, f_l, f_l, temperature).item(), math.log(2), rel_tol=1e-9)


def test_anchors():
    e_h, e_s, f_l = (draw(2, 3, 4, key=key) for key in "hsl")
    hr, sr, both = (conditional_contrastive_loss(e_h, e_s, f_l, anchor=anchor) for anchor in ANCHORS)
    torch.testing.assert_close(both, (hr + sr) / 2)
    torch.testing.assert_close(sr, conditional_contrastive_loss(e_s, e_h, f_l, anchor="hr"))  # the other side's view
    assert ConditionalContrastiveLoss().anchor == "hr" and ConditionalContrastiveLoss().temperature == 0.07


@pytest.mark.parametrize("anchor, bystander", [("hr", 1), ("sr", 0)])
def test_what_is_not_the_anchor_is_only_pulled(anchor, bystander):
    leaves = [draw(2, 3, 5, key=key).requires_grad_() for key in "hs"]
    loss = conditional_contrastive_loss(*leaves, draw(2, 3, 5, key="l"), 0.5, anchor)
    slope = torch.autograd.grad(loss, leaves)[bystander]
    pull, = torch.autograd.grad(F.cosine_similarity(*leaves, dim=-1).sum(), leaves[bystander])
    assert (F.cosine_similarity(-slope, pull, dim=-1) > 1 - 1e-9).all()


@pytest.mark.parametrize("anchor", ANCHORS)
def test_content_is_moved_only_when_asked(anchor):
    leaves = [draw(2, 3, 5, key=key).requires_grad_() for key in "hsl"]
    grads = torch.autograd.grad(conditional_contrastive_loss(*leaves, anchor=anchor), leaves, allow_unused=True)
    assert grads[2] is None and (grads[0] != 0).any() and (grads[1] != 0).any()
    moved = torch.autograd.grad(conditional_contrastive_loss(*leaves, anchor=anchor, negatives=ContentNegatives(detach=False)), leaves)
    assert torch.equal(moved[0], grads[0]) and torch.equal(moved[1], grads[1]) and (moved[2] != 0).any()


@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize("detach", [True, False])
def test_gradcheck(anchor, detach):
    leaves = [draw(2, 2, 3, key=key).requires_grad_(key != "l" or not detach) for key in "hsl"]
    assert torch.autograd.gradcheck(lambda *x: conditional_contrastive_loss(*x, 0.3, anchor, ContentNegatives(detach)), leaves)


@pytest.mark.parametrize("anchor", ANCHORS)
def test_positions_and_images_have_no_order(anchor):
    e_h, e_s, f_l = (draw(3, 4, 5, key=key) for key in "hsl")
    value = conditional_contrastive_loss(e_h, e_s, f_l, anchor=anchor)
    positions, images = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 2, 0])
    torch.testing.assert_close(conditional_contrastive_loss(*(x[:, positions] for x in (e_h, e_s, f_l)), anchor=anchor), value)
    torch.testing.assert_close(conditional_contrastive_loss(*(x[images] for x in (e_h, e_s, f_l)), anchor=anchor), value)
    assert (conditional_contrastive_loss(e_h, e_s, f_l[:, positions], anchor=anchor) - value).abs() > 1e-3


@pytest.mark.parametrize("anchor", ANCHORS)
def test_gradients_stay_finite_at_small_temperature(anchor):
    base = draw(2, 3, 4).float()
    for e_s, f_l in ((-base, base), (base, base), (base, -base), (torch.zeros_like(base), base)):
        leaves = [(base + 1e-4).requires_grad_(), e_s.clone().requires_grad_(), f_l.clone().requires_grad_()]
        loss = conditional_contrastive_loss(*leaves, 0.01, anchor, ContentNegatives(detach=False))
        assert loss.isfinite() and all(g.isfinite().all() for g in torch.autograd.grad(loss, leaves))


def test_the_negative_is_a_view():
    content = draw(2, 3, 4)
    vectors, weights, *_ = ContentNegatives()(content, content, content)
    assert weights is None and vectors.shape == (2, 3, 1, 4) and vectors.data_ptr() == content.data_ptr()
    assert ContentNegatives() == ContentNegatives(True) != ContentNegatives(False)


def test_other_constructions_fit():
    "No negatives at all, and the other positions of the anchor's own map."
    e_h, e_s, f_l = (draw(2, 3, 4, key=key) for key in "hsl")
    assert conditional_contrastive_loss(e_h, e_s, f_l, negatives=lambda a, p, c: Negatives(c[:, :0])).item() == 0
    own = lambda a, p, c: Negatives(a.detach(), ~torch.eye(3, dtype=torch.bool))
    constant = torch.ones(2, 3, 4, dtype=torch.float64)
    assert math.isclose(conditional_contrastive_loss(constant, constant, constant, negatives=own).item(), math.log(3))


@pytest.mark.parametrize("change, message", [
    ({"anchor": "lr"}, "anchor: got 'lr', expected 'hr', 'sr' or 'both'"),
    ({"e_s": draw(2, 4, 4)}, r"e_h, e_s, f_l: got \(2, 3, 4\), \(2, 4, 4\), \(2, 3, 4\), expected"),
    ({"e_h": draw(3, 4), "e_s": draw(3, 4), "f_l": draw(3, 4)}, "e_h, e_s, f_l: got"),
    ({"temperature": -1.0}, "temperature: got -1.0"),
])
def test_errors_name_the_argument(change, message):
    with pytest.raises(ValueError, match=message):
        conditional_contrastive_loss(**({"e_h": draw(2, 3, 4), "e_s": draw(2, 3, 4), "f_l": draw(2, 3, 4)} | change))
