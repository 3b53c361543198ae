"""upscaling: tiles equal the whole, any size, every kind comes back."""
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from PIL import Image

from crlsr.images import resize
from crlsr.inference import Bicubic, upscale
from crlsr.inference.upscaling import _auto_tile, _bytes_per_pixel
from tests.inference.models import build, image

MODELS = {(scale, grid): build(scale=scale, input=grid) for scale in (2, 3, 4) for grid in ("lr", "upsampled")}
MODELS |= {(scale, "bicubic"): Bicubic(scale) for scale in (2, 3, 4)}


def influence(model, side: int) -> torch.Tensor:
    "Which lr pixels the central block of sr depends on."
    lr = image(1, 3, side, side).requires_grad_()
    block = slice(model.scale * (side // 2), model.scale * (side // 2 + 1))
    return torch.autograd.grad(model(lr)[..., block, block].sum(), lr)[0].abs().sum((0, 1)) > 0


# --- tiles ---

@given(st.sampled_from(sorted(MODELS, key=str)), st.integers(1, 30), st.integers(1, 30), st.integers(1, 20))
def test_tiles_equal_the_whole(key, height, width, tile):
    model, lr = MODELS[key], image(3, height, width)
    whole = upscale(lr, model)
    assert whole.shape == (3, key[0] * height, key[0] * width)
    assert (upscale(lr, model, tile=tile) - whole).abs().max() <= 1e-5


@pytest.mark.parametrize("grid", ["lr", "upsampled"])
def test_the_default_model_in_tiles(grid):
    model, lr = build(num_feat=32, num_block=6, input=grid), image(3, 47, 61)
    assert (upscale(lr, model, tile=24) - upscale(lr, model)).abs().max() <= 1e-5


class Narrow(torch.nn.Module):
    "A model that promises to look nowhere."
    halo = 0

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model, self.scale = model, model.scale

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        return self.model(lr)


@pytest.mark.parametrize("key", sorted(MODELS, key=str), ids=str)
def test_without_halo_there_are_seams(key):
    lr, model = image(3, 24, 24), Narrow(MODELS[key])
    assert (upscale(lr, model, tile=8) - upscale(lr, model)).abs().max() > 1e-3


@pytest.mark.parametrize("key", sorted(MODELS, key=str), ids=str)
def test_halo_is_the_receptive_field(key):
    model = MODELS[key]
    side = 4 * model.halo + 9
    rows, columns = influence(model, side).nonzero().sub(side // 2).abs().max(0).values.tolist()
    assert rows == columns and rows <= model.halo <= rows + 1


def test_a_batch_in_tiles_is_each_image_in_tiles():
    model, batch = MODELS[4, "lr"], image(3, 3, 13, 9)
    assert torch.allclose(upscale(batch, model, tile=6), torch.stack([upscale(one, model) for one in batch]), atol=1e-5)


@pytest.mark.parametrize("side", [1, 2, 3])
@pytest.mark.parametrize("tile", [None, 1, "auto"])
def test_the_smallest_images(side, tile):
    for key, model in MODELS.items():
        sr = upscale(torch.full((3, 1, side), 0.5), model, tile=tile)
        assert sr.shape == (3, key[0], key[0] * side) and torch.isfinite(sr).all()
    assert torch.allclose(upscale(torch.full((3, 1, side), 0.5), Bicubic(4), tile=tile), torch.tensor(0.5))


def test_auto_tiles_fit_the_budget():
    for model in MODELS.values():
        side = _auto_tile(model, 1) + 2 * model.halo
        assert side**2 * _bytes_per_pixel(model) <= 256 * 2**20
        assert _auto_tile(model, 10**9) == 16, "a batch beyond the budget still gets a tile"


# --- values ---

def test_values_are_clamped_and_not_rounded():
    lr = (torch.arange(64).view(8, 8) % 2).float().expand(3, 8, 8)
    assert torch.equal(upscale(lr, Bicubic(2)), resize(lr, scale=2).clamp(0, 1))
    assert resize(lr, scale=2).max() > 1 and not torch.equal(upscale(lr, Bicubic(2)) * 255, (upscale(lr, Bicubic(2)) * 255).round())


def test_the_input_is_left_alone_and_the_result_has_no_graph():
    lr = image(3, 8, 8).requires_grad_()
    before = lr.detach().clone()
    sr = upscale(lr, MODELS[2, "lr"], tile=4)
    assert torch.equal(lr, before) and not sr.requires_grad


def test_double_images_come_back_double():
    lr = image(3, 8, 8).double()
    assert upscale(lr, MODELS[2, "lr"]).dtype == upscale(lr, Bicubic(2)).dtype == torch.float64


def test_a_bare_module_works_in_one_piece():
    class Nearest(torch.nn.Module):
        scale = 2

        def forward(self, lr):
            return lr.repeat_interleave(2, -1).repeat_interleave(2, -2)

    assert upscale(image(3, 4, 5), Nearest()).shape == (3, 8, 10)


@pytest.mark.parametrize("wrong, message", [
    (image(8, 8), r"shape \(8, 8\)"), (image(2, 8, 8), r"shape \(2, 8, 8\)"), (image(3, 0, 8), r"\(3, 0, 8\)"), (image(1, 1, 3, 8, 8), r"\(1, 1, 3, 8, 8\)"),
    (image(20, 20, 3), "with 1 or 3 channels"), ((image(3, 8, 8) * 255).byte(), "uint8.*divided by 255"), (image(3, 8, 8) * 255, "values from .*expected .0, 1."),
    (image(3, 8, 8) / 0, "NaN or infinite"), (np.zeros((3, 8, 8)), "channels last"), (np.zeros((8, 8, 3)) + 99, "values from 99"),
])
def test_images_that_are_none(wrong, message):
    with pytest.raises(ValueError, match=f"image: .*{message}") as error:
        upscale(wrong, Bicubic(2))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("model", [MODELS[3, "lr"], Bicubic(3)], ids=["network", "bicubic"])
@pytest.mark.parametrize("tile", [None, 4])
def test_every_kind_comes_back_as_it_was(model, tile):
    eight = (image(2, 3, 9, 11).mul(255).round().byte()).permute(0, 2, 3, 1).numpy()  # (2, 9, 11, 3)
    planes = torch.from_numpy(eight).permute(0, 3, 1, 2) / 255
    exact = upscale(planes, model, tile=tile).permute(0, 2, 3, 1).numpy()
    for given, expected in ((eight, exact), (eight[0], exact[0]), (eight[0] / 255, exact[0]), (Image.fromarray(eight[1]), exact[1])):
        sr = upscale(given, model, tile=tile)
        if isinstance(given, Image.Image):
            assert sr.mode == "RGB" and sr.size == (33, 27)
        else:
            assert sr.dtype == given.dtype
        scale, tolerance = (1, 1e-6) if np.asarray(sr).dtype == np.float64 else (255, 0.501)
        assert np.abs(np.asarray(sr) - scale * expected.astype(np.float64)).max() <= tolerance


@pytest.mark.parametrize("model", [MODELS[3, "lr"], Bicubic(3)], ids=["network", "bicubic"])
def test_one_channel_is_enlarged_as_grey(model):
    grey = image(1, 9, 11)
    expected = upscale(grey.expand(3, -1, -1), model).mean(0, keepdim=True)
    assert torch.allclose(upscale(grey, model), expected) and torch.allclose(upscale(grey[None], model), expected[None])
    array = grey[0].numpy()
    assert np.allclose(upscale(array, model), expected[0].numpy()) and upscale(array[..., None], model).shape == (27, 33, 1)
    picture = upscale(Image.fromarray((array * 255).round().astype(np.uint8)), model)
    assert picture.mode == "L" and np.abs(np.asarray(picture) - 255 * expected[0].numpy()).max() < 4


@pytest.mark.parametrize("tile", [0, -3, 2.5, "automatic"])
def test_tiles_that_are_none(tile):
    with pytest.raises(ValueError, match="tile: got"):
        upscale(image(3, 8, 8), Bicubic(2), tile=tile)


@pytest.mark.parametrize("mode, size", [("L", (5, 4)), ("RGBA", (5, 4)), ("RGB", (1, 1)), ("P", (5, 4))])
def test_files_of_any_kind(tmp_path, mode, size):
    Image.fromarray((np.arange(size[0] * size[1] * 3) * 11 % 256).astype(np.uint8).reshape(size[1], size[0], 3)).convert(mode).save(tmp_path / "image.png")
    assert upscale(tmp_path / "image.png", MODELS[4, "lr"]).shape == (3, 4 * size[1], 4 * size[0])
    assert upscale(str(tmp_path / "image.png"), "bicubic", tile=2).shape == (3, 4 * size[1], 4 * size[0])
