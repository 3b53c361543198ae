"""Every construction of negatives against loops that know nothing of tensors, its masks by counting, its symmetries, its limits."""
import itertools
import math
from collections import deque

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from crlsr.contrast import (
    BatchNegatives, BidirectionalContrastiveLoss, BothSides, Chain, Debiased, Decoupled, Dissimilar, Far, Geometry, Hard, KeyQueue,
    Negatives, PositionNegatives, SameDegradation, Transport, TwoDegradations, bidirectional_contrastive_loss, channel_vectors,
    gather_vectors, image_vectors, info_nce, sample_positions,
)
from crlsr.contrast.negatives import directed_loss, who_repels_whom
from crlsr.core import generator

B, M, D, GRID = 4, 5, 6, (4, 5)


def draw(*shape, key=0, dtype=torch.float64):
    return torch.randn(*shape, generator=generator("constructions", key), dtype=dtype)


def geometry(num_images=B, num_vectors=M):
    "Positions on a 4x5 grid; two scenes, two degradations, patches of 12 numbers of which two are flat."
    positions = torch.tensor([0, 1, 7, 13, 19])[:num_vectors]
    patches = torch.rand(num_images, num_vectors, 12, generator=generator("patches"), dtype=torch.float64)
    patches[0, 1:3] = torch.tensor([[0.3], [0.8]], dtype=torch.float64)
    patches[1, 2] = 0.5 * patches[0, 0] + 0.1  # correlation 1
    return Geometry(positions, GRID, torch.tensor([0, 1, 0, 2])[:num_images], torch.tensor([5, 5, 6, 5])[:num_images], patches)


# Loops. A candidate is (vector, weight, is_positive); a rule says which candidates an anchor (b, i) has.

def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def loss_of(anchor, positive, candidates, temperature, hardness=0.0, prior=0.0, coupled=True):
    "One anchor: lists of numbers in, nats out."
    attraction = cosine(anchor, positive) / temperature
    present = [(cosine(anchor, v) / temperature, w, p) for v, w, p in candidates if w > 0]
    wanted = [attraction] + [s for s, _, p in present if p]
    repelling = [(s, w) for s, w, p in present if coupled or not p]
    if not repelling:
        return 0.0
    count = sum(w for _, w in repelling)
    tilt = sum(w * math.exp(hardness * s) for s, w in repelling) / count
    total = sum(w * math.exp(hardness * s) / tilt * math.exp(s) for s, w in repelling)
    if prior:
        total = max((total - prior * count * math.exp(attraction)) / (1 - prior), count * math.exp(-1 / temperature))
    if coupled:
        total += math.exp(attraction)
    return math.log(total) - sum(wanted) / len(wanted)


def far(g, b, i, c, j, distance):
    "Is position j of image c not a near neighbour of position i of image b?"
    (row, column), (row2, column2) = (divmod(int(g.positions[x]), g.grid[1]) for x in (i, j))
    return int(g.image[b]) != int(g.image[c]) or max(abs(row - row2), abs(column - column2)) >= distance


def correlation(g, b, i, c, j):
    "Of two hr patches, each with one more number of a grey level."
    rows = []
    for x in (g.patches[b, i].tolist(), g.patches[c, j].tolist()):
        mean = sum(x) / len(x)
        rows.append([value - mean for value in x] + [math.sqrt(len(x)) / 255])
    return cosine(*rows)


def transported(weights, cosines, epsilon, iterations):
    "Sinkhorn on lists: rows and columns of `weights` keep their sums."
    rows, columns = len(weights), len(weights[0])
    table = [[weights[i][k] * math.exp(cosines[i][k] / epsilon) for k in range(columns)] for i in range(rows)]
    u = [1.0] * rows
    for _ in range(iterations):
        v = [sum(weights[i][k] for i in range(rows)) / max(sum(table[i][k] * u[i] for i in range(rows)), 1e-300) for k in range(columns)]
        u = [sum(weights[i]) / max(sum(table[i][k] * v[k] for k in range(columns)), 1e-300) for i in range(rows)]
    return [[u[i] * table[i][k] * v[k] for k in range(columns)] for i in range(rows)]


