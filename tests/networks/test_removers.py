"""degradation_remover, details_remover: one grid, stated reach, equal positions, shifts, starts, and no removal built in."""
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crlsr.core import generator, seed_everything
from crlsr.images import resize
from crlsr.networks import DegradationRemover, DetailsRemover
from crlsr.networks.blocks import grid_step, lr_halo, num_parameters, receptive_field

READINGS = list(itertools.product((2, 3, 4), ("lr", "upsampled")))


def draw(*shape, key=0):
    return torch.rand(*shape, generator=generator("removers", key))


def positive(module):
    for p in module.parameters():
        p.data = p.data.double().abs() + 1e-3
    return module


@given(st.sampled_from(READINGS), st.integers(1, 6), st.integers(1, 6))
def test_both_removers_answer_on_one_grid(reading, height, width):
    scale, input = reading
    step = scale // grid_step(scale, input)
    f_l = DegradationRemover(4, 1, scale, input)(draw(2, 3, height, width))
    f_h = DetailsRemover(4, 1, scale, input)(draw(2, 3, scale * height, scale * width))
    assert f_l.shape == f_h.shape == (2, 4, step * height, step * width)
    assert f_l.dtype == f_h.dtype == torch.float32


@pytest.mark.parametrize("scale, input", READINGS)
def test_parameters_by_formula(scale, input):
    c, n = 16, 2
    body = (2 * n + 1) * (9 * c**2 + c)
    assert num_parameters(DegradationRemover(c, n, scale, input)) == 27 * c + c + body
    assert num_parameters(DetailsRemover(c, n, scale, input)) == 27 * c * grid_step(scale, input) ** 2 + c + body


def changed(module, image, y, x):
    "Positions of the output (n, 2) that change when one input pixel does; the image is bright, the weights positive."
    other = image.clone()
    other[..., y, x] += 1.0
    with torch.no_grad():
        return ((module(other) - module(image)).abs().amax(dim=(0, 1)) > 1e-12).nonzero()


@pytest.mark.parametrize("num_block", [0, 1, 3])
def test_reach_on_the_lr_grid_is_the_radius(num_block):
    remover = positive(DegradationRemover(3, num_block, 4))
    assert remover.radius == 2 * num_block + 2 == lr_halo(remover.radius, 4, "lr")
    for y, x in ((12, 12), (3, 20)):
        where = changed(remover, torch.ones(1, 3, 25, 25, dtype=torch.float64), y, x)
        for axis, at in ((0, y), (1, x)):
            assert where[:, axis].min() == max(at - remover.radius, 0) and where[:, axis].max() == min(at + remover.radius, 24)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("num_block", [0, 1, 3])
def test_reach_on_the_hr_grid_is_the_halo(scale, num_block):
    remover = positive(DegradationRemover(3, num_block, scale, input="upsampled"))
    blocks = changed(remover, torch.ones(1, 3, 25, 25, dtype=torch.float64), 12, 12) // scale
    assert (blocks - 12).abs().max() == lr_halo(remover.radius, scale, "upsampled")


@pytest.mark.parametrize("scale, input", READINGS)
def test_reach_of_the_details_remover(scale, input):
    remover = positive(DetailsRemover(3, 1, scale, input))
    step = grid_step(scale, input)
    assert receptive_field(remover) == step * 9
    hr = torch.ones(1, 3, 16 * step, 16 * step, dtype=torch.float64)
    for offset in range(step):
        where = changed(remover, hr, 8 * step + offset, 8 * step + offset)
        assert where.min() == 4 and where.max() == 12


