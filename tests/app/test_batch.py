"""batch: frozen test sets, their manifest, and what is noticed when a file was touched."""
import json

import pytest
import torch

from crlsr.app.batch import degrade_files, draw_records
from crlsr.core import file_digest
from crlsr.data import embedded_images
from crlsr.degradation import load_params
from crlsr.evaluation import evaluate, evaluate_pairs
from crlsr.images import read_image, write_image

HELD_OUT = {name: image[:, 40:151, 60:199] for name, image in embedded_images("heldout").items()}  # 111x139: multiples of no scale
PRESETS = ["bicubic", "iso+noise:0..25", "multimodal", "spatial", "high_order", "shuffled", "motion+jpeg:40..95", "gaussian8"]


@pytest.fixture(scope="module")
def hr(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set") / "hr"
    for name, image in HELD_OUT.items():
        write_image(image, folder / f"{name}.png")
    return folder


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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


def test_a_manifest_does_not_outlive_the_files_that_it_describes(hr, tmp_path):
    list(degrade_files([hr], tmp_path / "lr", preset="iso:2"))
    progress = degrade_files([hr], tmp_path / "lr", preset="iso:3", overwrite=True)
    next(progress)  # the first image is replaced, then the call is interrupted
    assert not (tmp_path / "lr" / "params.json").exists()


def test_records_name_what_was_drawn(hr):
    records = draw_records({path.stem: path for path in sorted(hr.iterdir())}, "multimodal", seed=1)
    assert [r["preset"] for r in records] == ["multimodal"] * 2 and all(r["params"].source != "multimodal" for r in records)


def test_pixels_on_disk_are_those_of_double_precision(hr, tmp_path):
    from crlsr.core import generator
    from crlsr.degradation import Degradation
    from crlsr.images import modcrop

    (first, *_) = degrade_files([hr], tmp_path / "lr", preset="aniso+noise:0..25", seed=4)
    lr, _ = Degradation.parse("aniso+noise:0..25")(modcrop(HELD_OUT["chelsea"], 4)[None].double(), generator(4, "evaluate", 0))
    assert torch.equal(read_image(first), lr[0].float())
