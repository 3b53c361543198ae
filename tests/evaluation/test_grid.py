"""grid: rows against `evaluate`, identity and resuming, files that read back, what is refused."""
import csv
import hashlib
import json

import pytest
import torch

from crlsr.core import NUMERICS, digest, generator, write_json
from crlsr.data import embedded_images
from crlsr.degradation import Degradation
from crlsr.evaluation import evaluate, evaluate_grid, evaluate_pairs, read_rows, results_table
from crlsr.evaluation.grid import IDENTITY, grid_results, loaded_models, named, pairs_grid, weights_digest, write_csv
from crlsr.images import modcrop, write_image
from crlsr.inference import Bicubic
from crlsr.metrics import METRICS, protocol
from crlsr.model import CRLSR, ModelConfig, save_model

SMALL = {name: image[:, 60:124, 100:172] for name, image in embedded_images("heldout").items()}
MIX = "0.7*multimodal | 0.3*spatial"


class Counting(Bicubic):
    "Bicubic that counts its calls."
    calls = 0

    def forward(self, lr):
        Counting.calls += 1
        return super().forward(lr)


@pytest.fixture
def folder(tmp_path):
    for name, image in SMALL.items():
        write_image(image, tmp_path / "hr" / f"{name}.png")
    return tmp_path / "hr"


def figures(row):
    return {key: row[key] for key in METRICS if key in row}


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    torch.manual_seed(0)
    model = CRLSR(ModelConfig.from_flat(num_feat=8, num_block=3, weight_bc=0, weight_srnce=0, weight_rec=0))
    path = tmp_path_factory.mktemp("model") / "a=b.safetensors"
    save_model(model.eval(), path)
    return path


def test_every_row_is_a_row_of_evaluate(folder):
    presets = ["iso:1.2", "aniso+noise:0..25", MIX, "gaussian8"]
    grid = evaluate_grid({"b": "bicubic", "c": Counting(4)}, {"files": folder, "tensors": {"chelsea": SMALL["chelsea"]}}, presets, seed=3)
    assert [(r["data"], r["preset"], r["model"], r["image"]) for r in grid["rows"]] == [
        (data, preset, model, image) for data, images in (("files", sorted(SMALL)), ("tensors", ["chelsea"])) for preset in presets for model in "bc" for image in images]
    for data, of in (("files", folder), ("tensors", {"chelsea": SMALL["chelsea"]})):
        for preset in presets:
            alone = evaluate("bicubic", of, preset, seed=3)
            for model in "bc":
                rows = [r for r in grid["rows"] if (r["data"], r["preset"], r["model"]) == (data, preset, model)]
                assert [figures(r) for r in rows] == [figures(i) for i in alone["images"]]
                assert [r.get("per_sigma") for r in rows] == [i.get("per_sigma") for i in alone["images"]]
    assert json.loads(json.dumps(grid, allow_nan=False)) == grid and (grid["scale"], grid["seed"], grid["numerics"]) == (4, 3, NUMERICS)


def test_a_row_says_what_it_is_the_figure_of(folder):
    row = evaluate_grid(["bicubic"], {"hr": folder}, ["iso:2.40"], seed=7)["rows"][1]
    assert row["sha256"] == hashlib.sha256((folder / "coffee.png").read_bytes()).hexdigest() and row["place"] == 1 and row["seed"] == 7
    assert (row["preset"], row["scale"], row["numerics"], row["protocol"]) == ("iso:2.4", 4, NUMERICS, digest(protocol(4)))
    assert row["weights"] == weights_digest(Bicubic(4)) and "run" not in row and "lpips" not in row and row.keys() >= set(IDENTITY)


def test_results_are_those_of_evaluate():
    grid = evaluate_grid({"b": "bicubic"}, {"s": SMALL}, ["iso:1.2", MIX], scale=2)
    for result, preset in zip(grid_results(grid), ["iso:1.2", MIX], strict=True):
        alone = evaluate("bicubic", SMALL, preset, scale=2)
        assert result["images"] == alone["images"] and result["preset"] == preset
        assert figures(result) == pytest.approx(figures(alone), abs=1e-12)
    assert results_table(grid_results(grid)).splitlines()[0] == "| model | iso\\:1.2 | 0.7\\*multimodal \\| 0.3\\*spatial |"


def test_a_model_is_known_by_its_weights(model_file, tmp_path):
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(model_file.read_bytes())
    one, other = loaded_models({"a": model_file, "b": str(copy)})
    assert one["weights"] == other["weights"] and one["source"] == str(model_file)
    with torch.no_grad():
        next(other["net"].parameters()).view(-1)[0] += 1e-7
    assert weights_digest(other["net"]) != one["weights"] != weights_digest(Bicubic(4)) != weights_digest(Bicubic(3))
    nets = Bicubic(4), Bicubic(4)
    for net, input_ in zip(nets, ("lr", "upsampled")):  # the same weights, none, that mean something else
        net.config = ModelConfig.from_flat(input=input_)
    assert weights_digest(nets[0]) != weights_digest(nets[1])


