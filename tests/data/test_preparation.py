"""Sub-images: where BasicSR cuts them, and the same files after any interruption."""
import errno
import hashlib
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crlsr.app.cli import main
from crlsr.core import file_digest, generator, held_folder, read_jsonl
from crlsr.data import ImagePool, PatchSampler, data_identity, preparation
from crlsr.data.preparation import piece_starts, prepare, subimages
from crlsr.degradation import Degradation
from crlsr.images import read_image, write_image
from tests.forks import Forked


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
    assert len(rows) == done.pieces and set(rows) == set(content(tmp_path / "one"))
    row = rows["b_s002.png"]
    assert row["source"] == file_digest(photos / "b.png") and row["sha256"] == content(tmp_path / "one")["b_s002.png"]
    assert (row["photograph"], row["pieces"]) == ("b", len(expected))
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
    whole, stems = content(tmp_path / "whole"), [name[0] for name in content(tmp_path / "out")]
    ready = sum(stems.count(stem) == sum(name[0] == stem for name in whole) for stem in "abcd")
    monkeypatch.setattr(preparation, "write_image", real)
    with open(tmp_path / "out" / "manifest.jsonl", "a") as file:
        file.write('{"name": "c", "byt')  # torn by the kill
    (tmp_path / "out" / ".crlsr-01234567-89.partial.png").write_bytes(b"half")
    done = prepare(photos, tmp_path / "out", size=50, step=30)
    assert done.made == 4 - ready and content(tmp_path / "out") == whole
    assert {path.name for path in (tmp_path / "out").glob(".*")} == {".lock"}
    rows = [row["name"] for row in read_jsonl(tmp_path / "out" / "manifest.jsonl")[1:]]
    assert set(rows) == set(whole) and len(rows) <= len(whole) + 1  # a piece of which the kill left the row alone
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
        "expected another": lambda: prepare(photos, photos),
        "holds 'a.png', which was not made here": lambda: prepare(out, photos),
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
    (tmp_path / "file").write_text("in the way")
    for inside in ("", "/deeper"):
        with pytest.raises(ValueError, match="out: .*file is a file, expected a folder"):
            prepare(photos, f"{tmp_path / 'file'}{inside}")


def test_a_full_disk_is_one_line_and_finished_photographs_stay(photos, tmp_path, monkeypatch):
    count, real = iter(range(10**6)), preparation.write_image

    def full(*args):
        if next(count) >= 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*args)

    monkeypatch.setattr(preparation, "write_image", full)
    with pytest.raises(OSError, match="cannot be written .No space left on device.*make room and start the same command again"):
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


# --- work goes on ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("damage", [
    lambda path: path.write_text("no image"),
    lambda path: path.write_bytes(path.read_bytes()[:200]),  # its header can still be read
    lambda path: (path.unlink(), path.mkdir()) and None,
    lambda path: (path.unlink(), path.symlink_to("nowhere")) and None,
], ids=["text", "cut", "a folder", "a link to nothing"])
def test_the_others_are_done_and_the_same_command_does_what_is_missing(photos, tmp_path, capsys, damage):
    prepare(photos, tmp_path / "whole", size=50, step=30)
    whole, good = content(tmp_path / "whole"), (photos / "b.png").read_bytes()
    damage(photos / "b.png")
    line = ["data", "prepare", str(photos), "-o", str(tmp_path / "out"), "--size", "50", "--step", "30"]
    named = (photos / "b.png").is_file()  # a folder and a dead link are no images of the source
    assert main(line) == (1 if named else 0)
    out, err = capsys.readouterr()
    assert not named or "1 of 4 photographs failed" in err.splitlines()[-1] and "b.png" in err.splitlines()[-1]
    assert content(tmp_path / "out") == {name: digest for name, digest in whole.items() if name[0] != "b"}
    (photos / "b.png").rmdir() if (photos / "b.png").is_dir() else (photos / "b.png").unlink()
    (photos / "b.png").write_bytes(good)
    assert main(line) == 0 and "1 of them cut now" in capsys.readouterr().out and content(tmp_path / "out") == whole


