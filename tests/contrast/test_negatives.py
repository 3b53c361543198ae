"""contrast.negatives: every construction, alone and with the steps of contrast.alternatives, against loops; masks by counting, symmetries, limits."""
import itertools
import math
from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crlsr.contrast import (
    BatchNegatives, BidirectionalContrastiveLoss, BothSides, Chain, Debiased, Decoupled, Dissimilar, Far, Geometry, Hard, KeyQueue,
    PositionNegatives, SameDegradation, Transport, TwoDegradations, bidirectional_contrastive_loss, gather_vectors,
    image_vectors, sample_positions,
)
from crlsr.contrast.negatives import directed_loss, who_repels_whom
from crlsr.core import generator
from tests.contrast.loops import CASES, SOURCES, STEPS, B, D, M, build, call, draw, geometry, reference


@pytest.mark.parametrize("source, steps", CASES)
def test_equals_the_triple_loop(source, steps):
    q_l, q_h, g = draw(B, M, D, key="l"), draw(B, M, D, key="h"), geometry()
    for temperature in (0.07, 0.6):
        ours = bidirectional_contrastive_loss(q_l, q_h, temperature, build(source, steps), geometry=g)
        both = [reference(SOURCES[source][1], STEPS[steps], *pair, g._replace(key_side=side), temperature)
                for pair, side in (((q_l, q_h), "high"), ((q_h, q_l), "low"))]
        assert abs(ours.item() - sum(both) / 2) < 1e-10
        chunked = BidirectionalContrastiveLoss(temperature, build(source, steps), chunk=2)(q_l, q_h, g)
        torch.testing.assert_close(chunked, ours, atol=1e-12, rtol=0)


# Symmetries, positives, counts

def permuted(g, order, images):
    return g._replace(positions=g.positions[order], image=g.image[images], degradation=g.degradation[images], patches=g.patches[images][:, order])


@settings(max_examples=4)
@given(order=st.permutations(range(M)), images=st.permutations(range(B)))
@pytest.mark.parametrize("source, steps", CASES)
def test_positions_and_images_have_no_order(source, steps, order, images):
    "Features and geometry move together; the loss of every anchor moves with it."
    q, k, g = draw(B, M, D, key="l"), draw(B, M, D, key="h"), geometry()
    construction = build(source, steps)
    losses = directed_loss(q, k, construction(q, k, g), 0.2, reduction="none")
    q2, k2 = q[images][:, order], k[images][:, order]
    moved = directed_loss(q2, k2, construction(q2, k2, permuted(g, order, images)), 0.2, reduction="none")
    tolerance = 1e-6 if "transport" in steps else 1e-10
    torch.testing.assert_close(moved, losses[images][:, order], atol=tolerance, rtol=tolerance)


def test_geometry_has_to_move_along():
    q, k, g = draw(B, M, D, key="l"), draw(B, M, D, key="h"), geometry()
    order, images = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([1, 3, 0, 2])
    for construction, stays in ((Chain(PositionNegatives(), Far(2)), {}), (SameDegradation(), {}), (TwoDegradations(), {})):
        value = directed_loss(q, k, construction(q, k, g))
        other = directed_loss(q[images][:, order], k[images][:, order], construction(q[images][:, order], k[images][:, order], g))
        assert (value - other).abs() > 1e-3


@pytest.mark.parametrize("source, steps", CASES)
def test_a_positive_is_never_among_the_negatives(source, steps):
    "No vector that still repels an anchor equals its key, nor that of the same place of the same scene."
    g = geometry()
    places = draw(3, M, D, key="places")[g.image]  # features tell the place of the scene, nothing else: twins are equal
    found = build(source, steps)(places, places, g)
    weights = torch.ones(B, M, found.vectors.shape[-2]) if found.weights is None else found.weights.expand(B, M, -1)
    vectors = found.vectors.expand(B, -1, D) if found.vectors.ndim == 2 else found.vectors
    equal = (places.unsqueeze(2) == vectors.unsqueeze(1)).all(-1)  # (B, M, 1, D) == (B, 1, K, D)
    repels = weights > 0
    if found.positives is not None:
        assert (found.positives <= equal).all()
        repels = repels & ~found.positives
    assert not (repels & equal).any()