def test_what_is_there_is_not_computed_again(tmp_path, folder):
    rows, sets = tmp_path / "r.jsonl", {"hr": folder}
    counts = []
    for presets, seed, model in [(["iso:1.2"], 0, "x"), (["iso:1.2"], 0, "renamed"), (["iso:1.2", "iso:2"], 0, "x"), (["iso:2"], 1, "x")]:
        Counting.calls = 0
        grid = evaluate_grid({model: Counting(4)}, sets, presets, seed=seed, rows=rows)
        counts.append(Counting.calls)
        assert {r["model"] for r in grid["rows"]} == {model} and grid["rows"] == evaluate_grid({model: Counting(4)}, sets, presets, seed=seed)["rows"]
    assert counts == [2, 0, 2, 2] and len(read_rows(rows)) == 6
    write_image(SMALL["coffee"].flip(-1), folder / "chelsea.png")  # another photograph of an old name
    Counting.calls = 0
    evaluate_grid({"x": Counting(4)}, sets, ["iso:1.2"], rows=rows)
    assert Counting.calls == 1 and len(read_rows(rows)) == 7
    write_image(SMALL["coffee"].flip(-2), folder / "a.png")  # all places, and so all draws, are others now
    Counting.calls = 0
    evaluate_grid({"x": Counting(4)}, sets, ["iso:1.2"], rows=rows)
    assert Counting.calls == 3
    again = torch.nn.Module.__new__(Counting)
    Counting.__init__(again, 4)
    again.more = torch.nn.Parameter(torch.zeros(1))
    Counting.calls = 0
    evaluate_grid({"x": again}, sets, ["iso:1.2"], rows=rows)
    assert Counting.calls == 3, "other weights"


def test_rows_of_a_stopped_grid_are_kept_and_a_torn_line_is_none(tmp_path):
    rows = tmp_path / "r.jsonl"

    class Stopping(Counting):
        def forward(self, lr):
            if Counting.calls == 1:
                raise KeyboardInterrupt
            return super().forward(lr)

    Counting.calls = 0
    with pytest.raises(KeyboardInterrupt):
        evaluate_grid({"x": Stopping(4)}, {"s": SMALL}, ["iso:1.2"], rows=rows)
    assert [row["image"] for row in read_rows(rows)] == ["chelsea"]
    with open(rows, "ab") as file:
        file.write(b'{"data": "s", "pre')
    Counting.calls = 2
    assert len(evaluate_grid({"x": Stopping(4)}, {"s": SMALL}, ["iso:1.2"], rows=rows)["rows"]) == 2 and Counting.calls == 3 and len(read_rows(rows)) == 2


@pytest.mark.parametrize("content", ["dear diary", '{"a": 1}\n', "dear diary\n", '{"name": "x", "psnr": 3}\n{"a": 1}\n'])
def test_what_is_not_ours_is_not_added_to(tmp_path, content):
    rows = tmp_path / "r.jsonl"
    rows.write_text(content)
    with pytest.raises(ValueError, match="r.jsonl: holds no rows of an evaluation") as caught:
        evaluate_grid(["bicubic"], {"s": SMALL}, ["iso"], rows=rows)
    assert rows.read_text() == content and "\n" not in str(caught.value)


def test_every_photograph_is_tried_and_the_bad_ones_named(folder, tmp_path, caplog):
    (folder / "broken.png").write_bytes((folder / "chelsea.png").read_bytes()[:300])
    write_image(torch.rand(3, 6, 6), folder / "tiny.png")
    with pytest.raises(ValueError, match=r"^2 of 4 images failed: .*broken.*tiny") as caught:
        evaluate_grid(["bicubic"], [folder], ["bicubic", "iso"], rows=tmp_path / "r.jsonl")
    assert "\n" not in str(caught.value) and len(read_rows(tmp_path / "r.jsonl")) == 4
    with pytest.raises(ValueError, match="^2 of 5 images failed: .*hr: broken.*"):
        evaluate_grid(["bicubic"], {"hr": folder, "s": {"chelsea": SMALL["chelsea"]}}, ["bicubic"])


