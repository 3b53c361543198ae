"""contrast.alternatives, the losses without negatives: against loops and closed forms, their invariances, gradients and limits."""
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crlsr.contrast import barlow_twins_loss, feature_l1_loss, simsiam_loss, vicreg_loss
from crlsr.core import generator

PAIRED = {"l1": feature_l1_loss, "vicreg": vicreg_loss, "barlow": barlow_twins_loss, "simsiam": lambda q_l, q_h: simsiam_loss(q_l * 2 + 1, q_h - 1, q_l, q_h)}


def draw(*shape, key=0, dtype=torch.float64):
    return torch.randn(*shape, generator=generator("alignment", key), dtype=dtype)


def l1_loops(a, b):
    return sum(abs(x - y) for p, q in zip(a, b) for x, y in zip(p, q)) / len(a) / len(a[0])


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def covariance(rows, divisor):
    means = [sum(row[d] for row in rows) / len(rows) for d in range(len(rows[0]))]
    return [[sum((row[d] - means[d]) * (row[e] - means[e]) for row in rows) / divisor for e in range(len(means))] for d in range(len(means))]


def vicreg_loops(a, b, invariance=25.0, variance=25.0, covariance_weight=1.0):
    count, size = len(a), len(a[0])
    total = invariance * sum((a[n][d] - b[n][d]) ** 2 for n in range(count) for d in range(size)) / count / size
    for rows in (a, b):
        table = covariance(rows, count - 1)
        total += variance * sum(max(0.0, 1 - math.sqrt(table[d][d] + 1e-4)) for d in range(size)) / size / 2
        total += covariance_weight * sum(table[d][e] ** 2 for d in range(size) for e in range(size) if d != e) / size
    return total


def barlow_loops(a, b, redundancy=5e-3):
    count, size, standard = len(a), len(a[0]), []
    for rows in (a, b):
        table, means = covariance(rows, count), [sum(row[d] for row in rows) / count for d in range(size)]
        standard.append([[(row[d] - means[d]) / math.sqrt(table[d][d] + 1e-5) for d in range(size)] for row in rows])
    total = 0.0
    for d in range(size):
        for e in range(size):
            c = sum(standard[0][n][d] * standard[1][n][e] for n in range(count)) / count
            total += (1 - c) ** 2 if d == e else redundancy * c**2
    return total


@pytest.mark.parametrize("shape", [(2, 3), (7, 2), (2, 4, 3), (3, 2, 5)])
def test_equal_the_loops(shape):
    q_l, q_h, p_l, p_h = (draw(*shape, key=i) for i in range(4))
    a, b, c, d = (x.flatten(0, -2).tolist() for x in (q_l, q_h, p_l, p_h))
    assert abs(feature_l1_loss(q_l, q_h).item() - l1_loops(a, b)) < 1e-10
    assert abs(vicreg_loss(q_l, q_h).item() - vicreg_loops(a, b)) < 1e-10
    assert abs(vicreg_loss(q_l, 0.1 * q_h, 1.0, 2.0, 3.0).item() - vicreg_loops(a, (0.1 * q_h).flatten(0, -2).tolist(), 1.0, 2.0, 3.0)) < 1e-10
    assert abs(barlow_twins_loss(q_l, q_h).item() - barlow_loops(a, b)) < 1e-10
    assert abs(barlow_twins_loss(q_l, q_h, 0.7).item() - barlow_loops(a, b, 0.7)) < 1e-10
    expected = -sum(cosine(x, w) + cosine(y, z) for x, y, z, w in zip(c, d, a, b)) / 2 / len(a)
    assert abs(simsiam_loss(p_l, p_h, q_l, q_h).item() - expected) < 1e-10


@given(st.permutations(range(5)), st.permutations(range(3)))
def test_vectors_have_no_order(positions, images):
    q_l, q_h = draw(3, 5, 4, key="l"), draw(3, 5, 4, key="h")
    for loss in PAIRED.values():
        value = loss(q_l, q_h)
        torch.testing.assert_close(loss(q_l[images][:, positions], q_h[images][:, positions]), value)
        torch.testing.assert_close(loss(q_l.flatten(0, 1), q_h.flatten(0, 1)), value)
        assert positions == sorted(positions) or (loss(q_l[:, positions], q_h) - value).abs() > 1e-6  # partners must stay partners


def test_symmetric_in_the_sides():
    q_l, q_h, p_l, p_h = (draw(2, 5, 3, key=i) for i in range(4))
    for loss in (feature_l1_loss, vicreg_loss, barlow_twins_loss):
        torch.testing.assert_close(loss(q_l, q_h), loss(q_h, q_l))
    torch.testing.assert_close(simsiam_loss(p_l, p_h, q_l, q_h), simsiam_loss(p_h, p_l, q_h, q_l))


