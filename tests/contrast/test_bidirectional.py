"""contrast.bidirectional: L_bc from one table and the general way, stops, keys, weights, state; and the memory that its tables take."""
import itertools
import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from crlsr.contrast import (
    BatchNegatives, BidirectionalContrastiveLoss, Chain, Far, Geometry, Hard, KeyQueue, Negatives, PositionNegatives, bidirectional,
    bidirectional_contrastive_loss, info_nce,
)
from crlsr.contrast.negatives import directed_loss
from crlsr.core import generator
from tests.notebooks import ROOT


def draw(*shape, key=0, dtype=torch.float64):
    return torch.randn(*shape, generator=generator("contrast", key), dtype=dtype)


def cross_entropy(query, positive, others, temperature):
    "One anchor in plain Python."
    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))

    right = cosine(query, positive) / temperature
    return math.log(math.exp(right) + sum(math.exp(cosine(query, x) / temperature) for x in others)) - right


FORMS = [None, PositionNegatives()]  # the same loss from one table and the general way


# L_bc

def bc_loops(q_l, q_h, temperature=0.07, weights=(1, 1)):
    means = []
    for query, key in ((q_l.tolist(), q_h.tolist()), (q_h.tolist(), q_l.tolist())):
        pairs = list(itertools.product(range(len(query)), range(len(query[0]))))
        losses = [cross_entropy(query[b][i], key[b][i], [key[b][j] for j in range(len(key[b])) if j != i], temperature) for b, i in pairs]
        means.append(sum(losses) / len(losses))
    return (weights[0] * means[0] + weights[1] * means[1]) / sum(weights)


@pytest.mark.parametrize("shape", [(1, 2, 3), (3, 5, 4), (2, 9, 2)])
@pytest.mark.parametrize("temperature", [0.03, 0.07, 1.0])
@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("negatives", FORMS)
def test_bc_equals_its_loops(shape, temperature, chunk, negatives):
    q_l, q_h = draw(*shape, key="l"), draw(*shape, key="h")
    loss = BidirectionalContrastiveLoss(temperature, negatives, chunk=chunk)
    assert abs(loss(q_l, q_h).item() - bc_loops(q_l, q_h, temperature)) < 1e-10


@pytest.mark.parametrize("negatives", FORMS)
def test_bc_is_symmetric_and_has_no_order(negatives):
    loss = BidirectionalContrastiveLoss(negatives=negatives)
    q_l, q_h = draw(3, 6, 4, key="l"), draw(3, 6, 4, key="h")
    value = loss(q_l, q_h)
    if negatives is None:  # the temperature divides one side only
        torch.testing.assert_close(value, loss(q_h, q_l), rtol=1e-13, atol=0)
    else:
        assert torch.equal(value, loss(q_h, q_l))
    positions, images = torch.tensor([3, 1, 5, 0, 2, 4]), torch.tensor([2, 0, 1])
    torch.testing.assert_close(loss(q_l[:, positions], q_h[:, positions]), value)
    torch.testing.assert_close(loss(q_l[images], q_h[images]), value)
    assert (loss(q_l[:, positions], q_h) - value).abs() > 1e-3  # partners must stay partners


@pytest.mark.parametrize("negatives", FORMS)
def test_bc_values(negatives):
    loss = BidirectionalContrastiveLoss(negatives=negatives)
    constant = torch.ones(2, 16, 3, dtype=torch.float64)
    assert math.isclose(loss(constant, constant).item(), math.log(16))
    perfect = torch.eye(16, dtype=torch.float64)[None]
    assert math.isclose(loss(perfect, perfect).item(), math.log1p(15 * math.exp(-1 / 0.07)), rel_tol=1e-9)


@pytest.mark.parametrize("negatives, message", [
    (None, "q_l, q_h: got 1 vector an image, expected at least 2: the others repel"),
    (PositionNegatives(), "key: got 1 vector an image, expected at least 2, because PositionNegatives"),
])
def test_one_vector_has_nobody_to_be_told_apart_from(negatives, message):
    with pytest.raises(ValueError, match=message):
        bidirectional_contrastive_loss(draw(2, 1, 3), draw(2, 1, 3), negatives=negatives)


@pytest.mark.parametrize("negatives", FORMS)
def test_images_do_not_meet_and_both_sides_learn(negatives):
    q_l, q_h = draw(2, 4, 3, key="l").requires_grad_(), draw(2, 4, 3, key="h").requires_grad_()
    alone = bidirectional_contrastive_loss(q_l[:1], q_h[:1], negatives=negatives)
    together = bidirectional_contrastive_loss(q_l, q_h, negatives=negatives)
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


