"""bundle: what the packaging command puts into the package, from runs of a few steps."""
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import crlsr
from crlsr.core import generator
from crlsr.data import embedded_images
from crlsr.evaluation import evaluate
from crlsr.images import read_image, write_image
from crlsr.inference import load_model, upscale
from crlsr.model import CRLSR, ModelConfig
from crlsr.training import TrainConfig, fit
from tests import bundle

TRAIN = TrainConfig(steps=2, batch_size=1, patch_size=12, val_data=None, device="cpu", preset="iso", log_every=1)
SMALL = dict(num_feat=4, num_block=2, num_embed=8, num_vectors=8)
CRL, L1 = ModelConfig.from_flat(**SMALL), ModelConfig.from_flat(**SMALL, **bundle.NO_LOSS)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    "A run of CRL-SR, its control, one that was stopped, and a dozen photographs."
    base = tmp_path_factory.mktemp("bundle")
    fit(CRL, TRAIN, base / "crlsr", progress=False)
    fit(L1, TRAIN.replace(steps=3), base / "l1", progress=False)
    fit(CRL, TRAIN, base / "half", max_steps=1, progress=False)
    fit(L1, TRAIN.replace(seed=1), base / "other-seed", progress=False)
    fit(L1.replace(num_feat=6), TRAIN, base / "wider", progress=False)
    for name, photo in embedded_images("heldout").items():
        for i in range(12 // len(embedded_images("heldout"))):
            write_image(photo[:, 40 * i:40 * i + 68, 20:92], base / "photos" / f"{name}{i}.png")
    return base


@pytest.fixture(scope="module")
def packed(base):
    return bundle.bundle(base / "crlsr", base / "l1", base / "models", str(base / "photos"))


def test_only_the_restorer_goes_into_the_file(base, packed):
    whole, alone = load_model(base / "crlsr"), load_model(packed)
    assert alone.decoupling is None and alone.refinement is None and {name.split(".")[0] for name in alone.state_dict()} == {"restorer"}
    assert alone.config == ModelConfig.from_flat(num_feat=4, num_block=2, **bundle.NO_LOSS) and alone.meta == whole.meta
    for height, width in ((1, 1), (9, 30)):
        lr = torch.rand(3, height, width, generator=generator("lr", height))
        assert torch.equal(upscale(lr, alone), upscale(lr, whole))
    assert CRLSR.from_pretrained(packed).config == alone.config


@pytest.mark.parametrize("changes", [{"share_bc": 0.1, "weight_decode": 1.0}, {"weight_bc": 1e-4}, {"share_srnce": 0.1}, {"weight_rec": 0.1}, {"share_aware": -0.1}, {"weight_gradient": 0.1}, {"share_gradient": 0.1}])
def test_a_loss_by_weight_or_share_makes_a_run_of_ours_and_no_control(changes):
    ours, plain = (bundle.Run(CRLSR(config), TRAIN, 0.0) for config in (L1.replace(**changes), L1))
    bundle.check_pair(ours, plain)
    with pytest.raises(ValueError, match="plain: was trained with losses"):
        bundle.check_pair(ours, ours)
    with pytest.raises(ValueError, match="is plain L1 itself"):
        bundle.check_pair(plain, plain)


def test_the_numbers_are_those_of_evaluate(base, packed):
    numbers = json.loads((packed / "numbers.json").read_text())
    assert numbers["presets"] == list(bundle.PRESETS[4]) and numbers["photographs"] == 12 == len(list((base / "photos").iterdir()))
    for model, name in ((packed, "crlsr"), (base / "l1", "l1"), ("bicubic", "bicubic")):
        (run,) = (run for run in numbers["runs"] if run["name"] == name)
        for preset in ("multimodal", "aniso:4,1,45+noise:10"):
            (row,) = (row for row in run["metrics"] if row["preset"] == preset)
            expected = evaluate(model, base / "photos", preset, seed=0)
            assert row["psnr"] == pytest.approx(expected["psnr"], abs=1e-6) and row["ssim"] == pytest.approx(expected["ssim"], abs=1e-6)
            assert [image["name"] for image in row["images"]] == [image["name"] for image in expected["images"]]
    assert numbers["recipe"]["steps"] == 2 and numbers["plain"]["steps"] == 3 and numbers["recipe"]["minutes"] >= 0
    assert numbers["recipe"]["settings"]["num_feat"] == 4 and numbers["plain"]["settings"]["weight_bc"] == 0


def test_the_card_says_what_the_numbers_say(packed):
    numbers, text = json.loads((packed / "numbers.json").read_text()), (packed / "README.md").read_text()
    for preset in numbers["presets"]:
        values = {run["name"]: row["psnr"] for run in numbers["runs"] for row in run["metrics"] if row["preset"] == preset}
        (line,) = (line for line in text.splitlines() if line.startswith(f"| `{preset}` |"))
        shown = [float(figure) for figure in re.findall(r"\| (\d+\.\d\d) / ", line)]
        assert shown == [round(values[name], 2) for name in ("bicubic", "l1", "crlsr")]
        gains = re.findall(r"([+-]?\d+\.\d\d) \[([+-]?\d+\.\d\d), ([+-]?\d+\.\d\d)\]", line)
        for gain, other in zip(gains, ("bicubic", "l1"), strict=True):
            assert float(gain[0]) == pytest.approx(values["crlsr"] - values[other], abs=0.006) and float(gain[1]) <= float(gain[0]) <= float(gain[2])
        said = text.split("Plain L1 has the higher mean under ")[1].split("\n")[0]
        assert (f"`{preset}`" in said) == (values["l1"] > values["crlsr"])
    assert all(word in text for word in ("licence", "embedded", numbers["sha256"], "--set steps=3", "numerics"))
    assert all((packed / link).is_file() for link in re.findall(r"\]\(([^)]*)\)", text)) and "/tmp" not in text and numbers["data"] == "photos"


def test_a_changed_wording_measures_nothing(packed, monkeypatch):
    text = (packed / "README.md").read_text()
    (packed / "README.md").unlink()
    monkeypatch.setattr(bundle, "evaluate", None)
    assert bundle.main(["--card", str(packed)]) == 0 and (packed / "README.md").read_text() == text


def test_pictures_are_chosen_by_their_rule(packed):
    figures = {"crlsr": [30, 20, 25, 28], "l1": [29, 24, 25.5, 28], "bicubic": [20, 21, 24, 27.5]}
    runs = [{"name": name, "metrics": [{"preset": "p", "images": [{"name": f"i{i}", "psnr": value} for i, value in enumerate(values)]}]} for name, values in figures.items()]
    shown = bundle.chosen(runs)
    assert [row["image"] for row in shown["well"]] == ["i0", "i2", "i3"]  # +10, +1, +0.5
    assert [(row["image"], row["against"]) for row in shown["badly"]] == [("i1", "l1"), ("i2", "l1"), ("i3", "l1")]  # -4, -0.5, 0
    pictures = sorted(packed.glob("*.jpg"))
    assert len(pictures) == 6 and sum(path.stat().st_size for path in pictures) <= bundle.MAX_PICTURES
    assert {Image.open(path).size for path in pictures} == {(736, 144)}


def test_a_photograph_counts_once():
    runs = [{"name": name, "metrics": [{"preset": preset, "images": [{"name": f"i{i}", "psnr": psnr - i} for i in range(4)]} for preset, psnr in (("p", value), ("q", value - 1))]}
            for name, value in (("crlsr", 30), ("l1", 28), ("bicubic", 27))]
    for rows in bundle.chosen(runs).values():
        assert len({row["image"] for row in rows}) == len(rows) == 3


def test_a_picture_shows_what_evaluate_scored(base, packed):
    "The panels of hr and of our model are crops of the photograph and of sr."
    numbers = json.loads((packed / "numbers.json").read_text())
    row = numbers["pictures"]["well"][0]
    names = sorted(path.stem for path in (base / "photos").iterdir())
    path, models = base / "photos" / f"{row['image']}.png", {"bicubic": load_model("bicubic"), "l1": load_model(base / "l1"), "crlsr": load_model(packed)}
    canvas = bundle.strip(models, path, names.index(row["image"]), row, side=68, shown=68)
    panel = torch.from_numpy(np.array(canvas.crop((4 * 72, 0, 4 * 72 + 68, 68)))).permute(2, 0, 1)
    hr = (read_image(path)[:, :68, :72] * 255).round()
    assert any(torch.equal(panel.float(), hr[:, :, left:left + 68]) for left in range(5))


def test_pictures_keep_their_limit():
    noise = [Image.effect_noise((400, 300), 80).convert("RGB") for _ in range(6)]
    assert sum(map(len, bundle.encoded(noise, 200_000))) <= 200_000
    with pytest.raises(ValueError, match="pictures: weigh more than 1000 bytes"):
        bundle.encoded(noise, 1000)


@pytest.mark.parametrize("runs, words", [
    (("half", "l1"), "has made 1 of 2 steps, expected a finished run"), (("none", "l1"), "holds no model.safetensors"), (("l1", "l1"), "is plain L1 itself"),
    (("crlsr", "crlsr"), "plain: was trained with losses"), (("crlsr", "other-seed"), "seed is 1, expected that of the run, 0"), (("crlsr", "wider"), "another network"),
])
def test_what_cannot_be_packaged(base, tmp_path, capsys, runs, words):
    assert bundle.main([*(str(base / run) for run in runs), "--data", str(base / "photos"), "--out", str(tmp_path / "models")]) == 1
    said = capsys.readouterr().err
    assert re.search(words, said) and said.count("\n") == 1 and not (tmp_path / "models").exists()


def test_a_packaged_model_is_not_replaced_unless_asked(base, packed, capsys):
    before = (packed / "model.safetensors").read_bytes()
    assert bundle.main([str(base / "crlsr"), str(base / "l1"), "--data", str(base / "photos"), "--out", str(base / "models")]) == 1
    assert "exists already" in capsys.readouterr().err and (packed / "model.safetensors").read_bytes() == before


def test_a_model_that_is_too_large(base, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "MAX_MODEL", 1000)
    with pytest.raises(ValueError, match="its weights take .* bytes, expected at most 1000"):
        bundle.bundle(base / "crlsr", base / "l1", tmp_path / "models", str(base / "photos"))


def test_models_of_the_package_keep_their_card():
    "Whichever there are."
    for folder in sorted((Path(crlsr.__file__).parent / "models").glob("crlsr-x*")):
        numbers = json.loads((folder / "numbers.json").read_text())
        assert bundle.card(numbers) == (folder / "README.md").read_text() and numbers["sha256"] == bundle.file_digest(folder / "model.safetensors")
        model = load_model(folder.name)
        assert model.scale == numbers["scale"] and model.decoupling is None and model.refinement is None and (folder / "model.safetensors").stat().st_size <= bundle.MAX_MODEL