def positions_of(q, k, g, b, i):
    return [(k[b][j], (b, j)) for j in range(len(k[b])) if j != i]


def both_sides_of(q, k, g, b, i):
    return positions_of(q, k, g, b, i) + [(q[b][j], (b, j)) for j in range(len(q[b])) if j != i]


def batch_of(q, k, g, b, i):
    return [(k[c][j], (c, j)) for c in range(len(k)) for j in range(len(k[c])) if not (j == i and g.image[c] == g.image[b])]


def same_degradation_of(q, k, g, b, i):
    return [(k[c][j], (c, j)) for c in range(len(k)) for j in range(len(k[c]))
            if g.degradation[c] == g.degradation[b] and g.image[c] != g.image[b]]


def queue_of(q, k, g, b, i):
    return [(v, None) for v in (LOW if g.key_side == "low" else HIGH).tolist()]


def two_degradations_of(q, k, g, b, i):
    everyone = [(side[c][j], (c, j)) for side in (k, q) for c in range(len(k)) for j in range(len(k[c]))]
    return [(v, (c, j), j == i and bool(g.image[c] == g.image[b])) for v, (c, j) in everyone if (c, j) != (b, i)]


LOW, HIGH = draw(7, D, key="low"), draw(7, D, key="high")
QUEUE = KeyQueue(7, D).double()
QUEUE.enqueue(LOW, HIGH)

SOURCES = {
    "positions": (PositionNegatives(), positions_of), "both_sides": (BothSides(), both_sides_of), "batch": (BatchNegatives(), batch_of),
    "queue": (QUEUE, queue_of), "same_degradation": (SameDegradation(), same_degradation_of),
    "two_degradations": (TwoDegradations(), two_degradations_of),
}
STEPS = {
    "": (), "far": (Far(2),), "dissimilar": (Dissimilar(0.1),), "patches": (Dissimilar(0.2, patches=True),), "hard": (Hard(0.7),),
    "debiased": (Debiased(0.1),), "decoupled": (Decoupled(),), "transport": (Transport(0.5, 20),), "transport-easy": (Transport(-0.3, 7),),
    "far+hard": (Far(2), Hard(1.0)), "far+transport": (Far(2), Transport()), "dissimilar+debiased": (Dissimilar(0.1), Debiased(0.3)),
    "hard+debiased": (Hard(0.5), Debiased(0.05)), "far+dissimilar+hard+debiased+decoupled": (Far(2), Dissimilar(0.5), Hard(0.5), Debiased(0.1), Decoupled()),
    "transport+hard": (Transport(), Hard(0.2)), "everything dropped": (Dissimilar(-1.0),),
}
ONE_POSITIVE = {"hard", "debiased"}  # these are defined for one positive


def reference(source, steps, query, key, g, temperature):
    "Mean over anchors of one direction."
    B, M, _ = query.shape
    q, k = query.tolist(), key.tolist()
    anchors = [(b, i) for b in range(B) for i in range(M)]
    lists = {a: [(x[0], x[1], len(x) > 2 and x[2]) for x in source(q, k, g, *a)] for a in anchors}
    weights = {a: [1.0] * len(x) for a, x in lists.items()}
    form = {}
    for step in steps:
        if isinstance(step, Far):
            for (b, i), x in lists.items():
                weights[b, i] = [w * (at is None or p or far(g, b, i, *at, step.distance)) for w, (_, at, p) in zip(weights[b, i], x)]
        elif isinstance(step, Dissimilar):
            for (b, i), x in lists.items():
                like = [cosine(k[b][i], v) if not step.patches else (-1 if at is None else correlation(g, b, i, *at)) for v, at, _ in x]
                weights[b, i] = [w * (p or s <= step.threshold) for w, s, (_, _, p) in zip(weights[b, i], like, x)]
        elif isinstance(step, Transport):
            weights = transport_reference(step, source, q, g, anchors, lists, weights)
        elif isinstance(step, Hard):
            form["hardness"] = step.beta
        elif isinstance(step, Debiased):
            form["prior"] = step.prior
        elif isinstance(step, Decoupled):
            form["coupled"] = False
    losses = [loss_of(q[b][i], k[b][i], [(v, w, p) for (v, _, p), w in zip(lists[b, i], weights[b, i])], temperature, **form) for b, i in anchors]
    return sum(losses) / len(losses)


