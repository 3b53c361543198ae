"""contrast.alternatives, the steps: what each drops or weighs by counting and by its definition, their order, their limits."""
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from crlsr.contrast import (
    Chain, Debiased, Decoupled, Dissimilar, Far, Geometry, Hard, Negatives, PositionNegatives, Transport, bidirectional_contrastive_loss,
    sample_positions,
)
from crlsr.contrast.negatives import directed_loss
from crlsr.core import generator
from tests.contrast.loops import SOURCES, B, D, M, build, call, draw, geometry


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


@pytest.mark.parametrize("step", [Far(9), Dissimilar(0.5), Dissimilar(0.5, patches=True), Transport(1.0, 3), Hard(0.5), Debiased(0.1), Decoupled()], ids=str)
def test_4096_positions_through_a_step(step):
    q, k = (draw(1, 4096, 8, key=side, dtype=torch.float32) for side in "lh")
    g = Geometry(torch.arange(4096), (64, 64), patches=torch.rand(1, 4096, 12, generator=generator("p")))
    found = Chain(PositionNegatives(), step)(q, k, g)
    with torch.no_grad():
        assert directed_loss(q[:, :64], k[:, :64], found._replace(weights=found.weights.expand(1, 4096, 4096)[:, :64])).isfinite()
        assert directed_loss(q, k, found, chunk=512).isfinite()


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


@pytest.mark.parametrize("attempt, message", [
    (lambda: call(Chain(PositionNegatives(), Far(2))), "geometry.positions: got None, expected a value, because Far"),
    (lambda: call(Chain(PositionNegatives(), Far(2)), positions=torch.arange(3)), "geometry.grid: got None"),
    (lambda: call(Chain(PositionNegatives(), Dissimilar(0.5, patches=True))), "geometry.patches: got None"),
    (lambda: call(Chain(lambda q, k, g: Negatives(k), Far(2)), positions=torch.arange(3), grid=(1, 3)), "negatives.source: got None"),
    (lambda: Transport(0.01), "epsilon, iterations: got 0.01, 50"),
    (lambda: Transport(1.0, 0), "epsilon, iterations: got 1.0, 0"),
    (lambda: Transport(math.inf), "epsilon, iterations: got inf, 50"),
    (lambda: Far(-1), "distance: got -1, expected 0 or more"),
    (lambda: Dissimilar(1.5), "threshold: got 1.5, expected a cosine"),
    (lambda: Dissimilar(0.5, patches="hr"), "patches: got 'hr', expected one of False, True"),
    (lambda: Hard(-0.5), "beta: got -0.5, expected 0 or more"),
    (lambda: Hard(math.inf), "beta: got inf"),
    (lambda: Debiased(0.0), "prior: got 0.0, expected more than 0 and below 1"),
    (lambda: Debiased(1.0), "prior: got 1.0"),
    (lambda: call(Chain(lambda q, k, g: Negatives(k.unsqueeze(2)), Transport())), "negatives.vectors: got one set per anchor"),
])
def test_errors_say_what_is_needed(attempt, message):
    with pytest.raises(ValueError, match=message) as error:
        attempt()
    assert "\n" not in str(error.value)
