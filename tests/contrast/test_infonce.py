"""info_nce against loops, closed forms and libraries, its gradients, its variants and its limits."""
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from crlsr.contrast import gather_vectors, info_nce
from crlsr.contrast.infonce import debias, shortest, unit
from crlsr.core import generator


def draw(*shape, key=0, dtype=torch.float64):
    return torch.randn(*shape, generator=generator("info_nce", key), dtype=dtype)


def loops(query, positive, negatives, temperature=0.07, weights=None, positive_in_denominator=True, positives=None, hardness=0.0, prior=0.0):
    "Losses (N,) of flat arguments: negatives (N, K, D), weights and positives (N, K)."
    def similarity(a, b):
        dot = squares_a = squares_b = 0.0
        for d in range(len(a)):
            dot, squares_a, squares_b = dot + a[d] * b[d], squares_a + a[d] ** 2, squares_b + b[d] ** 2
        return dot / (squares_a * squares_b) ** 0.5 / temperature

    losses = []
    for i in range(len(query)):
        right = similarity(query[i].tolist(), positive[i].tolist())
        wanted, repelling = [right], []
        for k in range(negatives.shape[1]):
            s = similarity(query[i].tolist(), negatives[i, k].tolist())
            friend = positives is not None and bool(positives[i, k])
            wanted += [s] if friend else []
            factor = 1.0 if weights is None else float(weights[i, k])
            if factor > 0 and not (friend and not positive_in_denominator):
                repelling.append((factor, s))
        count = sum(w for w, _ in repelling)
        mean_tilt = sum(w * math.exp(hardness * s) for w, s in repelling) / count if count else 1.0
        total = sum(w * math.exp(hardness * s) / mean_tilt * math.exp(s) for w, s in repelling)
        if prior and count:
            total = max((total - prior * count * math.exp(right)) / (1 - prior), count * math.exp(-1 / temperature))
        total += math.exp(right) if positive_in_denominator else 0.0
        losses.append(math.log(total) - sum(wanted) / len(wanted) if total > 0 else 0.0)
    return losses


WEIGHTS = {"none": None, "factors": draw(5, 7, key="w").abs(), "some zero": draw(5, 7, key="w").clamp_min(0), "mask": draw(5, 7, key="w") > 0}


@pytest.mark.parametrize("own", [True, False], ids=["own", "shared"])
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("coupled", [True, False], ids=["coupled", "decoupled"])
@pytest.mark.parametrize("chunk", [None, 1, 2, 5, 99])
@pytest.mark.parametrize("temperature", [0.05, 0.07, 1.0])
def test_equals_the_triple_loop(own, weights, coupled, chunk, temperature):
    query, positive, negatives = draw(5, 3, key="q"), draw(5, 3, key="p"), draw(*((5, 7, 3) if own else (7, 3)), key="n")
    expected = loops(query, positive, negatives.expand(5, 7, 3), temperature, weights, coupled)
    for reduction, value in (("none", expected), ("sum", sum(expected)), ("mean", sum(expected) / 5)):
        ours = info_nce(query, positive, negatives, temperature, weights, coupled, chunk, reduction)
        torch.testing.assert_close(ours, torch.tensor(value, dtype=torch.float64), atol=1e-10, rtol=0)


@pytest.mark.parametrize("shape", [(7, 3), (2, 7, 3), (2, 5, 7, 3)], ids=["shared by all", "shared by an image's", "own"])
@pytest.mark.parametrize("weights", [(5, 7), (2, 5, 7)], ids=["same for images", "per image"])
@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("chunk", [None, 2])
def test_leading_axes_are_separate_problems(shape, weights, coupled, chunk):
    query, positive, negatives, factors = draw(2, 5, 3, key="q"), draw(2, 5, 3, key="p"), draw(*shape, key="n"), draw(*weights, key="w").clamp_min(0)
    own = negatives[:, None] if negatives.ndim == 3 else negatives
    flat = loops(query.flatten(0, 1), positive.flatten(0, 1), own.expand(2, 5, 7, 3).flatten(0, 1), 0.07, factors.expand(2, 5, 7).flatten(0, 1), coupled)
    ours = info_nce(query, positive, negatives, weights=factors, positive_in_denominator=coupled, chunk=chunk, reduction="none")
    torch.testing.assert_close(ours.flatten(), torch.tensor(flat, dtype=torch.float64), atol=1e-10, rtol=0)