def test_perfect_and_empty_features():
    signs = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)  # mean 0, variance 1, no correlation
    constant = torch.full((4, 3), 0.7, dtype=torch.float64)
    assert feature_l1_loss(signs, signs) == 0 == feature_l1_loss(constant, constant)
    assert math.isclose(simsiam_loss(signs, signs, signs, signs).item(), -1) and math.isclose(simsiam_loss(-signs, -signs, signs, signs).item(), 1)
    assert vicreg_loss(signs, signs) == 0  # the unbiased deviation is above 1
    assert math.isclose(vicreg_loss(constant, constant).item(), 25 * 0.99)
    assert barlow_twins_loss(signs, 3 * signs - 1).item() < 1e-9 and math.isclose(barlow_twins_loss(constant, constant).item(), 3)
    repeated = signs[:, :1].expand(4, 3)  # one dimension, three times
    assert math.isclose(barlow_twins_loss(repeated, repeated).item(), 6 * 5e-3, rel_tol=1e-3)
    assert math.isclose(vicreg_loss(repeated, repeated).item(), 2 * 6 * (4 / 3) ** 2 / 3)


def test_targets_of_simsiam_do_not_move():
    leaves = [draw(2, 5, 3, key=i).requires_grad_() for i in range(4)]
    grads = torch.autograd.grad(simsiam_loss(*leaves), leaves, allow_unused=True)
    assert all((g != 0).any() for g in grads[:2]) and grads[2:] == (None, None)


@pytest.mark.parametrize("name", ["l1", "vicreg", "barlow"])
def test_gradcheck(name):
    assert torch.autograd.gradcheck(PAIRED[name], [draw(6, 3, key=i).requires_grad_() for i in range(2)])


@pytest.mark.parametrize("name", PAIRED)
def test_gradients_of_degenerate_features_are_finite(name):
    base = draw(2, 4, 3, key="q", dtype=torch.float32)
    for low, high in ((base, base), (torch.zeros_like(base), torch.zeros_like(base)), (torch.ones_like(base), base), (1e-20 * base, 1e4 * base)):
        leaves = [(x + 0).requires_grad_() for x in (low, high)]
        loss = PAIRED[name](*leaves)
        grads = [g for g in torch.autograd.grad(loss, leaves, allow_unused=True) if g is not None]
        assert loss.isfinite() and grads and all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", PAIRED)
def test_gradients_at_zero_are_finite_in_every_precision(name, dtype):
    leaves = [torch.zeros(2, 4, 3, dtype=dtype, requires_grad=True), draw(2, 4, 3, key="q", dtype=dtype).requires_grad_()]
    for pair in (leaves, leaves[::-1], [leaves[0], leaves[0].detach().clone().requires_grad_()]):
        loss = PAIRED[name](*pair)
        grads = [g for g in torch.autograd.grad(loss, pair, allow_unused=True) if g is not None]
        assert loss.isfinite() and grads and all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("name", ["vicreg", "barlow"])
def test_half_precision_is_not_used_for_statistics(name):
    q_l, q_h = (draw(2, 50, 8, key=i, dtype=torch.float32).bfloat16() for i in range(2))
    exact = PAIRED[name](q_l.float(), q_h.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = PAIRED[name](q_l, q_h)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, exact)


@pytest.mark.parametrize("attempt, message", [
    (lambda: feature_l1_loss(torch.ones(2, 3), torch.ones(2, 4)), r"q_l, q_h: got \(2, 3\) and \(2, 4\), expected \(N, D\) or \(B, M, D\) each"),
    (lambda: feature_l1_loss(*2 * [torch.ones(2, 3, 4, 4)]), "q_l, q_h: got .* of a feature map take"),
    (lambda: vicreg_loss(*2 * [torch.ones(2, 3, 4, 4)]), "q_l, q_h: got .* of a feature map take"),
    (lambda: barlow_twins_loss(*2 * [torch.ones(2, 3, 4, 4)]), "q_l, q_h: got .* of a feature map take"),
    (lambda: simsiam_loss(*4 * [torch.ones(2, 3, 4, 4)]), "p_l, p_h, q_l, q_h: got .* of a feature map take"),
    (lambda: feature_l1_loss(torch.ones(3), torch.ones(3)), "q_l, q_h: got"),
    (lambda: vicreg_loss(torch.ones(1, 3), torch.ones(1, 3)), "q_l, q_h: got 1 vector, expected at least 2"),
    (lambda: barlow_twins_loss(torch.ones(1, 1, 3), torch.ones(1, 1, 3)), "q_l, q_h: got 1 vector, expected at least 2"),
    (lambda: simsiam_loss(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 3), torch.ones(1, 3)), "p_l, p_h, q_l, q_h: got"),
    (lambda: simsiam_loss(torch.ones(2, 3), torch.ones(2, 3), torch.ones(1, 3), torch.ones(2, 3)), "p_l, p_h, q_l, q_h: got"),
])
def test_errors_name_the_argument(attempt, message):
    with pytest.raises(ValueError, match=message) as error:
        attempt()
    assert "\n" not in str(error.value)


def test_many_vectors():
    q_l, q_h = (draw(1, 4096, 64, key=i, dtype=torch.float32).requires_grad_() for i in range(2))
    for loss in PAIRED.values():
        assert all(g.isfinite().all() for g in torch.autograd.grad(loss(q_l, q_h), (q_l, q_h), allow_unused=True) if g is not None)
