"""The registry of image sets and source texts: what their notebook cannot show about itself."""
import subprocess
import sys

import pytest
import torch

from crlsr.core import file_digest
from crlsr.data import embedded_images, find_data, load_images, registry, registry_rows, source_files
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
