"""The pool of images: decodes once what fits, keeps within its limit, and says what vanished."""
import shutil
from types import SimpleNamespace

import pytest
import torch

from crlsr.core import generator
from crlsr.data import ImagePool, PatchSampler, embedded_images, patches as image_pool
from crlsr.degradation import Degradation
from crlsr.images import read_image, write_image
from crlsr.training import fit, loop as training, profile


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
    cat = embedded_images("heldout")["chelsea"]
    pool = ImagePool({"a": cat})
    assert pool.names == ["a"] and torch.equal(pool[0], cat) and pool.shorter_sides().tolist() == [300]
    with pytest.raises(ValueError, match="no image"):
        ImagePool({})


@pytest.fixture
def folder(tmp_path):
    for i in range(5):
        write_image(torch.full((3, 40, 40), i / 255), tmp_path / "photos" / f"{i}.png")
    return tmp_path / "photos"


def test_an_image_that_fits_is_decoded_once(folder, monkeypatch):
    reads, real = [], image_pool.read_image
    monkeypatch.setattr(image_pool, "read_image", lambda path: reads.append(path.name) or real(path))
    made = PatchSampler(ImagePool(folder), Degradation.parse("iso", scale=2), 8, 4)
    for step in range(30):
        made.batch(step)
    assert sorted(reads) == [f"{i}.png" for i in range(5)]
    reads.clear()
    small = ImagePool(folder, memory_mb=0)
    for i in (0, 0, 1, 0):
        assert float(small[i].max()) == pytest.approx(i / 255)
    assert reads == ["0.png", "1.png", "0.png"]  # the last one is always kept


def test_workers_share_the_limit(folder, monkeypatch):
    pool = ImagePool(folder)
    pool.limit = 4 * 4800  # bytes: four images
    for i in range(5):
        pool.pixels(i)
    assert len(pool._cache) == 4
    monkeypatch.setattr(image_pool, "get_worker_info", lambda: SimpleNamespace(num_workers=2))
    pool.pixels(0)
    assert list(pool._cache) == [4, 0]


def test_what_vanished_is_named(folder):
    pool = ImagePool(folder)
    pool.pixels(0)
    (folder / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"image '1': .*1\.png has vanished since the start"):
        pool.pixels(1)
    shutil.rmtree(folder)
    assert pool.pixels(0).max() == 0
    with pytest.raises(FileNotFoundError, match="image '2': its folder .*photos has vanished since the start") as caught:
        pool.pixels(2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_folder_that_vanishes_ends_a_run_with_a_checkpoint(tmp_path, monkeypatch, workers):
    "One line, a checkpoint, and the same weights in the end once the folder is back."
    folder, hidden, real = tmp_path / "photos", tmp_path / "hidden", training.train_step
    for i in range(40):
        write_image(torch.rand(3, 40, 40, generator=generator("photo", i)), folder / f"{i}.png")
    model, train = profile("smoke", {
        "steps": 40, "batch_size": 2, "patch_size": 8, "num_feat": 4, "num_block": 2, "checkpoint_every": 100, "log_every": 100, "workers": workers,
        "weight_bc": 0.0, "weight_srnce": 0.0, "weight_rec": 0.0, "data": str(folder)})
    whole = fit(model, train, tmp_path / "whole", progress=False)

    def unplugged(state, *args):
        if state.step == 2:
            folder.rename(hidden)
        return real(state, *args)

    monkeypatch.setattr(training, "train_step", unplugged)
    with pytest.raises(FileNotFoundError, match=r"image '\d+': its folder .*photos has vanished since the start; training stopped after step \d+, with a checkpoint") as caught:
        fit(model, train, tmp_path / "run", progress=False)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(training, "train_step", real)
    with pytest.raises(FileNotFoundError, match="neither a folder"):
        fit(model, train, tmp_path / "run", progress=False)
    hidden.rename(folder)
    again = fit(model, train, tmp_path / "run", progress=False)
    assert again.finished and all(torch.equal(a, b) for a, b in zip(again.model.state_dict().values(), whole.model.state_dict().values()))
