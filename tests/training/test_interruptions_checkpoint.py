"""interruptions: the file of a checkpoint (whole, cut, altered, foreign, of other settings) and the log that is cut back to it."""
import os

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from crlsr.core import append_jsonl, read_jsonl, write_json
from crlsr.data import Identity
from crlsr.training import profile
from crlsr.training.interruptions import (
    CHECKPOINT_KEYS, check_photographs, check_same_config, latest_checkpoint, load_checkpoint, own_checkpoint, previous_path, recorded_photographs, save_checkpoint, trim_log,
)


def state_of(**changes):
    return {
        "config": {"model": {}, "train": {"steps": 10}}, "weights": {"w": torch.arange(5000.0)}, "ema": {}, "optimizer": {}, "scaler": {}, "step": 1, "seed": 0,
        "version": "0", "seconds": 1.0, "pending": [], "probes": [], "measured": [], "spent": {}, "data": {}} | changes


def test_the_checkpoint_of_these_tests_has_all_entries():
    assert state_of().keys() == set(CHECKPOINT_KEYS)


def test_checkpoints_come_back_whole_and_run_no_code(tmp_path):
    path = tmp_path / "checkpoint.pt"
    config = {"model": {"none": None}, "train": {"betas": (0.9, 0.99), "steps": 1}}
    save_checkpoint(state_of(config=config, pending=[[1.0, 2.0]]), path)
    back = load_checkpoint(path)
    assert back["config"] == config and back["pending"] == [[1.0, 2.0]]
    assert torch.equal(back["weights"]["w"], torch.arange(5000.0))

    class Trojan:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save(state_of(version=Trojan()), path)
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
            if key in ("device", "threads", "workers", "checkpoint_every", "data", "val_data"):
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
    state = state_of(weights={"w": torch.arange(500.0)})
    for step in (1, 2):
        save_checkpoint(state | {"step": step}, path)
    path.write_bytes(path.read_bytes()[: int(cut * path.stat().st_size)])
    assert latest_checkpoint(path)["step"] == 1
    save_checkpoint(state | {"step": 3}, path)
    assert (load_checkpoint(path)["step"], load_checkpoint(previous_path(path))["step"]) == (3, 1)


@pytest.mark.parametrize("changes, words", [
    ({"step": "2"}, "step is of type str, expected int"), ({"step": True}, "step is of type bool"), ({"step": 11}, "step is 11, expected 0 to 10"), ({"step": -1}, "step is -1"),
    ({"config": None}, "config is of type NoneType"), ({"config": {"model": {}}}, "config has no train"), ({"config": {"model": {}, "train": {"steps": "9"}}}, "step is 1, expected 0 to 9"),
    ({"ema": {"w": torch.tensor([0.0, float("nan")])}}, r"ema\['w'\] is no finite number"), ({"optimizer": {"state": {0: {"exp_avg": torch.tensor(float("inf"))}}}}, r"optimizer\['state'\]\[0\]\['exp_avg'\] is no"),
    ({"pending": [[0.0, float("inf")]]}, r"pending\[0\]\[1\] is no finite"), ({"seconds": float("nan")}, "seconds is no finite"), ({"weights": {"w": torch.eye(2).to_sparse()}}, "weights"),
])
def test_whole_archives_with_foreign_contents_are_named_and_the_one_before_is_taken(tmp_path, caplog, changes, words):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(state_of(), path)
    torch.save(state_of(**changes), path)
    with pytest.raises(ValueError, match=words) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value) and "checkpoint.pt" in str(caught.value)
    with pytest.raises(ValueError, match="remove what is damaged to start again"):
        latest_checkpoint(path)
    save_checkpoint(state_of(), previous_path(path))
    assert latest_checkpoint(path)["step"] == 1 and "going on from step 1 in checkpoint-previous.pt" in caplog.text


def test_rows_that_do_not_say_their_step_go(tmp_path):
    log = tmp_path / "log.jsonl"
    for row in ({"step": 1}, {"steps": 2}, {"step": "3"}, {"step": None}, {"step": 4}):
        append_jsonl(log, row)
    with open(log, "a") as file:
        file.write("[5]\n")
    assert trim_log(log, 4) == [{"step": 1}, {"step": 4}] == read_jsonl(log)


