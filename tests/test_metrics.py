"""PSNR and SSIM against scikit-image, detail against NumPy and closed forms, LPIPS with a network of our own; and what they refuse."""
from __future__ import annotations

import json
import math
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from crlsr import metrics
from crlsr.core import generator
from crlsr.data import embedded_images
from crlsr.images import modcrop, quantize, resize
from crlsr.metrics import LPIPS_WEIGHTS, PSNR_MAX, MetricImage, detail, lpips, protocol, psnr, ssim

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


# --- detail -----------------------------------------------------------------------------------------------------------------------

def band_figures(s: np.ndarray, h: np.ndarray, scale: int) -> tuple[float, float]:
    "Energy and correlation of (H, W, C) on the 0..255 scale by their definition, one frequency at a time."
    height, width, channels = s.shape
    window = np.outer(*((1 - np.cos(2 * np.pi * np.arange(n) / n)) / 2 for n in (height, width)))
    sums = np.zeros(3)
    for c in range(channels):
        S, H = (np.fft.fft2(window * (y - (window * y).sum() / window.sum())) for y in (s[..., c], h[..., c]))
        for i in range(height):
            for j in range(width):
                periods = min(i, height - i), min(j, width - j)
                if 2 * scale * periods[0] > height or 2 * scale * periods[1] > width:
                    sums += (S[i, j] * H[i, j].conjugate()).real, abs(S[i, j]) ** 2, abs(H[i, j]) ** 2
    shared, ss, hh = sums / channels / (window**2).sum() / (height * width) + 1 / 12
    return ss / hh, shared / math.sqrt(ss * hh)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.sampled_from([1, 3]), st.integers(24, 33), st.integers(24, 33), st.integers(0, 4), st.integers(2, 4), st.booleans(), st.integers(0, 99))
def test_detail_is_its_definition(batch, channels, height, width, crop, scale, luma, seed):
    sr, hr = pair(batch, channels, height, width, 0.1, seed)
    found = detail(sr, hr, scale=scale, crop_border=crop, luma=luma)
    assert found.energy.shape == found.correlation.shape == (batch,) and found.energy.dtype == torch.float64
    for i in range(batch):
        s, h = (as_file(x[i]).astype(np.float64) for x in (sr, hr))
        if luma and channels == 3:
            s, h = (rgb2ycbcr(x.astype(np.uint8))[..., :1] for x in (s, h))
        inside = (slice(crop, s.shape[0] - crop), slice(crop, s.shape[1] - crop))
        np.testing.assert_allclose([figure[i].item() for figure in found], band_figures(s[inside], h[inside], scale), rtol=1e-9)


def wave(periods: float, height: float, axis: int = 1, phase: float = 0) -> torch.Tensor:
    "(1, 1, 96, 96): a wave around a middle grey, on the 0..1 scale."
    x = torch.arange(96).double() / 96
    row = 0.5 + height * torch.sin(2 * math.pi * periods * x + 0.3 + phase)
    return (row if axis else row[:, None]).expand(1, 1, 96, 96)


ONE = dict(crop_border=0, luma=True)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_wave_counts_above_the_limit_of_the_lr_grid_only(scale, axis):
    limit = 48 // scale  # periods over 96 pixels
    above, below = wave(limit + 3, 0.4, axis), wave(limit - 3, 0.4, axis)
    half = 0.5 + (above - 0.5) / 2
    found = detail(half, above, scale=scale, **ONE)
    assert found.energy.item() == pytest.approx(0.25, abs=2e-3) and found.correlation.item() == pytest.approx(1, abs=1e-3)
    flat = torch.full_like(above, 0.5)
    assert detail(below, flat, scale=scale, **ONE).energy.item() < 2, "rounding at most, of some 5,000 squared grey levels"
    assert detail(above, flat, scale=scale, **ONE).energy.item() == pytest.approx(12 * (0.4 * 255) ** 2 / 2, rel=0.01)
    assert detail(1 - above, above, scale=scale, **ONE).correlation.item() == pytest.approx(-1, abs=1e-3)
    quarter = wave(limit + 3, 0.4, axis, phase=math.pi / 2)
    assert abs(detail(quarter, above, scale=scale, **ONE).correlation.item()) < 1e-3


