"""Views, windows and the patch sampler: equal to patches of whole images, whatever the order of calls."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crlsr.core import digest, generator
from crlsr.data import ImagePool, PatchSampler, embedded_images, patches as data
from crlsr.data.patches import augment, degradation_targets, patch_maps
from crlsr.degradation import Degradation, kernel_of
from crlsr.degradation.blur import blur
from crlsr.degradation.operations import Resize, SpatialBlur, SpatialNoise
from crlsr.images import resize, write_image

PHOTOGRAPHS = embedded_images("all")
POOL = ImagePool("embedded:train")


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


def test_targets_say_what_was_done_or_nothing():
    "σ of the longer and the shorter side, whichever comes first; noise; nan for blurs without a σ."
    draws = {text: [Degradation.parse(text, scale=4).sample(generator("targets", text, k)) for k in range(6)]
             for text in ("bicubic", "iso", "aniso+noise:0..25", "spatial", "motion", "disk", "multimodal")}
    for text, params in draws.items():
        found = degradation_targets(params)
        assert found.shape == (6, 3) and found.dtype == torch.float32
        for row, each in zip(found, params):
            names = {type(step).__name__ for step in each.steps}
            if names & {"MotionBlur", "DiskBlur", "SincBlur", "GeneralizedBlur"}:
                assert row.isnan().all(), (text, names)
                continue
            long, short = max(each.sigma1, each.sigma2, 0.2), max(min(each.sigma1, each.sigma2), 0.2)
            assert row.tolist() == pytest.approx([math.log(long), math.log(short), each.noise_level / 25], rel=1e-5, abs=1e-6)
    assert degradation_targets(draws["motion"]).isnan().all() and degradation_targets(draws["disk"]).isnan().all()
    assert not degradation_targets(draws["spatial"]).isnan().any()
    assert degradation_targets([]).shape == (0, 3)
