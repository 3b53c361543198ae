"""step on several processes: the same weights as one process, a checkpoint for any number."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from crlsr.core import read_jsonl
from crlsr.data import embedded_images
from crlsr.images import write_image
from crlsr.training import fit, profile
from crlsr.training.interruptions import load_checkpoint
from crlsr.training.step import World, join_world
from tests.forks import Forked

EXACT = {"num_feat": 8, "num_block": 2, "num_embed": 8, "num_vectors": 8, "batch_size": 4, "patch_size": 6, "steps": 20, "warmup_steps": 3, "log_every": 5,
         "checkpoint_every": 10, "threads": 1, "device": "cpu", "precision": "float64", "weight_bc": 0.01, "learning_rate": 3e-3, "clip_norm": 0.05}
VARIANTS = {
    "positions": {"validate_every": 20},
    "batch": {"bc_negatives": "batch", "accumulate": 1, "probe_every": 7},
    "queue": {"bc_negatives": "queue", "ema_keys": 0.9, "queue_size": 64},
    "shares": {"share_bc": 0.3, "share_srnce": 0.1, "share_aware": -0.1, "share_gradient": 0.1, "weight_decode": 0.1, "decoder_base": "features", "accumulate": 1},
    "control": {"weight_bc": 0, "weight_srnce": 0, "weight_rec": 0, "accumulate": 2},
    "estimating": {"method": "estimating", "pairing": "same_degradation", "vector_feat": 8, "encoder_feat": 4, "num_keys": 16, "contrast_weight": 0.1},
}


def both(code, *arguments):
    "Runs the code in two processes that torchrun would call ranks 0 and 1: (exit status, stdout, stderr) of each."
    store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)  # as torchrun's own: on a port that it has, not on one that was free a moment ago
    processes = []
    for rank in range(2):
        who = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port),
               "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
        processes.append(Forked(code, *arguments, env=os.environ | who))
    try:
        said = [process.communicate() for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, said)]


def two_processes(code, *arguments):
    "The outputs of the code in two processes that end well."
    became = both(code, *arguments)
    for status, out, err in became:
        assert status == 0, f"{out}\n{err[-3000:]}\nof both: {became}"
    return [out for _, out, _ in became]


@pytest.fixture(scope="module", autouse=True)
def few_photographs(tmp_path_factory):
    "Two small files, so that a start takes no time."
    folder = tmp_path_factory.mktemp("few")
    for name in ("astronaut", "coffee"):
        write_image(embedded_images()[name][:, 100:160, 100:160], folder / f"{name}.png")
    EXACT["data"] = VARIANTS["positions"]["val_data"] = str(folder)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    "Every variant trained by two processes; one of them only half, another one taken up after a stop that one process alone was asked for."
    folder = tmp_path_factory.mktemp("two")
    code = """
import json, signal, sys
from pathlib import Path
from crlsr.training import fit, loop, profile
from crlsr.training.step import join_world
folder, settings, variants = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
with join_world() as world:
    for name, changes in variants.items():
        result = fit(*profile("smoke", settings | changes), folder / name, progress=False, max_steps=10 if name == "batch" else None)
        assert result.finished == (name != "batch")
    plain = loop.train_step
    def stopped(state, *rest):
        if state.step == 6 and world.rank == 1:
            signal.raise_signal(signal.SIGINT)
        return plain(state, *rest)
    loop.train_step = stopped
    try:
        fit(*profile("smoke", settings), folder / "stopped", progress=False)
        print("returned")
    except KeyboardInterrupt:
        print("interrupted")
    local = world.rank + 1.0 + 0 * __import__("torch").arange(3.0)
    print(json.dumps([world.mean(local).tolist(), world.gather(local).tolist(), world.gather(local, own_first=True).tolist(), world.any(world.rank == 1), world.any(False)]))
