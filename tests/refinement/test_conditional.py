"""refinement.conditional: L_srnce, the margin and the control against loops and closed forms, who is moved, and what is refused."""
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from crlsr.contrast import Negatives, info_nce
from crlsr.refinement import (
    BlurredNegatives, ConditionalContrastiveLoss, ContentNegatives, Context, FeatureL1, HRPositionNegatives, NoNegatives,
    ResidualNegatives, TripletMargin, UnionNegatives, conditional_contrastive_loss,
)
from tests.refinement.loops import (
    ANCHORS, B, CASES, D, M, NAMES, SHAPES, direction, draw, info_nce_loops, loss_of, maps, triplet_loops,
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("anchor", ANCHORS)
def test_equals_its_loops(name, anchor):
    construction, listed = CASES[name]
    m = maps()
    for temperature in (0.05, 0.3, 1.0):
        assert abs(loss_of(m, construction, anchor, temperature).item() - info_nce_loops(m, listed, anchor, temperature)) < 1e-10
    for margin in (0.2, 1.5):
        value = loss_of(m, construction, anchor, compare=TripletMargin(margin)).item()
        assert abs(value - triplet_loops(m, listed, anchor, margin)) < 1e-10


@pytest.mark.parametrize("anchor", ANCHORS)
def test_the_control_is_plain_l1(anchor):
    m = maps()
    value = loss_of(m, NoNegatives(), anchor, compare=FeatureL1()).item()
    expected = sum(abs(x - y) for x, y in zip(m["e_h"].flatten().tolist(), m["e_s"].flatten().tolist())) / (B * M * D)
    assert math.isclose(value, expected, rel_tol=1e-12)


@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize("stop, moved", [
    ({"detach_anchor": True}, {"hr": {"e_s"}, "sr": {"e_h"}, "both": {"e_h", "e_s"}}),
    ({"detach_positive": True}, {"hr": {"e_h"}, "sr": {"e_s"}, "both": {"e_h", "e_s"}}),
    ({"detach_anchor": True, "detach_positive": True}, {"hr": set(), "sr": set(), "both": set()}),
])
@pytest.mark.parametrize("compare", [None, TripletMargin(1.0), FeatureL1()])
def test_stopped_participants(anchor, stop, moved, compare):
    m = maps(requires_grad=True)
    loss = ConditionalContrastiveLoss(0.3, anchor, compare=compare, **stop)(m["e_h"], m["e_s"], m["content"])
    assert loss.requires_grad == bool(moved[anchor])
    if moved[anchor]:
        grads = torch.autograd.grad(loss, [m["e_h"], m["e_s"]], allow_unused=True)
        assert {k for k, g in zip(("e_h", "e_s"), grads) if g is not None and (g != 0).any()} == moved[anchor]
        free = ConditionalContrastiveLoss(0.3, anchor, compare=compare)(m["e_h"], m["e_s"], m["content"])
        assert loss.item() == free.item()  # a stop changes gradients, never the value


@pytest.mark.parametrize("anchor, bystander", [("hr", 1), ("sr", 0)])
def test_what_is_not_the_anchor_is_only_pulled(anchor, bystander):
    leaves = [draw(2, 3, 5, key=key).requires_grad_() for key in "hs"]
    loss = conditional_contrastive_loss(*leaves, draw(2, 3, 5, key="l"), 0.5, anchor)
    slope = torch.autograd.grad(loss, leaves)[bystander]
    pull, = torch.autograd.grad(F.cosine_similarity(*leaves, dim=-1).sum(), leaves[bystander])
    assert (F.cosine_similarity(-slope, pull, dim=-1) > 1 - 1e-9).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize("compare", [None, TripletMargin(0.5)])
def test_positions_and_images_have_no_order(name, anchor, compare):
    m, construction = maps(), CASES[name][0]
    value = loss_of(m, construction, anchor, compare=compare)
    positions, images = torch.tensor([2, 0, 4, 3, 1]), torch.tensor([1, 0])
    torch.testing.assert_close(loss_of({k: x[:, positions] for k, x in m.items()}, construction, anchor, compare=compare), value)
    torch.testing.assert_close(loss_of({k: x[images] for k, x in m.items()}, construction, anchor, compare=compare), value)
    if name != "none":
        moved = loss_of(m | {"e_h": m["e_h"][:, positions]}, construction, anchor, compare=compare)
        assert (moved - value).abs() > 1e-4  # the geometry matters


@pytest.mark.parametrize("compare", [None, TripletMargin()])
@pytest.mark.parametrize("anchor", ANCHORS)
def test_without_negatives_nothing_is_lost_or_moved(compare, anchor):
    m = maps(requires_grad=True)
    for construction in (NoNegatives(), UnionNegatives((NoNegatives(), NoNegatives())), BlurredNegatives((0.0, 0.0, 0.0)),
                         lambda q, p, c: Negatives(c.content[:, :0])):
        loss = loss_of(m, construction, anchor, compare=compare)
        grads = torch.autograd.grad(loss, [m["e_h"], m["e_s"]])
        assert loss.item() == 0 and not any(g.any() for g in grads)


@pytest.mark.parametrize("name", ["content", "residual", "unexplained", "positions", "content + past", "positions + residual + graded"])
def test_many_positions_in_chunks(name):
    shapes = {k: (1, 4096 if name != "positions + residual + graded" else 1024, *v[2:]) for k, v in SHAPES.items()}
    m = maps(torch.float32, shapes, requires_grad=True)
    leaves = [m["e_h"], m["e_s"]]
    whole = loss_of(m, CASES[name][0])
    parts = loss_of(m, CASES[name][0], chunk=512)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(torch.autograd.grad(parts, leaves), torch.autograd.grad(whole, leaves)))


