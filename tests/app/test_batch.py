"""batch: frozen test sets, their manifest, and what is noticed when a file was touched."""
import json
import os
import shutil
import unicodedata

import pytest
import torch

from crlsr.app import batch
from crlsr.app.batch import degrade_files, draw_records, upscale_files
from crlsr.core import NotWritten, file_digest
from crlsr.data import embedded_images
from crlsr.degradation import load_params
from crlsr.evaluation import evaluate, evaluate_pairs
from crlsr.images import read_image, write_image
from crlsr.model import CRLSR, save_model
from crlsr.training import profile

HELD_OUT = {name: image[:, 40:151, 60:199] for name, image in embedded_images("heldout").items()}  # 111x139: multiples of no scale
PRESETS = ["bicubic", "iso+noise:0..25", "multimodal", "spatial", "high_order", "shuffled", "motion+jpeg:40..95", "gaussian8"]


@pytest.fixture(scope="module")
def hr(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set") / "hr"
    for name, image in HELD_OUT.items():
        write_image(image, folder / f"{name}.png")
    return folder


def files(folder):
    "What was made in a folder, without its record and its lock."
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_frozen_set_is_rebuilt_to_the_byte(hr, tmp_path, preset):
    made = list(degrade_files([hr], tmp_path / "a", preset=preset, seed=3))
    records = load_params(tmp_path / "a" / "params.json")
    assert made[-1].name == "params.json" and len(records) == len(made) - 1 == (16 if preset == "gaussian8" else 2)
    for record in records:
        assert record["lr_sha256"] == file_digest(tmp_path / "a" / f"{record['name']}.png") and record["sha256"] == file_digest(hr / f"{record['image']}.png")
    list(degrade_files([hr], tmp_path / "b", replay=tmp_path / "a" / "params.json"))
    list(degrade_files([hr], tmp_path / "c", preset=preset, seed=3))
    assert files(tmp_path / "a") == files(tmp_path / "b") == files(tmp_path / "c")


@pytest.mark.parametrize("preset", ["multimodal", "spatial:gradient"])
def test_a_frozen_set_scores_as_its_preset(hr, tmp_path, preset):
    list(degrade_files([hr], tmp_path / "lr", preset=preset, seed=2))
    frozen = evaluate_pairs("bicubic", hr, tmp_path / "lr")
    assert frozen["images"] == evaluate("bicubic", hr, preset, seed=2)["images"]
    assert frozen["manifest"] == file_digest(tmp_path / "lr" / "params.json")


def test_a_part_of_gaussian8_is_verified_by_the_manifest_above_it(hr, tmp_path):
    list(degrade_files([hr], tmp_path / "lr", preset="gaussian8"))
    part = tmp_path / "lr" / "sigma2.4"
    result = evaluate_pairs("bicubic", hr, part)
    assert result["manifest"] == file_digest(tmp_path / "lr" / "params.json") and result["images"] == evaluate("bicubic", hr, "iso:2.4")["images"]
    write_image(read_image(part / "coffee.png").flip(-1), part / "coffee.png")
    with pytest.raises(ValueError, match=r"sigma2.4.coffee.png: is not the file that params.json describes"):
        evaluate_pairs("bicubic", hr, part)


def touched(path):
    image = read_image(path).clone()
    image[0, 0, 0] = 1 - image[0, 0, 0].round()
    write_image(image, path)


@pytest.mark.parametrize("harm, message", [
    (lambda hr, lr: touched(lr / "coffee.png"), r"lr.coffee.png: is not the file that params.json describes, its sha256 differs"),
    (lambda hr, lr: touched(hr / "chelsea.png"), r"hr.chelsea.png: is not the file that params.json describes"),
    (lambda hr, lr: (lr / "coffee.png").unlink(), "image 'coffee': has no partner"),
    (lambda hr, lr: [(folder / "coffee.png").unlink() for folder in (hr, lr)], "image 'coffee': has no partner of its name among the files, expected what params.json lists"),
    (lambda hr, lr: [write_image(read_image(f / "coffee.png"), f / "tea.png") for f in (hr, lr)], "image 'tea' is not listed, expected what params.json lists"),
    (lambda hr, lr: (lr / "params.json").write_text("{}"), "params.json: not a file of degradation parameters"),
])
def test_what_was_altered_is_named(tmp_path, harm, message):
    for name, image in HELD_OUT.items():
        write_image(image, tmp_path / "hr" / f"{name}.png")
    list(degrade_files([tmp_path / "hr"], tmp_path / "lr", preset="iso:2"))
    assert "manifest" in evaluate_pairs("bicubic", tmp_path / "hr", tmp_path / "lr")
    harm(tmp_path / "hr", tmp_path / "lr")
    with pytest.raises(ValueError, match=message) as error:
        evaluate_pairs("bicubic", tmp_path / "hr", tmp_path / "lr")
    assert "\n" not in str(error.value)


def test_a_set_without_manifest_is_scored_without_one(hr, tmp_path):
    list(degrade_files([hr], tmp_path / "lr", preset="iso:2"))
    with_manifest = evaluate_pairs("bicubic", hr, tmp_path / "lr")
    (tmp_path / "lr" / "params.json").unlink()
    without = evaluate_pairs("bicubic", hr, tmp_path / "lr")
    assert "manifest" not in without and without["images"] == with_manifest["images"]


def test_a_rebuilt_file_that_differs_is_named_and_not_left_behind(hr, tmp_path):
    list(degrade_files([hr], tmp_path / "lr", preset="iso:2+noise:5"))
    content = json.loads((tmp_path / "lr" / "params.json").read_text())
    content["images"][1]["params"]["steps"][0]["sigma1"] = 2.5
    (tmp_path / "edited.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="coffee.png: comes out differently from the file that was recorded"):
        list(degrade_files([hr], tmp_path / "again", replay=tmp_path / "edited.json"))
    assert sorted(files(tmp_path / "again")) == ["chelsea.png"]


def test_a_changed_input_is_named_before_anything_is_written(hr, tmp_path):
    list(degrade_files([hr], tmp_path / "lr", preset="iso:2"))
    for name, image in HELD_OUT.items():
        write_image(image if name == "coffee" else image.flip(-1), tmp_path / "other" / f"{name}.png")
    with pytest.raises(ValueError, match=r"other.chelsea.png: is not the file that"):
        list(degrade_files([tmp_path / "other"], tmp_path / "x", replay=tmp_path / "lr" / "params.json"))
    assert not (tmp_path / "x").exists()


def test_an_overwriting_call_that_is_cut_off_keeps_the_old_set_whole_and_goes_on(hr, tmp_path, monkeypatch):
    list(degrade_files([hr], tmp_path / "lr", preset="iso:2"))
    list(degrade_files([hr], tmp_path / "expected", preset="iso:3"))
    old, made = files(tmp_path / "lr"), []
    lr_of = batch._lr_of

    def cut_off(path, params):
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(path.name)
        return lr_of(path, params)

    monkeypatch.setattr(batch, "_lr_of", cut_off)
    with pytest.raises(KeyboardInterrupt):
        list(degrade_files([hr], tmp_path / "lr", preset="iso:3", overwrite=True))
    assert {name: data for name, data in files(tmp_path / "lr").items() if "/" not in name} == old and made == ["chelsea.png"]
    made.clear()
    monkeypatch.setattr(batch, "_lr_of", lambda path, params: [made.append(path.name), lr_of(path, params)][1])
    list(degrade_files([hr], tmp_path / "lr", preset="iso:3", overwrite=True))
    assert made == ["coffee.png"], "the first is not made again"
    assert files(tmp_path / "lr") == files(tmp_path / "expected") and not (tmp_path / "lr" / ".crlsr-new").exists()


def test_an_overwriting_call_that_is_given_up_leaves_nothing_behind(hr, tmp_path):
    list(degrade_files([hr], tmp_path / "lr", preset="iso:2"))
    old = files(tmp_path / "lr")
    (tmp_path / "lr" / ".crlsr-new").mkdir()
    (tmp_path / "lr" / ".crlsr-new" / "chelsea.png").write_text("half")
    list(degrade_files([hr], tmp_path / "lr", preset="iso:2"))
    assert files(tmp_path / "lr") == old and not (tmp_path / "lr" / ".crlsr-new").exists()


def test_the_manifest_goes_before_the_first_new_image_and_comes_last(hr, tmp_path, monkeypatch):
    for name in ("chelsea", "coffee"):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / f"{name}.png").write_bytes((hr / f"{name}.png").read_bytes())
    list(degrade_files([tmp_path / "photos"], tmp_path / "lr", preset="iso:2"))
    (tmp_path / "photos" / "a.png").write_bytes((hr / "coffee.png").read_bytes())  # first by name: the draws of all others move on
    progress = degrade_files([tmp_path / "photos"], tmp_path / "lr", preset="iso:2")
    assert next(progress).name == "a.png" and not (tmp_path / "lr" / "params.json").exists()
    assert [path.name for path in progress] == ["chelsea.png", "coffee.png", "params.json"]
    list(degrade_files([tmp_path / "photos"], tmp_path / "new", preset="iso:2"))
    assert files(tmp_path / "lr") == files(tmp_path / "new")


def test_what_is_there_is_not_made_again_and_what_a_hand_changed_is_not_replaced(hr, tmp_path, monkeypatch):
    first = list(degrade_files([hr], tmp_path / "lr", preset="iso:2"))
    with monkeypatch.context() as patch:
        patch.setattr(batch, "_lr_of", None)
        assert list(degrade_files([hr], tmp_path / "lr", preset="iso:2")) == first
    (tmp_path / "lr" / "coffee.png").unlink()
    kept = (tmp_path / "lr" / "chelsea.png").stat().st_mtime_ns
    expected = files(tmp_path / "lr") | {"coffee.png": first[1].read_bytes() if first[1].exists() else None}
    list(degrade_files([hr], tmp_path / "lr", preset="iso:2"))
    assert files(tmp_path / "lr").keys() == expected.keys() and (tmp_path / "lr" / "chelsea.png").stat().st_mtime_ns == kept
    touched(tmp_path / "lr" / "chelsea.png")
    with pytest.raises(FileExistsError, match="chelsea.png: exists already; choose another output, or --overwrite"):
        list(degrade_files([hr], tmp_path / "lr", preset="iso:2"))


@pytest.mark.parametrize("change, words", [
    (dict(preset="iso:3"), "preset = 'iso:2' there, 'iso:3' here"), (dict(seed=1), "seed = 0 there, 1 here"), (dict(scale=2), "scale = 4 there, 2 here"),
    (dict(preset=None, replay="params"), "replay = None there"),
])
def test_a_folder_does_not_get_images_of_two_settings(hr, tmp_path, change, words):
    list(degrade_files([hr], tmp_path / "lr", preset="iso:2"))
    (tmp_path / "params").write_bytes((tmp_path / "lr" / "params.json").read_bytes())
    before = files(tmp_path / "lr")
    change = {key: tmp_path / value if key == "replay" else value for key, value in change.items()}
    with pytest.raises(ValueError, match=words) as error:
        list(degrade_files([hr], tmp_path / "lr", **{"preset": "iso:2", **change}))
    assert str(error.value).endswith("choose another folder, or --overwrite") and files(tmp_path / "lr") == before


def test_a_folder_does_not_get_images_of_two_models(hr, tmp_path):
    list(upscale_files([hr], tmp_path / "large", model="bicubic", scale=2))
    with pytest.raises(ValueError, match="scale = 2 there, 4 here"):
        list(upscale_files([hr], tmp_path / "large", model="bicubic"))
    settings = profile("smoke", {"num_feat": 4, "num_block": 2})[0]
    first, second = CRLSR(settings), CRLSR(settings)  # other weights of one form
    for place in ("a", "b"):  # the same weights in another file
        save_model(first, tmp_path / f"{place}.safetensors")
        list(upscale_files([hr], tmp_path / "mine", model=tmp_path / f"{place}.safetensors"))
    save_model(second, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="model = "):
        list(upscale_files([hr], tmp_path / "mine", model=tmp_path / "a.safetensors"))


def test_every_image_is_tried_and_the_rest_comes_later(hr, tmp_path, caplog):
    photos = tmp_path / "photos"
    shutil.copytree(hr, photos)
    (photos / "bad.png").write_text("no image")
    for call in (lambda out: degrade_files([photos], out, preset="gaussian8", seed=3), lambda out: upscale_files([photos], out, model="bicubic", scale=2)):
        caplog.clear()
        with pytest.raises(ValueError, match=r"^1 of 3 images failed: .*bad.png: is not an image"):
            list(call(tmp_path / "out"))
        assert sum("bad.png: is not an image" in record.getMessage() for record in caplog.records) == 1, "tried once, also where eight images would come of it"
        assert not list((tmp_path / "out").rglob("bad.png")) and len(list((tmp_path / "out").rglob("coffee.png"))) in (1, 8)
        shutil.rmtree(tmp_path / "out")
    list_of = lambda: list(degrade_files([photos], tmp_path / "out", preset="iso", seed=3))  # noqa: E731
    with pytest.raises(ValueError):
        list_of()
    shutil.copy(hr / "coffee.png", photos / "bad.png")
    list_of()
    list(degrade_files([photos], tmp_path / "new", preset="iso", seed=3))
    assert files(tmp_path / "out") == files(tmp_path / "new")


@pytest.mark.parametrize("name", [b"a\xe9.png", "caf\u0065\u0301 \U0001f431.png".encode(), b"{v}{}.png", b"two\nlines.png", b"-o.png", b"2024.png", b"embedded.png", b"n" * 247 + b".png"])
def test_a_photograph_of_any_name(hr, tmp_path, name):
    photos = tmp_path / "embedded"
    photos.mkdir()
    shutil.copy(hr / "coffee.png", os.fsencode(photos) + b"/" + name)
    made = list(degrade_files([photos], tmp_path / "lr", preset="iso+noise:3"))
    again = list(degrade_files([photos], tmp_path / "again", replay=tmp_path / "lr" / "params.json"))
    assert [os.fsencode(path.name) for path in made] == [name, b"params.json"] and files(tmp_path / "lr") == files(tmp_path / "again") and len(again) == 2
    (large,) = upscale_files([photos], str(tmp_path / "v1.5") + "/", model="bicubic", scale=2)
    assert os.fsencode(large) == os.fsencode(tmp_path) + b"/v1.5/" + name


def test_a_replay_knows_names_that_look_equal_and_a_byte_order_mark(hr, tmp_path):
    composed, apart = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    for name in (composed, apart):
        (tmp_path / name).mkdir()
        shutil.copy(hr / "coffee.png", tmp_path / name / f"{name}.png")
    list(degrade_files([tmp_path / composed], tmp_path / "lr", preset="iso"))
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "lr" / "params.json").read_bytes())
    list(degrade_files([tmp_path / apart], tmp_path / "again", replay=tmp_path / "bom.json"))
    assert files(tmp_path / "again")[f"{composed}.png"] == files(tmp_path / "lr")[f"{composed}.png"]


