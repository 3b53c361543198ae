"""refinement: every construction against loops and closed forms, who is moved, what is never a negative, and what is refused."""
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from crlsr.contrast import Negatives
from crlsr.core import generator
from crlsr.refinement import (
    BicubicNegatives, BlurredNegatives, ConditionalContrastiveLoss, ContentNegatives, Context, FeatureL1, HRPositionNegatives, NoNegatives,
    PastNegatives, ResidualNegatives, TripletMargin, UnexplainedNegatives, UnionNegatives, conditional_contrastive_loss,
)

ANCHORS = ("hr", "sr", "both")
B, M, D, K = 2, 5, 3, 3
SHAPES = {"e_h": (B, M, D), "e_s": (B, M, D), "content": (B, M, D), "bicubic": (B, M, D), "blurred": (B, M, K, D), "past": (B, M, 2, D)}


def draw(*shape, key=0):
    return torch.randn(*shape, generator=generator("refinement", key), dtype=torch.float64)


def maps(dtype=torch.float64, shapes=SHAPES, requires_grad=False):
    return {name: draw(*shape, key=name).to(dtype).requires_grad_(requires_grad) for name, shape in shapes.items()}


def loss_of(m, construction, anchor="hr", temperature=0.3, **options):
    context = Context(**{name: m[name] for name in ("bicubic", "blurred", "past") if name in m})
    return conditional_contrastive_loss(m["e_h"], m["e_s"], m.get("content"), temperature, anchor, construction, context=context, **options)


# --- references in plain Python: the negatives of one anchor as a list of (vector, weight) ---
def dot(x, y):
    return sum(p * q for p, q in zip(x, y))


def cosine(x, y):
    return dot(x, y) / math.hypot(*x) / math.hypot(*y)


def residual(c, p):
    c, p = [v / math.hypot(*c) for v in c], [v / math.hypot(*p) for v in p]
    return [v - dot(c, p) * w for v, w in zip(c, p)]


def one(name, k=None):
    return lambda m, b, i, p: [((m[name][b, i] if k is None else m[name][b, i, k]).tolist(), 1.0)]


def rest(fade):
    def listed(m, b, i, p):
        r = residual(m["content"][b, i].tolist(), p)
        return [(r, math.hypot(*r) if fade else 1.0)]

    return listed


def several(*parts):
    return lambda m, b, i, p: [pair for part in parts for pair in part(m, b, i, p)]


def unexplained(m, b, i, p):
    "Ridge regression as least squares with D more rows; p tells which side is the positive."
    side = m["e_h"] if m["e_h"][b, i].tolist() == p else m["e_s"]
    x, y = (np.stack([v / np.linalg.norm(v) for v in t.reshape(-1, t.shape[-1]).numpy()]) for t in (side, m["content"]))
    size = x.shape[1]
    shift = np.sqrt(1e-3 * (x**2).sum() / size)
    fitted = np.linalg.lstsq(np.vstack([x, shift * np.eye(size)]), np.vstack([y, np.zeros((size, size))]), rcond=None)[0]
    row = b * m["e_h"].shape[1] + i
    rest = (y - x @ fitted)[row].tolist()
    return [(rest, math.hypot(*rest))]


def weighted(part, weight):
    return lambda m, b, i, p: [(vector, w * weight) for vector, w in part(m, b, i, p)]


def other_places(m, b, i, p):
    return [(m["e_h"][b, j].tolist(), 1.0) for j in range(m["e_h"].shape[1]) if j != i]