@given(st.integers(1, 4), st.integers(2, 6), st.lists(st.integers(0, 2), min_size=4, max_size=4), st.lists(st.integers(0, 1), min_size=4, max_size=4))
def test_masks_by_counting(images, count, scenes, degradations):
    q, k = draw(images, count, 3, key="q"), draw(images, count, 3, key="k")
    scenes, degradations = scenes[:images], degradations[:images]
    g = Geometry(image=torch.tensor(scenes), degradation=torch.tensor(degradations))
    kept = lambda found: found.weights.expand(images, count, -1).sum(-1)
    assert (kept(PositionNegatives()(q, k)) == count - 1).all()
    assert (kept(BothSides()(q, k)) == 2 * count - 2).all()
    assert (kept(BatchNegatives()(q, k)) == images * count - 1).all()
    twins = [scenes.count(scene) for scene in scenes]  # with itself
    for b, row in enumerate(kept(BatchNegatives()(q, k, g)).tolist()):
        assert row == [images * count - twins[b]] * count
    partners = [sum(degradations[c] == degradations[b] and scenes[c] != scenes[b] for c in range(images)) for b in range(images)]
    if any(partners):
        assert kept(SameDegradation()(q, k, g)).tolist() == [[n * count] * count for n in partners]
    if max(twins) > 1:
        found = TwoDegradations()(q, k, g)
        assert (kept(found) == 2 * images * count - 2).all()
        assert found.positives.sum(-1).tolist() == [[2 * (n - 1)] * count for n in twins]


def test_pictures_are_the_masks():
    g = Geometry(image=torch.tensor([0, 0, 1]), degradation=torch.tensor([1, 2, 2]))
    for construction in (PositionNegatives(), BothSides(), BatchNegatives(), SameDegradation(), TwoDegradations(), Chain(BatchNegatives(), Hard(0.3))):
        picture = who_repels_whom(construction, 3, 4, g)
        q = draw(3, 4, 64, key="q")
        found = construction(q, q, g)
        friends = 0 if found.positives is None else int(found.positives.sum())
        repelling = int(found.weights.expand(3, 4, -1).sum()) - friends
        assert picture.shape == (12, 24) and set(picture.unique().tolist()) <= {-1.0, 0.0, 1.0}
        assert (picture == 1).sum() == repelling
        alone = (found.weights.expand(3, 4, -1).sum(-1) == 0).flatten()  # nobody repels: nobody pulls
        assert torch.equal(picture[:, :12].diagonal() == -1, ~alone) and (picture == -1).sum() == friends + (~alone).sum()


# Limits

@pytest.mark.parametrize("source, steps", CASES)
def test_gradients_stay_finite_at_small_temperature(source, steps):
    base, g = draw(B, M, D, key="l", dtype=torch.float32), geometry()
    g = g._replace(patches=g.patches.float())
    construction = Chain(KeyQueue(9, D), *STEPS[steps]) if source == "queue" else build(source, steps)
    if source == "queue":
        construction.construction.enqueue(base[0], -base[0])
    same = base[:1, :1].expand(B, M, D)
    for low, high in ((base, base), (base, -base), (base, base.flip(1)), (same, same), (torch.zeros_like(base), base)):
        leaves = [(x + 0).requires_grad_() for x in (low, high)]
        loss = bidirectional_contrastive_loss(*leaves, 0.01, construction, geometry=g)
        grads = torch.autograd.grad(loss, leaves)
        assert loss.isfinite() and all(x.isfinite().all() for x in grads)


SMOOTH = [(a, b) for a, b in CASES if b in ("", "far", "hard", "debiased", "decoupled", "far+hard", "hard+debiased")]  # weights are no constants elsewhere


@pytest.mark.parametrize("source, steps", SMOOTH)
def test_gradients_are_those_of_the_formula(source, steps):
    q, k, g = draw(B, M, D, key="l").requires_grad_(), draw(B, M, D, key="h").requires_grad_(), geometry()
    construction, (aq, ak) = build(source, steps), (draw(B, M, D, key="dq"), draw(B, M, D, key="dk"))
    f = lambda t: directed_loss(q + t * aq, k + t * ak, construction(q + t * aq, k + t * ak, g), 0.3)
    dq, dk = torch.autograd.grad(f(0.0), (q, k))
    slope = (f(1e-5) - f(-1e-5)).item() / 2e-5
    assert math.isclose((dq * aq).sum().item() + (dk * ak).sum().item(), slope, rel_tol=1e-5, abs_tol=1e-8)


LARGE = {"positions": (1, 4096), "both_sides": (1, 4096), "batch": (2, 2048), "same_degradation": (2, 2048), "two_degradations": (2, 2048), "queue": (1, 4096)}


