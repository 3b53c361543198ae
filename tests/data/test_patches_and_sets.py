"""Registry, leak check and patch sampler: what their notebooks cannot show about themselves."""
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from crlsr.core import digest, file_digest, generator
from crlsr.data import (
    ImagePool, PatchSampler, check_folder, embedded_images, find_data, load_images, patches as data, registry, registry_rows, source_files,
)
from crlsr.data.leaks import LeakFinder, fingerprint, known_fingerprints, pack, unpack
from crlsr.data.patches import augment, patch_maps
from crlsr.data.sets import embedded_file
from crlsr.degradation import Degradation, kernel_of
from crlsr.degradation.blur import blur
from crlsr.degradation.operations import Resize, SpatialBlur, SpatialNoise
from crlsr.images import read_image, resize, write_image

PHOTOGRAPHS = embedded_images("all")
POOL = ImagePool("embedded:train")


def jpeg(image, quality):
    file = io.BytesIO()
    Image.fromarray(image.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255


@pytest.fixture
def fake_data(tmp_path, monkeypatch):
    "Writes empty files below a fresh $CRLSR_DATA."

    def make(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        monkeypatch.setenv("CRLSR_DATA", str(tmp_path))
        return tmp_path

    return make


# registry


def test_embedded_photographs_are_those_of_the_registry():
    photographs = registry()["embedded"]["photographs"]
    assert list(PHOTOGRAPHS) == list(photographs)
    for name, entry in photographs.items():
        assert file_digest(embedded_file(name)) == entry["sha256"]
        assert entry["licence"] and entry["origin"].startswith("http")
        assert PHOTOGRAPHS[name].dtype == torch.float32 and PHOTOGRAPHS[name].shape[0] == 3
    assert set(embedded_images("heldout")) == {"chelsea", "coffee"}
    assert not set(embedded_images("train")) & set(embedded_images("heldout"))
    assert "motorcycle_right" not in PHOTOGRAPHS


def test_embedded_photographs_need_neither_network_nor_pooch():
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise OSError('no network')\n"
        "socket.socket.connect = refuse\n"
        "sys.modules['pooch'] = None\n"
        "from crlsr.data import embedded_images\n"
        "assert len(embedded_images('all')) == 8\n"
        "assert 'skimage' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_entry_of_the_registry_is_complete():
    for name, entry in registry().items():
        assert {"title", "use", "images", "licence", "archives", "page"} <= set(entry), name
        for archive in entry["archives"]:
            assert archive["url"].startswith("http")
            assert archive["sha256"] is None or len(archive["sha256"]) == 64
        splits = entry.get("splits", {})
        if splits:
            assert sum(part["images"] for split in splits.values() for part in split) == entry["images"], name
    assert [row["name"] for row in registry_rows()] == list(registry())


def test_bsds_splits_follow_names_as_text(fake_data):
    root = fake_data(
        *(f"BSDS500/train/{n}.jpg" for n in [302003, *range(2000, 2199)]), *(f"BSDS500/test/{n}.jpg" for n in range(9900, 10100))
    )
    train, validation = source_files("BSDS500:train"), source_files("BSDS500:validation")
    assert len(train) == 379 and len(validation) == 20
    assert "train/302003" not in train and not set(train) & set(validation)
    assert list(validation) == sorted(validation) and list(validation)[-1] == "test/9999"  # 10000 sorts before 9900
    assert all(path.is_relative_to(root) for path in train.values())
    (root / "BSDS500/test/10000.jpg").unlink()
    with pytest.raises(ValueError, match="19 images .*expected 20"):
        source_files("BSDS500:validation")


def test_df2k_gathers_two_sets(fake_data):
    fake_data(*(f"DIV2K/DIV2K_train_HR/{n:04}.png" for n in range(800)), *(f"Flickr2K/Flickr2K_HR/{n:06}.png" for n in range(2650)))
    files = source_files("DF2K")
    assert len(files) == 3450 and {name.split("/")[0] for name in files} == {"DIV2K_train_HR", "Flickr2K_HR"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("Set6", "did you mean 'Set5'"),
        ("BSDS500", "BSDS500:train or BSDS500:validation"),
        ("BSDS500:val", "got split 'val'"),
        ("embedded:heldot", "did you mean 'heldout'"),
        ("Urban100", "set CRLSR_DATA"),
        ("no/such/folder", "neither a folder"),
        ("", "neither a folder"),
    ],
)
def test_a_wrong_source_is_one_clear_line(source, message, monkeypatch, tmp_path):
    monkeypatch.delenv("CRLSR_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        source_files(source)
    assert "\n" not in str(caught.value)


def test_folders_and_names(fake_data, tmp_path):
    root = fake_data("mine/a.png", "mine/a.jpg", "mine/b.png")
    assert list(source_files("mine")) == list(source_files(root / "mine")) == ["a.jpg", "a.png", "b"]
    assert find_data("mine") == root / "mine" and find_data("yours") is None


def test_limit_takes_the_first_by_name():
    assert list(load_images("embedded:all", limit=2)) == list(PHOTOGRAPHS)[:2]


# leaks


def test_stored_fingerprints_are_current():
    known = known_fingerprints()
    assert {name.split("/")[0] for name in known} == {"Set5", "Set14", "B100", "BSDS500", "embedded"} and len(known) == 141
    for name in ("chelsea", "coffee"):
        now, stored = fingerprint(PHOTOGRAPHS[name]), known[f"embedded/{name}"]
        assert torch.allclose(now.thumbnail, stored.thumbnail, atol=0.01)
        assert torch.equal(now.positions, stored.positions)
    for print_ in known.values():
        assert print_.positions.min() >= 12 and abs(float(print_.thumbnail.norm()) - 1) < 1e-5
        assert pack(unpack(pack(print_))) == pack(print_)


@given(seed=st.integers(0, 10_000), name=st.sampled_from(["chelsea", "coffee"]))
def test_large_crops_are_found_in_any_place_view_and_encoding(seed, name):
    rng = generator("crop", seed)
    draw = lambda end: int(torch.randint(end, (), generator=rng))  # noqa: E731
    image, side = PHOTOGRAPHS[name], 272
    top, left = draw(image.shape[1] - side + 1), draw(image.shape[2] - side + 1)
    view = jpeg(augment(image[:, top : top + side, left : left + side], draw(8)), 60 + draw(36))
    assert f"embedded/{name}" in LeakFinder(known_fingerprints()).find(view)


@settings(max_examples=10)
@given(factor=st.floats(0.4, 1.6), quality=st.integers(30, 95), k=st.integers(0, 7))
def test_whole_copies_are_found_at_any_size(factor, quality, k):
    copy = jpeg(resize(augment(PHOTOGRAPHS["coffee"], k), scale=factor), quality)
    assert LeakFinder(known_fingerprints()).find(copy) == {"embedded/coffee": "the whole picture"}


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (5, 7), (49, 49), (50, 50), (51, 400)])
@pytest.mark.parametrize("value", [0.0, 0.5, None])
def test_tiny_and_flat_images_show_nothing(shape, value):
    image = torch.rand(3, *shape, generator=generator("tiny")) if value is None else torch.full((3, *shape), value)
    assert LeakFinder(known_fingerprints()).find(image) == {}
    assert unpack(pack(fingerprint(image))).positions.shape[1] == 2


