"""decoupling and refining: names and objects, patches by loops, slow copies by their formula, windows that show one place."""
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from crlsr.contrast import (
    BatchNegatives, BothSides, Debiased, Decoupled, Dissimilar, Far, Hard, KeyQueue, PositionNegatives, SameDegradation, Transport,
    TwoDegradations,
)
from crlsr.core import generator
from crlsr.images import luma
from crlsr.model import DecouplingConfig, RefinementConfig, VectorConfig
from crlsr.model.decoupling import MomentumCopy, ProjectionHeads, bidirectional_negatives, hr_patches, look
from crlsr.model.refining import conditional_negatives
from crlsr.networks import Features
from crlsr.refinement import (
    BicubicNegatives, BlurredNegatives, ContentNegatives, FeatureL1, HRPositionNegatives, NoNegatives, PastNegatives, ResidualNegatives,
    TripletMargin, UnexplainedNegatives,
)


@pytest.mark.parametrize("names, pool, steps", [
    ("positions", PositionNegatives(), []), ("both_sides", BothSides(), []), ("same_degradation", SameDegradation(), []), ("two_degradations", TwoDegradations(), []),
    ("far", PositionNegatives(), [Far(9)]), ("dissimilar+batch", BatchNegatives(), [Dissimilar(0.6, patches=True)]), ("hard", PositionNegatives(), [Hard(1.5)]),
    ("debiased", PositionNegatives(), [Debiased(0.2)]), ("decoupled", PositionNegatives(), [Decoupled()]), ("hard+far+decoupled", PositionNegatives(), [Far(9), Hard(1.5), Decoupled()]),
    ("transport", PositionNegatives(), [Transport()]),
])
def test_names_become_objects(names, pool, steps):
    config = DecouplingConfig(negatives=names, hard_beta=1.5, dissimilar_threshold=0.6, debias_prior=0.2)
    made = bidirectional_negatives(config, 64, overlap=9)
    assert made.construction == pool and list(made.steps) == steps


def test_the_queue_has_its_size_and_far_its_distance():
    queue = bidirectional_negatives(DecouplingConfig(negatives="queue", ema_keys=0.9, queue_size=77), 5, overlap=1).construction
    assert isinstance(queue, KeyQueue) and queue.low.shape == queue.high.shape == (77, 5)
    assert bidirectional_negatives(DecouplingConfig(negatives="far", far_distance=2), 64, overlap=9).steps == (Far(2),)


@pytest.mark.parametrize("names", ["simsiam", "vicreg", "barlow", "l1"])
def test_losses_without_negatives_have_none(names):
    assert bidirectional_negatives(DecouplingConfig(negatives=names), 64, overlap=9) is None


@pytest.mark.parametrize("name, who, how", [
    ("content", ContentNegatives, None), ("residual", ResidualNegatives, None), ("unexplained", UnexplainedNegatives, None), ("bicubic", BicubicNegatives, None), ("blurred", BlurredNegatives, None),
    ("positions", HRPositionNegatives, None), ("past", PastNegatives, None), ("margin", ContentNegatives, TripletMargin(0.3)), ("none", NoNegatives, FeatureL1()),
])
@pytest.mark.parametrize("detach", [True, False])
def test_names_of_l_srnce(name, who, how, detach):
    made, compare = conditional_negatives(RefinementConfig(negatives=name, detach_negatives=detach, margin=0.3))
    wanted = replace(who(), detach=detach) if hasattr(who(), "detach") else who()
    assert made == wanted and compare == how