blurs = several(*(one("blurred", k) for k in range(K)))
pasts = several(one("past", 0), one("past", 1))
CASES = {
    "content": (ContentNegatives(), one("content")),
    "residual": (ResidualNegatives(), rest(True)),
    "residual, full weight": (ResidualNegatives(fade=False), rest(False)),
    "unexplained": (UnexplainedNegatives(), unexplained),
    "bicubic": (BicubicNegatives(), one("bicubic")),
    "blurred": (BlurredNegatives(), blurs),
    "graded": (BlurredNegatives((1.0, 0.25, 0.0)), several(one("blurred", 0), weighted(one("blurred", 1), 0.25))),
    "positions": (HRPositionNegatives(), other_places),
    "past": (PastNegatives(), pasts),
    "none": (NoNegatives(), lambda m, b, i, p: []),
    "content + past": (UnionNegatives((ContentNegatives(), PastNegatives())), several(one("content"), pasts)),
    "positions + residual + graded": (UnionNegatives((HRPositionNegatives(), ResidualNegatives(), BlurredNegatives((1.0, 0.25, 0.0)))),
                                      several(other_places, rest(True), one("blurred", 0), weighted(one("blurred", 1), 0.25))),
    "positions + none + past": (UnionNegatives((HRPositionNegatives(), NoNegatives(), PastNegatives())), several(other_places, pasts)),
}
NAMES = list(CASES)


def quizzes(m, anchor):
    "Every (image, position, anchor, positive) of a loss."
    sides = {"hr": [("e_h", "e_s")], "sr": [("e_s", "e_h")], "both": [("e_h", "e_s"), ("e_s", "e_h")]}[anchor]
    for (a, p), b, i in itertools.product(sides, range(m["e_h"].shape[0]), range(m["e_h"].shape[1])):
        yield b, i, m[a][b, i].tolist(), m[p][b, i].tolist()


def info_nce_loops(m, listed, anchor, temperature):
    losses = []
    for b, i, a, p in quizzes(m, anchor):
        near = cosine(a, p) / temperature
        losses.append(math.log1p(sum(w * math.exp(cosine(a, n) / temperature - near) for n, w in listed(m, b, i, p))))
    return sum(losses) / len(losses)


def triplet_loops(m, listed, anchor, margin):
    losses = []
    for b, i, a, p in quizzes(m, anchor):
        terms = [w * max(0.0, (1 - cosine(a, p)) - (1 - cosine(a, n)) + margin) for n, w in listed(m, b, i, p) if w > 0]
        losses.append(sum(terms) / len(terms) if terms else 0.0)
    return sum(losses) / len(losses)


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


@pytest.mark.parametrize("name", [n for n in NAMES if n != "none"])
@pytest.mark.parametrize("anchor", ANCHORS)
def test_detached_negatives_stand_still(name, anchor):
    "The gradient is that of the same loss with its negatives computed beforehand."
    m, construction = maps(), CASES[name][0]
    e_h, e_s = (m[k].clone().requires_grad_() for k in ("e_h", "e_s"))
    context = Context(m["content"], m["bicubic"], m["blurred"], m["past"], m["e_h"])
    frozen = {"e_h": construction(m["e_h"], m["e_s"], context), "e_s": construction(m["e_s"], m["e_h"], context)}
    given = lambda query, positive, _: frozen["e_h" if query is e_h else "e_s"]
    ours = torch.autograd.grad(loss_of(m | {"e_h": e_h, "e_s": e_s}, construction, anchor), (e_h, e_s))
    wanted = torch.autograd.grad(loss_of(m | {"e_h": e_h, "e_s": e_s}, given, anchor), (e_h, e_s))
    assert all(torch.equal(a, b) and (a != 0).any() for a, b in zip(ours, wanted))


