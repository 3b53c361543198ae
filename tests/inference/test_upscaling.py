"""upscaling: tiles equal the whole, any size, every kind comes back."""
import os
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from PIL import Image
from skimage import data

from crlsr.images import resize, write_image
from crlsr.inference import MEMORY, OVERLAP, Bicubic, memory_bytes, upscale
from crlsr.inference.upscaling import auto_tile, bytes_per_pixel
from crlsr.model import save_model
from tests.inference.models import build, image

ROOT = Path(__file__).parents[2]

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
        for memory in (2**26, MEMORY, 2**30):
            side = auto_tile(model, (1, 3, 2160, 3840), memory, model.halo) + 2 * model.halo
            assert side**2 * bytes_per_pixel(model) <= memory
        assert auto_tile(model, (10**9, 3, 99, 99), MEMORY, 2) == 16, "a batch beyond the budget still gets a tile"
        assert auto_tile(model, (1, 3, 30, 40), MEMORY, model.halo) == 40, "what fits is one piece"


def test_auto_tiles_are_equal_parts():
    tile = auto_tile(Bicubic(4), (1, 3, 10, 4000), MEMORY, 2)
    parts = -(-4000 // tile)
    assert parts * tile - 4000 < parts and parts > 1


@pytest.mark.parametrize("text, size", [("512M", 2**29), ("2G", 2**31), ("1.5 GiB".replace(" ", ""), 3 * 2**29), ("2048k", 2**21), (2**20, 2**20), ("3000000", 3000000)])
def test_amounts_of_memory(text, size):
    assert memory_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1G", "1T", "3", 0, None, "1e9", "5 5M"])
def test_amounts_of_memory_that_are_none(text):
    with pytest.raises(ValueError, match="memory: got .*expected at least 1M"):
        memory_bytes(text)
    with pytest.raises(ValueError, match="memory: got"):
        upscale(image(3, 4, 4), Bicubic(2), memory=text)


# --- overlap ---

@pytest.mark.parametrize("overlap", [0, 1, 3, 99])
def test_an_overlap_is_what_each_tile_reads(overlap):
    model, lr = MODELS[2, "lr"], image(3, 20, 20)
    expected = torch.empty(3, 40, 40)
    halo = min(overlap, model.halo)
    for top in range(0, 20, 8):  # by hand
        for left in range(0, 20, 8):
            rows, columns = (slice(max(0, at - halo), min(20, at + 8 + halo)) for at in (top, left))
            part = model(lr[None, :, rows, columns]).detach().clamp(0, 1)[0]
            size = [2 * min(8, 20 - at) for at in (top, left)]
            place = [2 * (at - box.start) for at, box in ((top, rows), (left, columns))]
            expected[:, 2 * top : 2 * top + size[0], 2 * left : 2 * left + size[1]] = part[:, place[0] : place[0] + size[0], place[1] : place[1] + size[1]]
    assert torch.allclose(upscale(lr, model, tile=8, overlap=overlap), expected, atol=1e-6)


@pytest.mark.parametrize("overlap", [-1, 2.5, "some", None])
def test_overlaps_that_are_none(overlap):
    with pytest.raises(ValueError, match="overlap: got"):
        upscale(image(3, 8, 8), Bicubic(2), tile=4, overlap=overlap)


def test_the_default_overlap_of_files_is_within_one_grey_level(tmp_path):
    "The recipe of the bundled models, trained for a few steps only: see the bench for trained ones."
    model, photo = build(num_feat=16, num_block=8), (data.coffee()[100:196, 200:296]).copy()
    torch.nn.init.normal_(model.restorer.decoder.tail.conv.weight, std=0.02)
    tiled, whole = upscale(photo, model, tile=32, overlap=OVERLAP), upscale(photo, model, tile=None)
    assert OVERLAP < model.halo and np.abs(tiled.astype(int) - whole).max() <= 1
    assert np.abs(upscale(photo, model, tile=32, overlap=0).astype(int) - whole).max() > 1


# --- what is computed on the whole image ---

class Told(torch.nn.Module):
    "Adds to every pixel what it was told of the whole image."
    scale, halo = 2, 2

    def __init__(self):
        super().__init__()
        self.calls = []

    def estimate(self, lr):
        self.calls.append(tuple(lr.shape))
        return lr.std((1, 2, 3))

    def forward(self, lr, vector):
        return Bicubic(2)(lr) + vector[:, None, None, None]


def test_a_vector_is_estimated_once_on_the_whole_and_handed_to_every_tile():
    model, lr = Told(), image(2, 3, 21, 17) / 4
    tiled = upscale(lr, model, tile=5)
    assert model.calls == [(2, 3, 21, 17)]
    expected = (resize(lr, scale=2) + lr.std((1, 2, 3))[:, None, None, None]).clamp(0, 1)
    assert torch.allclose(tiled, expected, atol=1e-5)
    several = upscale([lr[0], lr[1]], model, tile=5)
    assert torch.allclose(torch.stack(several), expected, atol=1e-5), "each of a list its own"
    grey = (lr[0, 0] * 255).round().byte().numpy()
    assert upscale(grey, model, tile=5).shape == (42, 34) and model.calls[-1] == (1, 3, 21, 17)


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
    channels = {"L": (), "RGBA": (4,)}.get(mode, (3,))
    for given, net in ((tmp_path / "image.png", MODELS[4, "lr"]), (str(tmp_path / "image.png"), "bicubic")):
        sr = upscale(given, net, tile=2)
        assert sr.dtype == np.uint8 and sr.shape == (4 * size[1], 4 * size[0], *channels)


# --- depth, alpha, lists ---

def integers(kind, *shape):
    return np.random.default_rng(0).integers(0, np.iinfo(kind).max, shape, endpoint=True).astype(kind)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_alpha_is_bicubic_beside_the_colours(kind, batch):
    whole = np.iinfo(kind).max if np.dtype(kind).kind == "u" else 1
    given = integers(kind, *batch, 9, 11, 4) if whole > 1 else np.random.default_rng(0).random((*batch, 9, 11, 4)).astype(kind)
    sr = upscale(given, MODELS[3, "lr"], tile=4)
    assert sr.dtype == kind and sr.shape == (*batch, 27, 33, 4)
    tolerance = 0.51 if whole > 1 else 1e-5
    assert np.abs(sr[..., :3].astype(float) - upscale(given[..., :3].astype(float) / whole, MODELS[3, "lr"]) * whole).max() <= tolerance + 1e-5 * whole
    alpha = resize(given[..., 3].astype(float) / whole, scale=3) if not batch else np.stack([resize(a, scale=3) for a in given[..., 3].astype(float) / whole])
    assert np.abs(sr[..., 3].astype(float) - alpha.clip(0, 1) * whole).max() <= tolerance + 1e-5 * whole


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16"])
def test_pictures_keep_their_mode(mode):
    array = integers(np.uint16 if mode == "I;16" else np.uint8, 7, 5, {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "I;16": 1}[mode])
    sr = upscale(Image.fromarray(array[..., 0] if array.shape[2] == 1 else array), "bicubic", tile=3)
    assert (sr.mode, sr.size) == (mode, (20, 28))
    peak = np.iinfo(array.dtype).max
    for channel in range(array.shape[2]):  # each by itself, as bicubic knows no colours
        plain = resize(array[..., channel].astype(float) / peak, scale=4).clip(0, 1) * peak
        assert np.abs(np.asarray(sr).reshape(28, 20, -1)[..., channel] - plain).max() <= 0.51 + 1e-6 * peak


def test_a_file_gives_what_it_holds(tmp_path):
    for name, array in (("deep.png", integers(np.uint16, 6, 5, 3)), ("deep.tif", integers(np.uint16, 6, 5, 4)), ("glass.webp", integers(np.uint8, 6, 5, 4)), ("grey.png", integers(np.uint8, 6, 5))):
        write_image(array, tmp_path / name)
        sr = upscale(tmp_path / name, MODELS[2, "lr"])
        assert sr.dtype == array.dtype and np.array_equal(sr, upscale(array, MODELS[2, "lr"]))


def test_a_list_gives_a_list_and_small_images_go_together():
    seen = []
    hook = MODELS[2, "lr"].register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape)))
    try:
        eight = [integers(np.uint8, 8, 6, 3) for _ in range(3)]
        given = [eight[0], image(3, 8, 6), eight[1], Image.fromarray(eight[2]), integers(np.uint8, 5, 6, 3), eight[2][..., 0]]
        several = upscale(given, MODELS[2, "lr"])
        assert sorted(seen) == sorted([(3, 3, 8, 6), (1, 3, 8, 6), (1, 3, 5, 6), (1, 3, 8, 6)])
        for one, sr in zip(given, several):
            alone = upscale(one, MODELS[2, "lr"])
            assert type(sr) is type(alone) and np.abs(np.asarray(sr, dtype=float) - np.asarray(alone, dtype=float)).max() <= (1 if np.asarray(sr).dtype.kind == "u" else 1e-5)
        assert upscale([], MODELS[2, "lr"]) == [] and isinstance(upscale((eight[0],), MODELS[2, "lr"]), list)
        seen.clear()
        upscale(eight, MODELS[2, "lr"], memory=2**20)
        assert seen == [(3, 3, 8, 6)]
        upscale([np.zeros((60, 60, 3), np.uint8)] * 4, MODELS[2, "lr"], memory=2**20)
        assert sum(shape[0] * shape[2] * shape[3] for shape in seen[1:]) >= 4 * 3600 and max(s[0] * s[2] * s[3] for s in seen[1:]) * bytes_per_pixel(MODELS[2, "lr"]) <= 2**20
    finally:
        hook.remove()


