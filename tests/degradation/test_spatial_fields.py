"""spatial, fields: maps against loops and closed forms, their distribution, replay, MANet's six modes."""
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from crlsr.degradation.spatial import FIELDS, blocks_field, depth_field, gradient_field, manet_maps, smooth_field

sides = st.integers(1, 40)


@given(st.sampled_from(list(FIELDS)), st.integers(0, 2**53), sides, sides)
def test_every_field_lies_in_0_1_and_replays(kind, seed, height, width):
    field = FIELDS[kind](seed, height, width)
    assert field.shape == (height, width) and field.dtype == torch.float64 and 0 <= field.min() and field.max() <= 1
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - before if before in (1, 2) else 1)
        assert torch.equal(field, FIELDS[kind](seed, height, width))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", list(FIELDS))
def test_seeds_make_other_fields_and_leave_torch_alone(kind):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first, second = FIELDS[kind](1, 20, 30), FIELDS[kind](2, 20, 30)
    assert not torch.allclose(first, second)
    assert torch.equal(torch.rand(3), expected)


@given(st.floats(-7, 7), st.integers(2, 30), st.integers(2, 30))
def test_gradient_is_linear_along_its_angle(angle, height, width):
    field = gradient_field(0, height, width, angle=angle)
    rows, columns = field.diff(dim=0), field.diff(dim=1)
    assert field.min() == 0 and abs(field.max().item() - 1) < 1e-12
    assert (rows - rows.mean()).abs().max() < 1e-12 and (columns - columns.mean()).abs().max() < 1e-12
    assert abs(rows.mean().item() * math.cos(angle) - columns.mean().item() * math.sin(angle)) < 1e-9
    assert rows.mean().item() * math.sin(angle) + columns.mean().item() * math.cos(angle) > 0