# which photographs

ONE = Identity(("a", "b"), ("11", "22"))


@pytest.mark.parametrize("now, words", [
    ({"data": Identity(("a", "b"), ("11", "23"))}, "data: image 'b' was changed"), ({"data": Identity(("a",), ("11",))}, "data: image 'b' is gone"),
    ({"data": Identity(("a", "b"), ("22", "11"))}, "data: the same images stand in another order"), ({"data": ONE, "val_data": ONE}, "val_data: none there"), ({}, "data: none here"),
])
def test_other_photographs_are_refused_and_named(tmp_path, now, words):
    write_json(tmp_path / "data.json", {"data": {"names": ONE.names, "sha256": ONE.contents}})
    assert recorded_photographs(tmp_path) == {"data": ONE}
    check_photographs({"data": ONE.digest}, {"data": Identity(("x", "y"), ONE.contents)}, tmp_path)  # called otherwise
    with pytest.raises(ValueError, match=words) as caught:
        check_photographs({"data": ONE.digest}, now, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]", '{"data": 1}', '{"data": {"names": ["a"]}}', None])
def test_without_the_names_the_digest_decides(tmp_path, caplog, content):
    if content is not None:
        (tmp_path / "data.json").write_text(content)
    check_photographs({"data": ONE.digest}, {"data": ONE}, tmp_path)
    with pytest.raises(ValueError, match="data: other photographs than those there"):
        check_photographs({"data": ONE.digest}, {"data": ONE._replace(contents=("11", "23"))}, tmp_path)
    assert ("data.json" in caplog.text) == (content is not None)


# whose folder

RUN = {"model": {"scale": 4}, "train": {"steps": 10}}


@pytest.mark.parametrize("name", ["log.jsonl", "model.safetensors", "data.json", "checkpoint-previous.pt", "config.json", "tensorboard"])
@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_files_of_somebody_else_are_refused_and_stay(tmp_path, name, kind):
    if kind == "file":
        (tmp_path / name).write_text("mine")
    else:
        (tmp_path / name).symlink_to("nowhere")
    if name.startswith("checkpoint") and kind == "file":
        with pytest.raises(ValueError, match="checkpoint-previous.pt is cut short, altered or no checkpoint"):
            own_checkpoint(tmp_path, RUN)
    else:
        with pytest.raises(ValueError, match=f"run_dir: .* holds {name}, and neither"):
            own_checkpoint(tmp_path, RUN)
    assert os.path.lexists(tmp_path / name) and (kind != "file" or (tmp_path / name).read_text() == "mine")


def test_other_files_are_none_of_our_business(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".notes.partial.txt").write_text("mine")
    assert own_checkpoint(tmp_path, RUN) is None
    write_json(tmp_path / "config.json", RUN)
    (tmp_path / "log.jsonl").write_text("")
    assert own_checkpoint(tmp_path, RUN) is None  # killed before its first checkpoint


@pytest.mark.parametrize("damage", ["{", '{"model": null, "train": {"steps": 10}}', '{"model": {"scale": 4}, "train": [10]}', '{"train": "10"}'])
def test_a_damaged_config_counts_as_absent_where_a_checkpoint_says_the_same(tmp_path, caplog, damage):
    save_checkpoint(state_of(config=RUN), tmp_path / "checkpoint.pt")
    (tmp_path / "config.json").write_text(damage)
    assert own_checkpoint(tmp_path, RUN)["step"] == 1 and "config.json" in caplog.text
    with pytest.raises(ValueError, match="scale = 4 there, 2 here"):
        own_checkpoint(tmp_path, {**RUN, "model": {"scale": 2}})


def test_a_model_that_cannot_be_read_is_not_trained_over(tmp_path):
    write_json(tmp_path / "config.json", RUN)
    (tmp_path / "model.safetensors").write_bytes(b"of an older form, or damaged, all its checkpoints gone")
    with pytest.raises(ValueError, match="model.safetensors is cut off, or no safetensors file"):
        own_checkpoint(tmp_path, RUN)