"""
    return folder, two_processes(code, folder, json.dumps(EXACT), json.dumps(VARIANTS))


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    for name, changes in VARIANTS.items():
        fit(*profile("smoke", EXACT | changes), folder / name, progress=False)
    return folder


def assert_close(folder, other, limit=1e-5):
    a, b = (load_checkpoint(run / "checkpoint.pt") for run in (folder, other))
    assert a["step"] == b["step"] == 20
    start = fit_start(a["config"])
    for part in ("weights", "ema"):
        for name, value in a[part].items():
            assert value.dtype == b[part][name].dtype
            if "loss.negatives." not in name:  # a queue holds the same keys in the order of the processes
                assert torch.allclose(value.double(), b[part][name].double(), rtol=0, atol=limit), name
    moved = max((value - start[name]).abs().max().item() for name, value in a["weights"].items() if name in start and value.is_floating_point())
    assert moved > 100 * limit  # else the comparison would mean nothing


def fit_start(config):
    from crlsr.training.step import new_state

    return new_state(*(kind.from_dict(config[part]) for kind, part in zip(map(type, profile("smoke")), ("model", "train")))).model.state_dict()


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "batch"])
def test_two_processes_train_the_weights_of_one(one, two, name):
    assert_close(two[0] / name, one / name)
    rows = [read_jsonl(folder / name / "log.jsonl") for folder in (one, two[0])]
    for a, b in zip(*rows, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"seconds", "images_per_second"}:
            assert key.startswith("time_") or a[key] == pytest.approx(b[key], rel=1e-6, abs=1e-9), key
    assert ("psnr" in rows[0][-1]) == (name == "positions") and sum(row["clipped_guidance"] for row in rows[0]) > 0 or name == "control"


def test_a_checkpoint_of_two_processes_goes_on_with_one(one, two):
    config = profile("smoke", EXACT | VARIANTS["batch"])
    assert load_checkpoint(two[0] / "batch" / "checkpoint.pt")["step"] == 10
    assert fit(*config, two[0] / "batch", progress=False).finished
    assert_close(two[0] / "batch", one / "batch")


def test_the_keys_of_other_processes_matter(one):
    "Without gathering, the comparison above would fail: half the batch has other negatives."
    changed = fit(*profile("smoke", EXACT | VARIANTS["batch"] | {"accumulate": 2}), one / "halves", progress=False)
    a, b = (load_checkpoint(one / name / "checkpoint.pt")["weights"] for name in ("halves", "batch"))
    assert changed.finished and max((a[name] - b[name]).abs().max().item() for name in a if a[name].is_floating_point()) > 1e-4


def test_two_processes_stop_together(two):
    folder, outputs = two
    assert load_checkpoint(folder / "stopped" / "checkpoint.pt")["step"] == 7
    assert [out.splitlines()[0] for out in outputs] == ["returned", "interrupted"]


def test_values_of_two_processes(two):
    ordered = [1.0] * 3 + [2.0] * 3
    for rank, out in enumerate(two[1]):
        assert json.loads(out.splitlines()[1]) == [[1.5] * 3, ordered, ordered if rank == 0 else ordered[::-1], True, False]


@given(size=st.integers(1, 9), each=st.integers(1, 5))
def test_shares_are_equal_and_cover_the_batch(size, each):
    shares = [World(rank, size).share(size * each) for rank in range(size)]
    assert [i for share in shares for i in share] == list(range(size * each)) and {len(share) for share in shares} == {each}
    if size > 1:
        with pytest.raises(ValueError, match=f"batch_size: got {size * each + 1}, expected a multiple of {size}"):
            World(0, size).share(size * each + 1)


def test_one_process_is_a_world(monkeypatch):
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    x = torch.randn(3, requires_grad=True)
    with join_world() as world:
        assert world == World() and world.first and world.mean(x) is x and world.gather(x) is x
        assert torch.equal(world.gather(x, own_first=True), x) and not torch.distributed.is_initialized()


# a process that is gone

LONE = """
import json, os, signal, sys
from crlsr.training import fit, loop, profile
plain = loop.train_step
def dying(state, *rest):
    if state.step == 5 and state.world.rank == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(state, *rest)
loop.train_step = dying
try:
    fit(*profile("smoke", json.loads(sys.argv[2])), sys.argv[1], progress=False)
except (OSError, ValueError) as error:
    print(type(error).__name__, error)
    sys.exit(1)
"""


@pytest.mark.parametrize("killed", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_process_ends_the_others_in_one_line_and_the_run_goes_on(one, two, tmp_path, killed):
    became = both(LONE, tmp_path / "run", json.dumps(EXACT | {"checkpoint_every": 2}), killed)
    assert became[killed][0] == -9
    assert became[1 - killed][:2] == (1, "ConnectionError another process of this training has ended; the same command goes on\n"), became
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] == 4
    shutil.copytree(tmp_path / "run", tmp_path / "alone")
    assert fit(*profile("smoke", EXACT), tmp_path / "alone", progress=False).finished  # by one process: another order of sums
    rows = [read_jsonl(folder / "log.jsonl") for folder in (one / "positions", tmp_path / "alone")]
    assert [row["total"] for row in rows[0]] == pytest.approx([row["total"] for row in rows[1]], rel=1e-5)
    two_processes(LONE, tmp_path / "run", json.dumps(EXACT), 9)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (two[0] / "positions" / "model.safetensors").read_bytes()
    rows = [[row["total"] for row in read_jsonl(folder / "log.jsonl")] for folder in (two[0] / "positions", tmp_path / "run")]
    assert rows[0] == rows[1] and not list((tmp_path / "run").glob(".crlsr-*"))


def launched(run, killed=None):
    "The command line below torchrun on two processes, one of which is killed after the first checkpoint: torchrun's exit status, and what was said."
    settings = {**EXACT, "log_every": 1, "checkpoint_every": 1}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python", "--", sys.executable, "-m", "crlsr", "train", "--profile", "smoke",
               "--run", str(run), *(f"--set={name}={value}" for name, value in settings.items())]
    launcher = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while killed is not None and not (run / "checkpoint.pt").exists():
        assert launcher.poll() is None and time.monotonic() < deadline, launcher.communicate()
        time.sleep(0.02)
    for child in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split() if killed is not None else ():
        if f"RANK={killed}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            os.kill(int(child), signal.SIGKILL)
    out, err = launcher.communicate(timeout=600)
    return launcher.returncode, out, err


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="which process has which rank is read from /proc")
@pytest.mark.parametrize("killed", [0, 1])
def test_below_torchrun_a_killed_process_ends_the_run_and_the_same_command_completes_it(two, tmp_path, killed):
    status, _, err = launched(tmp_path / "run", killed)
    assert status == 1 and "(SIGKILL)" in err and err.count("crlsr: ") <= 1, err
    assert not re.search(r'File ".*crlsr[/\\](app|core|training)[/\\]', err), f"a traceback of ours, beside torchrun's own: {err}"
    assert 1 <= load_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] < 20
    status, out, err = launched(tmp_path / "run")
    assert status == 0 and "finished: 20 of 20 steps" in out, err
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (two[0] / "positions" / "model.safetensors").read_bytes()


def test_what_the_first_process_refuses_ends_the_others_in_one_line(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").write_text("mine")
    (status, said, _), (other_status, other_said, _) = both(LONE, tmp_path / "run", json.dumps(EXACT), 9)
    assert status == other_status == 1 and "holds log.jsonl, and neither" in said and other_said.count("\n") == 1
    assert (tmp_path / "run" / "log.jsonl").read_text() == "mine"
