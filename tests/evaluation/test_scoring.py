"""scoring: figures against a path of their own (numpy, scipy, scikit-image), frozen pairs, tables."""
import json
import math
import shutil
import statistics
import sys
import types
import zlib

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from scipy import ndimage
from skimage import color, metrics

from crlsr.core import generator
from crlsr.data import embedded_images
from crlsr.degradation import Degradation
from crlsr.degradation.operations import Resize
from crlsr.evaluation import evaluate, evaluate_pairs, results_table
from crlsr.evaluation.scoring import DIGITS, Spread, evaluate_draws, pack_scores, read_scores, score
from crlsr.images import modcrop, write_image
from crlsr.inference import Bicubic, load_model
from crlsr.metrics import METRICS, detail, lpips_network, protocol

HELD_OUT = {name: image[:, 40:171, 60:199] for name, image in embedded_images("heldout").items()}  # 131x139: multiples of no scale


def cubic(x):
    x = abs(x)
    return 1.5 * x**3 - 2.5 * x**2 + 1 if x <= 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def imresize(image, factor):
    "MATLAB's imresize of (H, W, C) by its definition, one output row and column at a time."
    for axis in (0, 1):
        length = image.shape[axis]
        shrink = min(1.0, factor)
        rows = []
        for i in range(1, math.ceil(length * factor) + 1):
            centre = i / factor + 0.5 * (1 - 1 / factor)
            reach = range(math.floor(centre - 2 / shrink), math.ceil(centre + 2 / shrink) + 1)
            weights = np.array([cubic(shrink * (centre - j)) for j in reach])
            mirrored = [(j - 1) % (2 * length) for j in reach]
            source = np.take(image, [min(m, 2 * length - 1 - m) for m in mirrored], axis)
            rows.append(np.tensordot(weights / weights.sum(), source, (0, axis)))
        image = np.stack(rows, axis)
    return image


