"""What the tests of constructions and steps share: a batch, its geometry, and every construction and step as loops that know nothing of tensors."""
import math

import torch

from crlsr.contrast import (
    BatchNegatives, BothSides, Chain, Debiased, Decoupled, Dissimilar, Far, Geometry, Hard, KeyQueue, PositionNegatives, SameDegradation,
    Transport, TwoDegradations,
)
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


def call(construction, images=2, count=3, g=Geometry(), **change):
    q = draw(images, count, D, key="q")
    return construction(q, q, g._replace(**change))
