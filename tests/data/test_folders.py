"""Folders of many images: names of a naive listing, and facts of files that are right whatever happened in between, each read once."""
import hashlib
import multiprocessing
import os
import pickle
import sqlite3
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from crlsr.data import ImagePool, PatchSampler, content_digest, content_digests, folders
from crlsr.data.folders import image_sizes, named_files
from crlsr.degradation import Degradation
from crlsr.images import list_images, read_image, write_image


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    "A cache of its own for each test, in which even the youngest file is remembered."
    monkeypatch.setenv("CRLSR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(folders, "_YOUNG", 0)
    monkeypatch.setattr(folders, "_given_up", set())


def fill(folder, names, side=8):
    folder.mkdir(parents=True, exist_ok=True)
    for k, name in enumerate(names):
        Image.new("RGB", (side + k % 5, side + k % 3)).save(folder / name)


def true_sizes(files):
    return [list(Image.open(file).size) for file in files]


def true_digests(files):
    return [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files]


@pytest.fixture
def reads(monkeypatch):
    "Names of the files that are looked into, for their header or their content."
    seen = []
    for name in ("_read_size", "file_digest"):
        real = getattr(folders, name)
        monkeypatch.setattr(folders, name, lambda path, real=real: seen.append(Path(path).name) or real(path))
    return seen


NAMES = st.lists(
    st.tuples(st.text("ab.é ", min_size=1, max_size=4).filter(lambda t: not t.startswith(".") and t.strip() == t), st.sampled_from([".png", ".jpg", ".PNG"])).map("".join),
    min_size=1, max_size=12, unique=True)


@given(NAMES)
def test_names_lose_their_suffix_where_that_leaves_them_alone(names):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folders, "image_names", lambda folder: sorted(names))
        found = named_files("folder")
    assert [path.name for path in found.values()] == sorted(names)  # none is lost, whatever is called alike
    for name, path in found.items():
        alike = [other for other in names if path.stem in (Path(other).stem, other)]
        assert name == (path.stem if len(alike) == 1 else path.name) and path == Path("folder", path.name)


def test_a_folder_has_to_be_there_with_an_image(tmp_path):
    for folder, what in ((tmp_path / "absent", "no such folder"), (tmp_path, "holds no image")):
        with pytest.raises(FileNotFoundError, match=what):
            named_files(folder)


@settings(max_examples=10)
@given(st.lists(st.sampled_from(["add", "remove", "replace", "touch"]), max_size=5), st.randoms(use_true_random=False))
def test_facts_are_right_after_any_changes(tmp_path_factory, changes, rng):
    folder = tmp_path_factory.mktemp("photos")
    fill(folder, [f"{i}.png" for i in range(6)])
    image_sizes(list_images(folder)), content_digests(list_images(folder))
    for k, change in enumerate(changes):
        time.sleep(0.02)  # longer than a tick of the file system's clock
        name = rng.choice(sorted(p.name for p in list_images(folder)))
        if change == "add":
            fill(folder, [f"new{k}.png"], side=20 + k)
        elif change == "replace":
            Image.new("RGB", (30 + k, 40)).save(folder / name)
        elif change == "touch":
            os.utime(folder / name, ns=(k, k))
        elif len(list_images(folder)) > 1:
            (folder / name).unlink()
        for ask in rng.sample([image_sizes, content_digests], rng.randrange(3)):
            ask(list_images(folder))
    files = list_images(folder)
    for _ in range(2):
        assert image_sizes(files).tolist() == true_sizes(files) and content_digests(files) == true_digests(files)


def test_only_changed_files_are_read(tmp_path, reads):
    folder = tmp_path / "photos"
    fill(folder, [f"{i:02}.png" for i in range(12)])
    before = sorted(folder.iterdir())
    for ask in (image_sizes, content_digests):
        ask(named_files(folder).values())
        assert sorted(reads) == [f"{i:02}.png" for i in range(12)]
        reads.clear()
    for ask in (image_sizes, content_digests, image_sizes):
        ask(named_files(folder).values())
    assert reads == [] and sorted(folder.iterdir()) == before  # nothing is written beside the photographs
    os.utime(folder / "03.png", ns=(5, 5))  # the same bytes, another time
    fill(folder, ["05.png"], side=50)
    assert image_sizes(list_images(folder))[5].tolist() == [50, 50] and sorted(reads) == ["03.png", "05.png"]
    reads.clear()  # new sizes do not make an old digest young
    assert content_digests(list_images(folder)) == true_digests(list_images(folder)) and sorted(reads) == ["03.png", "05.png"]
    reads.clear()
    content_digests([folder / "03.png"] * 3), content_digest(folder / "03.png")
    assert reads == []


