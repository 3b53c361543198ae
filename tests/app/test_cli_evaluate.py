"""crlsr evaluate: several models, sets and presets, its files, and the command that repeats them."""
import json

import pytest
import torch
from PIL import Image

from crlsr.app.cli import main
from crlsr.core import write_json
from crlsr.data import embedded_images
from crlsr.evaluation import evaluate, grid_table, read_rows
from crlsr.images import write_image
from crlsr.metrics import METRICS
from crlsr.model import CRLSR, ModelConfig, save_model

MIX = "0.7*multimodal | 0.3*spatial"
DIARY = '{"dear": "diary"}\n'


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    "Two sets of two photographs, and two trainings of one small recipe."
    base = tmp_path_factory.mktemp("evaluate")
    for part, rows in (("hr", slice(60, 124)), ("more", slice(124, 188))):
        for name in ("chelsea", "coffee"):
            write_image(embedded_images("heldout")[name][:, rows, 100:180], base / part / f"{name}.png")
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = CRLSR(ModelConfig.from_flat(num_feat=8, num_block=3, weight_bc=0, weight_srnce=0, weight_rec=0))
        save_model(model, base / f"m{seed}.safetensors", seed=seed)
    return base


@pytest.fixture
def crlsr(base, tmp_path, capsys, monkeypatch):
    "Runs evaluate with words in which @ is the folder of the photographs; gives (code, stdout, stderr)."
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["evaluate", *(word.replace("@", str(base)) for word in words)])
        return code, *capsys.readouterr()

    return run


GRID = ("--model", "bicubic", "--model", "ours=@/m0.safetensors", "--model", "ours=@/m1.safetensors",
        "--data", "@/hr", "--data", "@/more", "--preset", "iso:1.2", "--preset", MIX, "--seed", "3")


def figures(rows):
    return [[row[key] for key in METRICS if key in row] for row in rows]


def test_models_sets_and_presets_and_the_command_that_repeats_them(crlsr, base, tmp_path):
    code, out, err = crlsr(*GRID, "--json", "new/g.json", "--csv", "g.csv", "--table", "g.md", "--grid", "g.png", "--control", "bicubic")
    grid = json.loads((tmp_path / "new/g.json").read_text())
    assert (code, err) == (0, "") and len(grid["rows"]) == 2 * 2 * 3 * 2 and out.splitlines()[-4:] == ["new/g.json", "g.csv", "g.md", "g.png"]
    assert grid.keys() >= {"command", "models", "protocol", "numerics", "environment", "seed", "scale"} and "psnr" not in grid
    assert figures(read_rows(tmp_path / "g.csv")) == figures(grid["rows"]) == figures(read_rows(tmp_path / "new/g.json"))
    assert (tmp_path / "g.md").read_text() == grid_table(grid["rows"], "bicubic") + "\n" and "0.3\\*spatial | ours" in (tmp_path / "g.md").read_text()
    assert "(2)" in (tmp_path / "g.md").read_text() and Image.open(tmp_path / "g.png").format == "PNG"
    assert [row["psnr"] for row in grid["rows"][:2]] == [image["psnr"] for image in evaluate("bicubic", base / "hr", "iso:1.2", seed=3)["images"]]
    assert grid["command"]["settings"] == {
        "models": {"bicubic": ["bicubic"], "ours": [str(base / f"m{seed}.safetensors") for seed in (0, 1)]}, "data": [str(base / "hr"), str(base / "more")],
        "presets": ["iso:1.2", MIX], "lr": None, "scale": 4, "seed": 3, "lpips": False}
    argv = grid["command"]["argv"]
    again = [{"new/g.json": "again.json", "g.csv": "again.csv", "g.md": "again.md", "g.png": "again.png"}.get(word, word) for word in argv]
    assert argv[0] == "evaluate" and main(again) == 0
    for one, other in zip(figures(grid["rows"]), figures(read_rows(tmp_path / "again.json")), strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    assert (tmp_path / "again.md").read_bytes() == (tmp_path / "g.md").read_bytes()


@pytest.mark.parametrize("words", [("--preset", "aniso+noise:0..25", "--seed", "5", "--scale", "2"), ("--preset", "gaussian8"), ("--lr", "@/lr")])
def test_one_result_holds_what_evaluate_gives_and_its_command(crlsr, base, tmp_path, words):
    if "--lr" in words and not (base / "lr").exists():
        assert main(["degrade", str(base / "hr"), "-o", str(base / "lr"), "--preset", "aniso"]) == 0
    code, out, _ = crlsr("--model", "bicubic", "--data", "@/hr", *words, "--json", "a.json", "--csv", "a.csv", "--table", "a.md")
    first = json.loads((tmp_path / "a.json").read_text())
    assert code == 0 and {"model", "data", "preset", "scale", "protocol", "psnr", "ssim", "detail_energy", "images", "environment", "rows", "command"} <= first.keys()
    assert [line.split()[0] for line in out.splitlines()[:4]] == ["image", "chelsea", "coffee", "mean"] and ("manifest" in first) == ("--lr" in words)
    assert first["psnr"] == pytest.approx(sum(row["psnr"] for row in first["rows"]) / 2, abs=1e-9) and figures(first["images"]) == figures(first["rows"])
    assert main([{"a.json": "b.json"}.get(word, word) for word in first["command"]["argv"] if word not in ("--csv", "a.csv", "--table", "a.md")]) == 0
    assert figures(json.loads((tmp_path / "b.json").read_text())["rows"]) == figures(first["rows"])


def test_rows_go_on_where_they_were_and_extend(crlsr, tmp_path):
    one = ("--data", "@/hr", "--preset", "iso:1.2", "--rows", "r.jsonl")
    assert crlsr("--model", "bicubic", *one)[0] == 0 and len(read_rows(tmp_path / "r.jsonl")) == 2
    assert crlsr("--model", "ours=@/m0.safetensors", "--model", "bicubic", *one, "--json", "g.json")[0] == 0
    assert len(read_rows(tmp_path / "r.jsonl")) == 4 and len(read_rows(tmp_path / "g.json")) == 4
    before = (tmp_path / "r.jsonl").read_bytes()
    assert crlsr("--model", "bicubic", *one, "--json", "h.json")[0] == 0 and (tmp_path / "r.jsonl").read_bytes() == before
    assert figures(read_rows(tmp_path / "h.json")) == figures(read_rows(tmp_path / "r.jsonl"))[:2]


ONE = ("--model", "bicubic", "--data", "@/hr", "--preset", "iso")


@pytest.mark.parametrize("words, code, message", [
    (("--model", "bicubic", "--data", "@/hr", "--lr", "@/hr", "--rows", "r.jsonl"), 2, "--lr: the images are degraded already"),
    (("--model", "bicubic", "--data", "@/hr", "--data", "@/more", "--lr", "@/hr"), 2, "belong to one --data"),
    ((*ONE, "--preset", "isso"), 1, "did you mean 'iso'"), ((*ONE, "--model", "x=@/none"), 1, "is no file"),
    ((*ONE, "--control", "bicubic"), 2, "--control: got bicubic, expected --table"), ((*ONE, "--control", "x", "--table", "t.md"), 2, "one of the models, bicubic"),
    ((*ONE, "--grid", "g.jpg"), 2, "--grid: got g.jpg, expected a name that ends in .png"), ((*ONE, "--rows", "r.json"), 2, "ends in .jsonl"),
    ((*ONE, "--json", "x", "--csv", "x"), 1, "two results would be written there"), ((*ONE, "--csv", "@/hr/coffee.png", "--overwrite"), 1, "is an input"),
    ((*ONE, "--table", "there.txt"), 1, "exists already"), ((*ONE, "--rows", "diary.jsonl"), 1, "diary.jsonl: holds no rows of an evaluation"),
    ((*ONE, "--rows", "diary.jsonl", "--overwrite"), 1, "diary.jsonl: holds no rows of an evaluation"), ((*ONE, "--lpips"), 1, "lpips"),
    ((*ONE, "--json", "r.jsonl", "--rows", "r.jsonl"), 1, "two results would be written there"),
])
def test_mistakes_are_one_line_and_nothing_is_written(crlsr, tmp_path, monkeypatch, words, code, message):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "none"))
    (tmp_path / "there.txt").write_text("mine")
    (tmp_path / "diary.jsonl").write_text(DIARY)
    found, out, err = crlsr(*words)
    assert (found, out) == (code, "") and message in err and err.count("\n") == 1, err
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"there.txt": "mine", "diary.jsonl": DIARY}