def reference(image, sigma, scale):
    "PSNR and SSIM of bicubic upsampling after blur and bicubic shrinking, without any function of crlsr."
    hr = image.permute(1, 2, 0).double().numpy()
    hr = hr[: hr.shape[0] // scale * scale, : hr.shape[1] // scale * scale]
    lr = hr
    if sigma:
        taps = np.exp(-np.arange(-10, 11) ** 2 / (2 * sigma**2))
        for axis in (0, 1):
            lr = ndimage.correlate1d(lr, taps / taps.sum(), axis, mode="mirror")
    lr = np.round(np.clip(imresize(lr, 1 / scale), 0, 1) * 255) / 255
    sr = np.round(np.clip(imresize(lr, scale), 0, 1) * 255) / 255
    y = [color.rgb2ycbcr(x)[scale:-scale, scale:-scale, 0] for x in (sr, hr)]
    return metrics.peak_signal_noise_ratio(y[1], y[0], data_range=255), metrics.structural_similarity(
        *y, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)


@pytest.mark.parametrize("scale, sigmas", [(2, (0, 0.6, 1.8)), (3, (0, 1.35)), (4, (0, 1.2, 3.6))])
def test_bicubic_figures_agree_with_an_independent_path(scale, sigmas):
    for sigma in sigmas:
        result = evaluate("bicubic", HELD_OUT, f"iso:{sigma}" if sigma else "bicubic", scale=scale)
        expected = [reference(HELD_OUT[name], sigma, scale) for name in sorted(HELD_OUT)]
        for row, (psnr, ssim) in zip(result["images"], expected, strict=True):
            assert row["psnr"] == pytest.approx(psnr, abs=5e-3) and row["ssim"] == pytest.approx(ssim, abs=2e-4)
        assert result["psnr"] == pytest.approx(np.mean([p for p, _ in expected]), abs=5e-3)


@pytest.mark.parametrize("scale, sigmas", [(2, np.linspace(0.8, 1.6, 8)), (3, np.linspace(1.35, 2.4, 8)), (4, np.linspace(1.8, 3.2, 8))])
def test_gaussian8_is_the_mean_of_its_eight(scale, sigmas):
    result = evaluate("bicubic", HELD_OUT, "gaussian8", scale=scale)
    for row in result["images"]:
        assert [float(sigma) for sigma in row["per_sigma"]] == pytest.approx(sigmas, abs=1e-5)
        for key in ("psnr", "ssim", "detail_energy", "detail_correlation"):
            assert row[key] == pytest.approx(statistics.fmean(part[key] for part in row["per_sigma"].values()), abs=1e-12)
        first = next(iter(row["per_sigma"].values()))
        assert first["psnr"] == pytest.approx(reference(HELD_OUT[row["name"]], sigmas[0], scale)[0], abs=5e-3)
    one = evaluate("bicubic", HELD_OUT, f"iso:{sigmas[0]:g}", scale=scale)
    assert one["images"][0]["psnr"] == pytest.approx(next(iter(result["images"][0]["per_sigma"].values()))["psnr"], abs=1e-9)


def test_the_record_is_complete_and_json():
    result = evaluate("bicubic", HELD_OUT, "iso:2.40", scale=4)
    assert list(result) == ["model", "preset", "scale", "protocol", "psnr", "ssim", "detail_energy", "detail_correlation", "images", "environment"]
    assert (result["model"], result["preset"], result["scale"]) == ("bicubic", "iso:2.4", 4)
    assert [set(row) for row in result["images"]] == [{"name", "psnr", "ssim", "detail_energy", "detail_correlation"}] * 2
    assert [row["name"] for row in result["images"]] == sorted(HELD_OUT)
    assert result["protocol"]["crop_border"] == 4 and result["protocol"]["luma"] is True and "torch" in result["environment"]
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_detail_of_a_result_is_that_of_its_images():
    result = evaluate("bicubic", HELD_OUT, "iso:1.2", scale=3)
    for row in result["images"]:
        hr = modcrop(HELD_OUT[row["name"]], 3)[None]
        lr = Degradation.parse("iso:1.2", 3)(hr.double(), generator("any"))[0].float()
        energy, correlation = detail(Bicubic(3)(lr), hr, scale=3, crop_border=3, luma=True)
        assert row["detail_energy"] == pytest.approx(energy.item(), abs=1e-9) and row["detail_correlation"] == pytest.approx(correlation.item(), abs=1e-9)
    assert result["detail_energy"] == pytest.approx(np.mean([row["detail_energy"] for row in result["images"]]))


def test_lpips_is_scored_where_it_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr("crlsr.evaluation.scoring.perceptual", lambda sr, hr, *, crop_border: (sr - hr).abs().mean((1, 2, 3)).double() + crop_border)
    monkeypatch.setattr("crlsr.evaluation.scoring.lpips_network", lambda: None)
    result = evaluate("bicubic", HELD_OUT, "gaussian8", lpips=True)
    assert 4 < result["lpips"] < 4.2 and all("lpips" in part for row in result["images"] for part in row["per_sigma"].values())
    lr = {name: image[:, :32, :34] for name, image in HELD_OUT.items()}
    assert evaluate_pairs("bicubic", HELD_OUT, lr, lpips=True)["lpips"] > 4 and "lpips" not in evaluate_pairs("bicubic", HELD_OUT, lr)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    lpips_network.cache_clear()
    with pytest.raises(FileNotFoundError, match="^lpips: its weights are not there"):  # once, not for every photograph
        evaluate("bicubic", HELD_OUT, "bicubic", lpips=True)


def test_random_presets_depend_on_seed_and_place_only():
    preset = "aniso+noise:0..25"
    first = evaluate("bicubic", HELD_OUT, preset)
    assert evaluate("bicubic", dict(reversed(HELD_OUT.items())), preset)["images"] == first["images"]
    torch.manual_seed(99)
    assert evaluate(Bicubic(4), HELD_OUT, preset)["images"] == first["images"]
    assert evaluate("bicubic", HELD_OUT, preset, seed=1)["images"] != first["images"]
    assert evaluate("bicubic", {"chelsea": HELD_OUT["chelsea"]}, preset)["images"] == first["images"][:1]


def test_a_recipe_of_ones_own_is_evaluated_like_a_preset():
    def halved(scale, rng):
        return [Resize(1 / (2 * scale), "area"), Resize(1 / scale)]

    result = evaluate("bicubic", HELD_OUT, Degradation(3, halved), scale=3)
    assert result["preset"] == "halved" and result["psnr"] < evaluate("bicubic", HELD_OUT, "bicubic", scale=3)["psnr"] - 0.5
    assert evaluate("bicubic", HELD_OUT, Degradation.parse("iso:2", 3), scale=3)["images"] == evaluate("bicubic", HELD_OUT, "iso:2", scale=3)["images"]
    with pytest.raises(ValueError, match="preset: got a degradation of scale 3, expected 4"):
        evaluate("bicubic", HELD_OUT, Degradation(3, halved))


def write(images, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        write_image(image, folder / f"{name}.png")
    return folder


def test_folders_score_as_what_they_hold(tmp_path):
    folder = write(HELD_OUT, tmp_path / "hr")
    assert evaluate("bicubic", folder, "iso:1.2")["images"] == evaluate("bicubic", HELD_OUT, "iso:1.2")["images"]
    assert evaluate("bicubic", str(folder), "iso:1.2", scale=3)["scale"] == 3


@pytest.mark.parametrize("preset", ["bicubic", "iso", "aniso+noise:0..25"])
def test_frozen_pairs_score_as_the_preset_that_made_them(tmp_path, preset):
    hr, lr = write(HELD_OUT, tmp_path / "hr"), {}
    for index, name in enumerate(sorted(HELD_OUT)):
        lr[name] = Degradation.parse(preset, scale=3)(modcrop(HELD_OUT[name], 3)[None].double(), generator(5, "evaluate", index))[0][0].float()
    drawn = evaluate("bicubic", HELD_OUT, preset, scale=3, seed=5)
    frozen = evaluate_pairs("bicubic", hr, write(lr, tmp_path / "lr"), scale=3)
    assert frozen["images"] == drawn["images"] and list(frozen) == list(drawn)
    assert frozen["preset"] == "given: lr" and evaluate_pairs("bicubic", HELD_OUT, lr, scale=3)["images"] == drawn["images"]


def test_pairs_have_to_match(tmp_path):
    lr = {name: image[:, :32, :34] for name, image in HELD_OUT.items()}
    assert len(evaluate_pairs("bicubic", HELD_OUT, lr)["images"]) == 2
    with pytest.raises(ValueError, match="lr: image 'chelsea': has no partner"):
        evaluate_pairs("bicubic", HELD_OUT, {"coffee": lr["coffee"]})
    with pytest.raises(ValueError, match="image 'more' has no hr"):
        evaluate_pairs("bicubic", HELD_OUT, lr | {"more": lr["coffee"]})
    with pytest.raises(ValueError, match="2 of 2 images failed: chelsea: lr is 32x34, expected 65x69 for scale 2; coffee: lr is"):
        evaluate_pairs("bicubic", HELD_OUT, lr, scale=2)


@pytest.mark.parametrize("call, message", [
    (lambda: evaluate("bicubic", {"small": torch.rand(3, 8, 8)}, "iso:2"), r"1 of 1 images failed: small: .*8x8.*kernel"),
    (lambda: evaluate("bicubic", {"small": torch.rand(3, 16, 16)}, "bicubic"), r"small: ssim: got 8x8"),
    (lambda: evaluate("bicubic", {"dot": torch.rand(3, 2, 2)}, "bicubic"), r"dot: .*expected at least "),
    (lambda: evaluate("bicubic", HELD_OUT, "gausian8"), "did you mean 'gaussian8'"),
    (lambda: evaluate("bicubic", {}, "iso"), "got no image"),
    (lambda: evaluate(Bicubic(2), HELD_OUT, "iso", scale=4), "scale: got 4, expected 2"),
    (lambda: results_table([]), "results: got none"),
    (lambda: Spread.of([]), "values: got none"),
])
def test_what_cannot_be_scored_is_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_every_image_is_tried_and_all_that_failed_are_named(tmp_path, caplog):
    folder = write(HELD_OUT, tmp_path / "hr")
    (folder / "broken.png").write_bytes((folder / "chelsea.png").read_bytes()[:500])
    write_image(torch.rand(3, 6, 6), folder / "tiny.png")
    with pytest.raises(ValueError, match=r"^2 of 4 images failed: .*broken.*; tiny: .*[^\n]*$") as caught:
        evaluate("bicubic", folder, "iso:2")
    assert len(caplog.records) == 2 and "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError):
        evaluate("bicubic", tmp_path / "nowhere", "bicubic")
    lr = write({name: image[:, :32, :34] for name, image in HELD_OUT.items()}, tmp_path / "lr")
    shutil.copy(folder / "chelsea.png", lr / "tiny.png")
    shutil.copy(folder / "chelsea.png", lr / "broken.png")
    with pytest.raises(ValueError, match=r"^2 of 4 images failed: .*broken.*; tiny: lr is 131x139, expected 1x1"):
        evaluate_pairs("bicubic", folder, lr)


def test_a_model_whose_images_are_no_numbers_is_named_and_has_no_mean():
    class Broken(Bicubic):
        def forward(self, lr):
            return super().forward(lr) * math.nan

    with pytest.raises(ValueError, match="2 of 2 images failed: chelsea: "):
        evaluate(Broken(4), HELD_OUT, "bicubic")
    with pytest.raises(ValueError, match="results: psnr of a under iso.* is inf"):
        results_table([result("a", "iso", 20.0), result("a", "iso", math.inf)])


def test_pairs_are_named_as_the_field_names_them():
    lr = {name: image[:, :32, :34] for name, image in HELD_OUT.items()}
    expected = evaluate_pairs("bicubic", HELD_OUT, lr)["images"]
    for names in (["{}x4", "{}x4"], ["{}_x4", "{}"], ["{}", "{}-x4"]):
        renamed = {form.format(name): image for form, (name, image) in zip(names, lr.items())}
        assert evaluate_pairs("bicubic", HELD_OUT, renamed)["images"] == expected
    with pytest.raises(ValueError, match="lr: image 'chelsea': has no partner"):
        evaluate_pairs("bicubic", HELD_OUT, {f"{name}x2": image for name, image in lr.items()})
    with pytest.raises(ValueError, match="could be paired with 'chelsea' or 'chelseax4'"):
        evaluate_pairs("bicubic", HELD_OUT, lr | {"chelseax4": lr["chelsea"]})


def test_modules_are_called_by_their_class_and_bars_are_optional(capfd, monkeypatch):
    assert evaluate(load_model("bicubic", expect_scale=2), HELD_OUT, "bicubic")["model"] == "bicubic"
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)  # where a person looks
    evaluate("bicubic", HELD_OUT, "bicubic", progress=True)
    assert "2/2" in capfd.readouterr().err


def test_a_batch_scores_the_mean_of_its_images():
    hr = torch.stack([HELD_OUT[name] for name in sorted(HELD_OUT)])
    sr = (hr + 0.05 * torch.randn(hr.shape, generator=generator("noise"))).clamp(0, 1)
    parts = [score(sr[i : i + 1], hr[i : i + 1], 2) for i in range(2)]
    for key, value in score(sr, hr, 2).items():
        assert value == pytest.approx((parts[0][key] + parts[1][key]) / 2, abs=1e-12)


# tables

@given(st.lists(st.floats(10, 50), min_size=1, max_size=6))
def test_spread_is_mean_and_sample_deviation(values):
    spread = Spread.of(iter(values))
    assert spread.mean == pytest.approx(np.mean(values)) and spread.n == len(values)
    if len(values) == 1:
        assert math.isnan(spread.sd) and spread.text() == f"{values[0]:.2f}"
    else:
        assert spread.sd == pytest.approx(np.std(values, ddof=1), abs=1e-6)
        assert spread.text(3) == f"{spread.mean:.3f} ± {spread.sd:.3f} ({spread.n})"


def result(model, preset, psnr, scale=4, **more):
    return {"model": model, "preset": preset, "scale": scale, "protocol": {"crop_border": scale}, "psnr": psnr, "ssim": psnr / 40, **more}


def test_a_table_groups_repetitions_and_shows_gaps():
    rows = [result("a", "iso:1", 20.0), result("b", "iso:1", 21.0), result("a", "iso:2", 22.0), result("a", "iso:1", 24.0)]
    assert results_table(rows) == ("| model | iso\\:1 | iso\\:2 |\n| --- | ---: | ---: |\n| a | 22.00 ± 2.83 (2) | 22.00 |\n| b | 21.00 | – |")
    assert results_table(rows[1:2], metric="ssim") == "| model | iso\\:1 |\n| --- | ---: |\n| b | 0.5250 |"
    by_set = [result("a", "iso:1", 20.0, data="Set5"), result("a", "iso:1", 30.0, data="Set14")]
    assert results_table(by_set, column="data").splitlines()[0] == "| model | Set5 | Set14 |"
    assert results_table(by_set, row="data", column="model").splitlines()[2] == "| Set5 | 20.00 |"


def test_a_table_refuses_two_protocols():
    with pytest.raises(ValueError, match="2 protocols in one table"):
        results_table([result("a", "iso:1", 20.0), result("a", "iso:1", 25.0, scale=2)])
    with pytest.raises(ValueError, match="2 protocols in one table"):
        results_table([result("a", "iso:1", 20.0, protocol={**protocol(4), "luma": False}), result("a", "iso:1", 25.0, protocol=protocol(4))])


def test_an_old_result_shares_a_table_and_leaves_open_what_it_did_not_measure():
    old = result("a", "iso:1", 20.0, protocol={key: protocol(4)[key] for key in ("crop_border", "luma")})
    new = result("b", "iso:1", 21.0, protocol=protocol(4), detail_energy=0.5)
    assert results_table([old, new], metric="detail_energy").splitlines()[2:] == ["| a | – |", "| b | 0.500 |"]
    assert results_table([old, new]).splitlines()[2:] == ["| a | 20.00 |", "| b | 21.00 |"]
    assert results_table([new, new | {"detail_energy": 0.7}, {**old, "model": "b"}], metric="detail_energy").endswith("| b | 0.600 ± 0.141 (2) |")
    with pytest.raises(ValueError, match="metric: got 'detail', expected one of"):
        results_table([old], metric="detail")
    assert list(METRICS) == ["psnr", "ssim", "detail_energy", "detail_correlation", "lpips"]


def test_draws_depend_on_seed_place_and_draw_only_and_the_first_is_that_of_evaluate():
    presets = ["iso:2.4", "aniso+noise:0..25"]
    one, three = (evaluate_draws("bicubic", HELD_OUT, presets, draws=draws, seed=5) for draws in (1, 3))
    for row, more in zip(one, three):
        whole = evaluate("bicubic", HELD_OUT, row["preset"], seed=5)
        assert all(row[name] == whole[name] for name in ("psnr", "ssim", "detail_energy", "detail_correlation"))
        assert row["images"] == sorted(HELD_OUT) and row["bicubic"]["psnr"] == pytest.approx(whole["psnr"], abs=1e-12)
        record = [{"name": "m", "seed": 0, "metrics": [{"data": "d", **each}]} for each in (row, more)]
        (names, first), (_, table) = (read_scores(r, "d", row["preset"]) for r in record)
        np.testing.assert_array_equal(first[:, 0], table[:, 0])
        np.testing.assert_allclose(first[:, 0], [image["psnr"] for image in whole["images"]], atol=5.1e-4)
        np.testing.assert_allclose(read_scores(record[1], "d", row["preset"], "ssim")[1].mean(), more["ssim"], atol=1e-4)
    assert [row["scores"]["draws"] for row in three] == [1, 3]  # nothing is drawn of iso:2.4
    alone = evaluate_draws("bicubic", HELD_OUT, presets[1:], draws=3, seed=5)[0]  # the other presets draw from keys of their own
    assert alone == three[1]
    again = Degradation.parse(presets[1])(modcrop(HELD_OUT["chelsea"], 4)[None].double(), generator(5, "evaluate", 0, 2))[0]
    by_hand = score(Bicubic(4)(again.float()).clamp(0, 1), modcrop(HELD_OUT["chelsea"], 4)[None], 4)["psnr"]
    assert read_scores({"name": "m", "seed": 0, "metrics": [{"data": "d", **alone}]}, "d", presets[1])[1][0, 2] == pytest.approx(by_hand, abs=5.1e-4)


def test_kept_lr_images_change_no_figure_and_are_made_once(tmp_path, monkeypatch):
    presets = ["bicubic", "aniso+noise:0..25", "gaussian8", "iso+jpeg:30..95"]
    without = evaluate_draws("bicubic", HELD_OUT, presets, draws=3)
    assert evaluate_draws("bicubic", HELD_OUT, presets, draws=3, kept=tmp_path / "new" / "folder") == without
    files = sorted(tmp_path.rglob("*.png"))
    assert len(files) == len(HELD_OUT) * (1 + 3 + 8 + 3) and not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".png"]
    monkeypatch.setattr(Degradation, "apply", lambda *_: pytest.fail("degraded again"))
    assert evaluate_draws("bicubic", HELD_OUT, presets, draws=3, kept=tmp_path / "new" / "folder") == without


