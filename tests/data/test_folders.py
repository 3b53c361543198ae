"""The index of a folder: equal to a naive listing whatever happened in between, and cheap where it is long."""
import errno
import gc
import os
import pickle
import statistics
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from crlsr.data import ImagePool, PatchSampler, folders as folder_index, source_files
from crlsr.data.folders import FilePart, FolderIndex, ImageFiles, index_files, index_folder, shorter_sides
from crlsr.degradation import Degradation
from crlsr.images import list_images, read_image, write_image


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CRLSR_CACHE", str(tmp_path / "cache"))


def fill(folder, names, side=8):
    folder.mkdir(parents=True, exist_ok=True)
    for k, name in enumerate(names):
        Image.new("RGB", (side + k % 5, side + k % 3)).save(folder / name)


@pytest.fixture
def reads(monkeypatch):
    "The files whose header is read."
    seen = []
    real = folder_index._shorter_side
    monkeypatch.setattr(folder_index, "_shorter_side", lambda path: seen.append(Path(path).name) or real(path))
    return seen


def naive_names(paths):
    stems = [path.stem for path in paths]
    return [path.stem if stems.count(path.stem) == 1 else path.name for path in paths]


NAMES = st.lists(
    st.tuples(st.text("ab.é ", min_size=1, max_size=4).filter(lambda t: not t.startswith(".") and t.strip() == t), st.sampled_from([".png", ".jpg", ".PNG"])).map("".join),
    min_size=1, max_size=12, unique=True)


@given(NAMES)
def test_names_and_look_ups_are_those_of_a_naive_listing(names):
    paths = sorted((Path("folder") / name for name in names), key=lambda path: path.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_index.os, "stat", lambda path: SimpleNamespace(st_mtime_ns=0, st_size=0))
        index = index_files(list(reversed(paths)))
    wanted = naive_names(paths)
    assert [index.name(i) for i in range(len(index))] == wanted and [index.file_name(i) for i in range(len(index))] == [p.name for p in paths]
    for i, name in enumerate(wanted):
        assert wanted[index.find(name)] == name and (wanted.count(name) > 1 or index.find(name) == i)
    assert index.find("zz") is None and index.find("") is None
    for i in (-1, len(index)):
        with pytest.raises(IndexError, match=f"expected 0..{len(index) - 1}"):
            index.name(i)


@settings(max_examples=10)
@given(st.lists(st.sampled_from(["add", "remove", "replace", "touch"]), max_size=5), st.randoms(use_true_random=False))
def test_sides_are_right_after_any_changes(tmp_path_factory, changes, rng):
    folder = tmp_path_factory.mktemp("photos")
    fill(folder, [f"{i}.png" for i in range(6)])
    shorter_sides(index_folder(folder, long=1))
    for k, change in enumerate(changes):
        name = rng.choice(sorted(p.name for p in list_images(folder)))
        if change == "add":
            fill(folder, [f"new{k}.png"], side=20 + k)
        elif change == "replace":
            Image.new("RGB", (30 + k, 40)).save(folder / name)
        elif change == "touch":
            os.utime(folder / name, ns=(k, k))
        elif len(list_images(folder)) > 1:
            (folder / name).unlink()
        if rng.random() < 0.5:
            shorter_sides(index_folder(folder, long=1))
    index = index_folder(folder, long=1)
    assert shorter_sides(index).tolist() == [min(Image.open(p).size) for p in list_images(folder)] == shorter_sides(index).tolist()


