"""interruptions: the file of a checkpoint (whole, cut, altered, foreign, of other settings) and the log that is cut back to it."""
import os

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from crlsr.core import append_jsonl, read_jsonl
from crlsr.training import profile
from crlsr.training.interruptions import (
    CHECKPOINT_KEYS, check_same_config, latest_checkpoint, load_checkpoint, previous_path, save_checkpoint, trim_log,
)


def state_of(**changes):
    return {key: 1 for key in CHECKPOINT_KEYS} | {"weights": {"w": torch.arange(5000.0)}} | changes


def test_checkpoints_come_back_whole_and_run_no_code(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(state_of(config={"betas": (0.9, 0.99), "none": None}, pending=[[1.0, 2.0]]), path)
    back = load_checkpoint(path)
    assert back["config"] == {"betas": (0.9, 0.99), "none": None} and back["pending"] == [[1.0, 2.0]]
    assert torch.equal(back["weights"]["w"], torch.arange(5000.0))

    class Trojan:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save(state_of(config=Trojan()), path)
    with pytest.raises(ValueError, match="cut short, altered or no checkpoint"):
        load_checkpoint(path)
    assert not (tmp_path / "ran").exists()


@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_cut_checkpoint_is_refused(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "checkpoint.pt"
    save_checkpoint(state_of(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(cut * len(content))])
    with pytest.raises(ValueError, match=r"^checkpoint: .*cut short, altered") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


@given(place=st.integers(0, 19_999), bit=st.integers(0, 7))
def test_an_altered_tensor_is_refused(tmp_path_factory, place, bit):
    path = tmp_path_factory.mktemp("altered") / "checkpoint.pt"
    save_checkpoint(state_of(), path)
    content = bytearray(path.read_bytes())
    content[content.find(torch.arange(5000.0).numpy().tobytes()) + place] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(ValueError, match="altered"):
        load_checkpoint(path)


def test_foreign_and_incomplete_checkpoints_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        load_checkpoint(tmp_path / "none.pt")
    torch.save({"weights": {}}, tmp_path / "foreign.pt")
    with pytest.raises(ValueError, match="is not one of crlsr, expected the entries config, weights"):
        load_checkpoint(tmp_path / "foreign.pt")
    with pytest.raises(ValueError, match="lacks optimizer"):
        save_checkpoint({k: v for k, v in state_of().items() if k != "optimizer"}, tmp_path / "c.pt")
    assert not (tmp_path / "c.pt").exists()


def test_only_where_a_run_happens_may_change():
    configs = dict(zip(("model", "train"), (config.to_dict() for config in profile("smoke", {"threads": 1, "device": "cpu"}))))
    for part, config in configs.items():
        for key, value in config.items():
            other = {**configs, part: {**config, key: "other"}}
            if key in ("device", "threads", "workers", "checkpoint_every"):
                check_same_config(configs, other, "run")
            else:
                with pytest.raises(ValueError, match=rf"run: .*\({key} = "):
                    check_same_config(configs, other, "run")


@given(st.lists(st.integers(1, 50), unique=True).map(sorted), st.integers(0, 50))
def test_a_trimmed_log_has_no_row_too_many_or_too_few(tmp_path_factory, steps, step):
    log = tmp_path_factory.mktemp("log") / "log.jsonl"
    for s in steps:
        append_jsonl(log, {"step": s})
    rows = trim_log(log, step)
    assert [row["step"] for row in rows] == [s for s in steps if s <= step] and read_jsonl(log) == rows


@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_damaged_checkpoint_never_replaces_a_whole_one(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("damaged") / "checkpoint.pt"
    state = {key: 1 for key in CHECKPOINT_KEYS} | {"weights": {"w": torch.arange(500.0)}}
    for step in (1, 2):
        save_checkpoint(state | {"step": step}, path)
    path.write_bytes(path.read_bytes()[: int(cut * path.stat().st_size)])
    assert latest_checkpoint(path)["step"] == 1
    save_checkpoint(state | {"step": 3}, path)
    assert (load_checkpoint(path)["step"], load_checkpoint(previous_path(path))["step"]) == (3, 1)
