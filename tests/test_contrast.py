"""contrast: info_nce against loops and closed forms, its gradients, its memory, and L_bc over positions."""
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from crlsr.contrast import (BidirectionalContrastiveLoss, Negatives, PositionNegatives, bidirectional_contrastive_loss,
                            gather_vectors, info_nce, sample_positions)
from crlsr.core import generator


def draw(*shape, key=0, dtype=torch.float64):
    return torch.randn(*shape, generator=generator("contrast", key), dtype=dtype)


def loops(query, positive, negatives, temperature=0.07, weights=None, positive_in_denominator=True):
    "Losses (N,) of flat arguments: negatives (N, K, D), weights (N, K)."
    def similarity(a, b):
        dot = squares_a = squares_b = 0.0
        for d in range(len(a)):
            dot, squares_a, squares_b = dot + a[d] * b[d], squares_a + a[d] ** 2, squares_b + b[d] ** 2
        return dot / (squares_a * squares_b) ** 0.5 / temperature

    losses = []
    for i in range(len(query)):
        right = similarity(query[i].tolist(), positive[i].tolist())
        total = math.exp(right) if positive_in_denominator else 0.0
        for k in range(negatives.shape[1]):
            factor = 1.0 if weights is None else float(weights[i, k])
            total += factor * math.exp(similarity(query[i].tolist(), negatives[i, k].tolist()))
        losses.append(math.log(total) - right if total > 0 else 0.0)
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
    ({"temperature": 0.0}, "temperature: got 0.0, expected > 0"),
    ({"temperature": math.nan}, "temperature: got nan"),
    ({"chunk": 0}, "chunk: got 0"),
    ({"reduction": "avg"}, "reduction: got 'avg'"),
])
def test_errors_name_the_argument(change, message):
    arguments = {"query": torch.ones(3, 4), "positive": torch.ones(3, 4), "negatives": torch.ones(5, 4)} | change
    with pytest.raises(ValueError, match=message) as error:
        info_nce(**arguments)
    assert "\n" not in str(error.value)


# memory

class _Largest(TorchDispatchMode):
    "Records the size of the largest new storage that any operation returns; views of `known` tensors are not new."

    def __init__(self, known):
        super().__init__()
        self.mebibytes, self.known = 0.0, {x.untyped_storage().data_ptr() for x in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in self.known:
                self.mebibytes = max(self.mebibytes, x.untyped_storage().nbytes() / 2**20)
        return out


def _largest(loss, leaves, others=()):
    with _Largest([*leaves, *others]) as mode:
        torch.autograd.grad(loss(), leaves)
    return mode.mebibytes


def test_shared_negatives_are_never_copied_per_anchor():
    q_l, q_h = (draw(8, 256, 64, key=side, dtype=torch.float32).requires_grad_() for side in "lh")
    table = 8 * 256 * 256 * 4 / 2**20  # MiB of all cosines; the gathered negatives would be 64 times that
    assert _largest(lambda: bidirectional_contrastive_loss(q_l, q_h), [q_l, q_h]) <= table
    assert _largest(lambda: bidirectional_contrastive_loss(q_l, q_h, chunk=64), [q_l, q_h]) <= table / 4
    queue = draw(4096, 64, key="queue", dtype=torch.float32)
    assert _largest(lambda: info_nce(q_l, q_h, queue), [q_l, q_h]) <= 8 * 256 * 4096 * 4 / 2**20


def test_own_negatives_are_not_copied_to_normalise_them():
    query, positive, negatives = (draw(*shape, key=i, dtype=torch.float32) for i, shape in enumerate([(64, 16), (64, 16), (64, 100, 16)]))
    query.requires_grad_()
    assert _largest(lambda: info_nce(query, positive, negatives), [query], [negatives]) <= 64 * 100 * 4 / 2**20


def test_4096_positions():
    q_l, q_h = (draw(1, 4096, 16, key=side, dtype=torch.float32).requires_grad_() for side in "lh")
    loss = lambda: bidirectional_contrastive_loss(q_l, q_h, chunk=256)
    assert _largest(loss, [q_l, q_h]) <= 4096 * 4096 / 2**20  # the Boolean mask itself, 16 MiB
    assert loss().isfinite()


# positions

@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 500), st.integers(0, 9))
def test_positions_are_distinct_and_replay(height, width, count, seed):
    drawn = sample_positions(height, width, count, generator(seed))
    assert drawn.dtype == torch.int64 and len(drawn) == min(count, height * width) == drawn.unique().numel()
    assert 0 <= drawn.min() and drawn.max() < height * width
    assert torch.equal(drawn, sample_positions(height, width, count, generator(seed)))


def test_every_position_is_equally_likely():
    rng = generator("uniform")
    counts = torch.bincount(torch.cat([sample_positions(3, 4, 5, rng) for _ in range(6000)]), minlength=12)
    assert (counts / 2500 - 1).abs().max() < 0.08  # 2500 each, standard deviation 38


@pytest.mark.parametrize("arguments", [(0, 3, 1), (3, 0, 1), (3, 3, 0)])
def test_an_empty_sample_is_refused(arguments):
    with pytest.raises(ValueError, match="height, width, num_vectors: got"):
        sample_positions(*arguments)


def test_gathered_vectors_are_those_of_the_map():
    features, positions = draw(2, 3, 4, 5), torch.tensor([7, 0, 19, 4])
    vectors = gather_vectors(features, positions)
    assert vectors.shape == (2, 4, 3)
    for b, i in itertools.product(range(2), range(4)):
        row, column = divmod(int(positions[i]), 5)
        assert torch.equal(vectors[b, i], features[b, :, row, column])


# L_bc