def test_what_failed_is_named_and_there_is_no_file(crlsr, base, tmp_path):
    for name in ("chelsea", "coffee"):
        (tmp_path / "hr").mkdir(exist_ok=True)
        (tmp_path / "hr" / f"{name}.png").write_bytes((base / "hr" / f"{name}.png").read_bytes()[: 400 if name == "coffee" else None])
    code, out, err = crlsr("--model", "bicubic", "--model", "ours=@/m0.safetensors", "--data", "hr", "--preset", "iso", "--preset", MIX,
                           "--json", "g.json", "--csv", "g.csv", "--table", "g.md", "--grid", "g.png", "--rows", "r.jsonl")
    assert (code, out) == (1, "") and "1 of 2 images failed" in err.splitlines()[-1] and "coffee" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hr", "r.jsonl"] and {row["image"] for row in read_rows(tmp_path / "r.jsonl")} == {"chelsea"}


def test_lpips_by_command(crlsr, tmp_path, monkeypatch):
    monkeypatch.setattr("crlsr.evaluation.grid.lpips_network", lambda: None)
    monkeypatch.setattr("crlsr.evaluation.scoring.perceptual", lambda sr, hr, *, crop_border: (sr - hr).abs().mean((1, 2, 3)).double())
    code, out, _ = crlsr(*ONE, "--lpips", "--json", "g.json", "--csv", "g.csv")
    assert code == 0 and "LPIPS" in out.splitlines()[0] and all(0 < row["lpips"] < 1 for row in read_rows(tmp_path / "g.csv"))
    assert "lpips" in json.loads((tmp_path / "g.json").read_text()) and json.loads((tmp_path / "g.json").read_text())["command"]["settings"]["lpips"] is True


def test_a_file_whose_name_has_an_equals_sign_is_a_file(crlsr, base, tmp_path):
    (tmp_path / "a=b.safetensors").write_bytes((base / "m0.safetensors").read_bytes())
    assert crlsr("--model", "a=b.safetensors", "--data", "@/hr", "--preset", "iso", "--json", "g.json")[0] == 0
    assert json.loads((tmp_path / "g.json").read_text())["models"][0]["model"] == "a=b.safetensors"
    write_json(tmp_path / "x.json", {})
    assert "exists already" in crlsr(*ONE, "--json", "x.json")[2]
