"""core.outputs: one process a folder, what may be replaced, batches that go on."""
import contextlib
import errno
import hashlib
import os
import signal
import subprocess
import sys
import tempfile

import pytest

from crlsr import core
from crlsr.core import Failures, Ledger, check_targets, held_folder, is_file_name


def python(code, *args):
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, timeout=120)


HOLD = """
import sys
from crlsr.core import held_folder
with held_folder(sys.argv[1], "-o"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def holder(folder):
    "Another process that holds a folder."
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_two_processes_do_not_share_a_folder(tmp_path):
    with holder(tmp_path / "run") as other:
        with pytest.raises(ValueError, match=f"^-o: {tmp_path / 'run'} is in use by process {other.pid} on .*; wait for it, or take another folder$"):
            with held_folder(tmp_path / "run", "-o"):
                raise AssertionError
        again = python("import sys\nfrom crlsr.core import held_folder\nwith held_folder(sys.argv[1]):\n    pass", tmp_path / "run")
        assert again.returncode == 1 and f"in use by process {other.pid}" in again.stderr.splitlines()[-1]
        other.send_signal(signal.SIGKILL)
        other.wait(60)
        with held_folder(tmp_path / "run") as held:
            held.check()


def test_a_process_does_not_hold_a_folder_twice_and_gives_it_back(tmp_path):
    with pytest.raises(RuntimeError, match="mine"), held_folder(tmp_path / "run"):
        with pytest.raises(ValueError, match=f"in use by process {os.getpid()} on"), held_folder(tmp_path / "run" / ".." / "run"):
            raise AssertionError
        raise RuntimeError("mine")
    with held_folder(tmp_path / "run"):
        pass


def test_children_of_a_killed_process_do_not_keep_its_folder(tmp_path):
    code = ("import os, signal, sys, time\nfrom crlsr.core import held_folder\nwith held_folder(sys.argv[1]):\n    if os.fork() == 0:\n"  # the child kills its parent, once it runs
            "        print(os.getpid(), flush=True)\n        os.kill(os.getppid(), signal.SIGKILL)\n    time.sleep(60)")
    killed = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    child = int(killed.stdout.readline())
    try:
        assert killed.wait(60) == -signal.SIGKILL
        os.kill(child, 0)  # it lives
        with held_folder(tmp_path) as held:
            held.check()
    finally:
        os.kill(child, signal.SIGKILL)
        killed.stdout.close()


@pytest.mark.parametrize("how", ["file", "link", "dangling link"])
def test_a_lock_of_somebody_else_is_left_as_it_is(tmp_path, how):
    "To hold a folder writes into its `.lock`: never into a file that this package did not make."
    theirs = tmp_path / "theirs"
    lock = tmp_path / "run/.lock"
    lock.parent.mkdir()
    if how == "file":
        lock.write_text("notes of mine")
    else:
        lock.symlink_to(theirs)
        if how == "link":
            theirs.write_text("notes of mine")
    with pytest.raises(ValueError, match="run_dir: .*is no lock of crlsr; take another folder"), held_folder(lock.parent):
        pass
    assert theirs.exists() == (how == "link") and os.path.lexists(lock)
    if how != "dangling link":
        assert lock.read_text() == "notes of mine"


def test_debris_of_a_killed_process_is_removed_and_nothing_else(tmp_path):
    code = "import os, signal, sys\nfrom crlsr.core import atomic_path\nwith atomic_path(sys.argv[1]):\n    os.kill(os.getpid(), signal.SIGKILL)"
    assert python(code, tmp_path / "a.png").returncode == -signal.SIGKILL and len(os.listdir(tmp_path)) == 1
    for name in (".checkpoint.x.partial.pt", "a.partial.png", ".hidden"):
        (tmp_path / name).touch()
    with held_folder(tmp_path):
        assert sorted(os.listdir(tmp_path)) == [".checkpoint.x.partial.pt", ".hidden", ".lock", "a.partial.png"]


@pytest.mark.parametrize("how", ["removed", "renamed", "replaced"])
def test_a_folder_taken_away_is_noticed_and_not_made_again(tmp_path, how):
    run = tmp_path / "run"
    with held_folder(run) as held:
        held.check()
        (run / ".lock").unlink() if how == "removed" else None
        run.rmdir() if how == "removed" else run.rename(tmp_path / "other")
        run.mkdir() if how == "replaced" else None
        with pytest.raises(core.NotWritten, match="^run_dir: .*run was removed, renamed or replaced while it was in use") as caught:
            held.check()
        assert caught.value.errno == errno.ENOENT
    assert run.exists() == (how == "replaced") and (how != "replaced" or os.listdir(run) == [])


@pytest.mark.parametrize("path", ["file", "file/run", "link"])
def test_what_is_no_folder_is_refused(tmp_path, path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("gone")
    with pytest.raises(ValueError, match=r"^run_dir: .*(file|link) is a file, expected a folder$"), held_folder(tmp_path / path):
        raise AssertionError
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]


@pytest.mark.parametrize("call, said", [
    ("held_folder(sys.argv[1]).__enter__()", "NotWritten {}: cannot be written (Permission denied); what was there before is whole: make it writable and start the same command again\n"),
    ("check_targets([sys.argv[1] + '/new/a.png'])", "PermissionError {}: cannot be written to; make it writable, or choose another output\n"),
])
def test_a_folder_without_the_right_to_write_is_refused_in_one_line(call, said):
    "A real refusal of the system, to a user who is not root."
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    code = ("import os, sys\nfrom crlsr.core import check_targets, held_folder\nos.setuid(65534)\n"
            f"try:\n    {call}\nexcept OSError as error:\n    print(type(error).__name__, error)")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        done = python(code, folder)
    assert done.stdout == said.format(folder), done.stderr


@pytest.mark.parametrize("out, expected", [
    ("large.png", True), ("d/large.PNG", True), ("large.png/", False), ("v1.5", False), ("v1.5/", False), ("out", False), (".png", False), (".", False), ("", False),
    ("there.png", False),
])
def test_a_file_or_a_folder_is_meant(tmp_path, monkeypatch, out, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.png").mkdir()
    assert is_file_name(out, {".png", ".jpg"}) == expected


@pytest.fixture()
def place(tmp_path):
    (tmp_path / "photo.png").write_text("x")
    (tmp_path / "link.png").symlink_to("photo.png")
    (tmp_path / "dangling.png").symlink_to("gone.png")
    os.link(tmp_path / "photo.png", tmp_path / "second.png")
    (tmp_path / "old.png").write_text("y")
    (tmp_path / "out").mkdir()
    (tmp_path / "outlink").symlink_to("out")
    return tmp_path


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("targets, message", [
    (["photo.png"], "photo.png: is an input"), (["link.png"], "link.png: is an input"), (["second.png"], "second.png: is an input"),
    (["out"], "out: is a folder"), (["outlink"], "outlink: is a folder"), (["old.png/a.png"], "old.png is a file, expected a folder"),
    (["dangling.png/a.png"], "dangling.png is a file"), (["a.png", "out/../a.png"], "two results"), (["out/a.png", "outlink/a.png"], "two results"),
    (["n" * 252 + ".png"], "a name of 256 bytes, of which 255"), (["é" * 128], "a name of 256 bytes"), (["n" * 256 + "/a.png"], "a name of 256 bytes"),
])
def test_targets_that_cannot_be_are_refused_in_any_case(place, targets, message, overwrite):
    with pytest.raises(ValueError, match=message) as caught:
        check_targets([place / each for each in targets], [place / "photo.png", place / "missing.png"], overwrite=overwrite)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target", ["old.png", "dangling.png", "outlink/../old.png"])
def test_what_is_there_is_replaced_on_demand_or_where_it_is_ours(place, target):
    for offered, cure in ((None, "choose another output$"), (False, "choose another output, or --overwrite$")):
        with pytest.raises(FileExistsError, match=f"exists already; {cure}"):
            check_targets([place / "new.png", place / target], mine={place / "new.png"}, overwrite=offered)
    check_targets([place / target], overwrite=True)
    check_targets([place / target], mine={place / target})


def test_free_targets_pass(place):
    before = sorted(place.iterdir())
    check_targets([place / "new" / "deep" / "a.png", place / ("n" * 255), place / os.fsdecode(b"caf\xe9"), place / "a\nb"], [place / "photo.png"])
    assert sorted(place.iterdir()) == before


COPY = """
import hashlib, os, signal, sys
from pathlib import Path
from crlsr.core import Ledger, atomic_path, check_targets, held_folder
out, kill = Path(sys.argv[1]), sys.argv[2]
texts = {f"{i}": sys.argv[3] + str(i) for i in range(3)}
digest = lambda text: hashlib.sha256(text.encode()).hexdigest()
count = 0
def maybe(honest, when):
    def call(*names, **options):
        global count
        count += not str(names[0]).endswith(".jsonl") or when == "row"
        if kill == f"{when} {count}":
            os.kill(os.getpid(), signal.SIGKILL)
        result = honest(*names, **options)
        if kill == f"after {when} {count}":
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call
from crlsr.core import outputs
if "rename" in kill:
    os.replace, os.link = maybe(os.replace, "rename"), maybe(os.link, "rename")