def test_other_photographs_and_large_sheets_show_nothing():
    finder = LeakFinder(known_fingerprints())
    train = {name: image for name, image in PHOTOGRAPHS.items() if name in POOL.names}
    assert not any(finder.find(image) for image in train.values())
    sheet = torch.cat([torch.cat([augment(image[:, :424, :424], k) for image in train.values()], 2) for k in (0, 6)], 1)
    assert finder.find(sheet) == {}
    with_cat = torch.cat([sheet[:, :300], torch.cat([PHOTOGRAPHS["chelsea"], sheet[:, 400:700, 451:]], 2)], 1)
    assert set(finder.find(with_cat)) == {"embedded/chelsea"}


def test_check_folder_names_every_trouble(tmp_path):
    rocket = PHOTOGRAPHS["rocket"]
    write_image(rocket, tmp_path / "a.png")
    write_image(rocket, tmp_path / "b.bmp")  # other bytes, the same pixels
    write_image(rocket[:, :95], tmp_path / "low.png")
    write_image(PHOTOGRAPHS["ihc"], tmp_path / "302003.png")
    write_image(PHOTOGRAPHS["chelsea"].flip(-1), tmp_path / "cat.jpg")
    (tmp_path / "text.png").write_text("hello")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "torn.png").write_bytes(whole[: len(whole) // 2])
    report = check_folder(tmp_path)
    assert not report.ok and report.images == 5 and report.sides == (95, 640)
    assert sorted(Path(line.split(":")[0]).name for line in report.unreadable) == ["text.png", "torn.png"]
    assert report.small == ["low.png has 640x95 pixels, a patch needs 96"]
    assert report.duplicates == ["b.bmp has the pixels of a.png"]
    assert [line.split()[0] for line in report.leaks] == ["302003.png", "cat.jpg"]
    assert len(report.lines()) == 2 + 6 and all("\n" not in line for line in report.lines())
    assert check_folder(tmp_path, min_side=95).small == []


def test_check_folder_passes_clean_images_and_refuses_missing_ones(tmp_path):
    report = check_folder("embedded:train")
    assert report.ok and len(report.lines()) == 2
    with pytest.raises(FileNotFoundError):
        check_folder(tmp_path / "missing")
    (tmp_path / "only.png").write_text("no image")
    assert not check_folder(tmp_path).ok


# pool


def test_pool_keeps_bytes_within_its_limit(tmp_path):
    for i in range(4):
        write_image(torch.rand(3, 600, 600, generator=generator(i)), tmp_path / f"{i}.png")  # 1.08 MB each
    pool = ImagePool(tmp_path, memory_mb=3)
    for i in (0, 1, 2, 3, 0, 2):
        assert torch.equal(pool[i], read_image(tmp_path / f"{i}.png")) and pool.pixels(i).dtype == torch.uint8
        assert sum(image.numel() for image in pool._cache.values()) == pool._bytes <= 3 * 2**20
    assert pool.pixels(2) is pool.pixels(2)
    assert len(ImagePool(tmp_path, memory_mb=0)) == 4 and ImagePool(tmp_path, memory_mb=0)[3].shape == (3, 600, 600)


def test_pool_of_given_images():
    pool = ImagePool({"a": PHOTOGRAPHS["chelsea"]})
    assert pool.names == ["a"] and torch.equal(pool[0], PHOTOGRAPHS["chelsea"]) and pool.shorter_sides().tolist() == [300]
    with pytest.raises(ValueError, match="no image"):
        ImagePool({})


def test_bad_images_are_named_when_the_sampler_is_made(tmp_path):
    write_image(PHOTOGRAPHS["rocket"], tmp_path / "fine.png")
    write_image(PHOTOGRAPHS["rocket"][:, :, :63], tmp_path / "narrow.png")
    degradation = Degradation.parse("iso")
    with pytest.raises(ValueError, match=r"1 of 2 images are smaller than an hr patch of 64x64 .*: narrow \(63\)"):
        PatchSampler(ImagePool(tmp_path), degradation, 16, 2)
    PatchSampler(ImagePool(tmp_path), degradation, 15, 2).batch(0)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match="text"):
        PatchSampler(ImagePool(tmp_path), degradation, 8, 2)
    for patch_size, batch_size in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            PatchSampler(POOL, degradation, patch_size, batch_size)


# views and windows


@given(st.integers(0, 7), st.integers(0, 7), st.integers(1, 5), st.integers(1, 5))
def test_views_form_a_group(a, b, height, width):
    image = torch.arange(3 * height * width).view(3, height, width)
    both = augment(augment(image, a), b)
    assert any(torch.equal(both, augment(image, k)) for k in range(8))
    assert any(torch.equal(augment(augment(image, a), k), image) for k in range(8))


@pytest.mark.parametrize("k", [-1, 8])
def test_there_are_eight_views(k):
    with pytest.raises(ValueError, match="0..7"):
        augment(torch.zeros(3, 2, 2), k)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(-30, 12), st.integers(-30, 12), st.integers(1, 40))