@pytest.mark.parametrize("scale, input", READINGS)
def test_shifted_images_give_shifted_features(scale, input):
    step = scale // grid_step(scale, input)
    lr, hr = draw(1, 3, 24, 24), draw(1, 3, 24 * scale, 24 * scale)
    with torch.no_grad():
        for remover, image, shift in ((DegradationRemover(4, 1, scale, input), lr, 1), (DetailsRemover(4, 1, scale, input), hr, scale)):
            f, moved = remover(image), remover(image.roll((shift, shift), (-2, -1)))
            inside = slice(8 * step, -8 * step)
            torch.testing.assert_close(f.roll((step, step), (-2, -1))[..., inside, inside], moved[..., inside, inside], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_positions_of_both_sides_have_one_centre(scale):
    "The mean place, in hr pixels, that a feature vector draws from, with weights symmetric about the middle."
    def centre(features_of):
        hr = torch.full((1, 3, 20 * scale, 20 * scale), 0.9, dtype=torch.float64, requires_grad=True)
        features_of(hr)[0, :, 10, 10].sum().backward()
        weight = hr.grad.sum(dim=(0, 1, 2))
        return (weight * torch.arange(20 * scale)).sum() / weight.sum()

    low, high = (remover.double() for remover in (DegradationRemover(3, 0, scale), DetailsRemover(3, 0, scale)))
    for p in [*low.parameters(), *high.parameters()]:
        p.data.fill_(0.1)
    expected = 10 * scale + (scale - 1) / 2
    assert abs(centre(high) - expected) < 1e-9
    assert abs(centre(lambda hr: low(resize(hr, scale=1 / scale))) - expected) < 1e-9


@pytest.mark.parametrize("scale, input", READINGS)
def test_tiles_of_features_equal_the_whole(scale, input):
    remover, lr = DegradationRemover(6, 1, scale, input), draw(1, 3, 30, 30)
    halo, step = lr_halo(remover.radius, scale, input), scale // grid_step(scale, input)
    with torch.no_grad():
        whole = remover(lr)[..., 10 * step : 20 * step, 10 * step : 20 * step]
        tile = remover(lr[..., 10 - halo : 20 + halo, 10 - halo : 20 + halo])[..., halo * step : -halo * step, halo * step : -halo * step]
    torch.testing.assert_close(tile, whole, atol=1e-5, rtol=1e-5)


def test_upsampled_reads_the_bicubic_enlargement():
    seed_everything(0)
    on_lr = DegradationRemover(6, 1, 4)
    seed_everything(0)
    on_hr = DegradationRemover(6, 1, 4, input="upsampled")
    lr = draw(1, 3, 6, 5)
    torch.testing.assert_close(on_hr(lr), on_lr(resize(lr, scale=4)))  # equal weights: the grid is the only difference


@pytest.mark.parametrize("kind", [DegradationRemover, DetailsRemover])
def test_equal_seeds_equal_removers_and_gradients_everywhere(kind):
    removers = []
    for _ in range(2):
        seed_everything(3)
        removers.append(kind(8, 2, 2))
    assert all(torch.equal(a, b) for a, b in zip(removers[0].parameters(), removers[1].parameters()))
    image = draw(2, 3, 12, 12).requires_grad_()
    removers[0](image).square().mean().backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().max() > 0 for p in [image, *removers[0].parameters()])


def test_images_of_a_batch_do_not_mix():
    for remover, image in ((DegradationRemover(6, 2, 4), draw(3, 3, 8, 8)), (DetailsRemover(6, 2, 4), draw(3, 3, 16, 16))):
        with torch.no_grad():
            torch.testing.assert_close(remover(image)[1], remover(image[1:2])[0])


def test_grey_gives_features_of_zero():
    "At the start there are no biases, and the zeros of the padding mean mid-grey."
    for remover, side in ((DegradationRemover(6, 2, 4), 8), (DetailsRemover(6, 2, 4), 16)):
        assert remover(torch.full((1, 3, side, side), 0.5)).abs().max() == 0


def test_an_untrained_details_remover_lets_details_through():
    "A checkerboard has no mean and lies above every Nyquist frequency: the bicubic reduction loses it, the features do not."
    seed_everything(0)
    board = 0.5 + 0.2 * (1 - 2 * ((torch.arange(64)[:, None] + torch.arange(64)) % 2).float()).expand(1, 3, -1, -1)
    with torch.no_grad():
        assert DetailsRemover(16, 1, 4)(board).std() > 0.05
        assert DegradationRemover(16, 1, 4)(resize(board, scale=1 / 4))[..., 4:-4, 4:-4].abs().max() < 0.02


@pytest.mark.parametrize("kind", [DegradationRemover, DetailsRemover])
def test_errors_name_what_was_wrong(kind):
    with pytest.raises(ValueError, match="scale: got 5, expected one of 2, 3, 4"):
        kind(4, 1, 5)
    with pytest.raises(ValueError, match="input: got 'hr', expected one of 'lr', 'upsampled'"):
        kind(4, 1, 4, input="hr")
    with pytest.raises(ValueError, match="num_block: got -2"):
        kind(4, -2, 4)


@pytest.mark.parametrize("scale, input", READINGS)
def test_taps_and_blocks_give_the_same_features(scale, input):
    seed_everything(0)
    low, high, hr = DegradationRemover(4, 2, scale, input), DetailsRemover(4, 1, scale, input), draw(2, 3, 5 * scale, 4 * scale)
    lr = resize(hr, scale=1 / scale)
    for layer in range(3):
        inner, f_l = low.tapped(lr, layer)
        assert torch.equal(f_l, low(lr)) and inner.shape == f_l.shape
    assert torch.equal(high.read(high.head.blocks(hr)), high(hr))


def test_a_details_remover_without_a_body_borrows_one():
    seed_everything(0)
    low, high, hr = DegradationRemover(4, 2, 2), DetailsRemover(4, None, 2), draw(1, 3, 8, 8)
    start = high.head(hr - 0.5)
    torch.testing.assert_close(high(hr, low.body), low.body(start))
    torch.testing.assert_close(high(hr, low.body, layer=1), low.body.blocks[0](start))
    torch.testing.assert_close(high(hr, low.body, layer=0), start)
    assert num_parameters(high) == num_parameters(high.head)
    with pytest.raises(ValueError, match="body: got None"):
        high(hr)
