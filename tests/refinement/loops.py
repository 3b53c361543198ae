"""What the tests of refinement share: feature maps, every construction with its negatives listed in plain Python, InfoNCE in loops."""
import itertools
import math

import numpy as np
import torch

from crlsr.core import generator
from crlsr.refinement import (
    BicubicNegatives, BlurredNegatives, ContentNegatives, Context, HRPositionNegatives, NoNegatives, PastNegatives, ResidualNegatives,
    UnexplainedNegatives, UnionNegatives, conditional_contrastive_loss,
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


def direction(degrees):
    return torch.tensor([[[math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]]], dtype=torch.float64)