def transport_reference(step, source, q, g, anchors, lists, weights):
    "Tables with one column per distinct vector; the anchors of an image, or of the batch where vectors are shared by all."
    groups = [[a for a in anchors if a[0] == b] for b in range(len(q))] if source in (positions_of, both_sides_of) else [anchors]
    out = dict(weights)
    for group in groups:
        columns = sorted({tuple(v) for a in group for v, _, _ in lists[a]})  # positives take no part
        table = [[sum(w for (v, _, p), w in zip(lists[a], weights[a]) if tuple(v) == column and not p) for column in columns] for a in group]
        cosines = [[cosine(q[a[0]][a[1]], column) for column in columns] for a in group]
        plan = transported(table, cosines, step.epsilon, step.iterations)
        for a, row in zip(group, plan):
            out[a] = [w if p else row[columns.index(tuple(v))] for (v, _, p), w in zip(lists[a], weights[a])]
    return out


def build(source, steps):
    return Chain(SOURCES[source][0], *STEPS[steps]) if steps else SOURCES[source][0]


CASES = [(a, b) for a in SOURCES for b in STEPS if a != "two_degradations" or not any(word in b for word in ONE_POSITIVE)]


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


@settings(max_examples=25)
@given(st.integers(1, 6), st.integers(1, 7), st.integers(1, 7), st.integers(2, 20))
def test_far_by_counting(distance, height, width, count):
    assume(height * width > 1)
    positions = sample_positions(height, width, count, generator("far"))
    q = draw(1, len(positions), 3, key="q")
    kept = Chain(PositionNegatives(), Far(distance))(q, q, Geometry(positions, (height, width))).weights
    where = [divmod(int(x), width) for x in positions]
    expected = [[max(abs(r - r2), abs(c - c2)) >= distance for r2, c2 in where] for r, c in where]
    assert kept.expand(1, -1, -1)[0].tolist() == [[e and i != j for j, e in enumerate(row)] for i, row in enumerate(expected)]


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


@pytest.mark.parametrize("step", [Far(9), Dissimilar(0.5), Dissimilar(0.5, patches=True), Transport(1.0, 3), Hard(0.5), Debiased(0.1), Decoupled()], ids=str)
def test_4096_positions_through_a_step(step):
    q, k = (draw(1, 4096, 8, key=side, dtype=torch.float32) for side in "lh")
    g = Geometry(torch.arange(4096), (64, 64), patches=torch.rand(1, 4096, 12, generator=generator("p")))
    found = Chain(PositionNegatives(), step)(q, k, g)
    with torch.no_grad():
        assert directed_loss(q[:, :64], k[:, :64], found._replace(weights=found.weights.expand(1, 4096, 4096)[:, :64])).isfinite()
        assert directed_loss(q, k, found, chunk=512).isfinite()


@pytest.mark.parametrize("nobody", [Chain(PositionNegatives(), Far(99)), Chain(BothSides(), Dissimilar(-1.0)), KeyQueue(5, D).double(),
                                    Chain(KeyQueue(5, D).double(), Hard(0.5)), Chain(KeyQueue(5, D).double(), Debiased(0.1), Decoupled()),
                                    Chain(KeyQueue(5, D).double(), Far(2), Dissimilar(0.2), Transport()),
                                    Chain(PositionNegatives(), Far(99), Transport(), Hard(0.5), Debiased(0.1))])
def test_without_negatives_nothing_is_lost_and_nothing_moves(nobody):
    leaves = [draw(B, M, D, key=side).requires_grad_() for side in "lh"]
    loss = bidirectional_contrastive_loss(*leaves, negatives=nobody, geometry=geometry())
    assert loss.item() == 0
    assert all((x == 0).all() for x in torch.autograd.grad(loss, leaves))