def test_window_is_the_mirrored_image(height, width, top, left, side):
    image = torch.arange(3 * height * width).view(3, height, width)
    plane = np.pad(image.numpy(), ((0, 0), (40, 60), (40, 60)), mode="reflect")  # numpy reflects as often as needed
    assert torch.equal(data._window(image, top, left, side), torch.from_numpy(plane[:, 40 + top :][:, :side, 40 + left :][:, :, :side].copy()))


# sampler


class Unrounded:
    "A degradation without noise and rounding, so that equality can be tested to float tolerance."

    def __init__(self, preset, scale):
        self.scale, self._inner = scale, Degradation.parse(preset, scale=scale)
        self.source = self._inner.source

    def sample(self, rng):
        return self._inner.sample(rng)

    def apply(self, hr, params, margin=0):
        lr = torch.cat([resize(blur(image[None], kernel_of(p)), scale=1 / self.scale) for image, p in zip(hr, params)])
        return lr[..., margin : lr.shape[-2] - margin, margin : lr.shape[-1] - margin]


@given(seed=st.integers(0, 10_000), scale=st.sampled_from([2, 3, 4]), preset=st.sampled_from(["iso", "aniso", "bicubic"]))
def test_a_patch_equals_the_patch_of_the_whole_images_lr(seed, scale, preset):
    sampler = PatchSampler(POOL, Unrounded(preset, scale), patch_size=8, batch_size=1, seed=seed)
    batch = sampler.batch(0)
    i, top, left, k = sampler._place(generator("patch", seed, 0, 0))
    mark = torch.zeros_like(POOL[i][0])
    mark[top : top + 8 * scale, left : left + 8 * scale] = 1
    at = augment(mark, k).nonzero()
    top, left = at.amin(0).tolist()
    whole = augment(POOL[i], k)[:, top % scale :, left % scale :]
    whole = whole[:, : whole.shape[1] // scale * scale, : whole.shape[2] // scale * scale]
    row, column = top // scale, left // scale
    assert torch.equal(batch.hr[0], whole[:, row * scale :, column * scale :][:, : 8 * scale, : 8 * scale])
    lr = sampler.degradation.apply(whole[None], batch.params)[0]
    inside = min(row, column) >= 7 and row + 15 <= lr.shape[1] and column + 15 <= lr.shape[2]
    difference = (batch.lr[0] - lr[:, row : row + 8, column : column + 8]).abs().max()
    assert difference < (1e-5 if inside else 0.02)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_one_lr_pixel_less_of_margin_is_not_enough(scale):
    degradation = Unrounded("iso:6", scale)  # so wide that the ends of the kernel count
    sampler = PatchSampler(POOL, degradation, 8, 4)
    exact = sampler.batch(1).lr
    sampler.margin += 2
    assert torch.allclose(sampler.batch(1).lr, exact, atol=1e-6)
    sampler.margin -= 3
    assert not torch.allclose(sampler.batch(1).lr, exact, atol=1e-6)


@given(
    steps=st.lists(st.integers(0, 2**40), min_size=1, max_size=3),
    order=st.randoms(use_true_random=False),
    seed=st.integers(0, 2**31),
    preset=st.sampled_from(["iso", "aniso+noise:0..25", "gaussian8", "bicubic+noise:5", "multimodal", "spatial"]),
)
def test_order_of_calls_and_parts_change_nothing(steps, order, seed, preset):
    def new(memory_mb=64):
        return PatchSampler(ImagePool("embedded:train", memory_mb=memory_mb) if memory_mb < 64 else POOL, Degradation.parse(preset), 6, 3, seed)

    sampler, wanted = new(), {}
    for step in steps:
        wanted[step] = sampler.batch(step)
    order.shuffle(steps)
    for step in steps:
        batch = new().batch(step)
        assert torch.equal(batch.lr, wanted[step].lr) and torch.equal(batch.hr, wanted[step].hr) and batch.params == wanted[step].params
        indices = [2, 0]
        part = sampler.batch(step, indices)
        assert torch.equal(part.lr, batch.lr[indices]) and torch.equal(part.hr, batch.hr[indices])


def test_margin_follows_the_reach_of_the_source():
    def far(scale, rng):
        return [Resize(1 / scale)]

    far.reach = 40
    margins = {preset: PatchSampler(POOL, Degradation.parse(preset), 12, 1).margin for preset in ("iso", "multimodal", "spatial", "high_order")}
    assert margins == {"iso": 4, "multimodal": 4, "spatial": 4, "high_order": 10}  # (32 + 6) / 4, rounded up
    assert PatchSampler(POOL, Degradation(4, far), 12, 1).margin == 12 and PatchSampler(POOL, Degradation(2, far), 12, 1).margin == 22


@pytest.mark.parametrize("preset", ["high_order", "shuffled"])
def test_long_recipes_make_patches_too(preset):
    sampler = PatchSampler(POOL, Degradation.parse(preset), 8, 3, 1)
    batch = sampler.batch(2)
    assert batch.lr.shape == (3, 3, 8, 8) and batch.hr.shape == (3, 3, 32, 32) and torch.equal(sampler.batch(2, [1]).lr, batch.lr[1:2])


def test_maps_are_cut_like_the_patches():
    sampler = PatchSampler(POOL, Degradation(4, lambda scale, rng: [SpatialBlur(scale, "gradient", 3, 0.2, 4.0), SpatialNoise("smooth", 4, 1.0, 9.0)]), 12, 3, 1)
    batch = sampler.batch(0)
    maps = patch_maps(batch, sampler.margin)
    assert {name: (m.shape, m.dtype) for name, m in maps.items()} == {
        name: ((3, 12, 12), torch.float32) for name in ("sigma1", "sigma2", "theta", "noise_level")}
    blur, noise = batch.params[0].steps
    for name, whole in zip(maps, (*blur.maps(20, 20), noise.level_map(20, 20))):  # a window has 12 + 2 · 4 lr pixels
        torch.testing.assert_close(maps[name][1], whole[4:16, 4:16].float())


def test_a_forgetful_cache_gives_the_same_batches():
    make = lambda pool: PatchSampler(pool, Degradation.parse("iso"), 12, 4, 3).batch(9)  # noqa: E731
    assert torch.equal(make(POOL).lr, make(ImagePool("embedded:train", memory_mb=1)).lr)


def test_batches_differ_by_seed_step_and_index():
    sampler = PatchSampler(POOL, Degradation.parse("iso+noise:5"), 12, 8, 0)
    other = PatchSampler(POOL, Degradation.parse("iso+noise:5"), 12, 8, 1)
    patches = torch.cat([sampler.batch(0).hr, sampler.batch(1).hr, other.batch(0).hr, other.batch(1).hr]).flatten(1)
    assert len(torch.unique(patches, dim=0)) == 32
    params = sampler.batch(0).params
    assert len({p.noise_seed for p in params}) == len({p.sigma1 for p in params}) == 8


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_batch_has_the_promised_form(scale):
    sampler = PatchSampler(POOL, Degradation.parse("aniso+noise:0..25", scale=scale), 10, 5, 0)
    batch = sampler.batch(3)
    lr, hr, params = batch[:3]
    assert lr.shape == (5, 3, 10, 10) and hr.shape == (5, 3, 10 * scale, 10 * scale) and len(batch.params) == 5
    for image in (lr, hr):
        assert image.dtype == torch.float32 and image.is_contiguous() and 0 <= image.min() and image.max() <= 1
        assert torch.equal((image * 255).round() / 255, image)
    assert {p.scale for p in params} == {scale}


def test_changing_a_batch_leaves_the_pool_alone():
    sampler = PatchSampler(POOL, Degradation.parse("bicubic"), 12, 2, 0)
    before = sampler.batch(0).hr.clone()
    sampler.batch(0).hr.zero_()
    assert torch.equal(sampler.batch(0).hr, before)


def test_places_stay_what_they_are():
    "Published runs name a seed: another order of draws would give that seed other data."
    sampler = PatchSampler(POOL, Degradation.parse("iso"), 24, 8, 0)
    places = [sampler._place(generator("patch", 0, step, index)) for step in range(3) for index in range(8)]
    assert digest(places) == "be0f0d91034a"


@pytest.mark.parametrize("preset", ["iso", "aniso+noise:0..25", "multimodal"])
def test_lr_is_replayed_from_its_window_to_the_bit(preset):
    sampler = PatchSampler(POOL, Degradation.parse(preset), 8, 6, 5)
    batch, margin = sampler.batch(2), sampler.margin
    windows = torch.stack([data._draw(sampler, 2, i)[0] for i in range(6)]).float() / 255
    assert torch.equal(batch.lr, sampler.degradation.apply(windows, batch.params, margin=margin))
    whole = sampler.degradation.apply(windows, batch.params)[..., margin:-margin, margin:-margin]
    off = (batch.lr - whole).abs() * 255
    assert off.max() < 1.001 and (off > 0.5).float().mean() < 0.01  # where a sum in another order is rounded the other way


def test_noise_of_a_window_is_white_inside_the_patch():
    sampler = PatchSampler(ImagePool({"grey": torch.full((3, 200, 200), 0.5)}), Degradation.parse("bicubic+noise:20"), 24, 16, 0)
    noise = (sampler.batch(0).lr - 0.5) * 255
    assert abs(float(noise.std()) - 20) < 0.5 and abs(float(noise.mean())) < 0.6
    assert abs(float((noise[..., 1:] * noise[..., :-1]).mean())) < 8  # covariance of neighbours, against a variance of 400


# with the real images: CRLSR_TEST_DATA names the folder that holds Set5, Set14, B100 and BSDS500


@pytest.fixture
def real_data(monkeypatch):
    root = os.environ.get("CRLSR_TEST_DATA")
    if not root:
        pytest.skip("CRLSR_TEST_DATA is not set")
    monkeypatch.setenv("CRLSR_DATA", root)
    return Path(root)


@pytest.mark.slow
def test_registered_splits_are_clean_and_tests_are_leaks(real_data):
    report = check_folder("BSDS500:train")
    assert report.ok and report.images == 379, report.lines()
    for name, count in (("Set5", 5), ("Set14", 14), ("B100", 100), ("BSDS500:validation", 20)):
        report = check_folder(name)
        assert report.images == count and len({line.split()[0] for line in report.leaks}) == count


@pytest.mark.slow
def test_detection_rates_of_the_notebook(real_data):
    known = known_fingerprints()
    names = [name for name in known if name.split("/")[0] in ("Set5", "Set14", "B100")]
    finder = LeakFinder({name: known[name] for name in names})
    others = [read_image(path) for source in ("BSDS500:train", "BSDS500:validation") for path in source_files(source).values()]
    assert sum(bool(finder.find(image)) for image in others) == 0
    wide = [image[:, :320, :480] for image in others if image.shape[-1] == 481]
    sheets = [torch.cat([torch.cat(wide[k + 4 * r : k + 4 * r + 4], 2) for r in range(4)], 1) for k in range(0, len(wide) - 15, 16)]
    assert len(sheets) == 16 and not any(finder.find(sheet) for sheet in sheets)
    images = [image for source in ("Set5", "Set14", "B100") for image in load_images(source).values()]
    rng = generator("measure")

    def crop(image, side):
        tall, wide = (min(side, n) for n in image.shape[-2:])
        top, left = (int(torch.randint(n - m + 1, (), generator=rng)) for n, m in zip(image.shape[-2:], (tall, wide)))
        return image[:, top : top + tall, left : left + wide]

    treatments = {  # name -> (treatment, least share found, largest share found)
        "jpeg": (lambda x: jpeg(x, 30), 1, 1),
        "half": (lambda x: resize(x, scale=1 / 2).clamp(0, 1), 1, 1),
        "larger": (lambda x: resize(x, scale=3 / 2).clamp(0, 1), 1, 1),
        "pale": (lambda x: 0.6 * x + 0.2, 1, 1),
        "turned": (lambda x: jpeg(x.transpose(-1, -2), 75), 1, 1),
        "trimmed": (lambda x: x[:, x.shape[1] // 20 :, x.shape[2] // 20 :], 1, 1),
        "crop320": (lambda x: jpeg(crop(x, 320), 75), 0.99, 1),
        "crop256": (lambda x: jpeg(crop(x, 256).flip(-1), 75), 0.97, 1),
        "crop192": (lambda x: jpeg(crop(x, 192), 75), 0.75, 0.97),
        "crop128": (lambda x: jpeg(crop(x, 128), 75), 0, 0.15),
        "crop256half": (lambda x: resize(crop(x, 256), scale=1 / 2).clamp(0, 1), 0, 0.15),
    }
    for treatment, (change, least, most) in treatments.items():
        found = [name in finder.find(change(image).contiguous()) for name, image in zip(names, images)]
        share = sum(found) / len(found)
        print(f"{treatment}: {sum(found)} of {len(found)}")
        assert least <= share <= most, (treatment, share)
