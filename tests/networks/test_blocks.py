"""blocks: references written out, reach measured by perturbing single inputs, counts by formula, starting values."""
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from crlsr.core import generator, seed_everything
from crlsr.images import resize
from crlsr.networks.blocks import (
    Downsampler, ProjectionHead, ResidualBlock, ResidualBody, Upsampler, conv3x3, grid_step, laid_out, lr_halo, num_parameters,
    receptive_field,
)


def draw(*shape, key=0):
    return torch.randn(*shape, generator=generator("blocks", key))


def positive(module):
    "The module in double precision with positive weights: nothing cancels, no ReLU is shut by a positive input."
    for p in module.parameters():
        p.data = p.data.double().abs() + 1e-3
    return module


def touched(module, channels, size, y, x):
    "Bounds (top, bottom, left, right) of the outputs that change when one input pixel does."
    image = torch.ones(1, channels, size, size, dtype=torch.float64)
    other = image.clone()
    other[..., y, x] += 1.0
    with torch.no_grad():
        rows, columns = ((module(other) - module(image)).abs().sum(dim=(0, 1)) > 0).nonzero(as_tuple=True)
    return rows.min().item(), rows.max().item(), columns.min().item(), columns.max().item()


# starting values

@given(st.sampled_from([8, 32, 64]), st.sampled_from([16, 48]), st.sampled_from([0.1, 0.5, 1.0, math.sqrt(2)]))
def test_weights_start_with_the_stated_deviation(num_in, num_out, gain):
    seed_everything(0)
    conv = conv3x3(num_in, num_out, gain)
    expected = gain / math.sqrt(9 * num_in)
    n = conv.weight.numel()
    assert abs(conv.weight.std().item() / expected - 1) < 5 / math.sqrt(2 * n)  # five standard errors of a deviation
    assert abs(conv.weight.mean().item()) < 5 * expected / math.sqrt(n)
    assert conv.bias.abs().max() == 0


def test_gain_zero_is_zero():
    assert conv3x3(4, 5, 0.0).weight.abs().max() == 0


@pytest.mark.parametrize("num_block", [1, 8, 32])
def test_features_keep_their_size_at_any_depth(num_block):
    seed_everything(1)
    x = draw(2, 32, 24, 24)
    with torch.no_grad():
        ratio = ResidualBody(32, num_block)(x).square().mean() / x.square().mean()
    assert 0.9 < ratio < 1.7


