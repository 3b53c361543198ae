"""crlsr: models as folders that other programs know, and by the names of the package."""
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import crlsr
from crlsr.core import generator
from crlsr.inference import load_model
from crlsr.model import CRLSR, EstimatingSR, ModelConfig, load_model_file, load_pretrained, new_model, save_model, save_pretrained
from crlsr.model.files import BUNDLED, bundled_model

SMALL = dict(num_feat=4, num_block=2, num_embed=8, num_vectors=8)
LR = torch.rand(1, 3, 7, 9, generator=generator("lr"))
CONFIGS = {
    "full": ModelConfig.from_flat(**SMALL),
    "restorer": ModelConfig.from_flat(**SMALL, scale=2, weight_bc=0, weight_srnce=0, weight_rec=0),
    "queue": ModelConfig.from_flat(**SMALL, bc_negatives="queue", ema_keys=0.9, queue_size=64, input="upsampled"),
}


def build(name: str) -> CRLSR:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = CRLSR(CONFIGS[name]).eval()
        torch.nn.init.normal_(model.restorer.decoder.tail.conv.weight, std=0.1)
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_there_and_back(tmp_path, name):
    model = build(name)
    model.save_pretrained(tmp_path / "new" / "folder")
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == ["config.json", "model.safetensors"]
    for read in (CRLSR.from_pretrained, load_model, lambda folder: load_model_file(folder / "model.safetensors")):
        again = read(tmp_path / "new" / "folder")
        assert again.config == model.config and not again.training and again.meta == {"version": crlsr.__version__}
        ours, theirs = model.state_dict(), again.state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
        with torch.no_grad():
            assert torch.equal(again(LR), model(LR))


def test_what_the_file_says_of_its_training_comes_along(tmp_path):
    save_model(build("restorer"), tmp_path / "model.safetensors", step=7, seed=3, preset="iso")
    load_model(tmp_path / "model.safetensors").save_pretrained(tmp_path / "folder")
    assert CRLSR.from_pretrained(tmp_path / "folder").meta == {"step": 7, "seed": 3, "preset": "iso", "version": crlsr.__version__}
    assert json.loads((tmp_path / "folder" / "config.json").read_text())["model"]["num_feat"] == 4


def test_a_model_of_another_method_is_kept_alike(tmp_path):
    model = EstimatingSR(ModelConfig.from_flat(num_feat=4, num_block=2, vector_feat=4, encoder_feat=2, num_keys=8)).eval()
    save_pretrained(model, tmp_path / "folder")
    for read in (load_pretrained, load_model):
        again = read(tmp_path / "folder")
        assert type(again) is EstimatingSR and again.config == model.config
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    with pytest.raises(ValueError, match="is of method 'estimating', expected 'crlsr'") as error:
        CRLSR.from_pretrained(tmp_path / "folder")
    assert "\n" not in str(error.value)
    with pytest.raises(FileExistsError):
        save_pretrained(build("full"), tmp_path / "folder")
    save_pretrained(build("full"), tmp_path / "folder", overwrite=True)
    assert type(load_pretrained(tmp_path / "folder")) is CRLSR


def test_the_folder_of_a_run_is_one_too(tmp_path):
    from crlsr.training import TrainConfig, fit

    train = TrainConfig(steps=1, batch_size=1, patch_size=8, val_data=None, device="cpu")
    result = fit(CONFIGS["restorer"], train, tmp_path, progress=False)
    with torch.no_grad():
        assert torch.equal(CRLSR.from_pretrained(tmp_path)(LR), result.model.eval()(LR))


