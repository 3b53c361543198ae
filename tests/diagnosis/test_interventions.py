"""interventions: the cut at the small grid's limit, its energy and sensitivity, swaps, composites, false negatives, gradients."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import fft

from crlsr.core import generator
from crlsr.data import embedded_images
from crlsr.diagnosis.interventions import (
    composite, detail_energy, detail_sensitivity, false_negative_share, gradient_curves, low_pass,
    patch_correlation, swap_test,
)
from crlsr.images import luma, resize


def draw(*shape, key=0, dtype=torch.float64):
    return torch.randn(*shape, generator=generator("removal test", key), dtype=dtype)


@pytest.fixture(scope="module")
def photo():
    return embedded_images("heldout")["chelsea"][None, :, 40:136, 100:196]


@pytest.mark.parametrize("shape", [(32, 48), (24, 24), (36, 12)])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_low_pass_equals_the_cosine_transform(shape, scale):
    image = draw(*shape, key=shape[0])
    spectrum = fft.dctn(image.numpy(), type=2)
    for axis, size in enumerate(shape):
        wave = np.arange(size) / (2 * size)  # cycles per pixel of each cosine
        spectrum *= np.expand_dims(wave < 1 / (2 * scale) - 1e-9, 1 - axis)
    np.testing.assert_allclose(low_pass(image, scale).numpy(), fft.idctn(spectrum, type=2), atol=1e-10)


@given(st.integers(2, 4), st.integers(0, 1000))
def test_low_pass_is_a_linear_projection(scale, key):
    a, b = draw(3, 12, 24, key=key), draw(3, 12, 24, key=f"b{key}")
    torch.testing.assert_close(low_pass(2 * a - b, scale), 2 * low_pass(a, scale) - low_pass(b, scale))
    torch.testing.assert_close(low_pass(low_pass(a, scale), scale), low_pass(a, scale))
    assert (low_pass(a, scale) * (a - low_pass(a, scale))).sum().abs() < 1e-9, "what is kept and what is cut are orthogonal"
    torch.testing.assert_close(low_pass(a, scale).mean(), a.mean())


def test_energy_of_a_wave_above_and_below_the_limit():
    x = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    above = 0.5 + 0.1 * torch.cos(math.pi * 32 * x).expand(1, 3, 64, 64)
    below = 0.5 + 0.1 * torch.cos(math.pi * 8 * x).expand(1, 3, 64, 64)
    torch.testing.assert_close(detail_energy(above, 4), torch.full((1, 16, 16), math.log10((21.9 / 255) ** 2 / 2 + 1e-6), dtype=torch.float64))
    torch.testing.assert_close(detail_energy(below, 4), torch.full((1, 16, 16), -6.0, dtype=torch.float64))


def test_energy_belongs_to_its_cell(photo):
    flat = resize(resize(photo, scale=1 / 4), scale=4)
    flat[..., 48:52, 60:64] += 0.2 * torch.tensor([1.0, -1.0, 1.0, -1.0])  # detail in one cell
    energy = detail_energy(flat, 4)[0]
    assert energy.argmax() == 12 * 24 + 15 and energy.shape == (24, 24)


def test_sensitivity_at_its_extremes(photo):
    share = (photo - low_pass(photo, 4)).square().mean() / (photo - photo.mean((0, 2, 3), keepdim=True)).square().mean()
    assert detail_sensitivity(lambda hr: hr, photo, 4) == pytest.approx(share.item(), rel=1e-5)
    assert detail_sensitivity(lambda hr: 9 * hr + 4, photo, 4) == pytest.approx(share.item(), rel=1e-4), "scale and offset do not matter"
    assert detail_sensitivity(lambda hr: low_pass(hr, 4), photo, 4) == pytest.approx(0, abs=1e-9)
    assert detail_sensitivity(lambda hr: hr - low_pass(hr, 4), photo, 4) == pytest.approx(1, abs=1e-3)
    assert math.isnan(detail_sensitivity(lambda hr: torch.full_like(hr, 0.3), photo, 4))


def decibels(a, b):
    y = [255 * luma(x.clamp(0, 1)).numpy()[..., 4:-4, 4:-4] for x in (a, b)]
    return 10 * math.log10(255**2 / np.mean((y[0] - y[1]) ** 2))


def test_swap(photo):
    lr = tuple(resize(photo + 0.02 * draw(*photo.shape, key=side, dtype=torch.float32), scale=1 / 4) for side in "ab")
    up = [resize(image, scale=4) for image in lr]
    ignoring = swap_test(lambda f, image: resize(image, scale=4), lr, lr, photo)
    assert ignoring["swapped"] == math.inf
    assert ignoring["to hr"] == pytest.approx((decibels(up[0], photo) + decibels(up[1], photo)) / 2, abs=1e-3)
    assert ignoring["between"] == pytest.approx(decibels(*up), abs=1e-3)
    living = swap_test(lambda f, image: resize(f, scale=4), lr, lr, photo)
    assert living["swapped"] == pytest.approx(living["between"]) and living["to hr"] == ignoring["to hr"]
    half = swap_test(lambda f, image: resize((f + image) / 2, scale=4), lr, lr, photo)
    assert half["swapped"] == pytest.approx(living["between"] + 20 * math.log10(2), abs=1e-3), "half the difference: 6 dB more"
    assert swap_test(lambda f, image: f, (photo, photo), lr, photo) == {"to hr": math.inf, "between": math.inf, "swapped": math.inf}


@given(st.integers(0, 10**6), st.integers(2, 20), st.integers(2, 20))
def test_composite_takes_every_pixel_from_one_of_two(key, height, width):
    a, b = torch.zeros(3, 2, height, width), torch.ones(3, 2, height, width)
    mixed, mask = composite(a, b, generator("composite", key))
    assert mask.shape == (3, height, width) and torch.equal(mixed, 1 - mask[:, None].expand_as(mixed))
    again, _ = composite(a, b, generator("composite", key))
    assert torch.equal(mixed, again)


def test_composite_cuts_along_a_straight_line_through_the_middle():
    a = torch.zeros(200, 1, 31, 31)
    _, mask = composite(a, a, generator("composite"))
    share = mask.mean((1, 2))
    assert 0.25 < share.min() and share.max() < 0.75 and abs(share.mean() - 0.5) < 0.03
    for axis in (1, 2):
        changes = mask.diff(dim=axis).abs().sum(axis)
        assert changes.max() == 1, "a line crosses each row and each column once at most"


def test_patch_correlation_equals_corrcoef(photo):
    positions = torch.tensor([0, 23, 100, 301, 575])
    for size in (1, 3, 5):
        found = patch_correlation(photo, positions, 4, size)[0]
        margin = size // 2 * 4
        y = np.pad(luma(photo)[0, 0].double().numpy(), margin, mode="edge")
        cut = [y[4 * (p // 24) : 4 * (p // 24) + 4 * size, 4 * (p % 24) : 4 * (p % 24) + 4 * size].ravel() for p in positions.tolist()]
        assert min(c.std() for c in cut) > 1 / 255
        np.testing.assert_allclose(found.numpy(), np.corrcoef(cut), atol=1e-5)


def test_false_negatives_are_counted_by_pairs():
    correlation = torch.tensor([[[1.0, 0.9, 0.1], [0.9, 1.0, 0.2], [0.1, 0.2, 1.0]]])
    assert false_negative_share(correlation, 0.5) == pytest.approx(2 / 6)
    assert false_negative_share(correlation, 0.0) == 1 and false_negative_share(correlation, 0.95) == 0
    stripes = (torch.arange(64) // 4 % 2).float().expand(1, 3, 64, 64)
    inner = torch.arange(256).view(16, 16)[1:-1, 1:-1].flatten()
    n = len(inner)
    assert false_negative_share(patch_correlation(stripes, inner, 4)) == pytest.approx((n / 2 - 1) / (n - 1))
    flat = patch_correlation(torch.full((1, 3, 64, 64), 0.5), inner, 4)
    assert flat.abs().max() == 0 and false_negative_share(flat) == 0, "flat patches are not counted"
    noise = torch.rand(1, 3, 64, 64, generator=generator("noise"))
    assert false_negative_share(patch_correlation(noise, inner, 4), 0.5) < 0.001


def test_gradient_curves():
    rows = [{"step": 10, "pixel": 0.1}, {"step": 20, "grad_pixel": 0.5, "grad_bc": 0.1, "cos_bc": 0.3, "grad_srnce": 0.0, "cos_srnce": 0.0},
            {"step": 30, "grad_pixel": 0.0, "grad_bc": 0.1, "cos_bc": 0.0}, {"step": 40, "grad_pixel": 0.25, "grad_bc": None}]
    curves = gradient_curves(rows)
    assert curves == {"share": {"bc": ([20], [0.2]), "srnce": ([20], [0.0])}, "cosine": {"bc": ([20, 30], [0.3, 0.0]), "srnce": ([20], [0.0])}}
    assert gradient_curves([]) == {"share": {}, "cosine": {}}


@pytest.mark.parametrize("call, message", [
    (lambda: composite(torch.ones(1, 3, 4, 4), torch.ones(1, 3, 4, 5)), "lr_a, lr_b"),
    (lambda: patch_correlation(torch.ones(1, 3, 16, 16), torch.arange(3), 4, 2), "size: got 2"),
    (lambda: false_negative_share(torch.ones(3, 3)), "correlation: got"),
    (lambda: false_negative_share(torch.ones(3, 1, 1)), "correlation: got"),
])
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "expected" in str(error.value) and "\n" not in str(error.value)
