"""export: the graph gives our images at every size, says what it is, and replaces nothing."""
import builtins
import importlib

import numpy as np
import pytest
import torch
from PIL import Image

import crlsr
from crlsr.app.cli import main
from crlsr.images import enlarge, resize
from crlsr.inference import Bicubic, export_onnx, load_model, upscale
from crlsr.model import EstimatingSR, ModelConfig, save_model
from crlsr.model.files import model_digest
from tests.inference.models import build, image

onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")


def session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 3e-14)])
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (3, 2), (4, 5), (33, 70)])
def test_enlarge_is_resize(scale, size, dtype, tolerance):
    x = image(2, 3, *size).to(dtype)
    assert enlarge(x, scale).dtype == dtype and (enlarge(x, scale) - resize(x, scale=scale)).abs().max() <= tolerance
    assert torch.allclose(enlarge(x[:, :1], scale), enlarge(x, scale)[:, :1], rtol=0, atol=tolerance)


def test_enlarge_against_pillow():
    "Away from the border Pillow's bicubic of floats has the same weights."
    x = image(1, 1, 20, 24)
    theirs = np.asarray(Image.fromarray(x[0, 0].numpy()).resize((72, 60), Image.Resampling.BICUBIC))
    assert np.abs(enlarge(x, 3)[0, 0].numpy() - theirs)[9:-9, 9:-9].max() < 1e-5


@pytest.mark.parametrize("scale, grid", [(4, "lr"), (2, "upsampled"), (3, "lr")])
def test_the_graph_gives_our_images(tmp_path, scale, grid):
    model = build(scale=scale, input=grid)
    assert export_onnx(model, tmp_path / "net.onnx") <= 1e-5
    net = session(tmp_path / "net.onnx")
    for shape in ((1, 3, 1, 1), (2, 3, 3, 4), (1, 3, 31, 17), (1, 3, 64, 48)):
        assert shape[-1] < model.halo or shape[-1] >= 17
        (sr,) = net.run(None, {"lr": image(*shape).numpy()})
        with torch.no_grad():
            assert np.abs(sr - model(image(*shape)).numpy()).max() <= 1e-4
        assert np.abs(sr.clip(0, 1) - upscale(image(*shape), model, tile=8).numpy()).max() <= 1e-4


def test_bicubic_and_files_can_be_exported(tmp_path):
    model = build(scale=2)
    save_model(model, tmp_path / "model.safetensors")
    for source, expected in (("bicubic", Bicubic(4)), (tmp_path / "model.safetensors", model), (tmp_path, model)):
        export_onnx(source, tmp_path / "net.onnx", overwrite=True)
        (sr,) = session(tmp_path / "net.onnx").run(None, {"lr": image(1, 3, 5, 9).numpy()})
        with torch.no_grad():
            assert np.abs(sr - expected(image(1, 3, 5, 9)).numpy()).max() <= 1e-4


def test_the_file_says_what_it_is(tmp_path):
    model = build(scale=2).train()
    export_onnx(model, tmp_path / "new" / "net.onnx", opset=13)
    graph = onnx.load(tmp_path / "new" / "net.onnx")
    assert {entry.key: entry.value for entry in graph.metadata_props} == {
        "scale": "2", "halo": str(model.halo), "crlsr": crlsr.__version__, "sha256": model_digest({}, model.state_dict())}
    (opset,) = (each.version for each in graph.opset_import if each.domain == "")
    names = [[d.dim_param or d.dim_value for d in each.type.tensor_type.shape.dim] for each in (graph.graph.input[0], graph.graph.output[0])]
    assert opset == 13 and names[0] == ["batch", 3, "lr_height", "lr_width"] and names[1][0] == "batch" and model.training


def test_nothing_is_replaced(tmp_path):
    save_model(build(), tmp_path / "model.safetensors")
    (tmp_path / "net.onnx").write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        export_onnx(tmp_path / "model.safetensors", tmp_path / "net.onnx")
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="is an input"):
        export_onnx(tmp_path / "model.safetensors", tmp_path / "model.safetensors", overwrite=True)
    assert (tmp_path / "net.onnx").read_text() == "mine" and (tmp_path / "model.safetensors").read_bytes() == before


class Altered(torch.nn.Module):
    "Gives other images while it is recorded."
    scale, halo = 2, 0

    def __init__(self, by: float):
        super().__init__()
        self.by = by

    def forward(self, lr):
        sr = lr.repeat_interleave(2, -1).repeat_interleave(2, -2)
        return sr + self.by if torch.onnx.is_in_onnx_export() else sr


@pytest.mark.parametrize("by", [2e-4, float("nan")])
def test_a_graph_of_other_images_is_not_written(tmp_path, by):
    with pytest.raises(ValueError, match="differ by .*nothing was written"):
        export_onnx(Altered(by), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []
    assert export_onnx(Altered(0), tmp_path / "net.onnx") == 0


@pytest.mark.parametrize("opset", [12, 21, 17.5, "17"])
def test_sets_of_operators_that_are_none(tmp_path, opset):
    with pytest.raises(ValueError, match="opset: got .*expected 13 to 20"):
        export_onnx("bicubic", tmp_path / "net.onnx", opset=opset)


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_without_the_extra(tmp_path, monkeypatch, missing):
    real = importlib.import_module

    def blocked(name, *rest):
        if name == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", blocked)
    with pytest.raises(ImportError, match=rf"{missing} is not installed.*pip install .*\[dev\]") as error:
        export_onnx("bicubic", tmp_path / "net.onnx")
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == [] and builtins.__import__("onnx")


def test_the_command(tmp_path, capsys):
    save_model(build(scale=2), tmp_path / "model.safetensors")
    net = str(tmp_path / "net.onnx")
    assert main(["export", str(tmp_path / "model.safetensors"), "-o", net, "--opset", "16"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{net}\n" and "onnxruntime gives the same images" in err
    for line, code, words in ((["export", "bicubic", "-o", net], 1, "exists already"), (["export", "crlsr-x3", "-o", net + "2"], 1, "crlsr-x3"),
                              (["export", "bicubic", "-o", net, "--overwrite", "--opset", "99"], 1, "expected 13 to 20"), (["export", "bicubic"], 2, "-o")):
        assert main(line) == code
        assert words in (said := capsys.readouterr().err) and said.count("\n") == 1
    assert session(net).get_modelmeta().custom_metadata_map["scale"] == "2"
    with torch.no_grad():
        (sr,) = session(net).run(None, {"lr": image(1, 3, 4, 6).numpy()})
        assert np.abs(sr - load_model(tmp_path)(image(1, 3, 4, 6)).numpy()).max() <= 1e-4


@pytest.mark.parametrize("options", [{}, {"local_vector": True}, {"vector": "oracle"}])
def test_a_model_that_needs_the_whole_image_is_refused_in_one_line(tmp_path, options):
    model = EstimatingSR(ModelConfig.from_flat(num_feat=4, num_block=2, vector_feat=4, encoder_feat=2, num_keys=8, **options))
    with pytest.raises(ValueError, match="model: EstimatingSR estimates something of the whole image") as error:
        export_onnx(model, tmp_path / "net.onnx")
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == [] and model.training
