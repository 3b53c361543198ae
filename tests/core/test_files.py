"""core.files: files that are whole or absent, logs, digests."""
import hashlib
import os
import signal
import subprocess
import sys

import hypothesis.strategies as st
import pytest
from hypothesis import given

from crlsr import core


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


def test_a_broken_line_inside_a_log_is_named(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        core.read_jsonl(tmp_path / "log.jsonl")