@given(st.floats(0, 180), st.floats(0, 180), st.floats(0.02, 5))
def test_closed_form_of_one_negative(positive, negative, temperature):
    gap = (math.cos(math.radians(negative)) - math.cos(math.radians(positive))) / temperature
    value = conditional_contrastive_loss(direction(0), direction(positive), direction(negative), temperature)
    assert math.isclose(value.item(), max(gap, 0) + math.log1p(math.exp(-abs(gap))), rel_tol=1e-9, abs_tol=1e-9)


@given(st.floats(0, 180), st.floats(0, 180), st.floats(0.01, 2))
def test_closed_form_of_the_margin(positive, negative, margin):
    gap = math.cos(math.radians(negative)) - math.cos(math.radians(positive))
    value = conditional_contrastive_loss(direction(0), direction(positive), direction(negative), compare=TripletMargin(margin))
    assert math.isclose(value.item(), max(0.0, gap + margin), abs_tol=1e-9) and value <= 2 + margin + 1e-9


def test_the_margin_lets_go():
    e_h, e_s = direction(0).requires_grad_(), direction(5).requires_grad_()
    far, near = (conditional_contrastive_loss(e_h, e_s, direction(d), compare=TripletMargin(0.2)) for d in (90, 10))
    assert not any(g.any() for g in torch.autograd.grad(far, (e_h, e_s))) and all(g.any() for g in torch.autograd.grad(near, (e_h, e_s)))
    still = conditional_contrastive_loss(e_h, e_s, direction(90), 0.07)
    assert all(g.any() for g in torch.autograd.grad(still, (e_h, e_s)))  # info_nce goes on


@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
def test_sr_that_is_only_content_costs_log_2(temperature):
    e_h, f_l = draw(2, 3, 4, key="h"), draw(2, 3, 4, key="l")
    assert math.isclose(conditional_contrastive_loss(e_h, f_l, f_l, temperature).item(), math.log(2), rel_tol=1e-9)
    if temperature >= 0.07:  # at 0.01 even the rounding noise of the rest, 1e-16, is no match for exp(cosine / T)
        assert conditional_contrastive_loss(e_h, f_l, f_l, temperature, negatives=ResidualNegatives()).item() < 1e-3


def test_equal_vectors_cost_log_1_plus_k():
    same = torch.ones(2, M, D, dtype=torch.float64)
    assert math.isclose(conditional_contrastive_loss(same, same, negatives=HRPositionNegatives()).item(), math.log(M))
    context = Context(blurred=same.unsqueeze(2).expand(-1, -1, 7, -1))
    assert math.isclose(conditional_contrastive_loss(same, same, negatives=BlurredNegatives(), context=context).item(), math.log(8))


def test_anchors():
    e_h, e_s, f_l = (draw(2, 3, 4, key=key) for key in "hsl")
    hr, sr, both = (conditional_contrastive_loss(e_h, e_s, f_l, anchor=anchor) for anchor in ANCHORS)
    torch.testing.assert_close(both, (hr + sr) / 2)
    torch.testing.assert_close(sr, conditional_contrastive_loss(e_s, e_h, f_l, anchor="hr"))  # the other side's view
    assert ConditionalContrastiveLoss().anchor == "hr" and ConditionalContrastiveLoss().temperature == 0.07


def test_the_module_passes_everything_on():
    m = maps()
    context = Context(blurred=m["blurred"])
    module = ConditionalContrastiveLoss(0.2, "both", BlurredNegatives(), compare=TripletMargin(0.4), chunk=2)
    assert module(m["e_h"], m["e_s"], context=context) == loss_of(m, BlurredNegatives(), "both", compare=TripletMargin(0.4))
    assert ConditionalContrastiveLoss(0.2, "sr", chunk=2)(m["e_h"], m["e_s"], m["content"]) == loss_of(m, ContentNegatives(), "sr", 0.2, chunk=2)
    assert conditional_contrastive_loss(m["e_h"], m["e_s"], context=Context(content=m["content"])) == conditional_contrastive_loss(m["e_h"], m["e_s"], m["content"])


