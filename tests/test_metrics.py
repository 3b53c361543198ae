"""PSNR and SSIM against scikit-image under the settings of the protocol, and what they refuse."""
from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from crlsr.images import quantize
from crlsr.metrics import PSNR_MAX, protocol, psnr, ssim

SSIM = {"data_range": 255, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


def pair(batch: int, channels: int, height: int, width: int, noise: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    "A smooth random image and a noisy one that leaves [0, 1] here and there."
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, channels, 4, 4, generator=generator)
    hr = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return hr + (noise * torch.randn(hr.shape, generator=generator)).clamp(-0.4, 0.4), hr


def as_file(image: torch.Tensor) -> np.ndarray:
    "(C, H, W) as a program that reads 8-bit files would have it: (H, W, C) uint8."
    return np.round(np.clip(image.double().numpy(), 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)


def expected(sr: torch.Tensor, hr: torch.Tensor, crop: int, luma: bool) -> tuple[float, float]:
    "PSNR and SSIM of one pair by scikit-image alone."
    s, h = as_file(sr).astype(np.float64), as_file(hr).astype(np.float64)
    if luma:
        s, h = (rgb2ycbcr(x.astype(np.uint8))[..., :1] for x in (s, h))
    inside = (slice(crop, s.shape[0] - crop), slice(crop, s.shape[1] - crop))
    return (
        peak_signal_noise_ratio(h[inside], s[inside], data_range=255),
        structural_similarity(h[inside], s[inside], channel_axis=-1, **SSIM),
    )


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 3), st.sampled_from([1, 3]), st.integers(20, 40), st.integers(20, 40), st.integers(0, 4),
    st.booleans(), st.sampled_from([0.002, 0.02, 0.3]), st.integers(0, 1000), st.booleans(),
)  # fmt: skip
def test_both_are_scikit_images(batch, channels, height, width, crop, luma, noise, seed, double):
    luma = luma and channels == 3
    sr, hr = pair(batch, channels, height, width, noise, seed)
    if double:
        sr, hr = sr.double(), hr.double()
    ours_psnr, ours_ssim = psnr(sr, hr, crop_border=crop, luma=luma), ssim(sr, hr, crop_border=crop, luma=luma)
    assert ours_psnr.shape == ours_ssim.shape == (batch,) and ours_psnr.dtype == ours_ssim.dtype == torch.float64
    for i in range(batch):
        theirs_psnr, theirs_ssim = expected(sr[i], hr[i], crop, luma)
        assert abs(ours_ssim[i].item() - theirs_ssim) < 1e-6
        assert abs(ours_psnr[i].item() - min(theirs_psnr, 100)) < 1e-6


@pytest.mark.parametrize("name", ["chelsea", "coffee", "astronaut"])
def test_photographs(name):
    hr = torch.from_numpy(getattr(data, name)()[:200, :240]).permute(2, 0, 1)[None] / 255
    sr = torch.nn.functional.interpolate(hr[..., ::3, ::3], size=hr.shape[-2:], mode="bicubic")  # overshoots
    for luma in (True, False):
        theirs = expected(sr[0], hr[0], 3, luma)
        assert abs(psnr(sr, hr, crop_border=3, luma=luma).item() - theirs[0]) < 1e-6
        assert abs(ssim(sr, hr, crop_border=3, luma=luma).item() - theirs[1]) < 1e-6


def test_equal_images_have_the_largest_psnr_and_ssim_one():
    _, hr = pair(2, 3, 24, 24, 0.0, 1)
    assert psnr(hr, hr, crop_border=2, luma=True).tolist() == [PSNR_MAX, PSNR_MAX] == [100, 100]
    assert torch.allclose(ssim(hr, hr, crop_border=2, luma=True), torch.ones(2, dtype=torch.float64), atol=1e-12)
    flat = torch.zeros(1, 3, 24, 24)
    assert ssim(flat, flat, crop_border=0, luma=True).item() == 1.0


def test_what_a_file_cannot_hold_does_not_count():
    _, hr = pair(1, 3, 24, 24, 0.0, 2)
    hr = (hr * 255).round() / 255
    assert psnr(hr + 0.4 / 255, hr, crop_border=0, luma=False).item() == PSNR_MAX
    white = torch.ones(1, 3, 24, 24)
    assert psnr(white + 0.5, white, crop_border=0, luma=False).item() == PSNR_MAX


def test_one_rule_for_all_that_is_nearly_equal():
    "One level at one of many pixels: as scikit-image up to 100 dB, then no more; a mean over both is finite."
    found = []
    for side in (16, 200, 400):
        hr = torch.full((1, 1, side, side), 100 / 255)
        sr = hr.clone()
        sr[..., 0, 0] += 1 / 255
        theirs = peak_signal_noise_ratio(as_file(hr[0]).astype(float), as_file(sr[0]).astype(float), data_range=255)
        found.append(psnr(sr, hr, crop_border=0, luma=False).item())
        assert abs(found[-1] - min(theirs, 100)) < 1e-9
    assert found[1] < 100 == found[2] and math.isfinite(sum(found))
    batch = torch.stack([hr[0], sr[0] * 0])
    assert psnr(batch, hr.expand(2, -1, -1, -1), crop_border=0, luma=False).mean().isfinite()


def test_closed_forms():
    hr = torch.full((1, 3, 16, 16), 100 / 255)
    for off in (1, 5, 20):
        sr = hr + off / 255
        assert abs(psnr(sr, hr, crop_border=0, luma=False).item() - 20 * math.log10(255 / off)) < 1e-9
        assert abs(psnr(sr, hr, crop_border=0, luma=True).item() - 20 * math.log10(255 / off * 255 / 219)) < 1e-6
        c1, s, h = (0.01 * 255) ** 2, 100.0 + off, 100.0
        assert abs(ssim(sr, hr, crop_border=0, luma=False).item() - (2 * s * h + c1) / (s * s + h * h + c1)) < 1e-9