@settings(max_examples=20, deadline=None)
@given(step=st.integers(1, 4), margin=st.integers(0, 3), height=st.integers(2, 4), width=st.integers(2, 4))
def test_patches_by_loops(step, margin, height, width):
    hr = torch.rand(2, 3, step * height, step * width, generator=generator("hr", step))
    at = torch.randperm(height * width, generator=generator("at"))[:3]
    found, grey, side = hr_patches(hr, at, step, margin), luma(hr)[:, 0], step + 2 * margin
    assert found.shape == (2, 3, side * side)
    for b in range(2):
        for m, index in enumerate(at.tolist()):
            top, left = step * (index // width) - margin, step * (index % width) - margin
            for i in range(side):
                for j in range(side):
                    y, x = min(max(top + i, 0), step * height - 1), min(max(left + j, 0), step * width - 1)  # the edge is repeated
                    assert found[b, m, i * side + j] == grey[b, y, x]


@given(momentum=st.floats(0, 0.99), values=st.lists(st.floats(-1, 1), min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_a_slow_copy_by_its_formula(momentum, values):
    layer = nn.Linear(1, 1)
    slow, by_hand = MomentumCopy({"layer": layer}, momentum), [p.item() for p in layer.parameters()]
    for value in values:
        for p in layer.parameters():
            p.data.fill_(value)
        slow.update({"layer": layer})
        by_hand = [momentum * old + (1 - momentum) * value for old in by_hand]
    assert [p.item() for p in slow["layer"].parameters()] == pytest.approx(by_hand, abs=1e-5)


def test_a_slow_copy_is_its_own():
    layer = nn.Linear(3, 3)
    slow = MomentumCopy({"a": layer, "b": nn.ReLU()}, 0.5)
    layer.weight.data.zero_()
    assert slow["a"].weight.any() and not any(p.requires_grad for p in slow.parameters()) and all(p.requires_grad for p in layer.parameters())
    other = MomentumCopy({"a": nn.Linear(3, 3), "b": nn.ReLU()}, 0.5)
    other.load_state_dict(slow.state_dict())
    assert torch.equal(other["a"].weight, slow["a"].weight)


def test_heads_of_two_sides():
    torch.manual_seed(0)
    shared, separate = ProjectionHeads(4, 3, True), ProjectionHeads(4, 3, False)
    low, first, second = torch.randn(3, 2, 5, 4)
    for heads, head in ((shared, shared.low), (separate, separate.high)):
        assert all(torch.equal(a, b) for a, b in zip(heads(low, first, second), (heads.low(low), head(first), head(second))))


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 6), width=st.integers(1, 6), size=st.one_of(st.none(), st.integers(1, 8)), scale=st.sampled_from([2, 3, 4]), step=st.booleans(), seed=st.integers(0, 5))
def test_windows_show_one_place(height, width, size, scale, step, seed):
    k = scale if step else 1  # values of f_l per lr pixel: the hr grid, or the lr grid
    place = torch.arange(height * width).float().view(1, 1, height, width)  # every lr pixel carries its number
    big, grid = (place.repeat_interleave(n, 2).repeat_interleave(n, 3) for n in (scale, k))
    draw = generator("window", seed)
    state = draw.get_state()
    part = look(big, big + 1, Features(grid, grid + 2), VectorConfig(guidance_window=size), scale, draw, others=(big + 3,), compare=False)
    if size is None or size >= max(height, width):
        assert part.hr is big and part.features.f_l is grid and part.positions is None and torch.equal(draw.get_state(), state)
        return
    rows, columns = min(size, height), min(size, width)
    numbers = part.features.f_l[0, 0, ::k, ::k]
    first = int(numbers[0, 0])
    assert torch.equal(numbers, place[0, 0, first // width : first // width + rows, first % width : first % width + columns])
    shown = numbers.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    assert all(torch.equal(image[0, 0] - offset, shown) for image, offset in ((part.hr, 0), (part.sr, 1), (part.others[0], 3)))
    assert torch.equal(part.features.inner, part.features.f_l + 2)
    same = look(big, big, Features(grid, grid), VectorConfig(guidance_window=size), scale, generator("window", seed), compare=False).features
    assert same.inner is same.f_l and torch.equal(same.f_l, part.features.f_l)


def test_every_place_is_drawn():
    place = torch.arange(9.0).view(1, 1, 3, 3)
    big, config = place.repeat_interleave(2, 2).repeat_interleave(2, 3), VectorConfig(guidance_window=2)
    seen = {int(look(big, big, Features(place, place), config, 2, generator("every", i)).features.f_l[0, 0, 0, 0]) for i in range(60)}
    assert seen == {0, 1, 3, 4}


def test_blocks_are_those_of_the_networks():
    hr = torch.rand(2, 3, 8, 12)
    for step in (1, 2, 4):
        features = torch.zeros(2, 5, 8 // step, 12 // step)
        view = look(hr, hr, Features(features, features), VectorConfig(), 4)
        assert torch.equal(view.blocks, torch.nn.functional.pixel_unshuffle(hr - 0.5, step)) and view.blocks.shape[-2:] == features.shape[-2:]
    assert math.isclose(view.blocks.mean().item(), hr.mean().item() - 0.5, abs_tol=1e-6)
