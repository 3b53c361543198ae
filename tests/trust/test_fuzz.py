"""Whatever is in a file or a text: one line or a result, never a traceback, never more than 10 seconds of computing or 2 GB, never a file outside the target."""
import io
import json
import select
import shutil
import struct
import subprocess
import tempfile
import time
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from PIL import Image
from safetensors.torch import load_file, save

from crlsr.model.files import model_digest
from tests.trust.folders import TINY, photographs

CHECKS = {}  # what is tried -> (a function of worker, place and what was drawn; what to draw)
pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the size of a process is read from /proc")


def fuzzed(*strategies):
    "Lists a check among those that are tried with what these strategies draw."
    return lambda check: CHECKS.setdefault(check.__name__, (check, st.tuples(*strategies)))[0]


def attempt(worker, place, name: str, start: int = 0, examples: int = 60) -> None:
    "Tries a check with drawn examples."
    check, drawn = CHECKS[name]
    rules = settings(max_examples=examples, suppress_health_check=list(HealthCheck), derandomize=False)
    seed(start)(rules(given(drawn=drawn)(lambda drawn: check(worker, place, *drawn))))()


def answer(worker: subprocess.Popen, words: list) -> tuple[int, str]:
    "Exit status and stderr of a command line that the worker runs; every promise that needs no look at the disk is checked."
    print(json.dumps([str(word) for word in words]), file=worker.stdin, flush=True)
    assert select.select([worker.stdout], [], [], 60)[0], f"no answer within a minute: {words}"
    row = worker.stdout.readline()
    assert row, f"the process died: {words}"
    code, err, seconds = json.loads(row)
    assert seconds < 10, f"{seconds:.0f} s: {words}"
    assert code in (0, 1, 2), f"{code}: {words}"
    assert "--debug shows where" not in err and "Traceback" not in err, f"{err}: {words}"
    assert code == 0 or err.splitlines()[-1].startswith("crlsr: ") and len(err) < 20_000, f"{err}: {words}"
    return code, err


@pytest.fixture(scope="module")
def place():
    "A folder with photographs and a frozen set; what is tried goes into a/b/c of it."
    with tempfile.TemporaryDirectory() as name:
        place = Path(name).resolve()
        photographs(place / "hr", 40, 2)
        from crlsr.app.cli import main

        assert main(["degrade", str(place / "hr"), "-o", str(place / "lr"), "--preset", "aniso+noise:3+jpeg:50"]) == 0
        assert main(training(place, place / "run")) == 0
        yield place


def training(place: Path, run: Path) -> list[str]:
    "A command line that trains, a few steps, into a folder."
    settings = {**TINY, "patch_size": 6, "steps": 4, "checkpoint_every": 2, "log_every": 1}
    return ["train", "--profile", "smoke", "--data", str(place / "hr"), "--run", str(run), *(f"--set={name}={value}" for name, value in settings.items())]


def tried(worker: subprocess.Popen, place: Path, words: list, there: dict[str, bytes] | None = None) -> tuple[int, str]:
    "Runs a command whose output goes below a/b/c, where these files may be already; nothing else may have changed."
    shutil.rmtree(place / "a", ignore_errors=True)
    (place / "a" / "b").mkdir(parents=True)
    for name, data in (there or {}).items():
        (place / "a" / "b" / "c").mkdir(exist_ok=True)
        (place / "a" / "b" / "c" / name).write_bytes(data)
    before = tree(place)
    result = answer(worker, words)
    assert tree(place) == before, "a file outside the target was made, changed or removed"
    return result


def tree(place: Path) -> dict[str, tuple[int, int]]:
    "All files but those below the target."
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in place.rglob("*") if path.is_file() and place / "a" / "b" / "c" not in path.parents}


# --- images ---------------------------------------------------------------------------------------------------------------------

def encoded(kind: str, mode: str, **options) -> bytes:
    values = np.random.default_rng(0).integers(0, 255, (12, 16, 4), np.uint8)
    image = Image.fromarray(values[..., :3]).convert(mode) if mode != "I;16" else Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    image.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


