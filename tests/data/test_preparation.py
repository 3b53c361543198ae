"""Sub-images: where BasicSR cuts them, and the same files after any interruption."""
import errno
import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crlsr.app.cli import main
from crlsr.core import file_digest, generator, read_jsonl
from crlsr.data import ImagePool, PatchSampler, preparation
from crlsr.data.preparation import piece_starts, prepare, subimages
from crlsr.degradation import Degradation
from crlsr.images import read_image, write_image


def picture(name, height=90, width=120):
    return torch.randint(256, (3, height, width), generator=generator(name)) / 255


@pytest.fixture
def photos(tmp_path):
    for k, name in enumerate("abcd"):
        write_image(picture(name, 90 + 10 * k, 120 - 10 * k), tmp_path / "photos" / f"{name}.png")
    return tmp_path / "photos"


def content(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.png")}


def basicsr(length, size, step, thresh):
    "Where BasicSR's extract_subimages puts its pieces along one side."
    space = np.arange(0, length - size + 1, step)
    if length - (space[-1] + size) > thresh:
        space = np.append(space, length - size)
    return space.tolist()


@given(st.integers(1, 200), st.integers(1, 60), st.integers(1, 60), st.integers(0, 30))
def test_pieces_start_where_basicsr_starts_them(length, size, step, threshold):
    starts = piece_starts(length, size, step, threshold)
    if length < size:
        assert starts == [0]
        return
    assert starts == basicsr(length, size, step, threshold)
    covered = np.zeros(length, bool)
    for start in starts:
        assert start + size <= length
        covered[start : start + size] = True
    if step <= size:
        assert covered[: length - threshold].all()  # what is left out is a rest at the end


def test_every_patch_up_to_the_overlap_lies_in_a_piece():
    for length in (481, 700, 1356):
        starts = piece_starts(length, 480, 240)
        assert all(any(s <= p and p + 240 <= s + 480 for s in starts) for p in range(length - 240 + 1))


def test_files_are_the_pieces_and_do_not_depend_on_jobs(photos, tmp_path):
    done = prepare(photos, tmp_path / "one", size=50, step=30, jobs=1)
    assert prepare(photos, tmp_path / "four", size=50, step=30, jobs=4)[:3] == done[:3] == (4, len(content(tmp_path / "one")), 4)
    assert content(tmp_path / "one") == content(tmp_path / "four")
    image = read_image(photos / "b.png")
    expected = [image[:, t : t + 50, x : x + 50] for t in basicsr(100, 50, 30, 0) for x in basicsr(110, 50, 30, 0)]
    for k, part in enumerate(expected, 1):
        assert torch.equal(read_image(tmp_path / "one" / f"b_s{k:03}.png"), part)
    assert not (tmp_path / "one" / f"b_s{len(expected) + 1:03}.png").exists()
    rows = {row["name"]: row for row in read_jsonl(tmp_path / "one" / "manifest.jsonl")[1:]}
    assert rows["b"]["sha256"] == file_digest(photos / "b.png") and (rows["b"]["height"], rows["b"]["width"]) == (100, 110)
    batch = PatchSampler(ImagePool(tmp_path / "one"), Degradation.parse("iso"), 12, 3).batch(0)
    assert batch.hr.shape == (3, 3, 48, 48)


def test_a_small_photograph_is_one_piece(tmp_path):
    write_image(picture("s", 20, 70), tmp_path / "photos" / "s.png")
    assert prepare(tmp_path / "photos", tmp_path / "out", size=40, step=20).pieces == 3
    assert {tuple(read_image(p).shape) for p in (tmp_path / "out").glob("*.png")} == {(3, 20, 40)}
    assert len(list(subimages(torch.zeros(3, 5, 5)))) == 1


@pytest.mark.parametrize("after", [0, 1, 7, 30])
def test_an_interrupted_call_goes_on_and_ends_the_same(photos, tmp_path, monkeypatch, after):
    prepare(photos, tmp_path / "whole", size=50, step=30)
    written, real = [], preparation.write_image

    def dies(*args):
        if len(written) >= after:
            raise KeyboardInterrupt
        written.append(args)
        real(*args)

    monkeypatch.setattr(preparation, "write_image", dies)
    with pytest.raises(KeyboardInterrupt):
        prepare(photos, tmp_path / "out", size=50, step=30, jobs=1)
    ready = len(read_jsonl(tmp_path / "out" / "manifest.jsonl")) - 1
    monkeypatch.setattr(preparation, "write_image", real)
    with open(tmp_path / "out" / "manifest.jsonl", "a") as file:
        file.write('{"name": "c", "byt')  # torn by the kill
    done = prepare(photos, tmp_path / "out", size=50, step=30)
    assert done.made == 4 - ready and content(tmp_path / "out") == content(tmp_path / "whole")
    assert prepare(photos, tmp_path / "out", size=50, step=30).made == 0


def test_a_changed_photograph_is_cut_again_and_a_lost_piece_too(photos, tmp_path):
    prepare(photos, tmp_path / "out", size=50, step=30)
    write_image(picture("other", 90, 120), photos / "a.png")
    (tmp_path / "out" / "d_s002.png").unlink()
    assert prepare(photos, tmp_path / "out", size=50, step=30).made == 2
    assert torch.equal(read_image(tmp_path / "out" / "a_s001.png"), read_image(photos / "a.png")[:, :50, :50])
    assert (tmp_path / "out" / "d_s002.png").exists()


def test_mistakes_are_one_line(photos, tmp_path):
    out = tmp_path / "out"
    prepare(photos, out, size=50, step=30)
    calls = {
        "size = 50 there, 60 here": lambda: prepare(photos, out, size=60, step=30),
        "expected another one": lambda: prepare(photos, photos),
        "holds files but no manifest": lambda: prepare(out, photos),
        "1 <= step <= size": lambda: prepare(photos, tmp_path / "new", size=20, step=30),
        "neither a folder": lambda: prepare(tmp_path / "missing", tmp_path / "new"),
    }
    for message, call in calls.items():
        with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()
    (photos / "c.png").unlink()
    with pytest.raises(ValueError, match="pieces of 'c', which the source does not have"):
        prepare(photos, out, size=50, step=30)
    (photos / "broken.png").write_text("no image")
    with pytest.raises(ValueError, match="broken.png"):
        prepare(photos, tmp_path / "fresh")


def test_a_full_disk_is_one_line_and_finished_photographs_stay(photos, tmp_path, monkeypatch):
    count, real = iter(range(10**6)), preparation.write_image

    def full(*args):
        if next(count) >= 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*args)

    monkeypatch.setattr(preparation, "write_image", full)
    with pytest.raises(OSError, match="cannot be written .No space left on device.; finished photographs are kept"):
        prepare(photos, tmp_path / "out", size=50, step=30, jobs=1)
    monkeypatch.setattr(preparation, "write_image", real)
    assert 0 < prepare(photos, tmp_path / "out", size=50, step=30).made < 4


def test_names_with_folders_become_flat_and_must_stay_apart():
    assert preparation._flat_names(["DIV2K_train_HR/0001", "Flickr2K_HR/000001"]) == {
        "DIV2K_train_HR/0001": "DIV2K_train_HR_0001", "Flickr2K_HR/000001": "Flickr2K_HR_000001"}
    with pytest.raises(ValueError, match="same name"):
        preparation._flat_names(["a/b_c", "a_b/c"])


def test_the_command_prepares_and_resumes(photos, tmp_path, capsys):
    line = ["data", "prepare", str(photos), "-o", str(tmp_path / "out"), "--size", "50", "--step", "30"]
    assert main(line) == 0 and main(line) == 0
    out = capsys.readouterr().out.splitlines()
    assert "4 of them cut now" in out[0] and "0 of them cut now" in out[1]
    assert main([*line[:-1], "20"]) == 1 and "other settings" in capsys.readouterr().err
    assert main(["data", "prepare", str(photos)]) == 2
