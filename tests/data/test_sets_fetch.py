"""Downloads: checked, whole after any interruption, nothing unpacked that was not asked for."""
import functools
import hashlib
import http.server
import io
import tarfile
import threading
import zipfile

import pytest

from crlsr.app.cli import main
from crlsr.data import registry, sets as fetching
from crlsr.data.sets import download, fetch, unpack


@pytest.fixture
def served(tmp_path):
    "A folder behind a web server, and its address."
    (tmp_path / "served").mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path / "served")))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield tmp_path / "served", f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def packed(path, members):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            for name, data in members.items():
                file.writestr(name, data)
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as file:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))


MEMBERS = {"Set/HR/a.png": b"first", "Set/HR/b.PNG": b"second", "Set/HR/._a.png": b"x", "Set/HR/Thumbs.db": b"x", "Set/LR/a.png": b"x",
           "Set/HR/deep/c.png": b"x", "Set/val/v.jpg": b"third", "Set/HR/w.webp": b"fourth", "../Set/HR/up.png": b"x", "/abs/HR/e.png": b"x"}


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tgz"])
def test_only_images_of_the_named_folders_are_unpacked(tmp_path, suffix):
    packed(tmp_path / f"p{suffix}", MEMBERS)
    home = tmp_path / "home" / "Set"
    assert unpack(tmp_path / f"p{suffix}", {"Set/HR": ".", "Set/val": "valid"}, home) == 4
    found = {str(p.relative_to(tmp_path / "home")): p.read_bytes() for p in (tmp_path / "home").glob("**/*") if p.is_file()}
    assert found == {"Set/a.png": b"first", "Set/b.PNG": b"second", "Set/valid/v.jpg": b"third", "Set/w.webp": b"fourth"}
    (home / "a.png").write_bytes(b"fir")
    before = (home / "b.PNG").stat().st_mtime_ns
    unpack(tmp_path / f"p{suffix}", {"Set/HR": "."}, home)
    assert (home / "a.png").read_bytes() == b"first" and (home / "b.PNG").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="holds no image in Other"):
        unpack(tmp_path / f"p{suffix}", {"Other": "."}, home)


def test_every_archive_of_the_registry_feeds_folders_of_its_splits():
    for name, entry in registry().items():
        targets = {folder for archive in entry["archives"] for folder in archive["unpack"].values()}
        wanted = {part["folder"] for split in entry.get("splits", {}).values() for part in split if "set" not in part}
        assert targets == wanted or not entry["archives"], name
    assert not any("val" in target for archive in registry()["BSDS500"]["archives"] for target in archive["unpack"].values())


def test_a_download_is_checked_and_kept(served, tmp_path):
    folder, address = served
    (folder / "x.tar").write_bytes(b"an archive")
    good = {"url": f"{address}/x.tar", "sha256": hashlib.sha256(b"an archive").hexdigest()}
    path = download(good, tmp_path / "got")
    assert path.read_bytes() == b"an archive"
    (folder / "x.tar").unlink()
    assert download(good, tmp_path / "got") == path  # there already
    (folder / "x.tar").write_bytes(b"altered")
    with pytest.raises(ValueError, match="SHA256"):
        download(good, tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(OSError, match="cannot be downloaded .*404.*by hand") as caught:
        download({"url": f"{address}/none.tar", "sha256": None}, tmp_path / "new")
    assert "\n" not in str(caught.value)


def test_a_set_is_fetched_counted_and_not_fetched_twice(served, tmp_path, monkeypatch):
    folder, address = served
    packed(folder / "p.zip", {"P/HR/a.png": b"a", "P/HR/b.png": b"b"})
    packed(folder / "q.tgz", {"Q/c.png": b"c"})
    entry = lambda file, unpacked, images: {  # noqa: E731
        "archives": [{"url": f"{address}/{file}", "sha256": None, "unpack": unpacked}], "splits": {"train": [{"folder": "hr", "images": images}]}, "page": "p"}
    sets = {"P": entry("p.zip", {"P/HR": "hr"}, 2), "Q": entry("q.tgz", {"Q": "hr"}, 1), "R": entry("q.tgz", {"Q": "hr"}, 5),
            "PQ": {"archives": [], "page": None, "splits": {"train": [{"set": "P", "folder": "hr", "images": 2}, {"set": "Q", "folder": "hr", "images": 1}]}},
            "N": {"archives": [], "page": "https://example.org", "splits": {"train": [{"folder": "hr", "images": 1}]}}}
    monkeypatch.setattr(fetching, "registry", lambda: sets)
    monkeypatch.setenv("CRLSR_DATA", str(tmp_path / "data"))
    assert fetch("PQ") == [tmp_path / "data" / "P", tmp_path / "data" / "Q"]
    assert sorted(p.name for p in (tmp_path / "data" / "P" / "hr").iterdir()) == ["a.png", "b.png"]
    monkeypatch.setattr(fetching, "download", lambda *a, **k: pytest.fail("downloaded again"))
    assert fetch("P") == [tmp_path / "data" / "P"]
    monkeypatch.undo()
    monkeypatch.setattr(fetching, "registry", lambda: sets)
    monkeypatch.setenv("CRLSR_DATA", str(tmp_path / "data"))
    with pytest.raises(ValueError, match="1 images .*expected 5"):
        fetch("R")
    with pytest.raises(ValueError, match="no address is known; see https://example.org"):
        fetch("N")


def test_the_command_names_unknown_and_embedded_sets(capsys):
    assert main(["data", "fetch", "Set6"]) == 1 and "did you mean 'Set5'" in capsys.readouterr().err
    assert main(["data", "fetch", "embedded"]) == 1 and "nothing to download" in capsys.readouterr().err