def test_ssim_is_symmetric_and_the_crop_is_a_crop():
    sr, hr = pair(2, 3, 30, 34, 0.05, 3)
    sr[:, :, :4] = 0  # an error in the border only
    inside = (..., slice(4, -4), slice(4, -4))
    for metric in (psnr, ssim):
        assert torch.allclose(metric(sr, hr, crop_border=4, luma=True), metric(hr, sr, crop_border=4, luma=True), atol=1e-12)
        assert torch.allclose(metric(sr, hr, crop_border=4, luma=True), metric(sr[inside], hr[inside], crop_border=0, luma=True), atol=1e-12)
    assert (psnr(sr, hr, crop_border=0, luma=True) < psnr(sr, hr, crop_border=4, luma=True)).all()


def test_inputs_are_left_alone_and_need_no_gradient():
    sr, hr = pair(1, 3, 20, 20, 0.1, 4)
    before = sr.clone()
    result = psnr(sr.requires_grad_(), hr, crop_border=0, luma=True)
    assert not result.requires_grad and torch.equal(sr.detach(), before)


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize(
    "shapes, dtype, arguments, message",
    [
        (((1, 3, 20, 20), (1, 3, 20, 21)), torch.float32, {"crop_border": 0, "luma": True}, "expected one shape"),
        (((20, 20), (20, 20)), torch.float32, {"crop_border": 0, "luma": True}, r"expected one shape \(B, C, H, W\) or \(C, H, W\)"),
        (((20, 20, 3), (20, 20, 3)), torch.float32, {"crop_border": 0, "luma": False}, "with 1 or 3 channels"),
        (((1, 3, 20, 20), (3, 20, 20)), torch.float32, {"crop_border": 0, "luma": True}, "expected one shape"),
        (((1, 3, 20, 20),) * 2, torch.uint8, {"crop_border": 0, "luma": True}, "sr: got torch.uint8, expected .*divided by 255"),
        (((1, 3, 20, 20),) * 2, torch.float32, {"crop_border": 10, "luma": True}, "nothing would be left"),
        (((1, 3, 20, 20),) * 2, torch.float32, {"crop_border": -1, "luma": True}, "crop_border: got -1"),
        (((1, 2, 20, 20),) * 2, torch.float32, {"crop_border": 0, "luma": True}, "with 1 or 3 channels"),
    ],
)
def test_mistakes_are_named(metric, shapes, dtype, arguments, message):
    with pytest.raises(ValueError, match=message):
        metric(*(torch.zeros(shape, dtype=dtype) for shape in shapes), **arguments)


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize("change, name, message", [
    (lambda x: 255 * x, "sr", "values from .*expected .0, 1."), (lambda x: 255 * x, "hr", "divided by 255"), (lambda x: 2 * x - 1, "sr", "values from -"),
    (lambda x: x / 0, "hr", "NaN or infinite"), (lambda x: x * math.nan, "sr", "NaN"),
])
def test_another_scale_is_refused_where_it_used_to_be_clipped_to_white(metric, change, name, message):
    images = dict(zip(("sr", "hr"), pair(1, 3, 24, 24, 0.02, 5)))
    images[name] = change(images[name])
    with pytest.raises(ValueError, match=f"^{name}: .*{message}") as caught:
        metric(images["sr"], images["hr"], crop_border=0, luma=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("luma", [True, False])
@pytest.mark.parametrize("metric", [psnr, ssim])
def test_one_image_of_any_kind_is_measured_as_its_tensor(metric, luma):
    sr, hr = (quantize(image) for image in pair(1, 3, 24, 26, 0.05, 6))
    expected = metric(sr, hr, crop_border=2, luma=luma)
    arrays = [as_file(image[0]) for image in (sr, hr)]
    floats = [array / 255 for array in arrays]
    pictures = [Image.fromarray(array) for array in arrays]
    for a, b in (arrays, floats, pictures, (sr[0], hr[0]), (arrays[0], hr[0]), (sr[0], pictures[1]), ([array[None] for array in arrays])):
        found = metric(a, b, crop_border=2, luma=luma)
        assert found.shape == (1,) and found.dtype == torch.float64
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("luma", [True, False])
def test_one_channel_is_luma_already(luma):
    sr, hr = pair(2, 1, 24, 24, 0.05, 7)
    for i in range(2):
        theirs = expected(sr[i], hr[i], 2, False)
        for a, b in ((sr[i], hr[i]), [Image.fromarray(as_file(x)[..., 0]) for x in (sr[i], hr[i])], [as_file(x)[..., 0] for x in (sr[i], hr[i])]):
            assert psnr(a, b, crop_border=2, luma=luma).item() == pytest.approx(theirs[0], abs=1e-9)
            assert ssim(a, b, crop_border=2, luma=luma).item() == pytest.approx(theirs[1], abs=1e-6)


def test_the_protocol_has_to_be_named():
    with pytest.raises(TypeError):
        psnr(torch.zeros(1, 3, 20, 20), torch.zeros(1, 3, 20, 20))
    with pytest.raises(ValueError, match="11x11"):
        ssim(torch.zeros(1, 3, 18, 30), torch.zeros(1, 3, 18, 30), crop_border=4, luma=True)


def test_the_protocol_can_be_stored_and_used():
    stored = json.loads(json.dumps(protocol(4)))
    assert stored == protocol(4) and stored["crop_border"] == 4 and stored["luma"] is True and "100 dB" in stored["psnr"] and protocol(2) != protocol(4)