@pytest.mark.parametrize("there", ["config.json", "model.safetensors"])
def test_nothing_is_overwritten_unless_asked(tmp_path, there):
    (tmp_path / there).write_text("mine")
    with pytest.raises(FileExistsError, match=f"{there}: exists already") as error:
        build("restorer").save_pretrained(tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"] and "\n" not in str(error.value)
    build("restorer").save_pretrained(tmp_path, overwrite=True)
    assert CRLSR.from_pretrained(tmp_path).scale == 2


def test_a_file_in_place_of_the_folder_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises((ValueError, OSError)):
            build("restorer").save_pretrained(tmp_path / "file", overwrite=overwrite)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.fixture
def saved(tmp_path):
    build("restorer").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("text, words", [
    ("", "config.json"), ("[]", "config.json"), ("{}", "something else"), ('{"model": null}', "something else"), ('{"model": [1]}', "config.json"),
    ('{"model": {"num_feat": 5}}', "something else"), ('{"model": {"num_faet": 4}}', "num_faet"), ('{"model": {"num_feat": "many"}}', "num_feat"),
])
def test_a_config_of_another_model(saved, text, words):
    (saved / "config.json").write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        CRLSR.from_pretrained(saved)
    assert "config.json" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("gone", ["config.json", "model.safetensors"])
def test_half_a_folder(saved, gone):
    (saved / gone).unlink()
    with pytest.raises(FileNotFoundError, match=f"holds no {gone}"):
        CRLSR.from_pretrained(saved)


def test_another_scale(saved):
    assert CRLSR.from_pretrained(saved, expect_scale=2).scale == 2
    with pytest.raises(ValueError, match="scale 2, expected scale 4"):
        CRLSR.from_pretrained(saved, expect_scale=4)


def test_a_flipped_bit(saved):
    whole = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(whole[:-7] + bytes([whole[-7] ^ 1]) + whole[-6:])
    with pytest.raises(ValueError, match="is damaged"):
        CRLSR.from_pretrained(saved)


class Bomb:
    "A pickle that leaves a mark where it is executed."

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("write", [lambda bomb, path: path.write_bytes(pickle.dumps(bomb)), torch.save], ids=["pickle", "torch.save"])
def test_a_pickle_is_refused_without_being_executed(saved, name, write):
    (saved / "model.safetensors").unlink()
    write(Bomb(saved / "exploded"), saved / name)
    for action in (CRLSR.from_pretrained, load_model, lambda folder: load_model(folder / name)):
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            action(saved)
        assert "\n" not in str(error.value) and not (saved / "exploded").exists()
    pickle.loads(pickle.dumps(Bomb(saved / "exploded")))
    assert (saved / "exploded").exists(), "the bomb is one"


# --- models of the package ---

@pytest.fixture
def package(tmp_path, monkeypatch, saved):
    "A package that brings crlsr-x2 and nothing else."
    (tmp_path / "crlsr" / "models").mkdir(parents=True)
    shutil.copytree(saved, tmp_path / "crlsr" / "models" / "crlsr-x2")
    monkeypatch.setattr(crlsr, "__file__", str(tmp_path / "crlsr" / "__init__.py"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_model_of_the_package_by_its_name(package):
    expected = build("restorer")
    for read in (CRLSR.from_pretrained, load_model):
        with torch.no_grad():
            assert torch.equal(read("crlsr-x2")(LR), expected(LR))
        with pytest.raises(ValueError, match="scale 2, expected scale 4"):
            read("crlsr-x2", expect_scale=4)
        with pytest.raises(ValueError, match="'crlsr-x4' is not bundled in this version; available: 'bicubic'"):
            read("crlsr-x4")
        with pytest.raises(FileNotFoundError):
            read("crlsr-x3")


def test_a_folder_of_that_name_wins(package):
    build("full").save_pretrained("crlsr-x2")
    assert CRLSR.from_pretrained("crlsr-x2").scale == load_model("crlsr-x2").scale == 4


def test_only_names_of_the_package_are_looked_for(package):
    (package / "secret").mkdir()
    for name in ("../secret", "", "crlsr-x3", "crlsr-x2/../crlsr-x2"):
        with pytest.raises(ValueError, match="not bundled"):
            bundled_model(name)
    assert BUNDLED == ("crlsr-x2", "crlsr-x4") and bundled_model("crlsr-x2").is_dir()


def test_loading_does_not_load_the_compiler_of_torch(tmp_path):
    "Drawing weights for a model that is judged by its shapes would: two seconds of a command that takes five."
    files = [tmp_path / f"{method}.safetensors" for method in ("crlsr", "estimating")]
    for file in files:
        save_model(new_model(file.stem, ModelConfig.from_flat(num_feat=4, num_block=2)), file)
    code = "import sys; from crlsr.inference import load_model\nfor file in sys.argv[1:]: load_model(file); print('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=True).stdout == "False\nFalse\n"
