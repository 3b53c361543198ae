"""Downloads: checked, whole after any interruption, nothing unpacked that was not asked for."""
import bz2
import errno
import functools
import gzip
import hashlib
import http.server
import io
import lzma
import os
import socket
import tarfile
import threading
import zipfile

import pytest

from crlsr.app.cli import main
from crlsr.core import held_folder
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


def flipped(data, place):
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


NOISE = hashlib.shake_256(b"noise").digest(5000)  # does not shrink, so that its bytes can be found in the archive


@pytest.mark.parametrize("kind, damage", [
    (".zip", lambda data: flipped(data, data.index(NOISE[:9]) + 99)),  # in an image, where a zip has a checksum
    (".zip", lambda data: data[:3000]),
    (".zip", lambda data: b""),
    (".tar", lambda data: data[: 512 + 5120]),  # cut behind the first member
    (".tar", lambda data: data[:2000]),  # and in it
    (".tar", lambda data: flipped(data, 512 + 5120 + 3)),  # the second member's name: a header that makes no sense ends the list
    (".tgz", lambda data: data[:-8] + flipped(data[-8:], 0)),  # the checksum behind the last byte
    (".tgz", lambda data: data[:-30]),
    (".tgz", lambda data: flipped(data, len(data) // 2)),
    (".bz2", lambda data: flipped(data, len(data) // 2)),
    (".xz", lambda data: flipped(data, len(data) // 2)),
], ids=lambda value: value if isinstance(value, str) else "")
def test_nothing_comes_out_of_a_damaged_archive(tmp_path, kind, damage):
    packed(tmp_path / "whole.tar", {"S/a.png": NOISE, "S/b.png": b"second"})
    if kind == ".zip":
        packed(tmp_path / "whole.zip", {"S/a.png": NOISE, "S/b.png": b"second"})
        data = (tmp_path / "whole.zip").read_bytes()
    else:
        squeeze = {".tar": bytes, ".tgz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[kind]
        data = squeeze((tmp_path / "whole.tar").read_bytes())
    archive, home = tmp_path / f"p{kind}", tmp_path / "home"
    archive.write_bytes(damage(data))
    with pytest.raises(ValueError, match=r"is damaged or no archive \(.+\); remove it and start again") as caught:
        unpack(archive, {"S": "."}, home)
    assert "\n" not in str(caught.value) and not home.exists()
    archive.write_bytes(data)
    assert unpack(archive, {"S": "."}, home) == 2 and (home / "a.png").read_bytes() == NOISE


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tgz"])
def test_an_archive_without_files_is_one_line(tmp_path, suffix):
    packed(tmp_path / f"e{suffix}", {})
    with pytest.raises(ValueError, match="holds no file"):
        unpack(tmp_path / f"e{suffix}", {"S": "."}, tmp_path)


def test_a_file_is_kept_only_where_its_bytes_are_the_archives(tmp_path):
    packed(tmp_path / "p.tgz", {f"S/{name}.png": NOISE for name in "abcd"})
    for name, there in {"a": bytes(len(NOISE)), "b": flipped(NOISE, len(NOISE) - 1), "c": NOISE + b"x", "d": NOISE}.items():
        (tmp_path / f"{name}.png").write_bytes(there)
        os.utime(tmp_path / f"{name}.png", (1e9, 1e9))
    assert unpack(tmp_path / "p.tgz", {"S": "."}, tmp_path) == 4
    assert {(tmp_path / f"{name}.png").read_bytes() for name in "abcd"} == {NOISE}
    assert [(tmp_path / f"{name}.png").stat().st_mtime == 1e9 for name in "abcd"] == [False, False, False, True]


def test_why_a_download_failed_is_said_in_its_own_words(tmp_path, monkeypatch):
    with socket.socket() as nobody:  # a port that is taken, and does not listen
        nobody.bind(("127.0.0.1", 0))
        refused = f"http://127.0.0.1:{nobody.getsockname()[1]}/x.tar"
        with pytest.raises(OSError, match=r"x\.tar: cannot be downloaded \(Connection refused\); start again, or put the file into") as caught:
            download({"url": refused, "sha256": None}, tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="x.tar: cannot be written .File exists"):
        download({"url": "http://127.0.0.1:9/x.tar", "sha256": None}, tmp_path / "file")
    for address in ("htp://x/y.tar", "http:///y.tar"):
        with pytest.raises(OSError, match="y.tar: cannot be downloaded") as caught:
            download({"url": address, "sha256": None}, tmp_path)
        assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_disk_that_is_full_is_no_fault_of_the_network(served, tmp_path, monkeypatch):
    import pooch

    def full(self, url, output_file, pooch_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", full)
    with pytest.raises(OSError, match="x.tar: cannot be written .No space left on device.*make room and start the same command again"):
        download({"url": f"{served[1]}/x.tar", "sha256": None}, tmp_path / "got")
    assert list((tmp_path / "got").iterdir()) == []


def test_what_ends_in_the_middle_is_not_kept(tmp_path):
    class Ends(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"a part")

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ends)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.raises(OSError, match="x.tar: cannot be downloaded .*6 bytes read"):
        download({"url": f"http://127.0.0.1:{server.server_port}/x.tar", "sha256": None}, tmp_path)
    server.shutdown()
    server.server_close()
    assert list(tmp_path.iterdir()) == []


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
    with pytest.raises(ValueError, match="x.tar: has sha256 .*, expected .*; it is not kept"):
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
    (tmp_path / "data" / "P" / "hr" / "b.png").unlink()
    for folder in ("archives", "P/hr"):  # left by a kill
        (tmp_path / "data" / folder / ".crlsr-01234567-89.partial.png").write_bytes(b"half")
    with held_folder(tmp_path / "data" / "archives", "archives"), pytest.raises(ValueError, match="archives: .* is in use by process"):
        fetch("P")
    assert fetch("P") == [tmp_path / "data" / "P"]
    assert {path.name for path in (tmp_path / "data").rglob(".*")} == {".lock"}
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