@pytest.mark.parametrize("negatives", FORMS)
def test_bc_refuses_two_shapes(negatives):
    with pytest.raises(ValueError, match=r"q_l, q_h: got \(2, 4, 3\) and \(2, 5, 3\), expected"):
        bidirectional_contrastive_loss(draw(2, 4, 3), draw(2, 5, 3), negatives=negatives)
    with pytest.raises(ValueError, match="q_l, q_h: got"):
        bidirectional_contrastive_loss(draw(4, 3), draw(4, 3), negatives=negatives)
    assert not list(BidirectionalContrastiveLoss().parameters())


@pytest.mark.parametrize("weights", [(1, 1), (1, 0), (0, 2.5), (3, 1)])
def test_direction_weights(weights):
    q_l, q_h = draw(2, 4, 3, key="l").requires_grad_(), draw(2, 4, 3, key="h")
    value = bidirectional_contrastive_loss(q_l, q_h, 0.2, direction_weights=weights)
    assert abs(value.item() - bc_loops(q_l, q_h, 0.2, weights)) < 1e-10


@pytest.mark.parametrize("detach, at_low, at_high", [("none", True, True), ("low", False, True), ("high", True, False), ("keys", True, True)])
@pytest.mark.parametrize("negatives", [PositionNegatives(), BatchNegatives(), None])
def test_where_the_gradient_goes(detach, at_low, at_high, negatives):
    leaves = [draw(2, 4, 3, key=side).requires_grad_() for side in "lh"]
    value = bidirectional_contrastive_loss(*leaves, negatives=negatives, detach=detach)
    negatives = PositionNegatives() if negatives is None and detach == "keys" else negatives  # which takes two tables
    assert value.item() == bidirectional_contrastive_loss(*leaves, negatives=negatives).item()  # a stop changes no value
    low, high = torch.autograd.grad(value, leaves, allow_unused=True)
    assert (low is not None and bool((low != 0).any())) == at_low
    assert (high is not None and bool((high != 0).any())) == at_high
    if detach == "keys":  # each side learns as an anchor only
        q_l, q_h = leaves
        forth = directed_loss(q_l, q_h.detach(), negatives(q_l, q_h.detach(), Geometry()))
        torch.testing.assert_close(low, torch.autograd.grad(forth / 2, q_l)[0])


def test_keys_are_what_is_looked_for():
    q_l, q_h, k_l, k_h = (draw(2, 4, 3, key=name).requires_grad_() for name in ("l", "h", "kl", "kh"))
    value = bidirectional_contrastive_loss(q_l, q_h, keys=(k_l, k_h))
    expected = (directed_loss(q_l, k_h, PositionNegatives()(q_l, k_h)) + directed_loss(q_h, k_l, PositionNegatives()(q_h, k_l))) / 2
    assert torch.equal(value, expected)
    assert torch.equal(bidirectional_contrastive_loss(q_l, q_h, keys=(q_l, q_h)), bidirectional_contrastive_loss(q_l, q_h, negatives=PositionNegatives()))
    for detach, stopped in (("low", (q_l, k_l)), ("high", (q_h, k_h)), ("keys", (k_l, k_h))):
        moved = torch.autograd.grad(bidirectional_contrastive_loss(q_l, q_h, keys=(k_l, k_h), detach=detach), (q_l, q_h, k_l, k_h), allow_unused=True)
        assert [g is None for g in moved] == [any(x is s for s in stopped) for x in (q_l, q_h, k_l, k_h)]


def test_the_side_is_told_to_the_construction():
    seen = []

    def spy(query, key, geometry):
        seen.append((geometry.key_side, key))
        return PositionNegatives()(query, key)

    q_l, q_h = draw(1, 3, 2, key="l"), draw(1, 3, 2, key="h")
    bidirectional_contrastive_loss(q_l, q_h, negatives=spy)
    assert [side for side, _ in seen] == ["high", "low"] and seen[0][1] is q_h and seen[1][1] is q_l


def test_state_of_the_loss():
    assert not BidirectionalContrastiveLoss().state_dict()
    loss = BidirectionalContrastiveLoss(nn.Parameter(torch.tensor(0.2)), Chain(KeyQueue(8, 3), Hard(0.5)))
    assert [name for name, _ in loss.named_parameters()] == ["temperature"]
    assert set(loss.state_dict()) == {"temperature", "negatives.construction.low", "negatives.construction.high", "negatives.construction.count"}
    q_l, q_h = (draw(1, 4, 3, key=side, dtype=torch.float32) for side in "lh")
    loss.negatives.construction.enqueue(q_l, q_h)
    resumed = BidirectionalContrastiveLoss(nn.Parameter(torch.tensor(9.0)), Chain(KeyQueue(8, 3), Hard(0.5)))
    resumed.load_state_dict(loss.state_dict())
    assert torch.equal(resumed(q_h, q_l), loss(q_h, q_l))
    (slope,) = torch.autograd.grad(loss(q_h, q_l), loss.temperature)
    assert slope.isfinite() and slope != 0