def test_only_changed_headers_are_read(tmp_path, reads):
    folder = tmp_path / "photos"
    fill(folder, [f"{i:02}.png" for i in range(12)])
    before = sorted(folder.iterdir())
    shorter_sides(index_folder(folder, long=10))
    assert sorted(reads) == [f"{i:02}.png" for i in range(12)] and sorted(folder.iterdir()) == before  # nothing is written beside the photographs
    reads.clear()
    index = index_folder(folder, long=10)
    assert shorter_sides(index).tolist() == [8 + min(k % 5, k % 3) for k in range(12)] and reads == []
    os.utime(folder / "03.png", ns=(5, 5))  # the same bytes, another time
    fill(folder, ["05.png"], side=50)
    assert shorter_sides(index_folder(folder, long=10))[5] == 50 and sorted(reads) == ["03.png", "05.png"]
    reads.clear()
    shorter_sides(index_folder(folder, long=13))
    assert len(reads) == 12  # a short folder is not remembered


@pytest.mark.parametrize("damage", [
    lambda data: data[:-3], lambda data: data[:40], lambda data: b"", lambda data: b"x" * len(data), lambda data: data + b"more",
    lambda data: data[:24] + (10**9).to_bytes(8, "little") + data[32:], lambda data: data[:24] + (-1).to_bytes(8, "little", signed=True) + data[32:]])
def test_a_damaged_cache_is_not_believed(tmp_path, reads, damage):
    folder = tmp_path / "photos"
    fill(folder, [f"{i}.png" for i in range(5)])
    shorter_sides(index_folder(folder, long=2))
    (stored,) = (tmp_path / "cache" / "folders").iterdir()
    stored.write_bytes(damage(stored.read_bytes()))
    reads.clear()
    assert shorter_sides(index_folder(folder, long=2)).tolist() == [8 + min(k % 5, k % 3) for k in range(5)] and len(reads) == 5


@pytest.mark.parametrize("kind", ["a file in the way", "disk full", "read-only"])
def test_without_a_cache_everything_works_and_one_line_says_so(tmp_path, monkeypatch, caplog, kind):
    folder = tmp_path / "photos"
    fill(folder, [f"{i}.png" for i in range(5)])
    if kind == "a file in the way":
        (tmp_path / "cache").touch()
    else:
        def fail(path):
            raise OSError(errno.ENOSPC if kind == "disk full" else errno.EROFS, "No space left on device" if kind == "disk full" else "Read-only file system")
        monkeypatch.setattr(folder_index, "atomic_path", fail)
    caplog.set_level("INFO", "crlsr")
    index = index_folder(folder, long=2)
    assert shorter_sides(index).tolist() == [8 + min(k % 5, k % 3) for k in range(5)] and (index._entries["side"] > 0).all()
    assert "set CRLSR_CACHE" in caplog.messages[0] and "\n" not in caplog.messages[0]
    other = pickle.loads(pickle.dumps(index))
    assert [other.name(i) for i in range(5)] == [index.name(i) for i in range(5)]


def test_another_process_opens_the_same_table_or_refuses(tmp_path):
    folder = tmp_path / "photos"
    fill(folder, [f"{i}.png" for i in range(50)])
    index = index_folder(folder, long=2)
    handed = pickle.dumps(index)
    assert len(handed) < 500
    shorter_sides(index_folder(folder, long=2))  # someone else fills in the sides: the same files all the same
    assert pickle.loads(handed).file_name(49) == index.file_name(49)
    (folder / "7.png").unlink()
    index_folder(folder, long=2)
    assert index.file_name(49) == "9.png"  # whoever has the old table open keeps it
    with pytest.raises(ValueError, match="changed while they were in use"):
        pickle.loads(handed)


def test_unreadable_headers_are_zero_and_named_when_a_sampler_is_made(tmp_path):
    folder = tmp_path / "photos"
    fill(folder, ["a.png", "c.png"], side=40)
    (folder / "b.png").write_text("nothing")
    assert shorter_sides(index_folder(folder)).tolist() == [40, 0, 41]
    with pytest.raises(ValueError, match="image 'b' .*cannot be read"):
        PatchSampler(ImagePool(folder), Degradation.parse("iso"), 8, 2)