WHOLE = [encoded("PNG", "RGB"), encoded("PNG", "P"), encoded("PNG", "I;16"), encoded("PNG", "LA"), encoded("PNG", "1"), encoded("JPEG", "RGB"), encoded("JPEG", "CMYK"),
         encoded("JPEG", "L", progressive=True), encoded("TIFF", "RGB"), encoded("TIFF", "I;16"), encoded("TIFF", "RGB", compression="tiff_lzw"), encoded("BMP", "RGB"),
         encoded("WEBP", "RGB"), encoded("GIF", "P"), encoded("PPM", "RGB")]


@st.composite
def damaged(draw, whole: bytes, first: int = 10**9) -> bytes:
    "A file with some bytes changed, numbers made large, an end cut off or something added, mostly among its first bytes."
    data = bytearray(whole)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(min(len(data), first if draw(st.booleans()) else 10**9) - 1, 0)))
        how = draw(st.sampled_from(["byte", "large", "cut", "insert", "repeat"]))
        if how == "byte":
            data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
        elif how == "large":
            data[at : at + 4] = draw(st.sampled_from([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\xff\xff", b"\xff\xff\x00\x00", b"\x00\x00\x00\x00"]))
        elif how == "cut":
            del data[at:]
        elif how == "insert":
            data[at:at] = draw(st.binary(max_size=20))
        else:
            data[at:at] = data[at : at + 40]
    return bytes(data)


@fuzzed(st.sampled_from(WHOLE).flatmap(damaged) | st.binary(max_size=200), st.sampled_from(["png", "jpg", "tif", "webp", "bmp"]))
def image_files(worker, place, data, suffix):
    path = place / f"given.{suffix}"
    path.write_bytes(data)
    try:
        code, err = tried(worker, place, ["upscale", path, "-o", place / "a/b/c", "--model", "bicubic", "--scale", "2"])
        assert code == 0 or "given." in err, err
    finally:
        path.unlink()


# --- params.json ----------------------------------------------------------------------------------------------------------------

values = st.sampled_from([None, True, -1, 0, 1, 2, 3, 4, 10**9, 2**70, -0.5, 0.25, 1e9, 1e308, "", "a", "..", [], {}, [1], {"step": "Resize"}, "Resize", "GaussianBlur", "ManetBlur", "Jpeg"])
leading_out = st.sampled_from(["../x", "../../x", "a/../../x", "../../../x"])
names = leading_out | leading_out | st.sampled_from(["/tmp/../x", "a\0b", "", ".", "..", "a/b/c/d", "a" * 300, "\udce9", "a\nb", "-o", "params", ".lock", ".crlsr.jsonl", ".crlsr-new/x", "con",
                                                     "coffee"]) | st.text(max_size=8)


def places_in(value, at=()):
    "Every way into a JSON value."
    yield at
    for key, inner in (value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()):
        yield from places_in(inner, (*at, key))


@st.composite
def changed(draw, whole: dict) -> dict:
    "A JSON object with up to three values replaced, removed or added, or names that lead elsewhere."
    content = json.loads(json.dumps(whole))
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from([at for at in places_in(content) if at]))
        inner = content
        for key in way:
            inner = inner[key]
        how = draw(st.sampled_from(["value", "value", "remove", "name", "name", "step"]))
        if how == "value":
            inner[last] = draw(values)
        elif how == "remove":
            del inner[last]
        elif content.get("images") and isinstance(content["images"], list) and isinstance(record := content["images"][0], dict):
            if how == "name":
                record["name"] = draw(names)
            elif isinstance(record.get("params"), dict) and isinstance(record["params"].get("steps"), list):
                record["params"]["steps"].insert(0, draw(st.fixed_dictionaries({"step": st.sampled_from(["Resize", "GaussianBlur", "MotionBlur", "DiskBlur", "SincBlur", "PoissonNoise",
                                                 "SensorNoise", "Jpeg", "SpatialBlur", "ManetBlur", "SpatialNoise", "GaussianNoise"])}, optional={key: values for key in (
                                                     "scale", "method", "sigma1", "sigma2", "size", "length", "radius", "cutoff", "photons", "seed", "low", "high", "kind", "quality", "noise_level")})))
    return content


@fuzzed(st.data(), st.binary(max_size=30))
def params(worker, place, data, junk):
    whole = json.loads((place / "lr" / "params.json").read_text())
    for record in whole["images"]:
        record.pop("lr_sha256", None)
    text = json.dumps(data.draw(changed(whole))).encode()
    if data.draw(st.integers(0, 9)) == 0:
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + junk + text[at:]
    path = place / "given.json"
    path.write_bytes(text)
    try:
        tried(worker, place, ["degrade", place / "hr", "-o", place / "a/b/c", "--replay", path])
    finally:
        path.unlink()


# --- models, checkpoints, records of a run --------------------------------------------------------------------------------------

def packed(header: dict, data: bytes, length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def unpacked(content: bytes) -> tuple[dict, bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def signed(about: dict, weights: dict) -> bytes:
    "A model file whose checksum is right, whatever it says."
    about = {key: value for key, value in about.items() if key != "sha256"}
    return save(weights, {"crlsr": json.dumps(about | {"sha256": model_digest(about, weights)})})


@st.composite
def odd(draw, weights: dict) -> dict:
    "Tensors of which some are missing, of another shape, type or name, or hold what is no number."
    weights = dict(weights)
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(weights)))
        value = weights.pop(name)
        how = draw(st.sampled_from(["missing", "shape", "type", "name", "number", "empty"]))
        if how == "shape":
            value = draw(st.sampled_from([value[None], value.reshape(-1), torch.cat([value.reshape(-1)] * 2)]))
        elif how == "type":
            value = value.to(draw(st.sampled_from([torch.float64, torch.float16, torch.int64, torch.uint8, torch.bool, torch.complex64])))
        elif how == "number":
            value = torch.full_like(value.float(), draw(st.sampled_from([float("nan"), float("inf"), -3e38])))
        elif how == "empty":
            value = value.reshape(-1)[:0]
        if how != "missing":
            weights[draw(names) if how == "name" else name] = value
    return weights


@st.composite
def models(draw, whole: bytes, weights: dict) -> bytes:
    "A model file: damaged, with a length of its header that is none, another header, another config, a size in it that nobody has, other tensors."
    how = draw(st.sampled_from(["bytes", "length", "header", "config", "size", "size", "size", "tensors"]))
    header, data = unpacked(whole)
    if how == "bytes":
        return draw(damaged(whole, 8 + len(json.dumps(header))))
    if how == "length":
        return packed(header, data, draw(st.sampled_from([0, 1, 2, 7, len(whole), 2**31, 2**40, 2**63, 2**64 - 1])))
    if how == "header":
        return packed(draw(changed(header)), data)
    about = json.loads(header["__metadata__"]["crlsr"])
    if how == "config":
        return signed(draw(changed(about)), weights)
    if how == "size":
        group, key = draw(st.sampled_from([(group, key) for group, inner in about["config"].items() if isinstance(inner, dict) for key, value in inner.items() if type(value) is int]))
        about["config"][group][key] = draw(st.sampled_from([-1, 0, 10**6, 10**9, 2**70]))
        return signed(about, weights)
    return signed(about, draw(odd(weights)))


@fuzzed(st.data())
def model_files(worker, place, data):
    whole, weights = (place / "run" / "model.safetensors").read_bytes(), load_file(place / "run" / "model.safetensors")
    try:
        content = data.draw(models(whole, weights))
    except (ValueError, TypeError, KeyError):  # names, types that no such file can have
        return
    (place / "given.safetensors").write_bytes(content)
    try:
        code, err = tried(worker, place, ["upscale", place / "lr" / "rocket.png", "-o", place / "a/b/c", "--model", place / "given.safetensors"])
        assert code == 0 or "given.safetensors" in err, err
    finally:
        (place / "given.safetensors").unlink()


@fuzzed(st.data(), st.binary(max_size=30))
def records_of_a_run(worker, place, data, junk):
    "config.json of a run that goes on, one that is finished, one whose checkpoint alone says what it is."
    there = {path.name: path.read_bytes() for path in (place / "run").iterdir() if path.is_file() and path.name != ".lock"}
    text = json.dumps(data.draw(changed(json.loads(there["config.json"])))).encode()
    if data.draw(st.integers(0, 4)) == 0:
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + junk + text[at:]
    there["config.json"] = text
    for name in data.draw(st.sampled_from([(), ("model.safetensors",), ("model.safetensors", "checkpoint.pt"), ("checkpoint.pt", "checkpoint-previous.pt"), ("data.json", "log.jsonl")])):
        del there[name]
    tried(worker, place, training(place, place / "a/b/c"), there)


@fuzzed(st.data(), st.sampled_from(["upscale", "train"]))
def checkpoints(worker, place, data, command):
    "Bytes of a checkpoint, its config, its other entries."
    whole = (place / "run" / "checkpoint.pt").read_bytes()
    how = data.draw(st.sampled_from(["bytes", "config", "entry", "tensors"]))
    if how == "bytes":
        content = data.draw(damaged(whole, 400))
    else:
        state = torch.load(io.BytesIO(whole), weights_only=True)
        if how == "config":
            state["config"] = data.draw(changed(state["config"]))
        elif how == "entry":
            state[data.draw(st.sampled_from(sorted(state)))] = data.draw(values)
        else:
            part = data.draw(st.sampled_from(["weights", "ema"]))
            state[part] = data.draw(odd(state[part]))
        torch.save(state, file := io.BytesIO())
        content = file.getvalue()
    there = {"config.json": (place / "run" / "config.json").read_bytes(), "checkpoint.pt": content}
    (place / "given.pt").write_bytes(content)
    try:
        if command == "upscale":
            tried(worker, place, ["upscale", place / "lr" / "rocket.png", "-o", place / "a/b/c", "--model", place / "given.pt"])
        else:
            tried(worker, place, training(place, place / "a/b/c"), there)
    finally:
        (place / "given.pt").unlink()


# --- texts ----------------------------------------------------------------------------------------------------------------------

numbers = st.sampled_from(["0", "1", "2.5", "-1", "1e9", "1e999", "nan", "1_0", "0x10", "", "99999999999999999999", "0..25", "3..1", "1,2", "1,2,3"])
presets = st.one_of(st.text(max_size=12), st.lists(st.one_of(numbers, st.sampled_from(
    ["iso", "aniso", "motion", "disk", "sensor", "spatial", "blocks", "multimodal", "high_order", "shuffled", "gaussian8", "bicubic", "noise", "jpeg", ":", ":", "+", "..", ","])), max_size=7).map("".join))


@fuzzed(presets)
def preset_texts(worker, place, text):
    code, err = tried(worker, place, ["degrade", place / "hr", "-o", place / "a/b/c", f"--preset={text}"])
    assert code == 0 or err.count("\n") == 1 or "images failed" in err, err


settable = ["steps", "batch_size", "patch_size", "num_feat", "num_block", "weight_bc", "weight_srnce", "preset", "data", "val_data", "betas", "learning_rate", "seed", "name", "run_dir", "device",
            "threads", "srnce_negatives", "stop_gradient", "decoupling.weight", "refinement.blur_sigmas", "scale", "precision", "test_presets", "test_data", "pictures", "profile", "x", ""]
given_values = st.one_of(numbers, st.text(max_size=8), st.sampled_from(["true", "None", "none", "[1, 2]", "[", "{}", '"a', "iso+noise:500", "embedded", "[[[[1]]]]", "(1,)", "__import__('os')", "1" * 5000, "[" * 3000]))


@fuzzed(st.sampled_from(settable), given_values, st.sampled_from(["=", "=", "=", "==", "", ":"]), st.sampled_from(["train", "reproduce"]))
def setting_texts(worker, place, key, value, sign, command):
    start = {"train": ["train", "--profile", "smoke", "--run", place / "a/b/c", "--data", place / "none"],
             "reproduce": ["reproduce", "smoke", "--dry-run", "--out", place / "a/b/c"]}[command]
    code, err = tried(worker, place, [*start, f"--set={key}{sign}{value}"])
    assert code == 0 or err.count("\n") == 1, err
    assert command == "train" or not (place / "a" / "b" / "c").exists(), "a dry run writes nothing"


# --- all of them ----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", CHECKS)
def test_whatever_is_given(worker, place, name):
    attempt(worker, place, name, examples=20)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_whatever_is_given_for_ten_minutes(worker, place, name):
    "Other examples at every seed, for an equal share of ten minutes of the clock."
    deadline, start = time.monotonic() + 600 / len(CHECKS), 1
    while time.monotonic() < deadline:
        attempt(worker, place, name, start)
        start += 1
