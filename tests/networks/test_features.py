"""features: the grids and windows of E_f and D_rec, exact reconstruction, and the collapse that D_rec prevents."""
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from crlsr.core import generator
from crlsr.networks import FeatureExtractor, ReconstructionDecoder, reconstruction_loss
from crlsr.networks.blocks import num_parameters, receptive_field

READINGS = list(itertools.product((2, 3, 4), ("lr", "upsampled")))


def draw(*shape, key=0):
    return torch.rand(*shape, generator=generator("features", key))


@pytest.mark.parametrize("scale, input", READINGS)
def test_features_lie_on_the_grid_of_lr(scale, input):
    step = scale if input == "lr" else 1
    hr = draw(2, 3, 5 * scale, 7 * scale)
    features = FeatureExtractor(8, 1, scale, input)(hr)
    assert features.shape == (2, 8, 5 * scale // step, 7 * scale // step)
    rebuilt = ReconstructionDecoder(8, 1, scale, input)(features)
    assert rebuilt.shape == hr.shape and rebuilt.dtype == torch.float32


def set_linear(conv, matrix):
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[:, :, 1, 1] = matrix
        conv.bias.zero_()


@pytest.mark.parametrize("scale, input", READINGS)
def test_enough_channels_can_rebuild_exactly(scale, input):
    step = scale if input == "lr" else 1
    num_feat = 3 * step**2
    extractor, decoder = FeatureExtractor(num_feat, 2, scale, input), ReconstructionDecoder(num_feat, 2, scale, input)
    turn = torch.linalg.qr(torch.randn(num_feat, num_feat, generator=generator("turn"))).Q
    set_linear(extractor.head.conv, turn)
    set_linear(decoder.tail.conv, turn.T)
    for body in (extractor.body, decoder.body):
        set_linear(body.tail, torch.zeros(num_feat, num_feat))
    hr = draw(1, 3, 4 * scale, 4 * scale)
    torch.testing.assert_close(decoder(extractor(hr)), hr, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale, input", READINGS)
def test_windows_are_finite_so_that_a_part_equals_the_whole(scale, input):
    torch.manual_seed(0)
    extractor = FeatureExtractor(6, 1, scale, input)
    step = scale if input == "lr" else 1
    reach = -(-receptive_field(extractor) // (2 * step))  # positions
    size = 2 * reach + 3
    hr = draw(1, 3, size * scale, size * scale)
    size, blocks = size * scale // step, (reach * step + scale - 1) // scale + 1
    part = hr[..., : size * step - blocks * scale, :]  # cut off below: only the positions near the cut may change
    whole, cut = extractor(hr), extractor(part)
    safe = cut.shape[-2] - reach
    assert safe > 0
    torch.testing.assert_close(cut[..., :safe, :], whole[..., :safe, :], atol=1e-6, rtol=0)


def test_decoder_sees_nothing_but_the_features():
    torch.manual_seed(0)
    extractor, decoder = FeatureExtractor(8, 1, 2), ReconstructionDecoder(8, 1, 2)
    torch.nn.init.zeros_(extractor.body.tail.weight)
    for parameter in extractor.parameters():
        parameter.data.zero_()
    one, other = (decoder(extractor(draw(1, 3, 8, 8, key=key))) for key in range(2))
    assert torch.equal(one, other)  # E_f that says nothing: every image is rebuilt alike


def test_both_networks_learn_from_the_reconstruction():
    torch.manual_seed(0)
    extractor, decoder = FeatureExtractor(8, 2, 4), ReconstructionDecoder(8, 2, 4)
    hr = draw(2, 3, 24, 24)
    reconstruction_loss(decoder(extractor(hr)), hr).backward()
    for name, parameter in [*extractor.named_parameters(), *decoder.named_parameters()]:
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_sizes_follow_the_arguments():
    small, large = (num_parameters(FeatureExtractor(32, blocks, 4)) for blocks in (1, 3))
    assert large - small == 2 * 2 * (32 * 32 * 9 + 32)
    with pytest.raises(ValueError, match="scale"):
        FeatureExtractor(8, 1, 5)
    with pytest.raises(ValueError, match="input"):
        ReconstructionDecoder(8, 1, 4, "hr")


def test_reconstruction_loss():
    hr = draw(2, 3, 4, 4).requires_grad_()
    assert reconstruction_loss(hr, hr).item() == 0
    assert math.isclose(reconstruction_loss(hr + 0.25, hr).item(), 0.25, rel_tol=1e-6)
    rebuilt = draw(2, 3, 4, 4, key=1).requires_grad_()
    slope, = torch.autograd.grad(reconstruction_loss(rebuilt, hr.detach()), rebuilt)
    assert torch.equal(slope, (rebuilt - hr).detach().sign() / hr.numel())
    with pytest.raises(ValueError, match=r"rebuilt: got \(2, 3, 4, 3\), expected the shape of hr"):
        reconstruction_loss(rebuilt[..., :3], hr)


def spread(features):
    "1 for vectors that point every way, 0 for vectors that all point one way."
    unit = F.normalize(features.flatten(2).mT.flatten(0, 1), dim=-1)  # (B, C, h, w) -> (B*h*w, C)
    return 1 - unit.mean(0).square().sum().item()


@pytest.mark.parametrize("weight, collapses", [(0.0, True), (1.0, False)])
def test_reconstruction_prevents_the_collapse(weight, collapses):
    torch.manual_seed(0)
    extractor, decoder = FeatureExtractor(16, 1, 2), ReconstructionDecoder(16, 1, 2)
    optimizer = torch.optim.Adam([*extractor.parameters(), *decoder.parameters()], lr=2e-3)
    hr = F.interpolate(draw(4, 3, 16, 16), scale_factor=2) * 0.7 + draw(4, 3, 32, 32, key=1) * 0.3
    sr = F.interpolate(F.avg_pool2d(hr, 2), scale_factor=2)
    before = spread(extractor(hr))
    for _ in range(100):
        e_h, e_s = extractor(hr), extractor(sr)
        loss = 1 - F.cosine_similarity(e_h, e_s, dim=1).mean() + weight * reconstruction_loss(decoder(e_h), hr)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = spread(extractor(hr))
    assert before > 0.9 and (after < 0.05) == collapses


@pytest.mark.parametrize("scale, input", READINGS)
def test_blocks_hold_the_same_images(scale, input):
    torch.manual_seed(0)
    extractor, decoder, hr = FeatureExtractor(8, 1, scale, input), ReconstructionDecoder(8, 1, scale, input), draw(2, 3, 5 * scale, 7 * scale)
    blocks = extractor.head.blocks(hr)
    e = extractor(hr)
    assert torch.equal(extractor.read(blocks), e)
    rebuilt = decoder.blocks(e)
    torch.testing.assert_close(decoder(e), F.pixel_shuffle(rebuilt, scale if input == "lr" else 1) + 0.5)
    torch.testing.assert_close(reconstruction_loss(rebuilt, blocks), reconstruction_loss(decoder(e), hr))  # the same pixels in another order


def test_an_extractor_without_a_body_borrows_one():
    torch.manual_seed(0)
    whole, head, hr = FeatureExtractor(4, 1, 2), FeatureExtractor(4, None, 2), draw(1, 3, 6, 8)
    head.head.load_state_dict(whole.head.state_dict())
    assert torch.equal(head(hr, whole.body), whole(hr))
    with pytest.raises(ValueError, match="body: got None"):
        head(hr)
