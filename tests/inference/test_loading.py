"""loading: models by name, file and run."""
import pytest
import torch

from crlsr.inference import load_model, upscale
from crlsr.model import CRLSR, save_model
from tests.inference.models import CONFIG, build, image


@pytest.fixture
def run(tmp_path):
    "The folder of a finished run, and the model in it."
    model = build(scale=2)
    (tmp_path / "run").mkdir()
    save_model(model, tmp_path / "run" / "model.safetensors", step=5)
    return tmp_path / "run", model


def checkpoint(model: CRLSR) -> dict:
    return {"config": {"model": model.config.flat(), "train": {}}, "weights": {}, "ema": model.state_dict(), "step": 4, "seed": 0, "version": "0"}


def test_a_run_that_training_left_unfinished(tmp_path):
    from crlsr.training import TrainConfig, fit

    train = TrainConfig(steps=2, batch_size=1, patch_size=8, val_data=None, device="cpu")
    result = fit(CONFIG, train, tmp_path / "run", max_steps=1, progress=False)
    loaded, lr = load_model(tmp_path / "run", expect_scale=4), image(3, 5, 6)
    assert loaded.meta["step"] == 1 and torch.equal(upscale(lr, loaded), upscale(lr, result.model))


def test_bicubic_by_name():
    assert load_model("bicubic").scale == 4 and load_model("bicubic", expect_scale=3).scale == 3
    for scale in (0, 5):
        with pytest.raises(ValueError, match="scale"):
            load_model("bicubic", expect_scale=scale)


def test_a_run_by_folder_file_and_checkpoint(run):
    folder, model = run
    torch.save(checkpoint(build(scale=2)), folder / "checkpoint.pt")
    lr = image(3, 6, 7)
    for source in (folder, str(folder), folder / "model.safetensors", folder / "checkpoint.pt"):
        loaded = load_model(source, expect_scale=2)
        assert torch.equal(upscale(lr, loaded), upscale(lr, model)) and not loaded.training
    assert load_model(folder).meta["step"] == 5 and load_model(folder / "checkpoint.pt").meta["step"] == 4
    (folder / "model.safetensors").unlink()
    assert load_model(folder).meta["step"] == 4


def test_another_scale_is_refused(run):
    folder, model = run
    torch.save(checkpoint(model), folder / "checkpoint.pt")
    for source in (folder, folder / "checkpoint.pt"):
        with pytest.raises(ValueError, match="scale 2, expected scale 4"):
            load_model(source, expect_scale=4)


@pytest.mark.parametrize("name, kind, words", [
    ("bicubicc", FileNotFoundError, "did you mean 'bicubic'"), ("crlsr-x4", ValueError, "not bundled in this version; available: 'bicubic'"),
    ("crlsr-x2", ValueError, "not bundled"), ("crlsr-x8", FileNotFoundError, "did you mean 'crlsr-x"), ("none/model.safetensors", FileNotFoundError, "no file"),
    ("", FileNotFoundError, "neither"),
])
def test_names_that_are_none(tmp_path, monkeypatch, name, kind, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=words) as error:
        load_model(name)
    assert "\n" not in str(error.value)


def test_broken_checkpoints(run):
    folder, model = run
    torch.save(checkpoint(model), folder / "whole.pt")
    whole = (folder / "whole.pt").read_bytes()
    (folder / "text.pt").write_text("no checkpoint")
    torch.save({"state_dict": model.state_dict()}, folder / "foreign.pt")
    for share in (0, 0.3, 0.9):
        (folder / f"cut{share}.pt").write_bytes(whole[: int(share * len(whole))])
    flipped = bytearray(whole)
    flipped[whole.find(model.restorer.remover.head.weight.detach().numpy().tobytes()) + 3] ^= 0x40  # torch.load alone reads it as it is
    (folder / "flipped.pt").write_bytes(flipped)
    for name in ("text.pt", "foreign.pt", "flipped.pt", "cut0.pt", "cut0.3.pt", "cut0.9.pt"):
        with pytest.raises(ValueError, match="cut short, altered or no checkpoint|is not one of crlsr") as error:
            load_model(folder / name)
        assert name in str(error.value) and "\n" not in str(error.value)


def test_a_checkpoint_executes_nothing(run):
    folder, model = run

    class Bomb:
        def __reduce__(self):
            return (open, (str(folder / "exploded"), "w"))

    torch.save(checkpoint(model) | {"step": Bomb()}, folder / "bomb.pt")
    with pytest.raises(ValueError, match="no checkpoint"):
        load_model(folder / "bomb.pt")
    assert not (folder / "exploded").exists()