@given(st.integers(1, 300), st.floats(0.01, 10), st.booleans())
def test_equal_similarities_are_a_blind_guess(count, temperature, coupled):
    same = torch.ones(2, 3, dtype=torch.float64)
    value = info_nce(same, same, same[:1].expand(count, 3), temperature, positive_in_denominator=coupled).item()
    assert math.isclose(value, math.log(count + coupled), abs_tol=1e-9)


def test_weights_count_negatives():
    query, positive, negatives = draw(4, 3, key="q"), draw(4, 3, key="p"), draw(5, 3, key="n")
    weights = torch.tensor([1.0, 3, 0, 1, 2], dtype=torch.float64).expand(4, 5)
    torch.testing.assert_close(info_nce(query, positive, negatives, weights=weights), info_nce(query, positive, negatives[[0, 1, 1, 1, 3, 4, 4]]))
    torch.testing.assert_close(info_nce(query, positive, negatives, weights=weights > 0), info_nce(query, positive, negatives[[0, 1, 3, 4]]))


@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("negatives, weights", [((0, 3), None), ((4, 0, 3), None), ((6, 3), (4, 6)), ((4, 6, 3), (4, 6))])
def test_without_negatives_nothing_is_lost_and_nothing_moves(coupled, negatives, weights):
    leaves = [draw(4, 3, key="q"), draw(4, 3, key="p"), draw(*negatives, key="n")]
    leaves = [x.requires_grad_() for x in leaves]
    for kind in (torch.float64, torch.bool):
        loss = info_nce(*leaves, weights=None if weights is None else torch.zeros(weights, dtype=kind), positive_in_denominator=coupled)
        assert loss.item() == 0
        assert all((g == 0).all() for g in torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("coupled", [True, False])
def test_one_anchor_without_negatives_leaves_the_others_alone(coupled):
    query, positive, negatives = draw(3, 4, key="q").requires_grad_(), draw(3, 4, key="p"), draw(5, 4, key="n")
    weights = torch.ones(3, 5, dtype=torch.bool)
    weights[1] = False
    losses = info_nce(query, positive, negatives, weights=weights, positive_in_denominator=coupled, reduction="none")
    full = info_nce(query, positive, negatives, positive_in_denominator=coupled, reduction="none")
    assert losses[1] == 0 and torch.equal(losses[[0, 2]], full[[0, 2]])
    slope, expected = (torch.autograd.grad(x.sum(), query)[0] for x in (losses, full))
    assert (slope[1] == 0).all() and torch.equal(slope[[0, 2]], expected[[0, 2]])


def test_temperature_acts_on_positive_and_negatives():
    query, positive, negative = draw(1, 3, key="q"), draw(1, 3, key="p"), draw(1, 3, key="n")
    gap = F.cosine_similarity(query, negative) - F.cosine_similarity(query, positive)
    for temperature in (0.01, 0.07, 0.5, 3.0):
        torch.testing.assert_close(info_nce(query, positive, negative, temperature), F.softplus(gap / temperature, threshold=1e9).squeeze())
        torch.testing.assert_close(info_nce(query, positive, negative, temperature, positive_in_denominator=False), (gap / temperature).squeeze())


@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("chunk", [None, 2])
def test_gradients_stay_finite_at_small_temperature(coupled, chunk):
    base = draw(4, 8, key="q", dtype=torch.float32)
    masked = draw(4, 6, key="w", dtype=torch.float32).clamp_min(0)
    for positive, negative in ((-base, base), (base, -base), (base, base), (torch.zeros_like(base), base), (1e-20 * base, 1e20 * base[:, :])):
        leaves = [x.clone().requires_grad_() for x in (base + 1e-4, positive, negative[[0, 1, 2, 3, 0, 1]])]
        for weights in (None, masked):
            loss = info_nce(*leaves, 0.01, weights, coupled, chunk)
            assert loss.isfinite() and all(g.isfinite().all() for g in torch.autograd.grad(loss, leaves))


PRECISIONS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("own", [True, False], ids=["own", "shared"])
@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("zero", ["query", "positive", "negatives", "one negative", "all", "1e-7"])
def test_gradients_at_zero_vectors_are_finite_in_every_precision(dtype, own, coupled, zero):
    leaves = {"query": draw(4, 8, key="q"), "positive": draw(4, 8, key="p"), "negatives": draw(4, 6, 8, key="n") if own else draw(6, 8, key="n")}
    for name, vectors in leaves.items():
        if name == zero or zero == "all":
            vectors.zero_()
        elif name == "negatives" and zero == "one negative":
            vectors[..., 2, :] = 0
        elif zero == "1e-7":
            vectors.mul_(1e-7)
    leaves = [x.to(dtype).requires_grad_() for x in leaves.values()]
    loss = info_nce(*leaves, 0.01, None, coupled)
    assert loss.isfinite() and all(g.isfinite().all() for g in torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_unit_is_numpys_and_keeps_short_vectors_short(dtype):
    vectors = (draw(40, 5, key="u") * torch.logspace(-9, 3, 40, dtype=torch.float64)[:, None]).to(dtype)
    exact = vectors.double().numpy()
    length = np.linalg.norm(exact, axis=1, keepdims=True)
    expected = exact / np.maximum(length, {torch.float16: 1e-2}.get(dtype, 1e-6))
    ours = unit(vectors)
    assert ours.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) and shortest(dtype) == (1e-2 if dtype == torch.float16 else 1e-6)
    np.testing.assert_allclose(ours.double().numpy(), expected, atol=1e-6)
    assert unit(vectors, torch.float64).dtype == torch.float64


def test_small_losses_keep_their_digits_in_float32():
    query, negative = torch.tensor([[1.0, 0.0]]), torch.tensor([[math.cos(2.0), math.sin(2.0)]])
    expected = math.log1p(math.exp((math.cos(2.0) - 1) / 0.07))  # 1.6e-9
    assert math.isclose(info_nce(query, query, negative).item(), expected, rel_tol=1e-4)


def test_only_directions_count():
    query, positive, negatives = draw(4, 3, key="q"), draw(4, 3, key="p"), draw(4, 6, 3, key="n")
    value = info_nce(query, positive, negatives)
    for a, b, c in ((7, 1, 1), (1, 0.01, 1), (1, 1, 300)):
        torch.testing.assert_close(info_nce(a * query, b * positive, c * negatives), value)
    turn = torch.linalg.qr(draw(3, 3, key="turn")).Q
    torch.testing.assert_close(info_nce(query @ turn, positive @ turn, negatives @ turn), value)


@given(st.permutations(range(5)), st.permutations(range(7)), st.booleans(), st.booleans())
def test_anchors_and_negatives_have_no_order(anchors, others, own, coupled):
    query, positive, negatives, weights = draw(5, 3, key="q"), draw(5, 3, key="p"), draw(*((5, 7, 3) if own else (7, 3)), key="n"), WEIGHTS["some zero"]
    losses = info_nce(query, positive, negatives, 0.07, weights, coupled, reduction="none")
    moved = negatives[anchors][:, others] if own else negatives[others]
    torch.testing.assert_close(info_nce(query[anchors], positive[anchors], moved, 0.07, weights[anchors][:, others], coupled, reduction="none"), losses[anchors])


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("chunk", [None, 2])
def test_gradcheck(own, coupled, chunk):
    arguments = [draw(3, 4, key="q"), draw(3, 4, key="p"), draw(*((3, 5, 4) if own else (5, 4)), key="n"), draw(3, 5, key="w").abs() + 0.1]
    arguments = [x.requires_grad_() for x in arguments]
    assert torch.autograd.gradcheck(lambda q, p, n, w: info_nce(q, p, n, 0.3, w, coupled, chunk), arguments)


def test_chunks_change_nothing_but_memory():
    arguments = [draw(2, 11, 4, key=i).requires_grad_() for i in range(3)]
    mask = ~torch.eye(11, dtype=torch.bool)
    whole = torch.autograd.grad(info_nce(*arguments, weights=mask), arguments)
    for chunk in (1, 4, 11):
        parts = torch.autograd.grad(info_nce(*arguments, weights=mask, chunk=chunk), arguments)
        for a, b in zip(whole, parts):
            torch.testing.assert_close(a, b, atol=1e-14, rtol=1e-12)


def test_matches_cross_entropy_over_a_batch():
    query, key = draw(12, 6, key="q"), draw(12, 6, key="k")
    logits = F.normalize(query, dim=1) @ F.normalize(key, dim=1).T / 0.1
    torch.testing.assert_close(info_nce(query, key, key, 0.1, ~torch.eye(12, dtype=torch.bool)), F.cross_entropy(logits, torch.arange(12)))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_not_used_inside(kind):
    query, positive, negatives = (draw(*shape, key=i, dtype=torch.float32).to(kind) for i, shape in enumerate([(6, 8), (6, 8), (9, 8)]))
    exact = info_nce(query.double(), positive.double(), negatives.double(), 0.01)
    assert info_nce(query, positive, negatives, 0.01).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = info_nce(query, positive, negatives, 0.01)
    torch.testing.assert_close(value.double(), exact, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("change, message", [
    ({"query": torch.ones(3)}, "query: got"),
    ({"query": torch.ones(0, 4)}, "query: got"),
    ({"positive": torch.ones(2, 4)}, "positive: got"),
    ({"negatives": torch.ones(5, 3)}, "negatives: got"),
    ({"negatives": torch.ones(2, 5, 4)}, "negatives: got"),
    ({"negatives": torch.ones(4)}, "negatives: got"),
    ({"weights": torch.ones(5)}, "weights: got"),
    ({"weights": torch.ones(1, 5)}, "weights: got"),
    ({"weights": -torch.ones(3, 5)}, "weights: got -1, expected factors >= 0"),
    ({"weights": torch.full((3, 5), math.nan)}, "weights: got nan, expected factors >= 0"),
    ({"temperature": 0.0}, "temperature: got 0.0, expected a finite number > 0"),
    ({"temperature": math.nan}, "temperature: got nan"),
    ({"temperature": math.inf}, "temperature: got inf"),
    ({"temperature": torch.tensor([0.1, 0.2])}, "temperature: got tensor"),
    ({"chunk": 0}, "chunk: got 0"),
    ({"reduction": "avg"}, "reduction: got 'avg'"),
])
def test_errors_name_the_argument(change, message):
    arguments = {"query": torch.ones(3, 4), "positive": torch.ones(3, 4), "negatives": torch.ones(5, 4)} | change
    with pytest.raises(ValueError, match=message) as error:
        info_nce(**arguments)
    assert "\n" not in str(error.value)


def test_a_feature_map_is_refused_and_the_remedy_works():
    maps = draw(2, 3, 5, 5)
    with pytest.raises(ValueError, match=r"query: got \(2, 3, 5, 5\), expected \(N, D\) or \(B, M, D\); of a feature map take") as error:
        info_nce(maps, maps, maps)
    assert "features.flatten(2).mT" in str(error.value) and "gather_vectors(features, positions)" in str(error.value)
    vectors = maps.flatten(2).mT
    torch.testing.assert_close(vectors, gather_vectors(maps, torch.arange(25)))
    assert info_nce(vectors, vectors, vectors, weights=~torch.eye(25, dtype=torch.bool)).isfinite()


# hardness, prior, several positives, learned temperature

VARIANTS = {"hard": {"hardness": 0.8}, "debiased": {"prior": 0.1}, "hard, debiased": {"hardness": 0.5, "prior": 0.05},
            "several": {"positives": draw(5, 7, key="friends") > 0.6}}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("own", [True, False], ids=["own", "shared"])
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("coupled", [True, False], ids=["coupled", "decoupled"])
@pytest.mark.parametrize("chunk", [None, 2])
def test_variants_equal_the_triple_loop(variant, own, weights, coupled, chunk):
    query, positive, negatives = draw(5, 3, key="q"), draw(5, 3, key="p"), draw(*((5, 7, 3) if own else (7, 3)), key="n")
    for temperature in (0.07, 0.6):
        expected = loops(query, positive, negatives.expand(5, 7, 3), temperature, weights, coupled, **variant)
        ours = info_nce(query, positive, negatives, temperature, weights, coupled, chunk, "none", **variant)
        torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64), atol=1e-10, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("coupled", [True, False])
def test_variants_gradcheck(variant, coupled):
    leaves = [x.requires_grad_() for x in (draw(5, 3, key="q"), draw(5, 3, key="p"), draw(7, 3, key="n"), draw(5, 7, key="w").abs() + 0.1)]
    temperature = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q, p, n, w, t: info_nce(q, p, n, t, w, coupled, **variant), [*leaves, temperature])
    assert torch.autograd.gradcheck(lambda q, t: info_nce(q, *leaves[1:3], t, chunk=2, **variant), [leaves[0], temperature])


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("coupled", [True, False])
def test_variants_stay_finite_at_small_temperature(variant, coupled):
    base = draw(5, 8, key="q", dtype=torch.float32)
    for positive, negative in ((-base, base), (base, -base), (base, base), (torch.zeros_like(base), base)):
        for mask in (None, torch.rand(5, 7, generator=generator("mask")) > 0.5, torch.zeros(5, 7, dtype=torch.bool)):
            leaves = [x.clone().requires_grad_() for x in (base + 1e-4, positive, negative[[0, 1, 2, 3, 4, 0, 1]])]
            loss = info_nce(*leaves, 0.01, mask, coupled, **variant)
            assert loss.isfinite() and all(g.isfinite().all() for g in torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("variant", [{"hardness": 0.8}, {"prior": 0.1}, {"hardness": 0.5, "prior": 0.05}, {"positives": True}])
@pytest.mark.parametrize("coupled", [True, False])
def test_variants_without_negatives(variant, coupled):
    for vectors, weights in ((0, None), (6, torch.zeros(4, 6, dtype=torch.bool)), (6, torch.zeros(4, 6, dtype=torch.float64))):
        leaves = [x.requires_grad_() for x in (draw(4, 3, key="q"), draw(4, 3, key="p"), draw(vectors, 3, key="n"))]
        options = {"positives": torch.zeros(4, vectors, dtype=torch.bool)} if "positives" in variant else variant
        loss = info_nce(*leaves, weights=weights, positive_in_denominator=coupled, **options)
        assert loss.item() == 0
        assert all((g == 0).all() for g in torch.autograd.grad(loss, leaves))


@given(st.floats(0, 3), st.floats(0.05, 2), st.integers(1, 9))
def test_hardness_is_a_table_of_weights(beta, temperature, count):
    query, positive, negatives = draw(3, 4, key="q"), draw(3, 4, key="p"), draw(count, 4, key="n")
    scores = F.normalize(query, dim=1) @ F.normalize(negatives, dim=1).T / temperature
    weights = count * (beta * scores).softmax(-1)
    torch.testing.assert_close(info_nce(query, positive, negatives, temperature, hardness=beta), info_nce(query, positive, negatives, temperature, weights))


@given(st.integers(1, 300), st.floats(0.1, 2), st.floats(0.001, 0.9), st.floats(0, 5))
def test_a_blind_guess_stays_one(count, temperature, prior, beta):
    same = torch.ones(2, 3, dtype=torch.float64)
    value = info_nce(same, same, same[:1].expand(count, 3), temperature, hardness=beta, prior=prior).item()
    assert math.isclose(value, math.log(count + 1), abs_tol=1e-9)


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(0.01, 0.9), st.integers(1, 50), st.floats(0.2, 2))
def test_debias_in_plain_numbers(mean, attraction, prior, count, temperature):
    total = count * math.exp(mean)
    expected = max((total - prior * count * math.exp(attraction)) / (1 - prior), count * math.exp(-1 / temperature))
    one = lambda value: torch.tensor([value], dtype=torch.float64)
    ours = debias(one(math.log(total)), one(attraction), one(math.log(count)), prior, temperature)
    assert math.isclose(ours.exp().item(), expected, rel_tol=1e-9)


