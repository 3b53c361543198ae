"""core.files: files that are whole or absent, strict JSON, logs, names of any kind, digests."""
import errno
import hashlib
import html
import json
import math
import os
import re
import signal
import subprocess
import sys
import unicodedata

import hypothesis.strategies as st
import pytest
from hypothesis import given
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from crlsr import core

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | st.text() | st.just(os.fsdecode(b"caf\xe9")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8)


def test_file_digest_reads_in_blocks(tmp_path):
    data = os.urandom(3_000_000)
    (tmp_path / "f").write_bytes(data)
    assert core.file_digest(tmp_path / "f") == hashlib.sha256(data).hexdigest()


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")
    code = f"""
import os, signal
from crlsr.core import atomic_path
with atomic_path({str(target)!r}) as partial:
    partial.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert target.read_text() == "old"
    with core.atomic_path(target) as partial:
        partial.write_text("new")
    assert target.read_text() == "new" and partial.suffix == ".txt" and not partial.exists()


def test_atomic_files_have_the_usual_rights(tmp_path):
    (tmp_path / "plain").write_text("")
    with core.atomic_path(tmp_path / "atomic") as partial:
        partial.write_text("")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


@given(cut=st.integers(0, 60))
def test_a_log_cut_anywhere_goes_on(tmp_path_factory, cut):
    log = tmp_path_factory.mktemp("log") / "log.jsonl"
    assert core.read_jsonl(log) == []
    for step in range(4):
        core.append_jsonl(log, {"step": step})
    whole = log.read_bytes()
    log.write_bytes(whole[: min(cut, len(whole))])
    kept = core.read_jsonl(log)
    assert [row["step"] for row in kept] == list(range(len(kept)))
    core.append_jsonl(log, {"step": len(kept)})
    assert [row["step"] for row in core.read_jsonl(log)] == list(range(len(kept) + 1))


def test_a_torn_row_of_any_length_is_cut_off(tmp_path):
    core.append_jsonl(tmp_path / "log", {"step": 1})
    with open(tmp_path / "log", "a") as file:
        file.write('{"step": 2, "names": "' + "x" * 200_000)
    core.append_jsonl(tmp_path / "log", {"step": 3})
    assert (tmp_path / "log").read_text() == '{"step": 1}\n{"step": 3}\n'


@pytest.mark.parametrize("damage", [b'{"a": ', b"", b"[2]", b"\0\0\0", b'{"a": NaN}', b'{"\xff": 2}', b"[" * 100_000])
def test_a_damaged_line_is_named_once_and_counts_as_absent(tmp_path, caplog, damage):
    (tmp_path / "log.jsonl").write_bytes(b'{"a": 1}\n' + damage + b'\n{"a": 3}\n')
    assert core.read_jsonl(tmp_path / "log.jsonl") == core.read_jsonl(tmp_path / "log.jsonl") == [{"a": 1}, {"a": 3}]
    assert caplog.messages == [f"{tmp_path / 'log.jsonl'}: line 2 is damaged, left out"]


NAMES = [b"n" * 255, b"n" * 251 + b".png", b"caf\xe9.json", "e\u0301.png".encode(), b"{v2}", b"a\nb", b"-x", b"2024", b"a." + b"s" * 250]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_that_the_file_system_takes_can_be_written(tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    with core.atomic_path(path) as partial:
        assert len(os.fsencode(partial.name)) <= 60 and partial.name.startswith(core.PARTIAL)
        partial.write_text("1")
    core.write_json(path, {"name": path.name})
    assert core.read_json(path) == {"name": path.name} and os.listdir(os.fsencode(tmp_path)) == [name]
    assert path.read_bytes().decode("utf-8")  # whatever the name


def test_a_folder_that_is_gone_stays_gone(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(core.NotWritten, match=r"run/a: cannot be written \(No such file or directory\).*make its folder") as caught:
        with core.atomic_path(tmp_path / "run" / "a") as partial:
            partial.unlink()
            (tmp_path / "run").rmdir()
    assert caught.value.errno == errno.ENOENT
    for write in (lambda path: core.write_json(path, {}), lambda path: core.append_jsonl(path, {})):
        with pytest.raises(core.NotWritten) as caught:
            write(tmp_path / "run" / "a")
        assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("error, words", [
    (OSError(errno.ENOSPC, "?"), "(No space left on device); what was there before is whole: make room and start"),
    (OSError(errno.EDQUOT, "?"), "(Disk quota exceeded)"),
    (OSError(errno.EROFS, "?"), "(Read-only file system); what was there before is whole: make it writable"),
])
def test_a_failed_write_is_one_line_and_leaves_the_old_file(tmp_path, error, words):
    (tmp_path / "a").write_text("old")
    with pytest.raises(core.NotWritten) as caught, core.atomic_path(tmp_path / "a") as outer:
        with core.atomic_path(outer):  # within another, as a picture is: the final name is told
            raise error
    assert str(caught.value).startswith(f"{tmp_path / 'a'}: cannot be written {words}") and "\n" not in str(caught.value)
    assert caught.value.strerror in str(caught.value) and os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize("error", [ValueError("mine"), RuntimeError("mine"), KeyboardInterrupt("mine"), OSError("mine")])
def test_other_errors_pass_as_they_are(tmp_path, error):
    with pytest.raises(type(error), match="^mine$") as caught, core.atomic_path(tmp_path / "a") as partial:
        partial.write_text("half")
        raise error
    assert caught.value is error and os.listdir(tmp_path) == []


@pytest.mark.parametrize("there", ["file", "link to nothing", "folder"])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("links", [True, False])
def test_nothing_is_replaced_without_overwrite(tmp_path, monkeypatch, there, late, links):
    path = tmp_path / "a"
    make = {"file": lambda: path.write_text("theirs"), "link to nothing": lambda: path.symlink_to("gone"), "folder": path.mkdir}[there]
    if not links:
        monkeypatch.setattr(os, "link", lambda *names: (_ for _ in ()).throw(OSError(errno.EPERM, "no links here")))
    None if late else make()
    with pytest.raises(FileExistsError, match="a: exists already"), core.atomic_path(path, overwrite=False) as partial:
        assert late, "refused before the work"
        make()
        partial.write_text("ours")
    assert os.listdir(tmp_path) == ["a"] and path.is_symlink() == (there == "link to nothing") and path.is_dir() == (there == "folder")


@pytest.mark.parametrize("links", [True, False])
def test_a_free_name_is_taken_without_overwrite(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", lambda *names: (_ for _ in ()).throw(OSError(errno.EPERM, "no links here")))
    core.write_json(tmp_path / "a", {"x": 1}, overwrite=False)
    assert core.read_json(tmp_path / "a") == {"x": 1} and os.listdir(tmp_path) == ["a"]


def test_only_our_unfinished_files_are_removed(tmp_path):
    killed = f"import os, signal\nfrom crlsr.core import atomic_path\nwith atomic_path({str(tmp_path / 'a.png')!r}):\n    os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", killed])
    (debris,) = tmp_path.iterdir()
    kept = [".a.png.x.partial.png", ".crlsr.jsonl", ".crlsr-new", "results.json", "a.partial.png"]
    for name in kept:
        (tmp_path / name).touch()
    core.remove_partials(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(kept) and debris.name not in kept


@given(json_values)
def test_json_comes_back_as_it_was(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "a.json"
    core.write_json(path, {"value": value})
    assert core.read_json(path) == {"value": value} == json.loads(path.read_bytes())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert core.read_json(path) == {"value": value}


@pytest.mark.parametrize("content, reason", [
    (b"", "Expecting value"), (b'{"a": 1', "in line 1"), (b"3", "a int, expected an object"), (b'{"a": -Infinity}', "-Infinity is no finite number"),
    (b'{"a": 1e400}', "1e400 is no finite number"), (b'{"a": "\xff"}', "can't decode"), (b'{"a":' * 200_000, "nested too deeply"), (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
])
def test_what_is_no_json_object_is_named(tmp_path, content, reason):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match="a.json is damaged or no JSON object") as caught:
        core.read_json(tmp_path / "a.json", "--replay")
    assert str(caught.value).startswith(f"--replay: {tmp_path}") and reason in str(caught.value) and "\n" not in str(caught.value)


def test_json_is_read_from_regular_files_of_some_size_only(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="a.json: is not there"):
        core.read_json(tmp_path / "a.json")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ValueError, match="is no regular file"):
            core.read_json(path)
    with open(tmp_path / "large", "wb") as file:
        file.truncate(2**28 + 1)
    with pytest.raises(ValueError, match="more than 256 MiB"):
        core.read_json(tmp_path / "large")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_figure_that_is_not_finite_is_refused_by_its_place(tmp_path, bad):
    core.write_json(tmp_path / "a", {"x": 1})
    with pytest.raises(ValueError, match=r"a: \['images'\]\[1\]\['psnr'\] is no finite number"):
        core.write_json(tmp_path / "a", {"images": [{"psnr": 1.0}, {"psnr": bad}]})
    assert core.read_json(tmp_path / "a") == {"x": 1}
    with pytest.raises(ValueError, match=r"log: \['psnr'\] is no finite number"):
        core.append_jsonl(tmp_path / "log", {"step": 1, "psnr": bad})
    assert not (tmp_path / "log").exists()


@given(st.text())
def test_shown_texts_are_one_printable_line(text):
    text = core.plain(text)
    assert len(text.splitlines()) <= 1 and text.isprintable() or any(unicodedata.category(sign) in ("Zs", "Cn", "Co") for sign in text)
    text.encode("utf-8")  # a terminal can print it


@given(st.text(alphabet="ab|`<>[]()*_&$~:@\\!#/.x \n"))
def test_shown_texts_are_no_markup(text):
    text = "x" + text + "x"
    render = MarkdownWithMath(renderer=IPythonRenderer(escape=True)).render
    table = render(f"| name | n |\n| --- | --- |\n| {core.plain(text, markdown=True)} | 1 |")
    assert [html.unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", table)] == [core.plain(text), "1"]


@given(st.floats(-1e6, 1e6), st.integers(0, 5), st.booleans())
def test_a_number_that_rounds_to_zero_has_no_sign(value, digits, sign):
    text = core.decimal(value, digits, sign)
    assert text.lstrip("+-") == f"{abs(value):.{digits}f}"
    assert text[0].isdigit() if float(text) == 0 else text[0] == ("-" if value < 0 else "+" if sign else text.lstrip("+-")[0])


def test_a_number_that_is_none_is_shown():
    assert core.decimal(float("nan"), 2, True).strip("+") == "nan" and core.decimal(-math.inf, 2) == "-inf"