@pytest.mark.parametrize("call, error, message", [
    (lambda: evaluate_grid([], {"s": SMALL}, ["iso"]), ValueError, "models: got none"),
    (lambda: evaluate_grid(["bicubic"], {}, ["iso"]), ValueError, "data: got none"),
    (lambda: evaluate_grid(["bicubic"], {"s": {}}, ["iso"]), ValueError, "data: got no image of s"),
    (lambda: evaluate_grid(["bicubic"], {"s": SMALL}, []), ValueError, "presets: got none"),
    (lambda: evaluate_grid(["bicubic"], {"s": SMALL}, ["iso", "isso"]), ValueError, "did you mean 'iso'"),
    (lambda: evaluate_grid(["bicubc"], {"s": SMALL}, ["iso"]), FileNotFoundError, "did you mean 'bicubic'"),
    (lambda: evaluate_grid({"a": Bicubic(2), "b": Bicubic(3)}, {"s": SMALL}, ["iso"]), ValueError, "scale: got 2, expected 3"),
    (lambda: evaluate_grid({"a": Bicubic(2)}, {"s": SMALL}, ["iso"], scale=4), ValueError, "scale: got 4, expected 2"),
    (lambda: read_rows("/no/such.json"), FileNotFoundError, "is not there"),
])
def test_what_cannot_be_meant_is_said_before_any_work(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_bicubic_takes_the_scale_of_the_others_and_repetitions_are_runs():
    runs = loaded_models({"bicubic": "bicubic", "two": [Bicubic(3), Bicubic(3)]})
    assert [(run["model"], run["net"].scale, run.get("run")) for run in runs] == [("bicubic", 3, None), ("two", 3, 0), ("two", 3, 1)]
    trained = [Bicubic(4), Bicubic(4)]
    for net, seed in zip(trained, (5, 9)):
        net.meta = {"seed": seed}
    assert [run["run"] for run in loaded_models({"m": trained})] == [5, 9]
    trained[1].meta = {"seed": 5}
    with pytest.raises(ValueError, match="models: got two of 'm' trained with seed 5"):
        loaded_models({"m": trained})
    assert named(["a", "b"], "x") == {"a": "a", "b": "b"}


def test_missing_lpips_is_said_before_the_first_photograph(monkeypatch):
    def missing():
        raise FileNotFoundError("lpips: its weights are not there")

    monkeypatch.setattr("crlsr.evaluation.grid.lpips_network", missing)
    Counting.calls = 0
    with pytest.raises(FileNotFoundError, match="^lpips: its weights"):
        evaluate_grid({"x": Counting(4)}, {"s": SMALL}, ["iso"], lpips=True)
    assert Counting.calls == 0


def test_a_row_without_lpips_does_not_do_where_it_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr("crlsr.evaluation.grid.lpips_network", lambda: None)
    monkeypatch.setattr("crlsr.evaluation.scoring.perceptual", lambda sr, hr, *, crop_border: (sr - hr).abs().mean((1, 2, 3)).double())
    rows, sets = tmp_path / "r.jsonl", {"s": SMALL}
    counts = []
    for lpips in (False, True, True, False):
        Counting.calls = 0
        grid = evaluate_grid({"x": Counting(4)}, sets, ["iso"], lpips=lpips, rows=rows)
        counts.append(Counting.calls)
        assert all(("lpips" in row) == lpips for row in grid["rows"])
    assert counts == [2, 2, 0, 0]


def test_frozen_pairs_have_rows_too(folder, tmp_path):
    for index, name in enumerate(sorted(SMALL)):
        write_image(Degradation.parse("aniso", 4)(modcrop(SMALL[name], 4)[None].double(), generator(0, "evaluate", index))[0][0].float(), tmp_path / "lr" / f"{name}.png")
    drawn, given = evaluate_grid({"b": "bicubic", "c": Counting(4)}, [folder], ["aniso"]), pairs_grid({"b": "bicubic", "c": Counting(4)}, folder, tmp_path / "lr")
    assert [figures(row) for row in given["rows"]] == [figures(row) for row in drawn["rows"]] and {row["preset"] for row in given["rows"]} == {"given: lr"}
    assert [row["sha256"] for row in given["rows"]] == [row["sha256"] for row in drawn["rows"]]
    assert figures(grid_results(given)[0]) == pytest.approx(figures(evaluate_pairs("bicubic", folder, tmp_path / "lr")), abs=1e-12)


@pytest.mark.parametrize("name", ["a,b", 'say "x"', "two\nlines", "a|b", "=1+1", "ä", " pad "])
def test_files_read_back_as_the_rows_that_they_were(tmp_path, name):
    grid = evaluate_grid({name: "bicubic"}, {name: {name: SMALL["chelsea"]}}, ["aniso:4,1,45+noise:10", MIX])
    write_csv(tmp_path / "g.csv", grid)
    write_json(tmp_path / "g.json", grid)
    assert read_rows(tmp_path / "g.json") == grid["rows"]
    for row, read in zip(grid["rows"], read_rows(tmp_path / "g.csv"), strict=True):
        assert read == row | {key: grid["environment"][key] for key in ("crlsr", "torch")}
    with open(tmp_path / "g.csv", newline="", encoding="utf-8") as file:
        head = next(csv.reader(file))
    assert head[:6] == ["data", "preset", "model", "run", "image", "psnr"] and len(set(head)) == len(head) and "per_sigma" not in head
    with pytest.raises(FileExistsError):
        write_csv(tmp_path / "g.csv", grid, overwrite=False)


def test_a_file_that_holds_no_rows_is_named(tmp_path):
    write_json(tmp_path / "old.json", evaluate("bicubic", SMALL, "iso"))
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    (tmp_path / "empty.csv").write_text("")
    for name in ("old.json", "x.csv", "empty.csv"):
        with pytest.raises(ValueError, match=f"{name}: holds no rows of an evaluation"):
            read_rows(tmp_path / name)