def test_several_positives_end_at_the_log_of_their_number():
    places = torch.eye(3, dtype=torch.float64)
    friends = torch.eye(3, dtype=torch.bool).repeat(1, 4)  # four more views of each place
    value = info_nce(places, places, places.repeat(4, 1), 0.01, positives=friends).item()
    assert math.isclose(value, math.log(5), abs_tol=1e-9)
    none = torch.zeros(3, 12, dtype=torch.bool)
    torch.testing.assert_close(info_nce(places, places, places.repeat(4, 1), positives=none), info_nce(places, places, places.repeat(4, 1)))


def test_a_learned_temperature_moves_the_right_way():
    temperature = torch.tensor(0.5, requires_grad=True)
    query, negatives = torch.eye(4), torch.eye(4).roll(1, 0)
    info_nce(query, query, negatives, temperature).backward()
    assert temperature.grad > 0  # positives are nearest: sharper is better
    for bad in (torch.tensor(0.0), torch.tensor(-1.0), torch.tensor(math.nan), torch.tensor(math.inf)):
        with pytest.raises(ValueError, match="temperature: got"):
            info_nce(query, query, negatives, bad)


@pytest.mark.parametrize("change, message", [
    ({"hardness": -0.1}, "hardness: got -0.1, expected 0 or more"),
    ({"hardness": math.inf}, "hardness: got inf"),
    ({"prior": 1.0}, "prior: got 1.0, expected 0 <= prior < 1"),
    ({"prior": -0.1}, "prior: got -0.1"),
    ({"positives": torch.ones(3, 5)}, "positives: got torch.float32, expected a Boolean mask"),
    ({"positives": torch.ones(3, 4, dtype=torch.bool)}, "positives: got"),
    ({"positives": torch.ones(3, 5, dtype=torch.bool), "prior": 0.1}, "positives: got a mask together with hardness or prior"),
])
def test_errors_of_the_variants(change, message):
    with pytest.raises(ValueError, match=message):
        info_nce(torch.ones(3, 4), torch.ones(3, 4), torch.ones(5, 4), **change)


# libraries

def test_equals_the_library_for_one_and_for_several_positives():
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    query, key = draw(12, 6, key="q"), draw(12, 6, key="k")
    labels = torch.arange(12)
    own = ~torch.eye(12, dtype=torch.bool)
    theirs = losses.NTXentLoss(0.1)(query, labels, ref_emb=key, ref_labels=labels.clone())  # the same object would mean: leave the diagonal out
    torch.testing.assert_close(info_nce(query, key, key, 0.1, own), theirs, atol=1e-5, rtol=0)

    labels = torch.arange(12) // 3  # three of each
    same = labels[:, None] == labels
    first = torch.tensor([next(j for j in range(12) if j != i and same[i, j]) for i in range(12)])  # one of the friends is "the" positive
    column = torch.arange(12)
    mask = own & (column != first[:, None])
    ours = info_nce(query, query[first], query, 0.1, mask, positives=same & mask)
    torch.testing.assert_close(ours, losses.SupConLoss(0.1)(query, labels), atol=1e-5, rtol=0)
