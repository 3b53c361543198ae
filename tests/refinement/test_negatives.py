"""refinement.negatives: every construction alone: what it moves, its masks by counting, its geometry, its limits, and what is refused."""
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from crlsr.refinement import (
    BicubicNegatives, BlurredNegatives, ContentNegatives, Context, FieldNegatives, HRPositionNegatives, NoNegatives, PastNegatives,
    ResidualNegatives, TripletMargin, UnexplainedNegatives, UnionNegatives, conditional_contrastive_loss,
)
from tests.refinement.loops import ANCHORS, CASES, M, NAMES, SHAPES, direction, draw, loss_of, maps


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
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
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


@given(st.floats(0, 90), st.floats(-180, 180), st.floats(0.1, 50))
def test_the_residual_is_orthogonal_and_fades(angle, turn, length):
    positive, content = direction(turn), length * direction(turn + angle)
    rest, weights = ResidualNegatives()(positive, positive, Context(content=content))[:2]
    assert abs((rest[0, 0, 0] @ positive[0, 0]).item()) < 1e-9 and math.isclose(weights.item(), math.sin(math.radians(angle)), abs_tol=1e-6)  # 0 where shorter
    scaled = ResidualNegatives()(positive, 7 * positive, Context(content=3 * content))
    torch.testing.assert_close(scaled.vectors, rest)  # lengths of features do not matter


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rounding_errors_do_not_repel(dtype):
    "Content equal to the positive up to a factor leaves nothing, in whatever precision it comes."
    positive = draw(2, 9, 5, key="equal").to(dtype)
    weights = ResidualNegatives()(positive, positive, Context(content=4 * positive)).weights
    assert (weights == 0).all()
    assert (ResidualNegatives()(positive, positive, Context(content=draw(2, 9, 5, key="other").to(dtype))).weights > 0.01).all()


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


def test_constructions_are_values():
    assert ContentNegatives() == ContentNegatives(True) != ContentNegatives(False)
    assert len({BlurredNegatives((1.0,)), BlurredNegatives((1.0,)), UnionNegatives((NoNegatives(),)), UnionNegatives((NoNegatives(),)), TripletMargin()}) == 3


@pytest.mark.parametrize("make, name", [(ContentNegatives, "content"), (BicubicNegatives, "bicubic"), (PastNegatives, "past")])
def test_three_names_of_one_construction(make, name):
    m = maps()
    context = Context(m["content"], m["bicubic"], m["blurred"], m["past"], m["e_h"])
    assert make() == make(True) == make(detach=True) == FieldNegatives(name) != make(detach=False) == FieldNegatives(name, False)
    assert repr(make(False)) == f"FieldNegatives(name='{name}', detach=False)" and pickle.loads(pickle.dumps(make(False))) == make(False)
    found = make()(m["e_h"], m["e_s"], context)
    assert torch.equal(found.vectors, m[name].view(*m[name].shape[:2], -1, m[name].shape[-1])) and found.weights is None
    assert make.__doc__ and len({make(), make(True), make(False)}) == 2


def test_any_field_may_repel():
    m = maps()
    context = Context(blurred=m["blurred"], e_h=m["e_h"])
    assert torch.equal(FieldNegatives("blurred")(m["e_h"], m["e_s"], context).vectors, m["blurred"])
    assert FieldNegatives("blurred")(m["e_h"], m["e_s"], context).vectors.equal(BlurredNegatives()(m["e_h"], m["e_s"], context).vectors)


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("construction", [ResidualNegatives(), UnexplainedNegatives()])
def test_autocast_does_not_coarsen_what_is_left(autocast, construction):
    m = maps(torch.float32)
    with torch.autocast("cpu", autocast):
        half = loss_of(m, construction, "both", 0.05)
    torch.testing.assert_close(half, loss_of(m, construction, "both", 0.05))


@pytest.mark.parametrize("change, message", [
    ({"content": draw(2, 4, 4)}, r"content: got \(2, 4, 4\), expected \(2, 3, 4\) or"),
    ({"content": draw(2, 3, 5)}, r"content: got \(2, 3, 5\), expected \(2, 3, 4\) or"),
    ({"content": None}, "content: got None, expected vectors"),
    ({"content": None, "negatives": ResidualNegatives()}, "content: got None"),
    ({"negatives": BicubicNegatives()}, "bicubic: got None, expected vectors"),
    ({"negatives": BlurredNegatives()}, "blurred: got None"),
    ({"negatives": PastNegatives()}, "past: got None"),
    ({"negatives": UnionNegatives((ContentNegatives(), PastNegatives()))}, "past: got None"),
    ({"negatives": BlurredNegatives((1.0,)), "context": Context(blurred=draw(2, 3, 2, 4))}, "weights: got 1 factors, expected one per strength of blur: 2"),
    ({"negatives": PastNegatives(), "context": Context(past=draw(4, 4))}, r"past: got \(4, 4\), expected"),
    ({"e_h": draw(2, 1, 4), "e_s": draw(2, 1, 4), "negatives": HRPositionNegatives()}, "query: got 1 position, expected at least 2"),
    ({"negatives": UnexplainedNegatives(), "e_h": draw(1, 4, 4), "e_s": draw(1, 4, 4), "content": draw(1, 4, 4)}, "query, content: got 4 vectors of 4 dimensions"),
    ({"negatives": UnexplainedNegatives(), "content": draw(2, 3, 2, 4)}, "2 contents each, expected"),
])
def test_errors_name_the_argument(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        conditional_contrastive_loss(**({"e_h": draw(2, 3, 4), "e_s": draw(2, 3, 4), "content": draw(2, 3, 4)} | change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make, message", [
    (lambda: FieldNegatives("contents"), "name: got 'contents', expected one of 'content', 'bicubic', 'blurred', 'past', 'e_h'; did you mean 'content'"),
    (lambda: FieldNegatives("content", "none"), "detach: got 'none', expected one of False, True"),
    (lambda: ContentNegatives("low"), "detach: got 'low'"), (lambda: BicubicNegatives(1), "detach: got 1"), (lambda: PastNegatives(None), "detach: got None"),
    (lambda: ResidualNegatives("keys"), "detach: got 'keys'"), (lambda: ResidualNegatives(fade="no"), "fade: got 'no'"),
    (lambda: UnexplainedNegatives(0.0), "ridge: got 0.0, expected a finite number > 0"), (lambda: UnexplainedNegatives(detach="no"), "detach: got 'no'"),
    (lambda: BlurredNegatives((-1.0,)), "weights: got (-1.0,), expected factors >= 0"), (lambda: BlurredNegatives(detach="no"), "detach: got 'no'"),
    (lambda: HRPositionNegatives("hr"), "detach: got 'hr'"),
    (lambda: UnionNegatives(()), "parts: got none, expected at least one"), (lambda: UnionNegatives(("content",)), "parts: got 'content', expected an object"),
])
def test_negatives_that_cannot_work_are_not_made(make, message):
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
