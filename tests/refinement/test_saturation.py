"""The notebook 08_refinement/03_saturation: the force left against autograd of info_nce, and the influence of one loss beside another in closed form."""
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from crlsr.contrast import info_nce
from crlsr.core import generator
from crlsr.model.crlsr import compare_gradients
from tests import notebooks

CELLS = {c["id"]: notebooks.source(c) for c in notebooks.read(notebooks.NBS / "08_refinement" / "03_saturation.ipynb")["cells"]}
defined: dict = {}
for cell in ("cfc44a73", "11f7059e", "3c7e37a4"):  # its imports, and the cells that define what is tested
    exec(CELLS[cell], defined)
Influence, influence, remaining_force = (defined[name] for name in ("Influence", "influence", "remaining_force"))


def draw(*shape, key=0):
    return torch.randn(*shape, generator=generator("saturation", key), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("count", [1, 7])
def test_the_force_is_the_slope_of_info_nce(temperature, count):
    "Turn each anchor in the plane that it spans with its positive, the negatives at right angles to both: only their cosine changes."
    angle = torch.linspace(0.1, 3.0, 9, dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(9, 2, dtype=torch.float64)
    query = torch.cat([torch.stack([angle.cos(), angle.sin()], dim=-1), zero], dim=-1)
    positive = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64).expand(9, 4)
    negatives = torch.cat([torch.zeros(count, 2, dtype=torch.float64), draw(count, 2)], dim=-1)
    losses = info_nce(query, positive, negatives, temperature, reduction="none")
    slope, = torch.autograd.grad(losses.sum(), angle)  # dL/dcos * dcos/dangle
    torch.testing.assert_close(remaining_force(losses.detach()), temperature * slope / angle.detach().sin())


@given(st.integers(1, 1000))
def test_the_force_of_guessing(count):
    force = remaining_force(torch.tensor(math.log(1 + count), dtype=torch.float64))
    assert math.isclose(force.item(), count / (1 + count), rel_tol=1e-12)


def test_the_force_keeps_small_losses():
    assert math.isclose(remaining_force(torch.tensor(1e-9)).item(), 1e-9, rel_tol=1e-6)  # 1 - exp(-x) would be 0 in float32
    assert remaining_force(torch.zeros(3)).tolist() == [0, 0, 0]


@given(st.floats(-180, 180), st.floats(0.01, 100), st.floats(0.01, 100))
def test_influence_in_the_plane(angle, first, second):
    x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    radians = math.radians(angle)
    found = influence(first * (math.cos(radians) * x[0] + math.sin(radians) * x[1]), second * x[0], [x])
    assert math.isclose(found.ratio, first / second, rel_tol=1e-9) and math.isclose(found.cosine, math.cos(radians), abs_tol=1e-9)


def test_influence_over_parameters_is_that_of_one_long_vector():
    net, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(), draw(5, 3)
    out = net(x)
    term, reference = out.square().mean(), out.abs().mean()
    found = influence(0.1 * term, reference, net.parameters())
    grads = [torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)]) for loss in (term, reference)]
    assert math.isclose(found.ratio, (0.1 * grads[0].norm() / grads[1].norm()).item(), rel_tol=1e-9)
    assert math.isclose(found.cosine, torch.cosine_similarity(*grads, dim=0).item(), rel_tol=1e-9)
    (term + reference).backward()  # the graphs are still there
    assert all(p.grad is not None for p in net.parameters())


def test_influence_where_nothing_arrives():
    x, y = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    assert influence(y.sum(), x.sum(), [x]) == Influence(0.0, 0.0)  # not reached
    assert influence(x.sum(), y.sum(), [x]) == Influence(math.inf, 0.0)


def test_influence_is_what_the_model_chapter_measures():
    "The short form of this notebook against `compare_gradients`, which comes later in the book."
    net, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), draw(5, 3).float()
    term, reference = net(x).square().mean(), net(x).abs().mean()
    lengths, cosines = compare_gradients([reference, term], net.parameters())
    found = influence(term, reference, net.parameters())
    assert math.isclose(found.ratio, lengths[1] / lengths[0], rel_tol=1e-12) and math.isclose(found.cosine, cosines[1], rel_tol=1e-9)