def test_parts_are_one_mapping(tmp_path):
    fill(tmp_path / "one", ["a.png", "b.png", "b.jpg"])
    fill(tmp_path / "two", ["a.png", "z.png"])
    one, two = index_folder(tmp_path / "one"), index_folder(tmp_path / "two")
    files = ImageFiles([FilePart(one, range(3), "one/"), FilePart(two, [1], "two/"), FilePart(two, [])])
    wanted = {"one/a": "one/a.png", "one/b.jpg": "one/b.jpg", "one/b.png": "one/b.png", "two/z": "two/z.png"}
    assert {name: str(path.relative_to(tmp_path)) for name, path in files.items()} == wanted and len(files) == 4
    assert [files.at(i) for i in range(4)] == list(files.items())
    assert files.shorter_sides().tolist() == [min(Image.open(path).size) for path in files.values()]
    for missing in ("two/a", "a", "one/b", ""):
        assert missing not in files
    for i in (-1, 4):
        with pytest.raises(IndexError, match=r"expected 0\.\.3"):
            files.at(i)


def test_a_long_folder_starts_faster_the_second_time_and_in_proportion(tmp_path):
    "5,000 files: headers are the larger part of the first start, and no step of a start grows faster than the folder."
    one = tmp_path / "one.png"
    write_image(torch.zeros(3, 40, 50), one)
    data = one.read_bytes()
    for name, count in (("long", 5000), ("short", 1000)):
        (tmp_path / name).mkdir()
        for i in range(count):
            (tmp_path / name / f"{i:05}.png").write_bytes(data)

    def start(name):
        begin = time.perf_counter()
        files = source_files(tmp_path / name)
        sides, middle = files.shorter_sides(), files.at(len(files) // 2)
        assert (sides == 40).all() and middle[0] == f"{len(files) // 2:05}"
        return time.perf_counter() - begin

    rounds = []
    for _ in range(3):
        for stored in (tmp_path / "cache").glob("**/*.index"):
            stored.unlink()
        cold, short = start("long"), start("short")
        rounds.append((cold / start("long"), cold / short))
    saved, growth = (statistics.median(column) for column in zip(*rounds))
    assert saved > 1.3 and growth < 15


@pytest.mark.slow
def test_a_hundred_thousand_files_start_in_seconds_and_stay_on_disk(tmp_path):
    one = tmp_path / "one.png"
    write_image(torch.zeros(3, 40, 50), one)
    data, folder = one.read_bytes(), tmp_path / "photos"
    folder.mkdir()
    for i in range(100_000):
        (folder / f"{i:06}.png").write_bytes(data)
    times = []
    for _ in range(2):
        begin = time.perf_counter()
        pool = ImagePool(folder)
        sampler = PatchSampler(pool, Degradation.parse("iso"), 8, 4)
        batch = sampler.batch(0)
        times.append(time.perf_counter() - begin)
        assert batch.hr.abs().max() == 0 and len(pool) == 100_000
    begin = time.perf_counter()
    naive = [Image.open(path).size for path in list_images(folder)]
    naive_seconds = time.perf_counter() - begin
    print(f"first start {times[0]:.1f} s, second {times[1]:.1f} s, all headers one by one {naive_seconds:.1f} s")
    assert len(naive) == 100_000 and times[1] < 0.8 * naive_seconds
    tracemalloc.start()
    kept = ImagePool(folder)
    kept.shorter_sides()
    gc.collect()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(kept) == 100_000 and held < 300_000, held
    assert len(pickle.dumps(kept)) < 2000


def test_a_folder_index_reads_what_the_pool_reads(tmp_path):
    fill(tmp_path / "p", [f"{i}.png" for i in range(4)], side=30)
    pool = ImagePool(tmp_path / "p")
    for i, path in enumerate(list_images(tmp_path / "p")):
        assert torch.equal(pool[i], read_image(path)) and pool.names[i] == path.stem
    assert isinstance(pool.shorter_sides(), np.ndarray) and isinstance(pool._files.parts[0].index, FolderIndex)