@pytest.mark.parametrize("construction, names", [
    (ContentNegatives(False), ["content"]), (ResidualNegatives(False), ["content"]), (UnexplainedNegatives(detach=False), ["content"]), (BicubicNegatives(False), ["bicubic"]),
    (BlurredNegatives(detach=False), ["blurred"]), (PastNegatives(False), ["past"]), (HRPositionNegatives(False), ["e_h"]),
    (UnionNegatives((ContentNegatives(False), HRPositionNegatives(False), BlurredNegatives((2.0, 1.0, 0.5), False))), ["content", "e_h", "blurred"]),
])
def test_gradcheck_of_what_repels(construction, names):
    m = maps(shapes={k: (2, 3, *v[2:]) for k, v in SHAPES.items()})
    names = ["e_h", "e_s", *(n for n in names if n != "e_h")]
    leaves = [m[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(lambda *x: loss_of(m | dict(zip(names, x)), construction, "both"), leaves)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("anchor", ANCHORS)
def test_negatives_are_moved_only_when_asked(name, anchor):
    construction = CASES[name][0]
    m = maps(requires_grad=True)
    others = [m[k] for k in ("content", "bicubic", "blurred", "past")]
    loss = loss_of(m, construction, anchor)
    assert all(g is None for g in torch.autograd.grad(loss, others, allow_unused=True))
    if not hasattr(construction, "detach"):
        return
    asked = type(construction)(**{**vars(construction), "detach": False})
    grads = torch.autograd.grad(loss_of(m, asked, anchor), others, allow_unused=True)
    moved = {k for k, g in zip(("content", "bicubic", "blurred", "past"), grads) if g is not None and (g != 0).any()}
    assert moved == {"content": {"content"}, "residual": {"content"}, "unexplained": {"content"}, "residual, full weight": {"content"}, "bicubic": {"bicubic"},
                     "blurred": {"blurred"}, "graded": {"blurred"}, "positions": set(), "past": {"past"}}[name]


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


@pytest.mark.parametrize("name", [n for n in NAMES if n != "unexplained"])  # whose linear map is fitted over the batch
def test_an_image_never_sees_another(name):
    m, construction = maps(), CASES[name][0]
    first = loss_of({k: x[:1] for k, x in m.items()}, construction, "both")
    second = loss_of({k: x[1:] for k, x in m.items()}, construction, "both")
    torch.testing.assert_close(loss_of(m, construction, "both"), (first + second) / 2)


@given(st.integers(1, 3), st.integers(2, 12))
def test_masks_by_counting(images, count):
    e_h, e_s = draw(images, count, 4, key="h"), draw(images, count, 4, key="s")
    context = Context(content=draw(images, count, 4, key="l"), blurred=draw(images, count, 2, 4, key="b"), e_h=e_h)
    found = HRPositionNegatives()(e_h, e_s, context)
    assert found.vectors.data_ptr() == e_h.data_ptr()  # nothing is copied
    assert found.weights.sum() == count * (count - 1) and not found.weights.diagonal().any()
    union = UnionNegatives((HRPositionNegatives(), ContentNegatives(), BlurredNegatives()))(e_h, e_s, context)
    assert union.vectors.shape == (images, 4 * count, 4)  # M shared, M own, 2 M own
    table = union.weights.expand(images, -1, -1)
    assert (table.sum(-1) == (count - 1) + 1 + 2).all()
    for b, i in itertools.product(range(images), range(count)):
        seen = union.vectors[b][table[b, i].bool()]
        assert not (seen == e_h[b, i]).all(-1).any()  # neither the anchor nor, from the other side, the positive
        assert (seen == context.content[b, i]).all(-1).sum() == 1 and sum((seen == v).all(-1).sum() for v in context.blurred[b, i]) == 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_stay_finite_at_small_temperature(name, anchor, dtype):
    construction = CASES[name][0]
    if hasattr(construction, "detach"):
        construction = type(construction)(**{**vars(construction), "detach": False})
    base = maps(dtype)
    worst = {"as drawn": {}, "sr opposite": {"e_s": -base["e_h"]}, "content is sr": {"content": base["e_s"]}, "content is hr": {"content": base["e_h"]},
             "sr is 0": {"e_s": torch.zeros_like(base["e_s"])}, "all 0": {k: torch.zeros_like(v) for k, v in base.items()},
             "equal places": {"e_h": base["e_h"][:, :1].expand(-1, M, -1), "e_s": base["e_h"][:, :1].expand(-1, M, -1)}}
    for change in worst.values():
        m = {k: v.clone().requires_grad_() for k, v in (base | change).items()}
        loss = loss_of(m, construction, anchor, 0.01)
        assert loss.isfinite()
        if loss.requires_grad:
            assert all(g is None or g.isfinite().all() for g in torch.autograd.grad(loss, list(m.values()), allow_unused=True))


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


# --- closed forms ---
def direction(degrees):
    return torch.tensor([[[math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]]], dtype=torch.float64)


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


@given(st.floats(0, 90), st.floats(-180, 180), st.floats(0.1, 50))
def test_the_residual_is_orthogonal_and_fades(angle, turn, length):
    positive, content = direction(turn), length * direction(turn + angle)
    rest, weights = ResidualNegatives()(positive, positive, Context(content=content))[:2]
    assert abs((rest[0, 0, 0] @ positive[0, 0]).item()) < 1e-9 and math.isclose(weights.item(), math.sin(math.radians(angle)), abs_tol=1e-9)
    scaled = ResidualNegatives()(positive, 7 * positive, Context(content=3 * content))
    torch.testing.assert_close(scaled.vectors, rest)  # lengths of features do not matter


def test_what_the_positive_contains_does_not_repel():
    "Two axes of content, both in sr: content pushes E_f(hr) off them, the residual does not."
    e_h = torch.tensor([[[1.0, 1.0, 1.0, 0.0]]], dtype=torch.float64, requires_grad=True)  # content, content, details, dialect
    e_s = torch.tensor([[[1.0, 1.0, 0.0, 0.0]]], dtype=torch.float64)
    f_l = torch.tensor([[[1.0, 1.0, 0.0, 1.0]]], dtype=torch.float64)
    push = {}
    for name, construction in (("content", ContentNegatives()), ("residual", ResidualNegatives())):
        repelled = construction(e_h, e_s, Context(content=f_l)).vectors
        grad, = torch.autograd.grad(-F.cosine_similarity(e_h.unsqueeze(2), repelled, dim=-1).sum(), e_h)
        push[name] = grad[0, 0]  # uphill: away from the negative
    contained = e_s[0, 0] / e_s[0, 0].norm()
    tangent = contained - (contained @ e_h.detach()[0, 0]) * e_h.detach()[0, 0] / 3  # the direction in which e_h gains content
    assert push["content"] @ tangent < -0.01 and (push["residual"] @ tangent).abs() < 1e-9
    assert push["content"][3] < -0.1 and push["residual"][3] < -0.1  # the dialect, which sr lacks, repels in both


def test_a_dialect_explains_itself():
    "Content that is a rotation of the positive: an obstacle for content and residual, nothing for the linear map; what is new stays."
    p, new = draw(2, 40, 4, key="p"), draw(2, 40, 1, key="new")
    turned = p @ torch.linalg.qr(draw(4, 4, key="Q")).Q
    same = [c(p, p, Context(content=turned)).weights.mean().item() for c in (ResidualNegatives(), UnexplainedNegatives())]
    assert same[0] > 0.5 and same[1] < 0.002
    rest = UnexplainedNegatives()(p, p, Context(content=F.normalize(turned, dim=-1) + torch.cat([new, torch.zeros(2, 40, 3)], dim=-1))).vectors
    assert np.corrcoef(rest[..., 0].flatten(), new.flatten())[0, 1] > 0.5


@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
def test_which_push_costs_content(rho):
    "hr = (c, d, 0), sr = (c, rho d, 0), f_l = (c, 0, u) / what one more negative does to the content of E_f(hr), all detached."
    c, d, u = (draw(1, 400, 4, key=key) for key in "cdu")
    zero = torch.zeros_like(c)
    e_h, e_s, f_l = torch.cat([c, d, zero], -1).requires_grad_(), torch.cat([c, rho * d, zero], -1), torch.cat([c, zero, u], -1)
    def along(construction):
        repelled = construction(e_h, e_s, Context(content=f_l)).vectors
        push, = torch.autograd.grad(-F.cosine_similarity(e_h.unsqueeze(2), repelled, dim=-1).sum(), e_h)
        gain, = torch.autograd.grad(F.cosine_similarity(e_h, torch.cat([c, zero, zero], -1), dim=-1).sum(), e_h)
        return F.cosine_similarity(push, gain, dim=-1).mean().item()
    content, residual, linear = (along(x) for x in (ContentNegatives(), ResidualNegatives(), UnexplainedNegatives()))
    assert content < -0.3 and linear > content + 0.3 and abs(linear) < 0.2
    assert (residual < -0.15) == (rho > 0)  # one vector is not enough once sr holds details


# --- interface ---
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


def test_constructions_are_values():
    assert ContentNegatives() == ContentNegatives(True) != ContentNegatives(False)
    assert len({BlurredNegatives((1.0,)), BlurredNegatives((1.0,)), UnionNegatives((NoNegatives(),)), UnionNegatives((NoNegatives(),)), TripletMargin()}) == 3


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("construction", [ResidualNegatives(), UnexplainedNegatives()])
def test_autocast_does_not_coarsen_what_is_left(autocast, construction):
    m = maps(torch.float32)
    with torch.autocast("cpu", autocast):
        half = loss_of(m, construction, "both", 0.05)
    torch.testing.assert_close(half, loss_of(m, construction, "both", 0.05))


@pytest.mark.parametrize("change, message", [
    ({"anchor": "lr"}, "anchor: got 'lr', expected 'hr', 'sr' or 'both'"),
    ({"e_s": draw(2, 4, 4)}, r"e_h, e_s: got \(2, 3, 4\) and \(2, 4, 4\), expected \(B, M, D\)"),
    ({"e_h": draw(3, 4), "e_s": draw(3, 4)}, "e_h, e_s: got"),
    ({"content": draw(2, 4, 4)}, r"content: got \(2, 4, 4\), expected \(2, 3, 4\) or"),
    ({"content": draw(2, 3, 5)}, r"content: got \(2, 3, 5\), expected \(2, 3, 4\) or"),
    ({"content": None}, "content: got None, expected vectors"),
    ({"content": None, "negatives": ResidualNegatives()}, "content: got None"),
    ({"negatives": BicubicNegatives()}, "bicubic: got None, expected vectors"),
    ({"negatives": BlurredNegatives()}, "blurred: got None"),
    ({"negatives": PastNegatives()}, "past: got None"),
    ({"negatives": UnionNegatives((ContentNegatives(), PastNegatives()))}, "past: got None"),
    ({"negatives": UnionNegatives(())}, "parts: got none, expected at least one"),
    ({"negatives": BlurredNegatives((1.0,)), "context": Context(blurred=draw(2, 3, 2, 4))}, "weights: got 1 factors, expected one per strength of blur: 2"),
    ({"negatives": BlurredNegatives((-1.0,)), "context": Context(blurred=draw(2, 3, 1, 4))}, "weights: got -1, expected factors >= 0"),
    ({"negatives": PastNegatives(), "context": Context(past=draw(4, 4))}, r"past: got \(4, 4\), expected"),
    ({"e_h": draw(2, 1, 4), "e_s": draw(2, 1, 4), "negatives": HRPositionNegatives()}, "query: got 1 position, expected at least 2"),
    ({"negatives": UnexplainedNegatives(), "e_h": draw(1, 4, 4), "e_s": draw(1, 4, 4), "content": draw(1, 4, 4)}, "query, content: got 4 vectors of 4 dimensions"),
    ({"negatives": UnexplainedNegatives(), "content": draw(2, 3, 2, 4)}, "2 contents each, expected"),
    ({"temperature": -1.0}, "temperature: got -1.0"),
    ({"compare": TripletMargin(0.0)}, "margin: got 0.0, expected more than 0"),
])
def test_errors_name_the_argument(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        conditional_contrastive_loss(**({"e_h": draw(2, 3, 4), "e_s": draw(2, 3, 4), "content": draw(2, 3, 4)} | change))
    assert "\n" not in str(caught.value)