def call(construction, images=2, count=3, g=Geometry(), **change):
    q = draw(images, count, D, key="q")
    return construction(q, q, g._replace(**change))


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
    (lambda: call(Chain(PositionNegatives(), Far(2))), "geometry.positions: got None, expected a value, because Far"),
    (lambda: call(Chain(PositionNegatives(), Far(2)), positions=torch.arange(3)), "geometry.grid: got None"),
    (lambda: call(Chain(PositionNegatives(), Dissimilar(0.5, patches=True))), "geometry.patches: got None"),
    (lambda: call(Chain(lambda q, k, g: Negatives(k), Far(2)), positions=torch.arange(3), grid=(1, 3)), "negatives.source: got None"),
    (lambda: call(Chain(PositionNegatives(), Transport(0.01))), "epsilon, iterations: got 0.01, 50"),
    (lambda: call(Chain(PositionNegatives(), Transport(1.0, 0))), "epsilon, iterations: got 1.0, 0"),
    (lambda: call(Chain(lambda q, k, g: Negatives(k.unsqueeze(2)), Transport())), "negatives.vectors: got one set per anchor"),
    (lambda: KeyQueue(0, 3), "size, dim: got 0, 3"),
    (lambda: KeyQueue(4, 3).enqueue(torch.ones(2, 3), torch.ones(3, 3)), r"low, high: got \(2, 3\) and \(3, 3\)"),
    (lambda: KeyQueue(4, 3).enqueue(torch.ones(2, 4), torch.ones(2, 4)), r"low, high: got \(2, 4\)"),
    (lambda: image_vectors(torch.ones(1, 3, 2, 2)), "features: got 1 image, expected at least 2"),
])
def test_errors_say_what_is_needed(attempt, message):
    with pytest.raises(ValueError, match=message) as error:
        attempt()
    assert "\n" not in str(error.value)


# The single ones

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


@pytest.mark.parametrize("epsilon", [0.05, 0.3, 1.0, -0.3])
@pytest.mark.parametrize("source", ["positions", "both_sides", "batch", "same_degradation"])
def test_transport_keeps_the_sums(epsilon, source):
    q, k, g = draw(B, M, D, key="l"), draw(B, M, D, key="h"), geometry()
    before = SOURCES[source][0](q, k, g)
    after = Chain(SOURCES[source][0], Transport(epsilon, 2000))(q, k, g)
    old, new = before.weights.double().expand(B, M, -1), after.weights
    assert not new.requires_grad and (new[old == 0] == 0).all() and (new >= 0).all()
    torch.testing.assert_close(new.sum(-1), old.sum(-1), atol=1e-9, rtol=1e-9)
    columns = (lambda w: w.sum((0, 1))) if before.vectors.ndim == 2 else (lambda w: w.sum(1))
    torch.testing.assert_close(columns(new), columns(old), atol=0.02, rtol=0.02)


def test_transport_is_optimal():
    "Of all plans with these sums, the one of least cost minus epsilon times entropy: any small circular change costs."
    q, k = draw(1, 4, D, key="l"), draw(1, 4, D, key="h")
    plan = Chain(PositionNegatives(), Transport(0.4, 3000))(q, k).weights[0]
    cosines = F.normalize(q[0], dim=1) @ F.normalize(k[0], dim=1).T
    value = lambda w: (-cosines * w + 0.4 * w * (w.clamp_min(1e-300).log() - 1)).sum()
    for i, j in itertools.permutations(range(4), 2):
        for a, b in itertools.permutations(range(4), 2):
            if {i, j} & {a, b}:
                continue  # would use the diagonal
            for step in (1e-3, -1e-3):
                other = plan.clone()
                other[i, a] += step
                other[j, b] += step
                other[i, b] -= step
                other[j, a] -= step
                assert value(other) > value(plan)


def test_transport_with_a_large_epsilon_changes_nothing():
    q, k = draw(1, 6, D, key="l"), draw(1, 6, D, key="h")
    torch.testing.assert_close(Chain(PositionNegatives(), Transport(1e7))(q, k).weights[0], 1 - torch.eye(6, dtype=torch.float64), atol=1e-6, rtol=0)