if "row" in kill:
    outputs.append_jsonl = maybe(outputs.append_jsonl, "row")
with held_folder(out):
    ledger = Ledger(out, {"command": "copy"})
    left = [name for name in texts if not ledger.made(name, digest(texts[name]))]
    check_targets([out / name for name in left], mine=ledger.mine)
    for name in left:
        with ledger.output(name, digest(texts[name])) as partial:
            partial.write_text(texts[name])
    print(*left)
"""


@pytest.mark.parametrize("kill", ["row 1", "after row 1", "row 2", "after row 2", "after row 3", "rename 1", "after rename 1", "rename 2", "after rename 3"])
def test_a_batch_killed_anywhere_is_completed_by_the_same_call(tmp_path, kill):
    for before in ("old", "new"):  # into an empty folder, and over its own earlier results
        assert python(COPY, tmp_path / "out", kill, before).returncode == -signal.SIGKILL
        again = python(COPY, tmp_path / "out", "", before)
        assert again.returncode == 0, again.stderr
        assert sorted(os.listdir(tmp_path / "out")) == [".crlsr.jsonl", ".lock", "0", "1", "2"], "nothing lost, no debris"
        assert [(tmp_path / "out" / f"{i}").read_text() for i in range(3)] == [f"{before}{i}" for i in range(3)]
        assert python(COPY, tmp_path / "out", "", before).stdout == "\n", "nothing is done twice"


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def put(ledger, name, text, **meta):
    with ledger.output(name, digest(text), **meta) as partial:
        partial.write_text(text)


def test_the_record_knows_its_files_by_content(tmp_path):
    put(Ledger(tmp_path, {"scale": 4}), os.fsdecode(b"sub/caf\xe9"), "one", pieces=3)
    put(Ledger(tmp_path, {"scale": 4}), "b", "two")
    one, ledger = os.fsdecode(b"sub/caf\xe9"), Ledger(tmp_path, {"scale": 4})
    assert ledger.made(one, digest("one")) and ledger.mine == {tmp_path / one, tmp_path / "b"} and ledger.rows[one]["pieces"] == 3
    assert not ledger.made(one, digest("other")) and not ledger.made("c", digest("one"))
    os.utime(tmp_path / "b", ns=(0, 0))  # copied, touched: read again, and the same
    assert ledger.made("b", digest("two"))
    for damage in ("twp", "two and more", ""):
        (tmp_path / "b").write_text(damage)
        assert not ledger.made("b", digest("two")) and ledger.mine == {tmp_path / one}
        with pytest.raises(FileExistsError, match="b: exists already"):
            put(ledger, "b", "three")
        assert (tmp_path / "b").read_text() == damage
    (tmp_path / "b").unlink()
    (tmp_path / "b").symlink_to(tmp_path / "c")
    (tmp_path / "c").write_text("two")
    assert not ledger.made("b", digest("two"))


def test_other_settings_are_refused_by_name(tmp_path):
    put(Ledger(tmp_path, {"scale": 4, "tile": None, "sizes": (1, 2)}), "a", "x")
    Ledger(tmp_path, {"scale": 4, "tile": None, "sizes": (1, 2)})
    with pytest.raises(ValueError, match=r"holds files of other settings \(scale = 4 there, 2 here\); choose another folder"):
        Ledger(tmp_path, {"scale": 2, "tile": None, "sizes": [1, 2]})


@pytest.mark.parametrize("line, kept", [(0, []), (1, ["b"]), (2, ["a"])])
@pytest.mark.parametrize("damage", [b"{", b'{"name": ["a"], "bytes": 1}', b"\0"])
def test_a_damaged_record_counts_as_absent(tmp_path, line, kept, damage):
    ledger = Ledger(tmp_path, {"scale": 4})
    put(ledger, "a", "1")
    put(ledger, "b", "2")
    rows = (tmp_path / ".crlsr.jsonl").read_bytes().splitlines()
    rows[line] = damage
    (tmp_path / ".crlsr.jsonl").write_bytes(b"\n".join(rows) + b"\n")
    again = Ledger(tmp_path, {"scale": 4})
    assert sorted(path.name for path in again.mine) == kept
    put(again, "c", "3")
    assert sorted(path.name for path in Ledger(tmp_path, {"scale": 4}).mine) == [*kept, "c"]


def test_a_record_does_not_bring_a_folder_back(tmp_path):
    ledger = Ledger(tmp_path / "out", {})
    for name in ("a", "sub/a"):
        with pytest.raises(core.NotWritten, match="No such file"):
            put(ledger, name, "x")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError("of\ntwo lines"), FileNotFoundError(2, "gone"), MemoryError(), RuntimeError("x"), OSError("no image")])
def test_a_batch_goes_on_and_names_what_failed(error, caplog):
    failures, done = Failures(), []
    for name in ("a", "b\n", "c"):
        with failures.item(name):
            if name == "b\n":
                raise error
            done.append(name)
    assert done == ["a", "c"] and list(failures.reasons) == ["b\n"] and len(caplog.messages) == 1
    with pytest.raises(ValueError, match=r"^1 of 3 images failed: b\\n: .+$") as caught:
        failures.tell(3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), OSError(errno.EROFS, "read-only"), core.NotWritten("x"), KeyboardInterrupt(), TypeError("a mistake of ours")])
def test_what_concerns_all_items_ends_the_batch(error):
    failures = Failures()
    with pytest.raises(type(error)), failures.item("a"):
        raise error
    failures.tell(1)
    assert failures.reasons == {}


@pytest.mark.parametrize("name, reason, told", [
    ("e", "the file is damaged", "e: the file is damaged"), ("0801", "/d/08011.png: is damaged", "0801: /d/08011.png: is damaged"),
    ("0801", "/d/0801.png: is damaged", "/d/0801.png: is damaged"), ("a(b", "/d/a(b.png: is damaged", "/d/a(b.png: is damaged")])
def test_an_item_is_named_where_its_reason_does_not_name_it(name, reason, told):
    failures = Failures()
    with failures.item(name):
        raise ValueError(reason)
    assert failures.reasons == {name: told}


def test_many_failures_are_told_in_one_line():
    failures = Failures("pairs")
    for i in range(40):
        with failures.item(f"{i}.png"):
            raise ValueError(f"/d/{i}.png: is damaged")
    with pytest.raises(ValueError, match=r"^40 of 50 pairs failed: /d/0.png: is damaged; .*/d/4.png: is damaged; and 35 more, named above$"):
        failures.tell(50)


def test_what_asks_to_stop():
    assert set(core.STOP_SIGNALS) == {signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])}