@pytest.mark.parametrize("luma", [True, False])
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", ["chelsea", "coffee"])
def test_what_photographs_show(name, scale, luma):
    "hr has its own detail; bicubic nearly none; noise adds energy and takes from the correlation; louder detail has the energy of its square."
    hr = modcrop(embedded_images("heldout")[name][:, :240, :240], 12)[None].double()
    options = dict(scale=scale, crop_border=scale, luma=luma)
    assert [figure.item() for figure in detail(hr, hr, **options)] == [1, 1]
    sr = resize(quantize(resize(hr, 1 / scale)), scale)
    bicubic, noisy = (detail(x, hr, **options) for x in (sr, sr + 0.05 * torch.randn(hr.shape, generator=generator("noise"), dtype=hr.dtype)))
    assert bicubic.energy < 0.12 and bicubic.correlation < 0.35
    assert noisy.energy > 2 * bicubic.energy and noisy.correlation < bicubic.correlation
    own = detail(hr + 0.02 * torch.randn(hr.shape, generator=generator("noise"), dtype=hr.dtype), hr, **options)
    assert own.energy > 1 and own.correlation < 1


def test_the_frame_does_not_leak_into_the_band():
    "A ramp jumps by its whole height where the transform closes it to a ring, and has no detail."
    ramp = torch.linspace(0.1, 0.9, 96).double().expand(1, 1, 96, 96)
    rounding = detail(quantize(ramp), torch.full_like(ramp, 0.5), scale=4, **ONE).energy.item()
    assert rounding < 3, "of the thousands that a jump of 200 grey levels has"
    shifted = (ramp - 0.02 + 0.04 * torch.rand(ramp.shape, generator=generator("grain"), dtype=ramp.dtype))
    brighter = [figure.item() for figure in detail(shifted + 10 / 255, shifted, scale=4, **ONE)]
    assert brighter == pytest.approx([1, 1], abs=1e-9), "nor does brightness count"


def test_a_blank_page_has_finite_figures():
    flat = torch.full((2, 3, 24, 24), 0.25)
    assert [figure.tolist() for figure in detail(flat, flat, scale=4, crop_border=4, luma=True)] == [[1, 1], [1, 1]]
    busy = detail(flat + 0.2 * torch.rand(flat.shape, generator=generator("busy")), flat, scale=4, crop_border=4, luma=True)
    assert (busy.energy > 10).all() and (busy.correlation < 0.3).all() and torch.isfinite(busy.energy).all()


@pytest.mark.parametrize("size, options, message", [
    (23, dict(scale=4, crop_border=4), "detail: got scale 4 and 15x15 pixels after cropping, expected at least 2 and 16 pixels"),
    (40, dict(scale=1, crop_border=0), "got scale 1"), (40, dict(scale=2, crop_border=20), "nothing would be left"),
])
def test_detail_names_what_it_cannot_measure(size, options, message):
    with pytest.raises(ValueError, match=message):
        detail(torch.zeros(1, 3, size, size), torch.zeros(1, 3, size, size), luma=True, **options)
    with pytest.raises(TypeError):
        detail(torch.zeros(1, 3, 40, 40), torch.zeros(1, 3, 40, 40), scale=2)