def test_one_bad_image_of_a_list_is_an_error():
    with pytest.raises(ValueError, match="image: got"):
        upscale([image(3, 4, 4), image(2, 4, 4)], Bicubic(2))


def test_foreign_and_locked_arrays():
    array = integers(np.uint16, 6, 5, 3)
    assert np.array_equal(upscale(array.astype(">u2"), "bicubic") if array.astype(">u2").dtype == np.uint16 else upscale(array, "bicubic"), upscale(array, "bicubic"))
    locked = integers(np.uint8, 6, 5, 3)
    locked.setflags(write=False)
    for given in (locked, locked[::-1], np.asfortranarray(locked)):
        before = given.copy()
        assert np.array_equal(upscale(given, "bicubic"), upscale(before, "bicubic")) and np.array_equal(given, before)


def test_results_can_be_trained_on():
    sr = upscale(image(3, 6, 6), Bicubic(2))
    weight = torch.ones(1, requires_grad=True)
    (sr * weight).sum().backward()
    assert weight.grad is not None and not sr.is_inference()


def test_progress_counts_tiles():
    shares = []
    upscale(image(3, 10, 9), Bicubic(2), tile=4, progress=shares.append)
    assert shares == pytest.approx([(i + 1) / 9 for i in range(9)])


# --- memory ---