def test_blocks_equal_loops():
    field = blocks_field(3, 23, 31, size=7)
    for y in range(23):
        for x in range(31):
            assert field[y, x] == field[y // 7 * 7, x // 7 * 7]
    assert field[::7, ::7].unique().numel() == 4 * 5
    thirds = blocks_field(3, 40, 1, size=40 / 3)[:, 0]
    assert [i for i in range(1, 40) if thirds[i] != thirds[i - 1]] == [14, 27]  # the first pixels at or after 40/3 and 80/3


def test_smooth_field_is_uniform_and_correlated_as_stated():
    values = torch.stack([smooth_field(seed, 8, 8, length=0.5) for seed in range(2000)])
    for pixel in (values[:, 0, 0], values[:, 3, 5]):
        for q in (0.1, 0.25, 0.5, 0.75, 0.9):
            assert abs((pixel < q).double().mean().item() - q) < 4 * math.sqrt(q * (1 - q) / 2000)
    normal = torch.special.ndtri(values.clamp(1e-9, 1 - 1e-9))
    for (y, x), (v, u) in (((0, 0), (0, 4)), ((1, 1), (5, 5)), ((0, 0), (7, 7))):
        squared = ((y - v) ** 2 + (x - u) ** 2) / 64
        assert abs((normal[:, y, x] * normal[:, v, u]).mean().item() - math.exp(-squared / (2 * 0.5**2))) < 4 * math.sqrt(2 / 2000)


def test_smooth_field_is_the_sum_of_its_waves():
    from crlsr.core import generator

    draw = generator("field", "smooth", 11)
    frequency = torch.randn(2, 32, dtype=torch.float64, generator=draw) / 0.3
    phase = 2 * math.pi * torch.rand(32, dtype=torch.float64, generator=draw)
    field = smooth_field(11, 5, 9)
    for y in range(5):
        for x in range(9):
            angle = frequency[0] * ((y - 2) / 9) + frequency[1] * ((x - 4) / 9) + phase
            z = torch.cos(angle).sum().item() * math.sqrt(2 / 32)
            assert field[y, x].item() == pytest.approx(0.5 * (1 + math.erf(z / math.sqrt(2))), abs=1e-12)


def test_fields_look_alike_at_any_resolution():
    small, large = smooth_field(4, 30, 30), smooth_field(4, 90, 90)
    torch.testing.assert_close(small, large[1::3, 1::3])  # the same pixel centres


def test_depth_has_soft_layers_with_sharp_edges():
    for seed in range(5):
        steps = depth_field(seed, 60, 60).diff(dim=1).abs()
        assert steps.median() < 0.01 and (steps > 0.05).double().mean() < 0.15
    assert max(depth_field(seed, 60, 60).diff(dim=1).abs().max() for seed in range(5)) > 0.2
    assert torch.equal(depth_field(1, 9, 9, layers=1), depth_field(1, 9, 9, layers=1)) and depth_field(1, 9, 9, layers=1).diff().abs().max() < 0.2


def by_loop_over_hr(mode, height, width, scale):
    "Variances and angle (height, width, 3) of every hr pixel, block after block of 40x40 pixels of hr, as MANet's code fills its table."
    a, b, table = (2.5 - 0.175) * scale, 0.175 * scale, np.empty((height, width, 3))
    rows, columns = math.ceil(height / 40), math.ceil(width / 40)
    for h in range(rows):
        for w in range(columns):
            first = {1: a + b, 2: a * w / columns + b, 3: a + b, 4: a * w / columns + b, 6: a + b}[mode]
            second = {1: a * h / rows + b, 2: a * h / rows + b, 3: b, 4: a * h / rows + b, 6: b}[mode]
            angle = {1: 0, 2: 0, 3: math.pi * h / rows, 4: math.pi * h / rows, 6: math.pi / 4 if (h + w) % 2 == 0 else 3 * math.pi / 4}[mode]
            table[40 * h : 40 * h + 40, 40 * w : 40 * w + 40] = first, second, angle
    return table


@pytest.mark.parametrize("left_over", [1, 2, 39, 0, 20])  # of 40, before hr is cropped to a multiple of the scale
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("mode", [1, 2, 3, 4, 6])
def test_manet_modes_equal_their_definition_in_hr(mode, scale, left_over):
    for blocks in range(1, 5):  # at ×3 some of these sides are multiples of the scale, and the last block of hr has no pixel of lr
        height, width = ((40 * n + left_over) // scale for n in (blocks, blocks + 1))
        expected = by_loop_over_hr(mode, height * scale, width * scale, scale)[::scale, ::scale]
        sigma1, sigma2, theta = manet_maps(mode, height, width, scale)
        for found, values in ((sigma1**2, expected[..., 0]), (sigma2**2, expected[..., 1]), (theta, expected[..., 2])):
            np.testing.assert_allclose(found.numpy(), values, rtol=1e-12, atol=1e-12)


def test_manet_random_mode():
    maps = manet_maps(5, 40, 40, 4, seed=1)
    for values, low, high in zip(maps, (math.sqrt(0.7), math.sqrt(0.7), 0.0), (math.sqrt(10), math.sqrt(10), math.pi)):
        assert low <= values.min() and values.max() <= high
        assert values.unique().numel() == 16 and torch.equal(values[:10, :10], values[0, 0].expand(10, 10))
    assert all(torch.equal(a, b) for a, b in zip(maps, manet_maps(5, 40, 40, 4, seed=1)))
    assert not torch.equal(maps[0], manet_maps(5, 40, 40, 4, seed=2)[0])


@pytest.mark.parametrize("call, message", [
    (lambda: smooth_field(0, 0, 5), "height, width: got 0x5"),
    (lambda: gradient_field(0, 5, -1), "height, width: got 5x-1"),
    (lambda: blocks_field(0, 0, 5), "height, width: got 0x5"),
    (lambda: smooth_field(0, 5, 5, length=0), "length: got 0"),
    (lambda: smooth_field(0, 5, 5, length=math.nan), "length: got nan"),
    (lambda: blocks_field(0, 5, 5, size=0.5), "size: got 0.5"),
    (lambda: depth_field(0, 5, 5, layers=0), "layers: got 0"),
    (lambda: manet_maps(7, 5, 5, 4), "mode: got 7"),
    (lambda: manet_maps(1, 5, 5, 0.25), "scale: got 0.25"),
    (lambda: manet_maps(1, 0, 5, 4), "height, width: got 0x5"),
])
def test_errors_are_one_line_that_names_the_argument(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