def test_a_result_with_a_name_too_long_is_refused_before_the_work(hr, tmp_path):
    shutil.copy(hr / "coffee.png", tmp_path / ("n" * 251 + ".png"))
    os.rename(tmp_path / ("n" * 251 + ".png"), tmp_path / ("n" * 252 + ".tf"))  # ".tf" + 1: the stem with .png is too long
    with pytest.raises(ValueError, match="a name of 256 bytes, of which 255 are allowed"):
        list(upscale_files([tmp_path / ("n" * 252 + ".tf")], tmp_path / "out", model="bicubic"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out, error, words", [
    ("file", ValueError, "file is a file, expected a folder"), ("file/below", ValueError, "is a file, expected a folder"), ("photos", ValueError, "is an input and would be overwritten"),
    ("foreign", FileExistsError, "coffee.png: exists already"), ("dangling", FileExistsError, "coffee.png: exists already"), ("folder", ValueError, "coffee.png: is a folder"),
])
def test_targets_are_checked_before_the_work(hr, tmp_path, out, error, words):
    shutil.copytree(hr, tmp_path / "photos")
    (tmp_path / "file").write_text("mine")
    for folder in ("foreign", "dangling", "folder"):
        (tmp_path / folder).mkdir()
    (tmp_path / "foreign" / "coffee.png").write_text("mine")
    (tmp_path / "dangling" / "coffee.png").symlink_to("nowhere")
    (tmp_path / "folder" / "coffee.png").mkdir()
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    for call in (lambda: upscale_files([tmp_path / "photos"], tmp_path / out, model="bicubic"), lambda: degrade_files([tmp_path / "photos"], tmp_path / out, preset="iso")):
        with pytest.raises(error, match=words):
            list(call())
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before and (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("call", ["upscale", "degrade"])
def test_a_folder_that_vanishes_ends_the_batch_and_is_not_made_again(hr, tmp_path, call):
    out = tmp_path / "out"
    progress = upscale_files([hr], out, model="bicubic", scale=2) if call == "upscale" else degrade_files([hr], out, preset="iso")
    next(progress)
    out.rename(tmp_path / "renamed")
    with pytest.raises(NotWritten, match="^-o: .*out was removed, renamed or replaced while it was in use"):
        next(progress)
    assert not out.exists()


def test_records_name_what_was_drawn():
    records = draw_records(["chelsea", "coffee"], "multimodal", seed=1)
    assert [r["preset"] for r in records] == ["multimodal"] * 2 and all(r["params"].source != "multimodal" for r in records)


def test_pixels_on_disk_are_those_of_double_precision(hr, tmp_path):
    from crlsr.core import generator
    from crlsr.degradation import Degradation
    from crlsr.images import modcrop

    (first, *_) = degrade_files([hr], tmp_path / "lr", preset="aniso+noise:0..25", seed=4)
    lr, _ = Degradation.parse("aniso+noise:0..25")(modcrop(HELD_OUT["chelsea"], 4)[None].double(), generator(4, "evaluate", 0))
    assert torch.equal(read_image(first), lr[0].float())