@pytest.mark.parametrize("make", [
    lambda: ResidualBody(8, 2), lambda: Downsampler(3, 8, 4), lambda: Upsampler(8, 3), lambda: ProjectionHead(8, 16, 4),
])
def test_one_seed_gives_one_module(make):
    states = []
    for seed in (5, 5, 6):
        seed_everything(seed)
        states.append(make().state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert any(not torch.equal(states[0][k], states[2][k]) for k in states[0])


# values

def test_residual_block_by_its_formula():
    block, x = ResidualBlock(6, res_scale=0.3), draw(2, 6, 9, 7)
    hidden = F.conv2d(x, block.conv1.weight, block.conv1.bias, padding=1).clamp_min(0)
    expected = x + 0.3 * F.conv2d(hidden, block.conv2.weight, block.conv2.bias, padding=1)
    torch.testing.assert_close(block(x), expected)


def test_res_scale_zero_is_the_identity():
    x = draw(1, 6, 5, 5)
    assert torch.equal(ResidualBlock(6, res_scale=0.0)(x), x)


def test_body_is_its_input_plus_the_tail_of_the_blocks():
    body, x = ResidualBody(6, 2), draw(1, 6, 8, 8)
    torch.testing.assert_close(body(x), x + body.tail(body.blocks[1](body.blocks[0](x))))
    empty = ResidualBody(6, 0)
    torch.testing.assert_close(empty(x), x + empty.tail(x))


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_downsampler_is_a_strided_convolution(step):
    "The same map as one convolution of the image with 3*step kernels and stride `step`."
    down, image = Downsampler(3, 8, step), draw(2, 3, 5 * step, 6 * step)
    kernel = down.conv.weight.view(8, 3, step, step, 3, 3).permute(0, 1, 4, 2, 5, 3).reshape(8, 3, 3 * step, 3 * step)
    torch.testing.assert_close(down(image), F.conv2d(image, kernel, stride=step, padding=step), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_upsampler_lays_out_blocks(step):
    up, f = Upsampler(8, step, num_out=2), draw(2, 8, 4, 5)
    nn.init.normal_(up.conv.weight, generator=generator("layout"))  # so that the pixels of a block differ
    small, large = up.conv(f), up(f)
    for c in range(2):
        for dy in range(step):
            for dx in range(step):
                assert torch.equal(large[:, c, dy::step, dx::step], small[:, c * step**2 + dy * step + dx])


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_upsampler_starts_as_nearest_neighbour_or_zero(step):
    f = draw(1, 8, 6, 6)
    large = Upsampler(8, step)(f)
    torch.testing.assert_close(large, F.interpolate(large[..., ::step, ::step], scale_factor=step, mode="nearest"))
    assert large.std() > 0.1
    assert Upsampler(8, step, zero_init=True)(f).abs().max() == 0


def test_projection_head_treats_vectors_alone():
    head, vectors = ProjectionHead(8, 16, 4), draw(3, 5, 8)
    hidden = (vectors @ head.layers[0].weight.T + head.layers[0].bias).clamp_min(0)
    torch.testing.assert_close(head(vectors), hidden @ head.layers[2].weight.T + head.layers[2].bias)
    order = torch.randperm(5, generator=generator("order"))
    torch.testing.assert_close(head(vectors)[:, order], head(vectors[:, order]))
    assert head(vectors[0, 0]).shape == (4,) and head(vectors[:, :0]).shape == (3, 0, 4)


# counts

@given(st.integers(1, 40), st.integers(0, 5), st.integers(1, 4))
def test_parameter_counts(num_feat, num_block, step):
    block = 2 * (9 * num_feat**2 + num_feat)
    assert num_parameters(ResidualBlock(num_feat)) == block
    assert num_parameters(ResidualBody(num_feat, num_block)) == num_block * block + 9 * num_feat**2 + num_feat
    assert num_parameters(Downsampler(3, num_feat, step)) == 27 * step**2 * num_feat + num_feat
    assert num_parameters(Upsampler(num_feat, step)) == 27 * step**2 * num_feat + 3 * step**2
    assert num_parameters(ProjectionHead(num_feat, 16, 8)) == 16 * num_feat + 16 + 8 * 16 + 8


def test_frozen_parameters_are_not_counted():
    conv = conv3x3(2, 3)
    conv.bias.requires_grad_(False)
    assert num_parameters(conv) == 54


# reach

@given(st.integers(0, 4), st.integers(8, 22), st.integers(8, 22))
def test_body_reaches_as_far_as_stated(num_block, y, x):
    body = positive(ResidualBody(3, num_block))
    side = receptive_field(body)
    assert side == 4 * num_block + 3
    r = side // 2
    assert touched(body, 3, 31, y, x) == (max(y - r, 0), min(y + r, 30), max(x - r, 0), min(x + r, 30))


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_downsampler_reaches_three_blocks(step):
    down = positive(Downsampler(3, 2, step))
    assert receptive_field(down) == 3 * step
    for offset in range(step):
        assert touched(down, 3, 9 * step, 4 * step + offset, 4 * step + offset) == (3, 5, 3, 5)


def test_receptive_field_with_stride_dilation_and_shuffles():
    assert receptive_field(nn.Conv2d(3, 3, 5)) == 5
    assert receptive_field(nn.Conv2d(3, 3, 3, dilation=2)) == 5
    assert receptive_field(nn.Sequential(nn.Conv2d(3, 3, 3, stride=2), nn.Conv2d(3, 3, 3))) == 7
    assert receptive_field(nn.Sequential(nn.PixelUnshuffle(3), nn.PixelShuffle(3))) == 3
    assert receptive_field(nn.Identity()) == 1


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("input", ["lr", "upsampled"])
@pytest.mark.parametrize("num_block", [0, 1, 2, 3])
def test_halo_equals_the_measured_reach(scale, input, num_block):
    "From each lr pixel: which blocks of sr change, over the whole path enlargement -> convolutions (+ enlargement)."
    size, body = 25, positive(ResidualBody(3, num_block))
    radius = receptive_field(body) // 2
    furthest = 0
    for y in (12, 13):
        lr = torch.ones(1, 3, size, size, dtype=torch.float64)
        other = lr.clone()
        other[..., y, y] += 1.0

        def path(image):
            large = resize(image, scale=scale)
            if input == "upsampled":
                return body(large)
            return large + F.interpolate(body(image), scale_factor=scale, mode="nearest")

        with torch.no_grad():
            changed = (path(other) - path(lr)).abs().amax(dim=(0, 1)) > 1e-12
        blocks = changed.nonzero() // scale
        furthest = max(furthest, (blocks - y).abs().max().item())
    assert furthest == lr_halo(radius, scale, input)


@given(st.integers(0, 40), st.sampled_from([2, 3, 4]))
def test_halo_grows_with_the_radius(radius, scale):
    for input in ("lr", "upsampled"):
        assert 2 <= lr_halo(radius, scale, input) <= lr_halo(radius + 1, scale, input) <= lr_halo(radius, scale, input) + 1
    assert lr_halo(radius, scale, "upsampled") >= radius / scale


@pytest.mark.parametrize("num_block", [0, 2])
def test_a_window_with_its_reach_equals_the_whole(num_block):
    body, x = ResidualBody(5, num_block), draw(1, 5, 40, 44)
    r = receptive_field(body) // 2
    with torch.no_grad():
        whole, window = body(x), body(x[..., 15 - r : 25 + r, 12 - r : 30 + r])
        torch.testing.assert_close(window[..., r:-r, r:-r], whole[..., 15:25, 12:30], atol=1e-5, rtol=1e-5)


# errors

@pytest.mark.parametrize("call, words", [
    (lambda: ResidualBody(4, -1), ("num_block", "-1", "0 or more")),
    (lambda: grid_step(5, "lr"), ("scale", "5", "one of 2, 3, 4")),
    (lambda: grid_step(4, "up"), ("input", "'up'", "'upsampled'")),
    (lambda: lr_halo(3, 1, "lr"), ("scale", "1", "one of 2, 3, 4")),
])
def test_errors_name_what_was_wrong(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_gradients_reach_every_parameter():
    net = nn.Sequential(Downsampler(3, 8, 2), ResidualBody(8, 3), Upsampler(8, 2))
    net(draw(2, 3, 12, 12)).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().max() > 0 for p in net.parameters())


@pytest.mark.parametrize("num_block", [0, 1, 3])
def test_a_tap_is_the_chain_up_to_a_layer(num_block):
    body, x = ResidualBody(4, num_block), draw(2, 4, 5, 6)
    by_hand = x
    for layer in range(num_block + 1):
        inner, end = body.tapped(x, layer)
        assert torch.equal(inner, by_hand) and torch.equal(end, body(x))
        assert torch.equal(body.until(x, layer), inner)
        if layer < num_block:
            by_hand = body.blocks[layer](by_hand)
    for layer, tap in itertools.product((-1, num_block + 1), (body.until, body.tapped)):
        with pytest.raises(ValueError, match=f"layer: got {layer}, expected 0 to {num_block} blocks"):
            tap(x, layer)


@pytest.mark.parametrize("res_scale", [0.0, 0.1, 1.0])
def test_the_branch_is_scaled(res_scale):
    block, x = ResidualBlock(4, res_scale).double(), draw(2, 4, 5, 6).double()
    torch.testing.assert_close(block(x), x + res_scale * block.conv2(block.conv1(x).clamp_min(0)), rtol=1e-12, atol=1e-12)


def test_the_layout_keeps_values_and_reaches_the_end():
    image = draw(2, 3, 5, 7)
    laid = laid_out(image)
    assert torch.equal(laid, image) and laid.is_contiguous(memory_format=torch.channels_last) and laid.dtype == image.dtype
    body = nn.Sequential(conv3x3(3, 8), ResidualBody(8, 2))
    assert body(laid).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(body(laid), body(image), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_blocks_by_loops(step):
    down, image = Downsampler(3, 4, step), draw(2, 3, 2 * step, 3 * step)
    blocks = down.blocks(image)
    for c in range(3):
        for i in range(step):
            for j in range(step):
                assert torch.equal(blocks[:, (c * step + i) * step + j], image[:, c, i::step, j::step] - 0.5)
    torch.testing.assert_close(down.conv(blocks), down(image - 0.5), rtol=1e-5, atol=1e-6)