@pytest.mark.parametrize("name", [n for n in NAMES if n != "none"])
def test_a_learned_temperature_gets_its_slope(name):
    m = maps()
    temperature = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
    assert list(ConditionalContrastiveLoss(temperature).parameters()) == [temperature]
    assert torch.autograd.gradcheck(lambda T: loss_of(m, CASES[name][0], "both", T), temperature)


def test_the_temperature_may_be_a_module():
    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.log = nn.Parameter(torch.tensor(math.log(0.3), dtype=torch.float64))

        def forward(self):
            return self.log.exp()

    m, loss = maps(), ConditionalContrastiveLoss(Learned(), "both")
    value = loss(m["e_h"], m["e_s"], m["content"])
    assert list(loss.state_dict()) == ["temperature.log"] and [name for name, _ in loss.named_parameters()] == ["temperature.log"]
    assert math.isclose(value.item(), loss_of(m, ContentNegatives(), "both", 0.3).item(), rel_tol=1e-12)
    T = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    by_number, = torch.autograd.grad(loss_of(m, ContentNegatives(), "both", T), T)
    value.backward()
    torch.testing.assert_close(loss.temperature.log.grad, 0.3 * by_number)  # dT / d log T = T


@pytest.mark.parametrize("change, message", [
    ({"anchor": "lr"}, "anchor: got 'lr', expected one of 'hr', 'sr', 'both'"),
    ({"e_s": draw(2, 4, 4)}, r"e_h, e_s: got \(2, 3, 4\) and \(2, 4, 4\), expected \(B, M, D\)"),
    ({"e_h": draw(3, 4), "e_s": draw(3, 4)}, "e_h, e_s: got"),
    ({"temperature": -1.0}, "temperature: got -1.0"),
    ({"temperature": math.inf}, "temperature: got inf"),
    ({"e_h": draw(2, 3, 4, 4), "e_s": draw(2, 3, 4, 4)}, "e_h, e_s: got .* of a feature map take"),
])
def test_errors_name_the_argument(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        conditional_contrastive_loss(**({"e_h": draw(2, 3, 4), "e_s": draw(2, 3, 4), "content": draw(2, 3, 4)} | change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make, message", [
    (lambda: ConditionalContrastiveLoss(anchor="lr"), "anchor: got 'lr'"),
    (lambda: ConditionalContrastiveLoss(math.nan), "temperature: got nan"),
    (lambda: ConditionalContrastiveLoss(negatives="content"), "negatives: got 'content', expected an object to be called"),
    (lambda: ConditionalContrastiveLoss(negatives=ResidualNegatives), "negatives: got <class"),
    (lambda: ConditionalContrastiveLoss(compare="margin"), "compare: got 'margin', expected an object"),
    (lambda: ConditionalContrastiveLoss(chunk=0), "chunk: got 0"),
    (lambda: TripletMargin(0.0), "margin: got 0.0, expected more than 0"), (lambda: TripletMargin(2.1), "margin: got 2.1"),
    (lambda: TripletMargin()(draw(2, 3, 4), draw(2, 1, 4), Negatives(draw(5, 4))), "query, positive: got (2, 3, 4) and (2, 1, 4)"),
    (lambda: FeatureL1()(draw(2, 3, 4), draw(2, 1, 4), Negatives(draw(5, 4))), "query, positive: got (2, 3, 4) and (2, 1, 4)"),
])
def test_a_loss_that_cannot_work_is_not_made(make, message):
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value).startswith(message)


def test_what_negatives_say_of_the_form_is_heard():
    m, others = maps(), draw(5, D)
    hard = conditional_contrastive_loss(m["e_h"], m["e_s"], negatives=lambda query, positive, context: Negatives(others, hardness=0.5))
    torch.testing.assert_close(hard, info_nce(m["e_h"], m["e_s"], others, hardness=0.5), rtol=0, atol=0)
    assert abs(hard - info_nce(m["e_h"], m["e_s"], others)) > 1e-3


def test_a_printed_loss_shows_its_settings():
    text = ("temperature=0.2, anchor='sr', negatives=ResidualNegatives(detach=True, fade=True), compare=TripletMargin(margin=0.4), "
            "detach_anchor=False, detach_positive=True, chunk=None")
    loss = ConditionalContrastiveLoss(0.2, "sr", ResidualNegatives(), compare=TripletMargin(0.4), detach_positive=True)
    assert repr(loss) == f"ConditionalContrastiveLoss({text})"
