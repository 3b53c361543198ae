"""The registry of image sets and source texts: what their notebook cannot show about itself."""
import hashlib
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import torch

from crlsr.core import file_digest
from crlsr.data import Identity, data_identity, difference, embedded_images, find_data, load_images, match_names, registry, registry_rows, source_files
from crlsr.data.sets import embedded_file

PHOTOGRAPHS = embedded_images("all")


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
            whole = [part for split, parts in splits.items() if split != "few" for part in parts]  # that is the beginning of another
            assert sum(part["images"] for part in whole) == entry["images"], name
    assert [row["name"] for row in registry_rows()] == list(registry())


def test_bsds_splits_follow_names_as_text(fake_data):
    root = fake_data(
        *(f"BSDS500/train/{n}.jpg" for n in [302003, *range(2000, 2199)]), *(f"BSDS500/test/{n}.jpg" for n in range(9900, 10100))
    )
    train, validation = source_files("BSDS500:train"), source_files("BSDS500:validation")
    assert len(train) == 379 and len(validation) == 20
    assert "train/302003" not in train and not set(train) & set(validation)
    assert list(source_files("BSDS500:few")) == list(train)[:4]
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


@pytest.mark.parametrize("name", ["embedded", "embedded:mine", "Set5", "BSDS500:train", "2024", "a{b}c", "-o"])
def test_a_folder_that_exists_wins_over_a_known_set_of_its_name(tmp_path, monkeypatch, caplog, name):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO", "crlsr")
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine.png").touch()
    for given in (name, f"./{name}", f"{name}/", tmp_path / name):
        assert source_files(given) == {"mine": Path(given) / "mine.png"}
    assert data_identity(name).names == ("mine",)
    assert ("the folder of this name is taken" in caplog.text) == (name.partition(":")[0] in registry())


def test_without_such_a_folder_the_known_set_is_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "embedded").write_text("a file is no folder")
    assert list(source_files("embedded:heldout")) == ["chelsea", "coffee"]
    (tmp_path / "embedded").unlink()
    (tmp_path / "embedded").symlink_to("nowhere")
    assert len(source_files("embedded")) == 6


def test_a_source_that_cannot_be_printed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a\nb", "embedded:\udce9", "Set5:\x1b[2J", "\0", 300 * "x"):
        with pytest.raises((ValueError, OSError)) as caught:
            source_files(name)
        str(caught.value).encode()
        assert str(caught.value).isprintable()


def test_limit_takes_the_first_by_name():
    assert list(load_images("embedded:all", limit=2)) == list(PHOTOGRAPHS)[:2]


# --- identity and pairs -------------------------------------------------------------------------------------------------------

def test_identity_is_the_content_in_its_order_wherever_the_folder_lies(tmp_path, monkeypatch):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, content in (("a.png", b"one"), ("b.png", b"two"), ("c.jpg", b"six")):
        (folder / name).write_bytes(content)
    base = data_identity(folder)
    assert base.names == ("a", "b", "c") and base.contents[1] == hashlib.sha256(b"two").hexdigest()
    monkeypatch.chdir(tmp_path)
    assert {data_identity(each).digest for each in ("photos", "./photos/", folder)} == {base.digest}
    (folder / "b.png").rename(folder / "bb.png")  # still the second
    assert data_identity(folder).digest == base.digest and data_identity(folder).names == ("a", "bb", "c")
    (folder / "bb.png").rename(folder / "d.png")  # now the third
    assert data_identity(folder).digest != base.digest
    (folder / "d.png").rename(folder / "b.png")
    (folder / "b.png").write_bytes(b"TWO")
    assert data_identity(folder).digest != base.digest
    (folder / "b.png").write_bytes(b"two")
    assert data_identity(folder) == base
    (folder / "e.png").write_bytes(b"two")
    assert data_identity(folder).digest != base.digest


def test_what_is_other_about_a_source_is_named():
    base = Identity(("a", "b", "c"), ("1", "2", "3"))
    assert difference(base, base) == difference(base, Identity(("x", "y", "z"), ("1", "2", "3"))) == ""
    assert difference(base, Identity(("a", "b", "c"), ("1", "3", "2"))) == "the same images stand in another order"
    assert difference(base, Identity(("0", "a", "b"), ("3", "1", "2"))) == "the same images stand in another order"
    assert difference(base, Identity(("a", "b", "c"), ("1", "x", "3"))) == "image 'b' was changed"
    assert difference(base, Identity(("a", "c"), ("1", "3"))) == "image 'b' is gone"
    assert difference(base, Identity(("a", "b", "b\n", "c"), ("1", "2", "2", "3"))) == r"image 'b\n' is new"
    assert difference(base, Identity(("a", "bb", "c"), ("1", "2", "x"))) == "image 'c' was changed (and 2 more)"
    assert difference(base, Identity((), ())) == "image 'a' is gone (and 2 more)"


@pytest.mark.parametrize("wanted, given, scale, expected", [
    (["b", "a"], ["a", "b", "c"], None, ["b", "a"]),
    (["0801", "0802"], ["0802x4", "0801x4"], 4, ["0801x4", "0802x4"]),
    (["baby", "bird"], ["baby_x2", "bird-x2"], 2, ["baby_x2", "bird-x2"]),
    (["0801", "0802"], ["0801x2", "0802"], 2, ["0801x2", "0802"]),
    (["a", "ax2"], ["ax2", "a"], 2, ["a", "ax2"]),
    ([unicodedata.normalize("NFD", "Zürich")], [unicodedata.normalize("NFC", "Zürich_x3")], 3, [unicodedata.normalize("NFC", "Zürich_x3")]),
    ([unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")], [unicodedata.normalize("NFD", "é"), unicodedata.normalize("NFC", "é")], None,
     [unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")]),
])
def test_pairs_by_the_habits_of_the_field(wanted, given, scale, expected):
    assert match_names(wanted, given, scale) == dict(zip(wanted, expected, strict=True))


@pytest.mark.parametrize("wanted, given, scale, message", [
    (["0801", "0802"], ["0801x2", "0802x2"], 4, "image '0801': has no partner of its name"),
    (["0801"], ["0801x4"], None, "image '0801': has no partner"),
    (["a"], ["a", "ax2"], 2, "image 'a': could be paired with 'a' or 'ax2'"),
    (["a"], ["a_x2", "ax2"], 2, "could be paired with 'a_x2' or 'ax2'"),
    ([unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")], ["éx2"], 2, "has no partner"),
])
def test_a_pair_is_never_guessed(wanted, given, scale, message):
    with pytest.raises(ValueError, match=message):
        match_names(wanted, given, scale)
