"""measures: likeness; retrieval, alignment, uniformity, CKA, effective rank, the bound, shares: loops, closed forms, extremes."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from crlsr.contrast import info_nce
from crlsr.core import generator
from crlsr.diagnosis.measures import alignment, effective_rank, information_bound, linear_cka, retrieval_top1, share_along, uniformity


def draw(*shape, key=0):
    return torch.randn(*shape, generator=generator("similarity test", key), dtype=torch.float64)


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def test_retrieval_equals_loops():
    q, k = draw(3, 7, 4, key="q"), draw(3, 7, 4, key="k")
    for b in range(3):
        hits = 0
        for i in range(7):
            cosines = [float(unit(q[b, i]) @ unit(k[b, j])) for j in range(7)]
            hits += cosines.index(max(cosines)) == i
        assert retrieval_top1(q, k)[b].item() == pytest.approx(hits / 7)
        assert retrieval_top1(q[b], k[b]).item() == pytest.approx(hits / 7)


def test_retrieval_at_its_extremes():
    q = draw(4, 50, 8, key="q")
    assert retrieval_top1(q, 3 * q).min() == 1, "length does not matter"
    assert retrieval_top1(q, q.roll(1, 1)).max() < 0.1
    assert retrieval_top1(torch.ones(2, 50, 8), torch.ones(2, 50, 8)).tolist() == pytest.approx([1 / 50] * 2)
    halves = torch.eye(2).repeat(5, 1)  # ten vectors in two heaps of five
    assert retrieval_top1(halves, halves).item() == pytest.approx(1 / 5)
    chance = retrieval_top1(draw(200, 20, 6, key="a"), draw(200, 20, 6, key="b")).mean().item()
    assert abs(chance - 1 / 20) < 4 * math.sqrt(0.05 * 0.95 / 4000)


def test_retrieval_is_chance_after_rounding_too():
    constant = torch.full((1, 64, 24), 0.1) * torch.linspace(0.5, 2, 64)[:, None]  # one direction, many lengths, float32
    assert retrieval_top1(constant, constant).item() == pytest.approx(1 / 64)


def test_alignment():
    q, k = draw(5, 6, 3, key="q"), draw(5, 6, 3, key="k")
    assert alignment(q, 2 * q).item() == pytest.approx(0, abs=1e-12) and alignment(q, -q).item() == pytest.approx(4)
    assert alignment(q, k).item() == pytest.approx(float(np.mean([((unit(a) - unit(b)) ** 2).sum() for a, b in zip(q.view(-1, 3), k.view(-1, 3))])))


@pytest.mark.parametrize("t", [0.5, 2.0, 40.0])
@pytest.mark.parametrize("chunk", [1, 5, 1024])
def test_uniformity_equals_loops(t, chunk):
    x = draw(11, 3, key="x")
    pairs = [math.exp(-t * float(((unit(x[i]) - unit(x[j])) ** 2).sum())) for i in range(11) for j in range(i)]
    assert uniformity(x, t, chunk).item() == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-9)


@pytest.mark.parametrize("n", [2, 3, 8, 33])
def test_uniformity_of_a_simplex(n):
    corners = torch.eye(n, dtype=torch.float64) - 1 / n
    assert uniformity(corners).item() == pytest.approx(-2 * 2 * n / (n - 1))


def test_uniformity_of_spheres():
    angle = torch.arange(3000, dtype=torch.float64) * (2 * math.pi / 3000)
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    assert uniformity(circle).item() == pytest.approx(math.log(math.exp(-4) * special.i0(4)), abs=2e-3)
    sphere = draw(3000, 3, key="sphere")
    assert uniformity(sphere).item() == pytest.approx(math.log((1 - math.exp(-8)) / 8), abs=0.02)
    assert uniformity(torch.ones(9, 4)).item() == pytest.approx(0, abs=1e-9)
    assert uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), t=400.0).item() == pytest.approx(-1600), "no rounding to log 0"


def gram_cka(x, y):
    h = torch.eye(len(x), dtype=x.dtype) - 1 / len(x)
    k, m = h @ x @ x.T @ h, h @ y @ y.T @ h
    return float((k * m).sum() / ((k * k).sum() * (m * m).sum()).sqrt())


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 9))
def test_cka_equals_its_definition_and_its_invariances(key, d, e):
    x, y = draw(30, d, key=key), draw(30, e, key=f"y{key}")
    value = linear_cka(x, y).item()
    assert value == pytest.approx(gram_cka(x, y)) and -1e-12 <= value <= 1 + 1e-12
    turn = torch.linalg.qr(draw(d, d, key=f"turn{key}"))[0]
    assert linear_cka(-3 * x @ turn + 5, y).item() == pytest.approx(value)
    assert linear_cka(x, x @ turn).item() == pytest.approx(1)
    assert linear_cka(y, x).item() == pytest.approx(value)


def test_cka_of_noise_and_of_nothing():
    for n in (64, 1024):
        values = [linear_cka(draw(n, 16, key=f"a{i}"), draw(n, 16, key=f"b{i}")).item() for i in range(8)]
        assert np.mean(values) == pytest.approx(16 / (n + 16), rel=0.25)
    assert linear_cka(torch.full((50, 3), 0.1), draw(50, 3)).isnan() and linear_cka(draw(50, 3), torch.ones(50, 1)).isnan()
    orthogonal = torch.linalg.qr(draw(40, 8, key="q"))[0]
    orthogonal = torch.linalg.qr(orthogonal - orthogonal.mean(0))[0]
    assert linear_cka(orthogonal[:, :4], orthogonal[:, 4:]).item() == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("r", [1, 2, 5, 10])
def test_effective_rank_counts_equal_directions(r):
    basis = torch.linalg.qr(draw(60, 10, key="basis"))[0]
    assert effective_rank(7 * basis[:, :r]).item() == pytest.approx(r)
    assert effective_rank(torch.cat([basis[:, :r], torch.zeros(60, 30)], 1)).item() == pytest.approx(r)


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=8))
def test_effective_rank_of_a_spectrum(values):
    p = np.array(values) / sum(values)
    x = torch.linalg.qr(draw(20, len(values), key="u"))[0] * torch.tensor(values, dtype=torch.float64)
    assert effective_rank(x).item() == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-9)


def test_collapsed_features_have_rank_one():
    assert effective_rank(torch.full((100, 32), 0.3)).item() == pytest.approx(1, abs=1e-3)
    assert effective_rank(draw(100, 1) @ draw(1, 32, key="direction")).item() == pytest.approx(1)
    assert effective_rank(torch.zeros(5, 3)).item() == 1


def test_the_bound_is_log_m_minus_the_loss():
    assert information_bound(0.0, 64) == math.log(64) and information_bound(math.log(64), 64) == 0
    keys, m = torch.ones(16, 4), 16  # nothing to tell apart: logits are equal, the loss is log M
    mask = ~torch.eye(m, dtype=torch.bool)
    assert information_bound(info_nce(keys, keys, keys, weights=mask), m) == pytest.approx(0, abs=1e-5)
    own = torch.eye(16)
    loss = info_nce(own, own, own, temperature=0.05, weights=mask)  # log(1 + 15 e^-20)
    assert information_bound(loss, m) == pytest.approx(math.log(16) - math.log1p(15 * math.exp(-20)), abs=1e-6)


@given(st.floats(0, math.pi))
def test_share_is_the_squared_cosine(angle):
    x, direction = torch.tensor([[2 * math.cos(angle), 2 * math.sin(angle)]]), torch.tensor([[5.0, 0.0]])
    assert share_along(x, direction).item() == pytest.approx(math.cos(angle) ** 2, abs=1e-6)


def test_share_of_random_directions():
    assert share_along(draw(20000, 10, key="a"), draw(20000, 10, key="b")).item() == pytest.approx(0.1, abs=0.004)


@pytest.mark.parametrize("call, message", [
    (lambda: retrieval_top1(torch.ones(3, 2), torch.ones(4, 2)), "query, key"),
    (lambda: retrieval_top1(torch.ones(3), torch.ones(3)), "query, key"),
    (lambda: alignment(torch.ones(3, 2), torch.ones(3, 3)), "query, key"),
    (lambda: uniformity(torch.ones(1, 2)), "x: got"),
    (lambda: linear_cka(torch.ones(3, 2), torch.ones(4, 2)), "x, y"),
    (lambda: effective_rank(torch.ones(3)), "x: got"),
    (lambda: information_bound(1.0, 0), "num_vectors: got 0"),
    (lambda: share_along(torch.ones(3, 2), torch.ones(3, 1)), "x, direction"),
])
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "expected" in str(error.value) and "\n" not in str(error.value)