def bc_loops(q_l, q_h, temperature=0.07):
    losses = []
    for query, key in ((q_l, q_h), (q_h, q_l)):
        for b, i in itertools.product(range(query.shape[0]), range(query.shape[1])):
            others = torch.stack([key[b, j] for j in range(key.shape[1]) if j != i])
            losses += loops(query[b, i][None], key[b, i][None], others[None], temperature)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("shape", [(1, 2, 3), (3, 5, 4), (2, 9, 2)])
@pytest.mark.parametrize("temperature", [0.03, 0.07, 1.0])
@pytest.mark.parametrize("chunk", [None, 2])
def test_bc_equals_its_loops(shape, temperature, chunk):
    q_l, q_h = draw(*shape, key="l"), draw(*shape, key="h")
    loss = BidirectionalContrastiveLoss(temperature, chunk=chunk)
    assert abs(loss(q_l, q_h).item() - bc_loops(q_l, q_h, temperature)) < 1e-10


def test_bc_is_symmetric_and_has_no_order():
    q_l, q_h = draw(3, 6, 4, key="l"), draw(3, 6, 4, key="h")
    value = bidirectional_contrastive_loss(q_l, q_h)
    assert torch.equal(value, bidirectional_contrastive_loss(q_h, q_l))
    positions, images = torch.tensor([3, 1, 5, 0, 2, 4]), torch.tensor([2, 0, 1])
    torch.testing.assert_close(bidirectional_contrastive_loss(q_l[:, positions], q_h[:, positions]), value)
    torch.testing.assert_close(bidirectional_contrastive_loss(q_l[images], q_h[images]), value)
    assert (bidirectional_contrastive_loss(q_l[:, positions], q_h) - value).abs() > 1e-3  # partners must stay partners


def test_bc_values():
    with pytest.raises(ValueError, match="key: got 1 vector an image, expected at least 2, because PositionNegatives"):
        bidirectional_contrastive_loss(draw(2, 1, 3), draw(2, 1, 3))
    constant = torch.ones(2, 16, 3, dtype=torch.float64)
    assert math.isclose(bidirectional_contrastive_loss(constant, constant).item(), math.log(16))
    perfect = torch.eye(16, dtype=torch.float64)[None]
    assert math.isclose(bidirectional_contrastive_loss(perfect, perfect).item(), math.log1p(15 * math.exp(-1 / 0.07)), rel_tol=1e-9)


def test_images_do_not_meet_and_both_sides_learn():
    q_l, q_h = draw(2, 4, 3, key="l").requires_grad_(), draw(2, 4, 3, key="h").requires_grad_()
    alone = bidirectional_contrastive_loss(q_l[:1], q_h[:1])
    together = bidirectional_contrastive_loss(q_l, q_h)
    for a, b in zip(torch.autograd.grad(alone, [q_l, q_h]), torch.autograd.grad(together, [q_l, q_h])):
        torch.testing.assert_close(a[0], 2 * b[0])
        assert (a[0] != 0).all()


@pytest.mark.parametrize("images, count", [(1, 2), (2, 5)])
def test_who_repels_whom(images, count):
    query, key = draw(images, count, 8, key="q"), draw(images, count, 8, key="k").requires_grad_()
    vectors, weights, *_ = PositionNegatives()(query, key)
    assert vectors is key and weights.shape == (count, count)
    assert weights.sum() == count * (count - 1) and not weights.diagonal().any()
    losses = info_nce(query, key.detach(), vectors, weights=weights, reduction="none")
    for b, i in itertools.product(range(images), range(count)):
        pushed = torch.autograd.grad(losses[b, i], key, retain_graph=True)[0].abs().sum(-1) > 0
        expected = torch.zeros(images, count, dtype=torch.bool)
        expected[b] = torch.arange(count) != i  # the other positions of its own image, never its positive
        assert torch.equal(pushed, expected)


def test_other_constructions_fit():
    "Same side too, and the whole batch: what a later construction may hand over."
    class MyBothSides:
        def __call__(self, query, key, geometry):
            other = ~torch.eye(key.shape[1], dtype=torch.bool)
            return Negatives(torch.cat([key, query], dim=1), torch.cat([other, other], dim=1))

    class MyBatch:
        def __call__(self, query, key, geometry):
            count = key.shape[0] * key.shape[1]
            return Negatives(key.flatten(0, 1), ~torch.eye(count, dtype=torch.bool).view(*key.shape[:2], count))

    constant = torch.ones(2, 5, 3, dtype=torch.float64)
    assert math.isclose(bidirectional_contrastive_loss(constant, constant, negatives=MyBothSides()).item(), math.log(1 + 2 * 4))
    assert math.isclose(BidirectionalContrastiveLoss(negatives=MyBatch())(constant, constant).item(), math.log(2 * 5))
    q_l, q_h = draw(2, 5, 3, key="l"), draw(2, 5, 3, key="h")
    flat = BidirectionalContrastiveLoss()(q_l.reshape(1, 10, 3), q_h.reshape(1, 10, 3))  # one image that holds both
    torch.testing.assert_close(BidirectionalContrastiveLoss(negatives=MyBatch())(q_l, q_h), flat)


def test_bc_refuses_two_shapes():
    with pytest.raises(ValueError, match=r"q_l, q_h: got \(2, 4, 3\) and \(2, 5, 3\), expected"):
        bidirectional_contrastive_loss(draw(2, 4, 3), draw(2, 5, 3))
    with pytest.raises(ValueError, match="q_l, q_h: got"):
        bidirectional_contrastive_loss(draw(4, 3), draw(4, 3))
    assert not list(BidirectionalContrastiveLoss().parameters())