def test_a_smaller_photograph_leaves_no_piece_of_the_larger_one_behind(photos, tmp_path, monkeypatch):
    prepare(photos, tmp_path / "out", size=50, step=30)
    write_image(picture("small", 60, 50), photos / "d.png")
    real = preparation.write_image

    def dies(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(preparation, "write_image", dies)
    with pytest.raises(KeyboardInterrupt):
        prepare(photos, tmp_path / "out", size=50, step=30)
    monkeypatch.setattr(preparation, "write_image", real)
    assert prepare(photos, tmp_path / "out", size=50, step=30).made == 1
    prepare(photos, tmp_path / "fresh", size=50, step=30)
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


def test_a_touched_or_moved_source_is_the_same_and_a_changed_one_is_not(photos, tmp_path):
    prepare(photos, tmp_path / "out", size=50, step=30)
    for path in photos.iterdir():
        os.utime(path, (1e9, 1e9))
    photos.rename(tmp_path / "moved")
    assert prepare(tmp_path / "moved", tmp_path / "out", size=50, step=30).made == 0
    data = bytearray((tmp_path / "moved" / "c.png").read_bytes())
    write_image(picture("other", 110, 100), tmp_path / "moved" / "c.png")
    assert len(data) and prepare(tmp_path / "moved", tmp_path / "out", size=50, step=30).made == 1


@pytest.mark.parametrize("there, message", [
    (lambda out: write_image(picture("mine"), out / "holiday.jpg"), "holds 'holiday.jpg', which was not made here"),
    (lambda out: (out / "a_s001.png").write_bytes(b"edited"), "holds 'a_s001.png', which was not made here, or changed since"),
    (lambda out: (out / "a_s001.png").unlink() or (out / "a_s001.png").mkdir(), "a_s001.png: is a folder"),
    (lambda out: (out / "a_s001.png").unlink() or (out / "a_s001.png").symlink_to("nowhere"), "a_s001.png: exists already; choose another output$"),
])
def test_what_was_not_made_here_stays(photos, tmp_path, there, message):
    out = tmp_path / "out"
    prepare(photos, out, size=50, step=30)
    there(out)
    before = {path.name: path.lstat().st_mtime_ns for path in out.iterdir() if path.name != ".lock"}
    with pytest.raises((ValueError, FileExistsError), match=message):
        prepare(photos, out, size=50, step=30)
    assert before == {path.name: path.lstat().st_mtime_ns for path in out.iterdir() if path.name != ".lock"}


def test_other_files_are_none_of_our_business(photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    prepare(photos, tmp_path / "out", size=50, step=30)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["a{b}c", "caf\u00e9", "cafe\u0301", "\udce9", "two\nlines", "-o", "2024", 240 * "x"])
def test_names_are_bytes(tmp_path, name):
    write_image(picture("n"), tmp_path / "photos" / "p.png")
    (tmp_path / "photos" / "p.png").rename(tmp_path / "photos" / f"{name}.png")
    assert prepare(tmp_path / "photos", tmp_path / "out", size=90, step=60).made == 1
    assert set(content(tmp_path / "out")) == {f"{name}_s001.png", f"{name}_s002.png"}
    assert prepare(tmp_path / "photos", tmp_path / "out", size=90, step=60).made == 0


def test_a_name_without_room_for_the_number_of_a_piece_is_one_line(tmp_path):
    write_image(picture("n"), tmp_path / "photos" / "a.png")
    write_image(picture("n"), tmp_path / "photos" / f"{251 * 'x'}.png")
    with pytest.raises(ValueError, match="a name of 260 bytes, of which 255 are allowed"):
        prepare(tmp_path / "photos", tmp_path / "out", size=50, step=30)
    assert not content(tmp_path / "out")


def test_two_at_once_are_one_and_a_line(photos, tmp_path):
    with held_folder(tmp_path / "out", "out"):
        with pytest.raises(ValueError, match=f"out: .*out is in use by process {os.getpid()} on .*; wait for it, or take another folder"):
            prepare(photos, tmp_path / "out", size=50, step=30)
        code = main(["data", "prepare", str(photos), "-o", str(tmp_path / "out")])
    assert code == 1 and not content(tmp_path / "out")
    code = "import sys; from crlsr.app.cli import main; sys.exit(main(sys.argv[1:]))"
    both = [Forked(code, "data", "prepare", photos, "-o", tmp_path / "out", "--size", "40", "--step", "10") for _ in range(2)]
    errors = [process.communicate()[1] for process in both]
    assert all(process.returncode == 0 or "is in use by process" in err.splitlines()[-1] for process, err in zip(both, errors))
    assert 0 in [process.returncode for process in both]
    rows = read_jsonl(tmp_path / "out" / "manifest.jsonl")[1:]
    assert len(rows) == len({row["name"] for row in rows}) == len(content(tmp_path / "out"))


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_that_vanishes_ends_the_call_and_is_not_made_again(photos, tmp_path, monkeypatch, replaced):
    out, real, count = tmp_path / "out", preparation.write_image, iter(range(10**6))

    def moves(*args):
        real(*args)
        if next(count) == 12:
            out.rename(tmp_path / "moved")
            out.mkdir() if replaced else None

    monkeypatch.setattr(preparation, "write_image", moves)
    with pytest.raises(OSError, match="out: .*was removed, renamed or replaced|cannot be written"):
        prepare(photos, out, size=50, step=30, jobs=1)
    assert (list(out.iterdir()) == []) if replaced else not out.exists()


def test_dates_that_no_counter_of_nanoseconds_holds(photos, tmp_path):
    for date in (2**33, 10**10, -(2**33)):  # 2242; 2286, beyond 64 bits of nanoseconds; 1697
        for path in photos.iterdir():
            os.utime(path, (date, date))
        assert data_identity(photos).contents == tuple(file_digest(photos / f"{name}.png") for name in "abcd")
        assert min(ImagePool(photos).shorter_sides()) == 90
        prepare(photos, tmp_path / f"out{date}", size=50, step=30)
        for path in (tmp_path / f"out{date}").glob("*.png"):
            os.utime(path, (date, date))
        assert prepare(photos, tmp_path / f"out{date}", size=50, step=30).made == 0
