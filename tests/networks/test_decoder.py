"""decoder: bicubic at the start, linear in its residual, stated reach and cost, gradients, tiles, training."""
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from crlsr.core import generator, seed_everything
from crlsr.images import resize
from crlsr.networks import DegradationRemover, DetailsRemover, NetworkConfig, Restorer, SRDecoder
from crlsr.networks.blocks import grid_step, lr_halo, num_parameters

READINGS = list(itertools.product((2, 3, 4), ("lr", "upsampled")))
BASES = ("lr", "features")


def draw(*shape, key=0):
    return torch.rand(*shape, generator=generator("decoder", key))


def pair(scale, input, num_feat=6, blocks=(1, 1), base="lr"):
    return (DegradationRemover(num_feat, blocks[0], scale, input, image_base=base == "features"),
            SRDecoder(num_feat, blocks[1], scale, input, base=base))


def wake(decoder):
    "Gives the zero tail weights, as training would."
    torch.nn.init.normal_(decoder.tail.conv.weight, std=0.1, generator=generator("wake"))
    return decoder


@given(st.sampled_from(READINGS), st.integers(1, 7), st.integers(1, 7))
def test_starts_as_bicubic_to_the_bit(reading, height, width):
    scale, input = reading
    lr = draw(2, 3, height, width)
    remover, decoder = pair(scale, input)
    sr = decoder(remover(lr), lr)
    assert sr.shape == (2, 3, scale * height, scale * width) and sr.dtype == torch.float32
    assert torch.equal(sr, resize(lr, scale=scale))