def test_the_same_length_and_time_do_not_hide_a_change(tmp_path, reads):
    path = tmp_path / "a.bmp"
    found = []
    for size in ((8, 4), (4, 8)):
        Image.new("RGB", size).save(path)
        os.utime(path, ns=(10**18, 10**18))
        found.append((path.stat().st_size, image_sizes([path]).tolist(), content_digest(path) == true_digests([path])[0]))
        time.sleep(0.02)
    assert found == [(150, [[8, 4]], True), (150, [[4, 8]], True)]


def test_what_changes_at_once_is_not_remembered(tmp_path, monkeypatch, reads):
    monkeypatch.setattr(folders, "_YOUNG", 2 * 10**9)
    path = tmp_path / "a.png"
    for i in range(40):
        path.write_bytes(bytes([i] * 10))
        assert content_digest(path) == true_digests([path])[0]
    assert len(reads) == 40
    os.utime(path, ns=(10**18, 10**18))  # an old file that has just arrived, as from an archive
    assert [content_digest(path) for _ in range(2)] == true_digests([path] * 2) and len(reads) == 42


@pytest.mark.parametrize("when", [0, -1, 4 * 10**18, 13 * 10**18])  # 1970, before, in a hundred years, beyond 63 bits
def test_odd_times_are_times(tmp_path, reads, when):
    path = tmp_path / "a.png"
    path.write_bytes(b"x")
    os.utime(path, ns=(when, when))
    assert [content_digest(path) for _ in range(2)] == true_digests([path] * 2) and reads == ["a.png"]


def test_any_name_that_a_file_can_have(tmp_path, reads, monkeypatch):
    names = ["a b.png", "ü.png", "q'u\"o?t%.png", "new\nline.png", os.fsdecode(b"\xff\xfe.png")]
    fill(tmp_path, names)
    files = list(named_files(tmp_path).values())
    assert sorted(file.name for file in files) == sorted(names)
    for _ in range(2):
        assert image_sizes(files).tolist() == true_sizes(files) and content_digests(files) == true_digests(files)
    assert Counter(reads) == Counter(names * 2)
    reads.clear()
    monkeypatch.chdir(tmp_path)
    assert content_digest("a b.png") == true_digests(["a b.png"])[0] and reads == []  # the same file by another spelling


def test_what_cannot_be_read_is_said_and_asked_again(tmp_path, reads):
    (tmp_path / "b.png").write_text("nothing")
    for _ in range(2):
        assert image_sizes([tmp_path / "b.png", tmp_path / "absent.png"]).tolist() == [[0, 0], [0, 0]]
    assert reads == ["b.png", "absent.png"] * 2
    with pytest.raises(FileNotFoundError, match="absent.png"):
        content_digests([tmp_path / "b.png", tmp_path / "absent.png"])
    assert image_sizes([]).shape == (0, 2) and content_digests([]) == []


@pytest.mark.parametrize("damage", [
    lambda data: data[:-3], lambda data: data[:5000], lambda data: data[:40], lambda data: b"", lambda data: b"x" * len(data),
    lambda data: data[:100] + b"\xff" * 4000 + data[4100:], lambda data: data[:4096] + b"\0" * (len(data) - 4096)])
def test_a_damaged_cache_is_replaced(tmp_path, reads, caplog, damage):
    folder = tmp_path / "photos"
    fill(folder, [f"{i:03}.png" for i in range(200)])
    files, stored = list_images(folder), tmp_path / "cache" / "files.sqlite3"
    image_sizes(files)
    assert stored.stat().st_size > 8000
    stored.write_bytes(damage(stored.read_bytes()))
    for _ in range(2):
        assert image_sizes(files).tolist() == true_sizes(files)
    reads.clear()
    assert image_sizes(files).tolist() == true_sizes(files) and reads == [] and caplog.messages == []
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["files.sqlite3"]