def test_a_kept_lr_belongs_to_its_photograph_its_draw_and_the_numerics(tmp_path, monkeypatch):
    first = {"a": HELD_OUT["chelsea"]}
    evaluate_draws("bicubic", first, ["iso"], kept=tmp_path)
    for change in ({"data": {"a": HELD_OUT["chelsea"].flip(-1)}}, {"seed": 1}, {"presets": ["iso+noise:1"]}, {"scale": 2}):
        before = len([*tmp_path.rglob("*.png")])
        asked = {"data": first, "presets": ["iso"]} | change
        found = evaluate_draws("bicubic", asked.pop("data"), asked.pop("presets"), **asked, kept=tmp_path)
        assert len([*tmp_path.rglob("*.png")]) == before + 1 and math.isfinite(found[0]["psnr"])
    monkeypatch.setattr("crlsr.evaluation.scoring.NUMERICS", -1)
    evaluate_draws("bicubic", first, ["iso"], kept=tmp_path)
    assert len([*tmp_path.rglob("*.png")]) == 6


def test_scores_of_a_record_old_and_new():
    rows = [[{name: 1.23456 + i + j for name in DIGITS} for j in range(2)] for i in range(3)]
    packed = pack_scores(rows)
    assert packed["draws"] == 2 and packed["ssim"].split()[3] == "3.2346" and packed["psnr"].split()[0] == "1.235"
    new = {"name": "m", "seed": 1, "metrics": [{"data": "d", "preset": "p", "images": ["a", "b", "c"], "scores": packed}]}
    names, table = read_scores(new, "d", "p", "bicubic")
    assert names == ["a", "b", "c"] and table.shape == (3, 2) and table[2, 1] == 4.235
    old = {"name": "m", "seed": 1, "metrics": [{"data": "d", "preset": "p", "images": [{"name": "a", "psnr": 1.0}, {"name": "b", "psnr": 2.0}]}]}
    assert read_scores(old, "d", "p")[1].tolist() == [[1.0], [2.0]]
    for record, metric in ((old, "ssim"), (new, "lpips"), (old | {"metrics": []}, "psnr")):
        with pytest.raises(ValueError, match=f"m seed 1: has no {metric} for d under p"):
            read_scores(record, "d", "p", metric)
    with pytest.raises(ValueError, match=r"rows: got \[1, 2\] draws"):
        pack_scores([rows[0], rows[1][:1]])
    with pytest.raises(ValueError, match="draws: got 0, expected at least 1"):
        evaluate_draws("bicubic", {"a": HELD_OUT["chelsea"]}, ["bicubic"], draws=0)
    with pytest.raises(ValueError, match="draws: got {'iso': 2}, expected at least 1, of each of the degradations"):
        evaluate_draws("bicubic", {"a": HELD_OUT["chelsea"]}, ["bicubic", "iso"], draws={"iso": 2})