@pytest.mark.parametrize("scale, input", READINGS)
def test_sr_is_bicubic_plus_the_scaled_residual(scale, input):
    lr, step = draw(1, 3, 5, 6), grid_step(scale, input)
    f_l = draw(1, 6, 5 * scale // step, 6 * scale // step, key=1)
    decoder = wake(SRDecoder(6, 1, scale, input, residual_scale=0.3))
    weight, bias = decoder.tail.conv.weight, decoder.tail.conv.bias
    colours = F.conv2d(decoder.body(f_l), weight, bias, padding=1)  # (1, 3 step², h, w)
    residual = torch.zeros(1, 3, 5 * scale, 6 * scale)
    for c, dy, dx in itertools.product(range(3), range(step), range(step)):
        residual[:, c, dy::step, dx::step] = colours[:, c * step**2 + dy * step + dx]
    torch.testing.assert_close(decoder(f_l, lr), resize(lr, scale=scale) + 0.3 * residual)


@pytest.mark.parametrize("scale, input", READINGS)
def test_parameters_by_formula(scale, input):
    c, n = 12, 2
    expected = (2 * n + 1) * (9 * c**2 + c) + 3 * grid_step(scale, input) ** 2 * (9 * c + 1)
    assert num_parameters(SRDecoder(c, n, scale, input)) == expected


def test_the_image_passes_unclipped():
    lr = draw(1, 3, 6, 6).round()  # black and white: bicubic overshoots
    remover, decoder = pair(4, "lr")
    sr = decoder(remover(lr), lr)
    assert sr.min() < 0 and sr.max() > 1


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("scale, input", READINGS)
def test_reach_of_remover_and_decoder_is_the_halo(scale, input, base):
    "Perturb one lr pixel of a bright image under positive weights: nothing cancels, no ReLU is shut."
    remover, decoder = (m.double() for m in pair(scale, input, num_feat=3, base=base))
    wake(decoder)
    for p in [*remover.parameters(), *decoder.parameters()]:
        p.data.abs_().add_(1e-2)
    halo = lr_halo(remover.radius + decoder.radius, scale, input)
    lr = torch.ones(1, 3, 23, 23, dtype=torch.float64)
    other = lr.clone()
    other[..., 11, 11] += 1.0
    with torch.no_grad():
        difference = decoder(remover(other), other) - decoder(remover(lr), lr)
    blocks = (difference.abs().amax(dim=(0, 1)) > 1e-12).nonzero() // scale - 11
    assert blocks.abs().max() == halo and blocks.min() == -halo and blocks.max() == halo
    assert remover.radius == decoder.radius == 4 and (input == "upsampled" or halo == 8)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("scale, input", READINGS)
def test_a_tile_with_its_halo_equals_the_whole(scale, input, base):
    remover, decoder = pair(scale, input, base=base)
    wake(decoder)
    halo = lr_halo(remover.radius + decoder.radius, scale, input)
    lr = draw(1, 3, 28, 30)
    window = (..., slice(12 - halo, 18 + halo), slice(11 - halo, 19 + halo))
    with torch.no_grad():
        whole, tile = decoder(remover(lr), lr), decoder(remover(lr[window]), lr[window])
    cut = scale * halo
    torch.testing.assert_close(tile[..., cut:-cut, cut:-cut], whole[..., 12 * scale : 18 * scale, 11 * scale : 19 * scale], atol=1e-5, rtol=0)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("scale, input", READINGS)
def test_shifted_images_give_shifted_sr(scale, input, base):
    remover, decoder = pair(scale, input, base=base)
    wake(decoder)
    lr = draw(1, 3, 30, 30)
    moved = lr.roll((2, 1), (-2, -1))
    with torch.no_grad():
        sr, sr_moved = decoder(remover(lr), lr), decoder(remover(moved), moved)
    inside = slice(11 * scale, -11 * scale)
    torch.testing.assert_close(sr.roll((2 * scale, scale), (-2, -1))[..., inside, inside], sr_moved[..., inside, inside], atol=1e-5, rtol=0)


@pytest.mark.parametrize("input", ["lr", "upsampled"])
def test_gradients_pass_from_the_second_step_on(input):
    seed_everything(0)
    remover, decoder = pair(2, input)
    lr, hr = draw(2, 3, 8, 8), draw(2, 3, 16, 16, key=1)
    behind = [*remover.parameters(), *decoder.body.parameters()]
    optimizer = torch.optim.Adam([*behind, *decoder.tail.parameters()], lr=1e-3)
    for step in range(2):
        optimizer.zero_grad()
        F.l1_loss(decoder(remover(lr), lr), hr).backward()
        assert all(p.grad.abs().max() > 0 for p in decoder.tail.parameters())
        assert all((p.grad.abs().max() > 0) == (step > 0) for p in behind)
        optimizer.step()


@pytest.mark.parametrize("scale, input", READINGS)
def test_a_decoder_of_features_alone_starts_as_bicubic_and_sees_lr_through_f_l_only(scale, input):
    seed_everything(1)
    lr = draw(2, 3, 7, 5).requires_grad_()
    remover, decoder = pair(scale, input, base="features")
    f_l = remover(lr)
    sr = decoder(f_l, lr)
    torch.testing.assert_close(sr, resize(lr, scale=scale), atol=1e-5, rtol=0)
    torch.testing.assert_close(wake(decoder)(f_l), decoder(f_l, lr), atol=0, rtol=0)
    assert torch.autograd.grad(decoder(f_l, lr).sum(), lr, retain_graph=True)[0].abs().max() > 0
    cut = torch.autograd.grad(decoder(f_l.detach(), lr).sum(), [lr, decoder.tail.conv.weight], allow_unused=True)
    assert cut[0] is None and cut[1].abs().max() > 0
    with_lr = torch.autograd.grad(SRDecoder(6, 1, scale, input)(f_l.detach(), lr).sum(), lr)[0]
    assert with_lr.abs().max() > 0  # the other base does let lr past the features


@pytest.mark.parametrize("scale, input", READINGS)
def test_f_h_starts_as_the_block_means_of_hr_and_decodes_to_them(scale, input):
    hr, step = draw(1, 3, 6 * scale, 4 * scale, key=2), grid_step(scale, input)
    means = torch.zeros(1, 3, 6 * scale // step, 4 * scale // step)
    for dy, dx in itertools.product(range(step), range(step)):
        means += hr[..., dy::step, dx::step] / step**2
    f_h = DetailsRemover(6, 1, scale, input, image_base=True)(hr)
    torch.testing.assert_close(f_h[:, :3] + 0.5, means, atol=1e-6, rtol=0)
    expected = means if step == 1 else resize(means, scale=scale)
    torch.testing.assert_close(SRDecoder(6, 1, scale, input, base="features")(f_h), expected, atol=1e-5, rtol=0)


def test_both_bases_draw_the_same_weights_elsewhere():
    "An arm of a study differs from its control in the three channels only."
    nets = []
    for base in BASES:
        seed_everything(4)
        nets.append(dict(Restorer(NetworkConfig(num_feat=6, num_block=2, decoder_base=base)).named_parameters()))
    for name, value in nets[0].items():
        same = 3 if name in ("remover.head.weight", "remover.body.tail.weight") else 0
        assert torch.equal(value[same:], nets[1][name][same:]), name
    assert not torch.equal(nets[0]["remover.head.weight"], nets[1]["remover.head.weight"])


def test_one_seed_gives_one_decoder():
    states = []
    for _ in range(2):
        seed_everything(9)
        states.append([p.clone() for p in SRDecoder(8, 2, 3).parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*states))


def test_can_learn_a_known_residual():
    "The residual hr - bicubic of one patch is learnt to a third of its size."
    seed_everything(0)
    remover, decoder = pair(2, "lr", num_feat=16)
    hr = F.interpolate(draw(1, 3, 12, 12), scale_factor=2, mode="nearest")  # edges that bicubic smears
    lr = resize(hr, scale=1 / 2)
    optimizer = torch.optim.Adam([*remover.parameters(), *decoder.parameters()], lr=5e-3)
    errors = []
    for _ in range(150):
        loss = F.l1_loss(decoder(remover(lr), lr), hr)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    assert errors[-1] < errors[0] / 3 and max(errors) < 1.5 * errors[0]


@pytest.mark.parametrize("call, words", [
    (lambda: SRDecoder(4, 1, 1), "scale: got 1, expected one of 2, 3, 4"),
    (lambda: SRDecoder(4, 1, 4, input="Upsampled"), "input: got 'Upsampled', expected one of 'lr', 'upsampled'"),
    (lambda: SRDecoder(4, -1, 4), "num_block: got -1, expected 0 or more"),
    (lambda: SRDecoder(4, 1, 4, base="hr"), "base: got 'hr', expected one of 'lr', 'features'"),
    (lambda: SRDecoder(4, 1, 4)(torch.zeros(1, 4, 2, 2)), "lr: got None, expected an image, as base is 'lr'"),
    (lambda: NetworkConfig(num_feat=2, decoder_base="features"), "num_feat: got 2, expected at least 3, as decoder_base"),
])
def test_errors_name_what_was_wrong(call, words):
    with pytest.raises(ValueError, match=words):
        call()