@pytest.mark.parametrize("change, message", [
    ({"detach": "both"}, "detach: got 'both', expected one of 'none', 'low', 'high', 'keys'"),
    ({"direction_weights": (0, 0)}, "direction_weights: got"),
    ({"direction_weights": (-1, 2)}, "direction_weights: got"),
    ({"direction_weights": (1, 1, 1)}, "direction_weights: got"),
    ({"temperature": math.inf}, "temperature: got inf"),
    ({"negatives": "batch"}, "negatives: got 'batch', expected an object to be called"),
    ({"keys": (torch.ones(2, 3, 4), torch.ones(2, 4, 3))}, r"keys: got \(2, 4, 3\) and \(2, 3, 4\) and \(2, 4, 3\)"),
    ({"temperature": 0.0}, "temperature: got 0.0"),
    ({"negatives": Chain(PositionNegatives(), Far(2))}, "geometry.positions: got None, expected a value, because Far needs it"),
])
def test_errors_of_the_loss(change, message):
    with pytest.raises(ValueError, match=message) as error:
        bidirectional_contrastive_loss(draw(2, 4, 3), draw(2, 4, 3), **change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change, message", [
    ({"detach": "sr"}, "detach: got 'sr'"), ({"detach": False}, "detach: got False"),
    ({"direction_weights": (0, 0)}, "direction_weights: got"),
    ({"chunk": 0}, "chunk: got 0"),
    ({"temperature": -1.0}, "temperature: got -1.0"), ({"temperature": torch.ones(2)}, "temperature: got tensor"),
    ({"temperature": nn.Parameter(torch.tensor(math.nan))}, "temperature: got"),
    ({"negatives": "positions"}, "negatives: got 'positions', expected an object"), ({"negatives": PositionNegatives}, "negatives: got <class"),
])
def test_a_loss_that_cannot_work_is_not_made(change, message):
    with pytest.raises(ValueError, match=message):
        BidirectionalContrastiveLoss(**change)


def test_feature_maps_are_refused_by_both_forms():
    for negatives in (None, PositionNegatives()):
        with pytest.raises(ValueError, match=r"q_l, q_h: got \(2, 3, 4, 4\) and \(2, 3, 4, 4\), expected \(B, M, D\) each; of a feature map take gather_vectors"):
            BidirectionalContrastiveLoss(negatives=negatives)(draw(2, 3, 4, 4), draw(2, 3, 4, 4))


def test_a_printed_loss_shows_its_settings():
    text = "temperature=0.07, negatives=BatchNegatives(), chunk=None, detach='low', direction_weights=(1.0, 1.0)"
    assert repr(BidirectionalContrastiveLoss(negatives=BatchNegatives(), detach="low")) == f"BidirectionalContrastiveLoss({text})"
    learned = repr(BidirectionalContrastiveLoss(nn.Parameter(torch.tensor(0.1)), Chain(PositionNegatives(), Far(2))))
    assert "temperature=Parameter(0.1)" in learned and "(negatives): Chain(PositionNegatives() -> Far(distance=2))" in learned


