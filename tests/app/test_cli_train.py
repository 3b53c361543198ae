"""cli: `crlsr train`, its time budget, device, signals, and several processes under torchrun."""
import signal
import subprocess
import sys
import time

import pytest

from crlsr.app.cli import main
from crlsr.core import read_jsonl
from crlsr.data import embedded_images
from crlsr.images import write_image
from crlsr.training.interruptions import load_checkpoint

CRLSR = [sys.executable, "-u", "-c", "import sys; from crlsr.app.cli import main; sys.exit(main())"]


@pytest.fixture
def command(tmp_path):
    write_image(embedded_images("heldout")["chelsea"][:, 100:180, 100:180], tmp_path / "photos" / "eye.png")
    settings = {"num_feat": 4, "num_block": 2, "batch_size": 2, "patch_size": 6, "weight_bc": 0, "weight_srnce": 0, "weight_rec": 0, "threads": 1, "log_every": 1}

    def line(**changes):
        sets = [text for key, value in (settings | changes).items() for text in ("--set", f"{key}={value}")]
        return ["train", "--profile", "smoke", "--data", str(tmp_path / "photos"), "--run", str(tmp_path / "run"), "--device", "cpu", *sets]

    return line


def test_a_time_budget_ends_well_and_the_same_command_goes_on(command, tmp_path, capsys):
    assert main([*command(steps=4), "--max-minutes", "0.000001"]) == 0
    said = capsys.readouterr()
    assert "time is up, the same command goes on: 1 of 4 steps" in said.out and "stopped after step 1 of 4" in said.err
    assert main(command(steps=4)) == 0
    assert "finished: 4 of 4 steps" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["config"]["train"]["device"] == "cpu"


@pytest.mark.parametrize("more, words", [
    (["--max-minutes", "0"], "crlsr: max_minutes: got 0.0, expected a positive number\n"),
    (["--device", "gpu7"], "crlsr: device: 'gpu7' cannot be used here, expected 'auto', 'cpu' or 'cuda'\n"),
])
def test_wrong_options_are_one_line(command, capsys, more, words):
    assert main([*command(steps=4), *more]) == 1
    assert capsys.readouterr().err == words
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_sigterm_is_answered_by_a_checkpoint_one_line_and_143(command, tmp_path):
    with subprocess.Popen([*CRLSR, *command(steps=100_000, checkpoint_every=100_000)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and len(read_jsonl(tmp_path / "run" / "log.jsonl")) < 3:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and err.splitlines()[-1] == "crlsr: terminated" and "Traceback" not in err
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] == read_jsonl(tmp_path / "run" / "log.jsonl")[-1]["step"] >= 3


@pytest.mark.slow
def test_torchrun_trains_one_model_and_one_process_speaks(command, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python", "--"]
    done = subprocess.run([*torchrun, *CRLSR, *command(steps=6)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("training: 6 steps") == 1 and done.stdout.count("finished: 6 of 6 steps") == 1
    assert [row["step"] for row in read_jsonl(tmp_path / "run" / "log.jsonl")] == list(range(1, 7))