def test_each_degradation_may_have_a_number_of_draws_of_its_own():
    several = evaluate_draws("bicubic", HELD_OUT, ["aniso", "iso"], draws={"aniso": 3, "iso": 1})
    assert [row["scores"]["draws"] for row in several] == [3, 1]
    for row, draws in zip(several, (3, 1)):
        assert evaluate_draws("bicubic", HELD_OUT, [row["preset"]], draws=draws) == [row]


def test_a_hundred_photographs_four_draws_and_eight_presets_stay_small():
    "About 40 KB a run as git stores them (zlib), 120 KB as a file."
    draw = np.random.default_rng(0)
    presets = []
    for _ in range(8):
        bicubic = draw.normal(24, 3.5, (100, 4))
        values = {"bicubic": bicubic, "psnr": bicubic + draw.gamma(2, 0.4, (100, 4)), "ssim": draw.uniform(0.3, 0.9, (100, 4)),
                  "detail_energy": draw.uniform(0, 0.4, (100, 4)), "detail_correlation": draw.uniform(0, 0.5, (100, 4))}
        presets.append(pack_scores([[{name: table[i, j] for name, table in values.items()} for j in range(4)] for i in range(100)]))
    text = json.dumps(presets).encode()
    assert len(text) < 120_000 and len(zlib.compress(text, 9)) < 46_000