@pytest.mark.parametrize("kind", ["a file in the way", "a folder in the way", "disk full", "locked"])
def test_without_a_cache_everything_works_and_one_line_says_so(tmp_path, monkeypatch, caplog, kind):
    folder, real = tmp_path / "photos", sqlite3.connect
    fill(folder, [f"{i}.png" for i in range(5)])
    if kind == "a file in the way":
        (tmp_path / "cache").touch()
    elif kind == "a folder in the way":
        (tmp_path / "cache" / "files.sqlite3").mkdir(parents=True)
    elif kind == "disk full":
        def full(path, timeout):
            table = real(path)
            table.execute("PRAGMA max_page_count = 1")
            return table
        monkeypatch.setattr(sqlite3, "connect", full)
    else:
        (tmp_path / "cache").mkdir()
        other = real(tmp_path / "cache" / "files.sqlite3", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        monkeypatch.setattr(sqlite3, "connect", lambda path, timeout: real(path, timeout=0.05))
    files = list_images(folder)
    for _ in range(2):
        assert image_sizes(files).tolist() == true_sizes(files) and content_digests(files) == true_digests(files)
    (message,) = caplog.messages
    assert "cannot be used" in message and "set CRLSR_CACHE" in message and "\n" not in message


def test_a_cache_that_can_only_be_read_is_read(tmp_path, monkeypatch, caplog, reads):
    folder, real = tmp_path / "photos", sqlite3.connect
    fill(folder, [f"{i}.png" for i in range(5)])
    image_sizes(list_images(folder))
    fill(folder, ["new.png"])
    monkeypatch.setattr(sqlite3, "connect", lambda path, timeout: real(f"file:{path}?mode=ro", uri=True))
    reads.clear()
    files = list_images(folder)
    assert image_sizes(files).tolist() == true_sizes(files) and reads == ["new.png"] and "readonly" in caplog.messages[0]


def ask_all(files):
    "What a process of its own finds."
    return image_sizes(files).tolist(), content_digests(files), folders._given_up


def test_several_processes_share_one_cache(tmp_path, reads):
    folder = tmp_path / "photos"
    fill(folder, [f"{i:03}.png" for i in range(120)])
    files = list_images(folder)
    wanted = true_sizes(files), true_digests(files)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        for sizes, digests, given_up in pool.map(ask_all, [files[:80], files[40:], files, files[::-1]] * 3):
            both = list(zip(sizes, digests))
            expected = list(zip(*wanted))
            assert given_up == set() and both in (expected[:80], expected[40:], expected, expected[::-1])
    assert (image_sizes(files).tolist(), content_digests(files)) == wanted and reads == []


def test_what_was_read_before_an_interruption_is_kept(tmp_path, monkeypatch, reads):
    fill(tmp_path / "photos", [f"{i}.png" for i in range(9)])
    files, real = list_images(tmp_path / "photos"), folders.file_digest
    monkeypatch.setattr(folders, "_BLOCK", 3)

    def stopped(path):
        if path.endswith("7.png"):
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(folders, "file_digest", stopped)
    with pytest.raises(KeyboardInterrupt):
        content_digests(files)
    monkeypatch.setattr(folders, "file_digest", real)
    reads.clear()
    assert content_digests(files) == true_digests(files) and sorted(reads) == ["6.png", "7.png", "8.png"]


def test_unreadable_headers_are_zero_and_named_when_a_sampler_is_made(tmp_path):
    folder = tmp_path / "photos"
    fill(folder, ["a.png", "c.png"], side=40)
    (folder / "b.png").write_text("nothing")
    assert ImagePool(folder).shorter_sides().tolist() == [40, 0, 41]
    with pytest.raises(ValueError, match=r"image 'b' \(.*b.png\).*cannot be read"):
        PatchSampler(ImagePool(folder), Degradation.parse("iso"), 8, 2)


def test_a_pool_reads_the_files_of_the_folder(tmp_path):
    fill(tmp_path / "p", [f"{i}.png" for i in range(4)], side=30)
    pool = ImagePool(tmp_path / "p")
    for i, path in enumerate(list_images(tmp_path / "p")):
        assert torch.equal(pool[i], read_image(path)) and pool.names[i] == path.stem
    assert isinstance(pool.shorter_sides(), np.ndarray) and pool.shorter_sides().tolist() == [min(size) for size in true_sizes(list_images(tmp_path / "p"))]


@pytest.mark.slow
def test_a_hundred_thousand_files_are_read_once(tmp_path, reads):
    folder = tmp_path / "photos"
    for i in range(100_000):
        if i % 25_000 == 0:  # a file system allows so many names for one file
            whole = folder / f"{i:06}.png"
            write_image(torch.zeros(3, 40, 50), whole)
        else:
            os.link(whole, folder / f"{i:06}.png")
    counts, times = [], []
    for _ in range(2):
        reads.clear()
        begin = time.perf_counter()
        pool = ImagePool(folder)
        batch = PatchSampler(pool, Degradation.parse("iso"), 8, 4).batch(0)
        times.append(time.perf_counter() - begin)
        counts.append(len(reads))
        assert batch.hr.abs().max() == 0 and len(pool) == 100_000
    print(f"first start {times[0]:.1f} s, second {times[1]:.1f} s")
    assert counts == [100_000, 0] and times[1] < times[0] and len(pickle.dumps(ImagePool(folder))) < 100 * 100_000