def test_patch_correlation_is_that_of_statistics():
    patches = torch.rand(1, 9, 300, generator=generator("patches"), dtype=torch.float64)
    expected = torch.corrcoef(patches[0])  # the added grey level of 1/255 hardly counts beside a contrast of 0.3
    for threshold in (-0.05, 0.0, 0.05):
        kept = Chain(PositionNegatives(), Dissimilar(threshold, patches=True))(patches, patches, Geometry(patches=patches)).weights[0]
        clear = (expected - threshold).abs() > 1e-3
        assert torch.equal(kept[clear], ((expected <= threshold) & ~torch.eye(9, dtype=torch.bool))[clear])
    flat = torch.tensor([0.2, 0.9, 0.4], dtype=torch.float64).view(1, 3, 1).expand(1, 3, 300)
    assert not Chain(PositionNegatives(), Dissimilar(0.9, patches=True))(flat, flat, Geometry(patches=flat)).weights.any()  # flat ones are alike


def test_the_choice_of_weights_has_no_gradient():
    q, k = draw(2, 4, D, key="l").requires_grad_(), draw(2, 4, D, key="h").requires_grad_()
    for step in (Dissimilar(0.3), Transport()):
        assert not Chain(PositionNegatives(), step)(q, k).weights.requires_grad


def test_steps_inside_autocast():
    q, k, g = draw(B, M, D, key="l", dtype=torch.float32), draw(B, M, D, key="h", dtype=torch.float32), geometry()
    for source, steps in (("positions", "transport"), ("batch", "transport"), ("both_sides", "far+hard"), ("two_degradations", "dissimilar"), ("batch", "debiased")):
        exact = bidirectional_contrastive_loss(q, k, negatives=build(source, steps), geometry=g)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(bidirectional_contrastive_loss(q, k, negatives=build(source, steps), geometry=g), exact)


def test_order_of_steps():
    q, k, g = draw(B, M, D, key="l"), draw(B, M, D, key="h"), geometry()
    free = [Chain(PositionNegatives(), *steps)(q, k, g) for steps in itertools.permutations((Far(2), Hard(0.5), Debiased(0.1)))]
    for found in free[1:]:
        assert torch.equal(found.weights, free[0].weights) and (found.hardness, found.prior) == (0.5, 0.1)
    cut, planned = (Chain(PositionNegatives(), *steps)(q, k, g).weights.sum(-1) for steps in ((Transport(), Far(2)), (Far(2), Transport())))
    assert (cut - planned).abs().max() > 0.1
    torch.testing.assert_close(planned, Chain(PositionNegatives(), Far(2))(q, k, g).weights.double().sum(-1).expand(B, M))


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
    assert torch.equal(channel_vectors(features)[2, 1], features[2, 1].flatten())
    pooled = channel_vectors(features[..., :4, :6], size=2)
    assert pooled.shape == (3, 4, 4)
    torch.testing.assert_close(pooled[1, 2, 1], features[1, 2, :2, 3:].mean())
    vectors = image_vectors(features)
    assert vectors.shape == (1, 3, 4)
    torch.testing.assert_close(vectors[0, 2, 3], features[2, 3].mean())
    loss = bidirectional_contrastive_loss(vectors, image_vectors(draw(3, 4, 5, 6, key="other")))
    assert loss.isfinite() and PositionNegatives()(vectors, vectors).weights.sum() == 3 * 2  # images repel images
    for make in (channel_vectors, image_vectors):
        x = features.clone().requires_grad_()
        bidirectional_contrastive_loss(make(x), make(draw(3, 4, 5, 6, key="other"))).backward()
        assert (x.grad != 0).any() and x.grad.isfinite().all()


def test_channels_have_no_order():
    low, high, order = draw(2, 5, 3, 3, key="l"), draw(2, 5, 3, 3, key="h"), torch.tensor([4, 2, 0, 1, 3])
    value = bidirectional_contrastive_loss(channel_vectors(low), channel_vectors(high))
    torch.testing.assert_close(bidirectional_contrastive_loss(channel_vectors(low[:, order]), channel_vectors(high[:, order])), value)