MEASURED = """
import sys
import numpy as np
import torch
from crlsr.inference import Bicubic, upscale
from tests.peak import peak
torch.set_num_threads(1)
net = Bicubic(4)
side, kind = int(sys.argv[1]), sys.argv[2]
upscale(np.zeros((64, 64, 3), kind), net)
before = peak()
sr = upscale(np.zeros((side, side, 3), kind), net, memory="16M")
print(peak() - before, sr.nbytes)
"""


@pytest.mark.parametrize("kind", ["uint8", "uint16"])
def test_memory_is_the_budget_and_the_result_in_its_own_numbers(kind):
    run = subprocess.run([sys.executable, "-c", MEASURED, "1024", kind], capture_output=True, text=True, cwd=ROOT, check=True)
    grown, result = map(int, run.stdout.split())
    assert result == 3 * (4 * 1024) ** 2 * np.dtype(kind).itemsize
    assert grown <= 1.1 * result + 3 * 16 * 2**20, f"{grown / 2**20:.0f} MiB for a result of {result / 2**20:.0f}: floats would take {4 * result // np.dtype(kind).itemsize / 2**20:.0f}"


@pytest.mark.slow
def test_a_photograph_of_eight_megapixels_stays_under_two_gigabytes(tmp_path):
    Image.fromarray(data.astronaut()).resize((3840, 2160)).save(tmp_path / "big.jpg")
    save_model(build(num_feat=40, num_block=8), tmp_path / "model.safetensors")
    command = "import sys\nfrom crlsr.app.cli import main\nfrom tests.peak import peak\nassert main(sys.argv[1:]) == 0\nprint(peak() / 2**30)"
    run = subprocess.run([sys.executable, "-c", command, "upscale", "big.jpg", "-o", "out.png", "--model", "model.safetensors"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
                         capture_output=True, text=True, check=True)
    peak = float(run.stdout.split()[-1])
    print(f"peak {peak:.2f} GiB")
    with Image.open(tmp_path / "out.png") as large:
        assert large.size == (15360, 8640)
    assert peak < 2e9 / 2**30