# --- lpips ------------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def without(monkeypatch, tmp_path):
    "A machine without the package and without its weights."
    monkeypatch.setitem(sys.modules, "lpips", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    metrics.lpips_network.cache_clear()
    yield tmp_path / "hub" / "checkpoints" / LPIPS_WEIGHTS.rpartition("/")[2]
    metrics.lpips_network.cache_clear()


class Stub(torch.nn.Module):
    "Has the interface of lpips.LPIPS, its shape of result, and its habit of talking."

    def __init__(self, **options):
        super().__init__()
        self.options, self.seen = options, None
        print("Setting up [LPIPS] perceptual loss")

    def forward(self, a, b):
        self.seen = a, b
        return (a - b).abs().mean(dim=(1, 2, 3), keepdim=True)


def test_lpips_says_what_is_missing_and_fetches_nothing(without, monkeypatch):
    images = torch.rand(1, 3, 40, 40), torch.rand(1, 3, 40, 40)
    with pytest.raises(ImportError, match=r"^lpips is not installed [^\n]*pip install [^\n]*\[lpips\]") as caught:
        lpips(*images, crop_border=4)
    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=Stub))
    with pytest.raises(FileNotFoundError, match="not fetched unasked; download https://[^ ]*pth .233 MB. to ") as caught:
        lpips(*images, crop_border=4)
    assert str(without) in str(caught.value) and "\n" not in str(caught.value) and not without.parent.exists()


def test_lpips_gives_its_network_what_it_expects(without, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=Stub))
    without.parent.mkdir(parents=True)
    without.write_bytes(b"")
    sr, hr = pair(2, 3, 40, 44, 0.2, 3)
    found = lpips(sr, hr, crop_border=4)
    cut = [np.stack([as_file(x)[4:-4, 4:-4] for x in image]).transpose(0, 3, 1, 2) / 255 for image in (sr, hr)]
    np.testing.assert_allclose(found, 2 * np.abs(cut[0] - cut[1]).mean((1, 2, 3)), rtol=1e-5)
    network = metrics.lpips_network()
    assert (network.options["net"], network.options["version"], network.training) == ("alex", "0.1", False) and capsys.readouterr().out == ""
    assert found.dtype == torch.float64 and network.seen[0].dtype == torch.float32 and network.seen[0].min() >= -1
    assert lpips(sr[:, :1], hr[:, :1], crop_border=0).shape == (2,) and network.seen[0].shape == (2, 3, 40, 44)
    with pytest.raises(ValueError, match="lpips: got 30x36 pixels after cropping, expected at least 31x31"):
        lpips(sr[..., :38, :], hr[..., :38, :], crop_border=4)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 2), st.sampled_from([1, 3]), st.integers(0, 4), st.booleans(), st.integers(0, 1000))
def test_an_image_that_was_prepared_once_gives_the_same_figures(batch, channels, crop, luma, seed):
    hr, both = pair(batch, channels, 33, 40, 0.1, seed)[1], {"crop_border": crop, "luma": luma and channels == 3}
    once = MetricImage(hr, **both)
    for other in range(2):
        sr = (hr + 0.05 * torch.randn(hr.shape, generator=torch.Generator().manual_seed(other))).clamp(0, 1)
        for given_sr in (sr, MetricImage(sr, **both)):
            assert torch.equal(psnr(given_sr, once, **both), psnr(sr, hr, **both))
            assert torch.equal(ssim(given_sr, once, **both), ssim(sr, hr, **both))
            for ours, theirs in zip(detail(given_sr, once, scale=2, **both), detail(sr, hr, scale=2, **both)):
                assert torch.equal(ours, theirs)


def test_a_prepared_image_is_refused_where_it_does_not_fit():
    sr, hr = pair(1, 3, 32, 32, 0.1, 0)
    once = MetricImage(hr, crop_border=4, luma=True)
    with pytest.raises(ValueError, match=r"hr: was prepared with crop_border and luma \(4, True\), expected \(2, True\)"):
        psnr(sr, once, crop_border=2, luma=True)
    with pytest.raises(ValueError, match=r"sr and hr: got shapes \(1, 3, 30, 32\) and \(1, 3, 32, 32\)"):
        ssim(sr[..., :30, :], once, crop_border=4, luma=True)
    with pytest.raises(ValueError, match=r"image: got shape \(1, 2, 32, 32\)"):
        MetricImage(hr[:, :2], crop_border=4, luma=True)