@pytest.mark.parametrize("negatives", FORMS)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_features(negatives, half):
    loss = BidirectionalContrastiveLoss(negatives=negatives)
    q_l, q_h = (draw(2, 6, 8, key=side, dtype=torch.float32) for side in "lh")
    exact = loss(q_l.to(half).float(), q_h.to(half).float())
    torch.testing.assert_close(loss(q_l.to(half), q_h.to(half).float()), exact)  # one side only
    leaves = [x.to(half).requires_grad_() for x in (q_l, q_h)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(*leaves)
    torch.testing.assert_close(value, exact)
    assert value.dtype == torch.float32 and all(g.dtype == half and (g != 0).any() for g in torch.autograd.grad(value, leaves))


# one table

@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("shape", [(1, 2, 3), (3, 7, 5), (4, 64, 32), (1, 200, 8)])
@pytest.mark.parametrize("temperature", [0.07, 0.3, 1.0])
def test_one_table_is_the_general_form(dtype, tolerance, shape, temperature):
    leaves = [draw(*shape, key=side, dtype=dtype).requires_grad_() for side in "lh"]
    table, general = (bidirectional_contrastive_loss(*leaves, temperature, who) for who in FORMS)
    torch.testing.assert_close(table, general, rtol=tolerance, atol=tolerance)
    for one, other in zip(*(torch.autograd.grad(value, leaves) for value in (table, general))):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("options, tables", [
    ({}, 1), ({"detach": "low"}, 1), ({"detach": "high"}, 1), ({"direction_weights": (2.0, 2.0)}, 1), ({"geometry": Geometry(torch.arange(64), (8, 8))}, 1),
    ({"detach": "keys"}, 0), ({"chunk": 16}, 0), ({"direction_weights": (1.0, 0.0)}, 0), ({"keys": (draw(2, 64, 8, key="a"), draw(2, 64, 8, key="b"))}, 0),
    ({"negatives": PositionNegatives()}, 0), ({"negatives": BatchNegatives()}, 0),
])
def test_when_one_table_is_enough(monkeypatch, options, tables):
    seen, table = [], bidirectional._from_one_table
    monkeypatch.setattr(bidirectional, "_from_one_table", lambda *x: seen.append(x) or table(*x))
    leaves = [draw(2, 64, 8, key=side).requires_grad_() for side in "lh"]
    value = bidirectional_contrastive_loss(*leaves, **options)
    assert len(seen) == tables
    general = bidirectional_contrastive_loss(*leaves, **{"negatives": PositionNegatives(), **options})
    if tables:
        torch.testing.assert_close(value, general, rtol=1e-12, atol=1e-12)
        pairs = zip(*(torch.autograd.grad(x, leaves, allow_unused=True) for x in (value, general)))
        assert all((one is None and other is None) or torch.allclose(one, other, rtol=1e-12, atol=1e-12) for one, other in pairs)
    else:
        assert torch.equal(value, general)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_table_at_small_temperatures_and_without_length(dtype):
    base = draw(2, 9, 5, key="l", dtype=dtype)
    for low, high in ((base, base), (base, -base), (torch.zeros_like(base), base), (base[:, :1].expand(-1, 9, -1), base[:, :1].expand(-1, 9, -1))):
        leaves = [(x + 0).requires_grad_() for x in (low, high)]
        value = bidirectional_contrastive_loss(*leaves, 0.01)
        assert value.isfinite() and all(g.isfinite().all() for g in torch.autograd.grad(value, leaves))


@pytest.mark.parametrize("negatives", FORMS)
def test_a_learned_temperature_gets_its_slope(negatives):
    q_l, q_h = draw(2, 6, 4, key="l"), draw(2, 6, 4, key="h")
    T = nn.Parameter(torch.tensor(0.2, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda t: bidirectional_contrastive_loss(q_l, q_h, t, negatives), T)
    loss = BidirectionalContrastiveLoss(T, negatives)
    loss(q_l, q_h).backward()
    assert list(loss.parameters()) == [T] and T.grad != 0


class Learned(nn.Module):
    "A temperature as its logarithm."

    def __init__(self, start):
        super().__init__()
        self.log = nn.Parameter(torch.tensor(math.log(start), dtype=torch.float64))

    def forward(self):
        return self.log.exp()


@pytest.mark.parametrize("negatives", FORMS)
def test_the_temperature_may_be_a_module(negatives):
    q_l, q_h = draw(2, 6, 4, key="l"), draw(2, 6, 4, key="h")
    loss = BidirectionalContrastiveLoss(Learned(0.2), negatives)
    assert list(loss.state_dict()) == ["temperature.log"] and [name for name, _ in loss.named_parameters()] == ["temperature.log"]
    T = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    value, by_number = loss(q_l, q_h), bidirectional_contrastive_loss(q_l, q_h, T, negatives)
    torch.testing.assert_close(value, by_number)
    value.backward()
    torch.testing.assert_close(loss.temperature.log.grad, 0.2 * torch.autograd.grad(by_number, T)[0])  # dT / d log T = T
    resumed = BidirectionalContrastiveLoss(Learned(9.0), negatives)
    resumed.load_state_dict(loss.state_dict())
    assert torch.equal(resumed(q_l, q_h), value)


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
    for negatives in FORMS:
        assert _largest(lambda: bidirectional_contrastive_loss(q_l, q_h, negatives=negatives), [q_l, q_h]) <= table
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


def test_a_large_batch_never_holds_the_whole_table():
    "8 images of 1024 positions: the whole table is 256 MiB, and 1.6 GiB are held where backward needs it whole; in chunks it is half a GiB."
    code = """
import torch
from crlsr.contrast import BatchNegatives, bidirectional_contrastive_loss
from tests.peak import peak
q_l, q_h = (torch.randn(8, 1024, 16, generator=torch.Generator().manual_seed(side)).requires_grad_() for side in (0, 1))
loss = bidirectional_contrastive_loss(q_l, q_h, negatives=BatchNegatives(), chunk=32)
loss.backward()
assert loss.isfinite() and q_l.grad.isfinite().all() and q_h.grad.abs().sum() > 0
print(peak() / 2**30)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert float(run.stdout) < 0.8