@pytest.mark.parametrize("source", LARGE)
def test_4096_positions(source):
    images, count = LARGE[source]
    q, k = (draw(images, count, 8, key=side, dtype=torch.float32).requires_grad_() for side in "lh")
    g = Geometry(torch.arange(count), (64, 64), torch.arange(images) if source != "two_degradations" else torch.zeros(images), torch.zeros(images))
    queue = KeyQueue(4096, 8)
    queue.enqueue(k.detach(), q.detach())
    construction = queue if source == "queue" else SOURCES[source][0]
    loss = directed_loss(q, k, construction(q, k, g), chunk=512)
    assert loss.isfinite() and all(x.isfinite().all() for x in torch.autograd.grad(loss, (q, k)))


@pytest.mark.parametrize("nobody", [Chain(PositionNegatives(), Far(99)), Chain(BothSides(), Dissimilar(-1.0)), KeyQueue(5, D).double(),
                                    Chain(KeyQueue(5, D).double(), Hard(0.5)), Chain(KeyQueue(5, D).double(), Debiased(0.1), Decoupled()),
                                    Chain(KeyQueue(5, D).double(), Far(2), Dissimilar(0.2), Transport()),
                                    Chain(PositionNegatives(), Far(99), Transport(), Hard(0.5), Debiased(0.1))])
def test_without_negatives_nothing_is_lost_and_nothing_moves(nobody):
    leaves = [draw(B, M, D, key=side).requires_grad_() for side in "lh"]
    loss = bidirectional_contrastive_loss(*leaves, negatives=nobody, geometry=geometry())
    assert loss.item() == 0
    assert all((x == 0).all() for x in torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("attempt, message", [
    (lambda: call(PositionNegatives(), count=1), "key: got 1 vector an image, expected at least 2, because PositionNegatives"),
    (lambda: call(BothSides(), count=1), "key: got 1 vector an image, expected at least 2, because BothSides"),
    (lambda: call(BatchNegatives(), images=1, count=1), "key: got 1 vector, expected at least 2 in the batch"),
    (lambda: call(SameDegradation()), "geometry.degradation: got None, expected a value, because SameDegradation needs it"),
    (lambda: call(SameDegradation(), images=1, degradation=torch.tensor([0])), "geometry.degradation: got 1 images of which no two share a label"),
    (lambda: call(SameDegradation(), degradation=torch.tensor([0, 1])), "expected at least 2 different images degraded alike"),
    (lambda: call(SameDegradation(), degradation=torch.tensor([0, 0]), image=torch.tensor([3, 3])), "expected at least 2 different images"),
    (lambda: call(TwoDegradations()), "geometry.image: got None"),
    (lambda: call(TwoDegradations(), image=torch.tensor([0, 1])), "geometry.image: got 2 images of 2 scenes, expected at least 2 images that show the same"),
    (lambda: call(TwoDegradations(), images=1, image=torch.tensor([0])), "geometry.image: got 1 images"),
    (lambda: KeyQueue(0, 3), "size, dim: got 0, 3"),
    (lambda: KeyQueue(4, 3).enqueue(torch.ones(2, 3), torch.ones(3, 3)), r"low, high: got \(2, 3\) and \(3, 3\)"),
    (lambda: KeyQueue(4, 3).enqueue(torch.ones(2, 4), torch.ones(2, 4)), r"low, high: got \(2, 4\)"),
    (lambda: KeyQueue(4, 3)(torch.ones(1, 2, 3), torch.ones(1, 2, 3), Geometry(key_side="hr")), "geometry.key_side: got 'hr', expected one of 'low', 'high'"),
    (lambda: image_vectors(torch.ones(1, 3, 2, 2)), "features: got 1 image, expected at least 2"),
    (lambda: image_vectors(torch.ones(3, 2, 2)), r"features: got \(3, 2, 2\), expected \(B, C, H, W\)"),
    (lambda: gather_vectors(torch.ones(3, 2, 2), torch.arange(2)), r"features: got \(3, 2, 2\), expected \(B, C, H, W\)"),
    (lambda: Chain("positions"), r"construction: got 'positions', expected an object to be called: PositionNegatives\(\)"),
    (lambda: Chain(PositionNegatives), "construction: got <class"),
    (lambda: Chain(PositionNegatives(), "far"), "steps: got 'far', expected an object"),
])
def test_errors_say_what_is_needed(attempt, message):
    with pytest.raises(ValueError, match=message) as error:
        attempt()
    assert "\n" not in str(error.value)


# The queue, and several processes

@settings(max_examples=40)
@given(st.integers(1, 9), st.lists(st.integers(0, 12), max_size=8))
def test_the_queue_is_first_in_first_out(size, batches):
    queue, low, high = KeyQueue(size, 1), deque(maxlen=size), deque(maxlen=size)
    number = 0
    for count in batches:
        new = torch.arange(number, number + count, dtype=torch.float32).view(-1, 1)
        number += count
        queue.enqueue(new, -new)
        low.extend(new.flatten().tolist())
        high.extend((-new).flatten().tolist())
        anchor = torch.ones(1, 2, 1)
        assert sorted(queue(anchor, anchor, Geometry(key_side="low")).vectors.flatten().tolist()) == sorted(low)
        assert sorted(queue(anchor, anchor).vectors.flatten().tolist()) == sorted(high)


def test_the_queue_resumes_exactly_and_carries_no_gradient():
    first, second = KeyQueue(7, D), KeyQueue(7, D)
    batch = [draw(2, 5, D, key=i, dtype=torch.float32).requires_grad_() for i in range(4)]
    first.enqueue(*batch[:2])
    second.load_state_dict(first.state_dict())
    for queue in (first, second):
        queue.enqueue(*batch[2:])
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    assert not first(batch[0], batch[1]).vectors.requires_grad


def test_keys_may_be_put_in_before_backward():
    "The queue hands out a copy: filling it does not spoil what autograd has kept."
    queue, q, k = KeyQueue(6, D), *(draw(1, 4, D, key=i, dtype=torch.float32).requires_grad_() for i in range(2))
    queue.enqueue(q, k)
    loss = bidirectional_contrastive_loss(q, k, negatives=queue)
    expected = torch.autograd.grad(loss, q, retain_graph=True)[0]
    queue.enqueue(k, q)
    assert torch.equal(torch.autograd.grad(loss, q)[0], expected)


def test_two_processes_equal_one():
    "Values and gradients: each process sees all keys, its own images first; gradients add up as all-reduce does."
    q, k = draw(4, 3, D, key="l").requires_grad_(), draw(4, 3, D, key="h").requires_grad_()
    scenes = torch.tensor([0, 1, 1, 2])
    whole = directed_loss(q, k, BatchNegatives()(q, k, Geometry(image=scenes)))
    parts = []
    for mine, others in ((slice(0, 2), slice(2, 4)), (slice(2, 4), slice(0, 2))):
        tensors = {(2, 3, D): k[others], (2,): scenes[others]}
        construction = BatchNegatives(gather=lambda x: torch.cat([x, tensors[tuple(x.shape)]]))
        parts.append(directed_loss(q[mine], k[mine], construction(q[mine], k[mine], Geometry(image=scenes[mine]))))
    mean = (parts[0] + parts[1]) / 2
    torch.testing.assert_close(mean, whole)
    for a, b in zip(torch.autograd.grad(mean, (q, k)), torch.autograd.grad(whole, (q, k))):
        torch.testing.assert_close(a, b)


def test_gathered_keys_of_other_processes_have_no_known_place():
    q, k, strangers = draw(2, 3, D, key="l"), draw(2, 3, D, key="h"), draw(2, 3, D, key="s")
    construction = Chain(BatchNegatives(gather=lambda x: torch.cat([x, strangers])), Far(99))
    kept = construction(q, k, Geometry(torch.arange(3), (1, 3))).weights
    assert (kept.sum(-1) == 3 + 6).all()  # far: the other image here; unknown: all of the other process


# Vectors

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


def test_channels_and_images_as_vectors():
    features = draw(3, 4, 5, 6)
    vectors = image_vectors(features)
    assert vectors.shape == (1, 3, 4)
    torch.testing.assert_close(vectors[0, 2, 3], features[2, 3].mean())
    loss = bidirectional_contrastive_loss(vectors, image_vectors(draw(3, 4, 5, 6, key="other")))
    assert loss.isfinite() and PositionNegatives()(vectors, vectors).weights.sum() == 3 * 2  # images repel images
    for make in (lambda features: features.flatten(2), image_vectors):
        x = features.clone().requires_grad_()
        bidirectional_contrastive_loss(make(x), make(draw(3, 4, 5, 6, key="other"))).backward()
        assert (x.grad != 0).any() and x.grad.isfinite().all()


def test_channels_have_no_order():
    low, high, order = draw(2, 5, 3, 3, key="l"), draw(2, 5, 3, 3, key="h"), torch.tensor([4, 2, 0, 1, 3])
    value = bidirectional_contrastive_loss(low.flatten(2), high.flatten(2))
    torch.testing.assert_close(bidirectional_contrastive_loss(low[:, order].flatten(2), high[:, order].flatten(2)), value)


def test_a_printed_chain_says_what_it_does():
    assert repr(KeyQueue(6, 4)) == "KeyQueue(size=6, dim=4)"
    assert repr(Chain(PositionNegatives(), Far(2), Hard(0.5))) == "Chain(PositionNegatives() -> Far(distance=2) -> Hard(beta=0.5))"
