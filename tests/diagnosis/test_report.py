"""report: constructed models whose answers are known, columns and rows, the report as JSON and Markdown."""
import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from crlsr.contrast import gather_vectors
from crlsr.core import generator
from crlsr.data import embedded_images
from crlsr.degradation import Degradation, parameter_maps
from crlsr.diagnosis import ProbeReport, diagnose
from crlsr.diagnosis.interventions import low_pass
from crlsr.diagnosis.measures import degradation_labels, edge_bank, varying_targets
from crlsr.diagnosis.report import _fresh, probe_records
from crlsr.diagnosis.tables import (
    Case, _filters, _varying_inside, degradation_probes, degradation_tables, detail_table, doubt_table, draw_samples, invariance_tables, pair_table,
    read_features, read_probes, read_rows, swap_table, table_of,
)
from crlsr.images import resize
from crlsr.model import CRLSR, DecouplingConfig, ModelConfig, VectorConfig
from crlsr.model.crlsr import networks_of
from crlsr.networks import pool_features

SIDE = 12  # lr pixels of a patch


@pytest.fixture(scope="module")
def images():
    return {name: image[:, :240, :240] for name, image in embedded_images().items()}


@pytest.fixture(scope="module")
def samples(images):
    return draw_samples(images, Degradation.parse("aniso+noise:0..25", scale=4), patches=8, patch_size=SIDE)


class Constructed(nn.Module):
    "A model made of functions."
    scale = 4

    def __init__(self, features, hr_features=None, extract=None, decoder=None):
        super().__init__()
        self.features, self.hr_features, self.extract = features, hr_features, extract
        self.decoupling = hr_features and SimpleNamespace(config=DecouplingConfig(), vectors=VectorConfig(), heads=None, loss=None)
        self.refinement = extract and SimpleNamespace(heads=None)
        self.restorer = decoder and SimpleNamespace(decoder=decoder)


def case_of(model, samples, **others):
    return Case(model, samples, torch.arange(0, SIDE * SIDE, 5), **others)


def looked_up(samples, answer):
    "lr -> answer(number of the patch, side), by looking the image up, also one cut together from both sides (side 2)."
    def number(image):
        off = [(lr - image).abs() for lr in samples.lr]
        i = int(torch.minimum(*off).flatten(1).sum(1).argmin())
        return i, next((side for side in range(2) if off[side][i].max() == 0), 2)

    return lambda lr: torch.stack([answer(*number(image)) for image in lr])


def degradation_probe(model, samples):
    rows = pool_features(read_features(case_of(model, samples), model.features, samples.lr[0]))
    return table_of(read_probes({"f_l": rows}, varying_targets(degradation_labels(samples.params[0]))[0], samples.photo))


def test_samples(samples, images):
    degradation = Degradation.parse("aniso+noise:0..25", scale=4)
    assert samples.hr.shape == (64, 3, 48, 48) and samples.photo.tolist() == sorted(list(range(8)) * 8)
    for lr, params in zip(samples.lr, samples.params):
        assert torch.equal(lr, degradation.apply(samples.hr, params))
    assert samples.params[0] != samples.params[1]
    again, other = (draw_samples(images, degradation, patches=8, patch_size=SIDE, seed=seed) for seed in (0, 1))
    assert torch.equal(again.lr[1], samples.lr[1]) and not torch.equal(other.hr, samples.hr)
    fewer = draw_samples(dict(sorted(images.items())[:3]), degradation, patches=8, patch_size=SIDE)
    assert torch.equal(fewer.hr, samples.hr[:24])


def test_a_model_that_copies_the_degradation_in_is_found_out(samples):
    def told(i, side):
        p = samples.params[side][i]
        return torch.tensor([p.sigma1**2 + p.sigma2**2, p.noise_level]).view(2, 1, 1).expand(2, SIDE, SIDE)

    found = degradation_probe(Constructed(looked_up(samples, told)), samples)
    assert found["noise"]["f_l"] > 0.99 and abs(found["noise"]["chance"]) < 0.1
    assert found["sigma"]["f_l"] > 0.9 and abs(found["sin 2θ"]["f_l"]) < 0.15


def test_a_model_of_noise_knows_nothing(samples):
    noise = torch.randn(3, 64, 6, SIDE, SIDE, generator=generator("test", "noise"))
    case = case_of(Constructed(looked_up(samples, lambda i, side: noise[side, i])), samples)
    tables = degradation_tables(case)
    for group, bound in (("degradation", 0.15), ("map", 0.03), ("content", 0.03)):
        assert all(abs(row["f_l"]) < bound for row in tables[group].values()), group
    two = invariance_tables(case)["two degradations"]
    m = len(case.positions)
    assert two["CKA"]["f_l"] < 0.02 and abs(two["alignment"]["f_l"] - 2) < 0.05 and abs(two["top-1"]["f_l"] - 1 / m) < 0.02
    assert abs(two["top-1"]["chance"] - 1 / m) < 0.02


def test_a_collapsed_model_is_invariant_and_empty(samples):
    case = case_of(Constructed(lambda lr: torch.ones(len(lr), 5, SIDE, SIDE)), samples)
    tables, two = degradation_tables(case), invariance_tables(case)
    assert all(abs(row["f_l"]) < 1e-9 for group in ("degradation", "map", "content") for row in tables[group].values())
    assert two["two degradations"]["alignment"]["f_l"] < 1e-9 and math.isnan(two["two degradations"]["CKA"]["f_l"])
    assert two["two degradations"]["top-1"]["f_l"] == pytest.approx(1 / len(case.positions))
    assert two["spread"]["effective rank"]["f_l"] == pytest.approx(1) and two["spread"]["uniformity"]["f_l"] == pytest.approx(0, abs=1e-9)


def test_an_oracle_passes(samples):
    clean = edge_bank(resize(samples.hr, scale=1 / 4))
    oracle = Constructed(looked_up(samples, lambda i, side: clean[i]), hr_features=lambda hr: resize(low_pass(hr, 4), scale=1 / 4))
    case = case_of(oracle, samples)
    two, detail = invariance_tables(case)["two degradations"], detail_table(case)
    assert two["CKA"]["f_l"] == pytest.approx(1) and two["alignment"]["f_l"] < 1e-12
    tables = degradation_tables(case)
    assert max(row["f_l"] for group in ("degradation", "map") for row in tables[group].values()) < 0.1
    assert tables["content"]["luma"]["f_l"] > 0.99 > tables["content"]["luma"]["lr filters"]
    assert detail["sensitivity"]["f_h"] < 1e-6 < 1e-3 < detail["sensitivity"]["hr filters"]
    swap = swap_table(case)
    assert list(swap["to hr"]) == ["bicubic"] and swap["swapped"]["bicubic"] == math.inf


def test_a_model_that_is_the_filters_equals_the_column_of_the_filters(samples):
    tables = degradation_tables(case_of(Constructed(_filters), samples))
    for group in tables.values():
        for row in group.values():
            assert row["f_l"] == row["lr filters"]


def test_maps_of_a_spatial_preset_are_its_parameters(images):
    samples = draw_samples(images, Degradation.parse("spatial:gradient", scale=4), patches=6, patch_size=SIDE)

    def told(i, side):
        return parameter_maps(samples.params[side][i], SIDE, SIDE)["noise_level"][None]

    found = degradation_tables(case_of(Constructed(looked_up(samples, told)), samples))["map"]
    assert found["noise"]["f_l"] > 0.98 and abs(found["noise"]["chance"]) < 0.1
    assert found["sigma"]["f_l"] < 0.5, "the noise map is not the blur map"


def test_maps_of_an_invariant_preset_are_two_parts(samples):
    mixed, maps = _varying_inside(case_of(Constructed(lambda lr: lr), samples))
    noise = [torch.tensor([p.noise_level for p in params]) for params in samples.params]
    for i in range(len(mixed)):
        assert set(maps["noise"][i].unique().tolist()) == {noise[0][i].item(), noise[1][i].item()}
        for side in range(2):
            there = maps["noise"][i] == noise[side][i]
            assert torch.equal(mixed[i][:, there], samples.lr[side][i][:, there])


def test_swapping_features_of_a_decoder_that_lives_by_them(samples):
    living = Constructed(lambda lr: lr, decoder=lambda f, lr: resize(f, scale=4))
    deaf = Constructed(lambda lr: lr, decoder=lambda f, lr: resize(lr, scale=4))
    table = swap_table(case_of(living, samples, controls={"deaf": deaf}))
    assert table["swapped"]["model"] == pytest.approx(table["between"]["model"]) and table["swapped"]["deaf"] == math.inf
    assert table["to hr"]["model"] == table["to hr"]["deaf"] == pytest.approx(table["to hr"]["bicubic"])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    net = CRLSR(ModelConfig.from_flat(num_feat=8, num_block=3, num_embed=16, weight_bc=0.01, weight_srnce=0.01)).eval()
    for p in net.restorer.decoder.tail.parameters():  # a decoder that starts at zero sends no gradient back
        nn.init.normal_(p, std=0.05)
    return net


def test_pairs_of_a_model_equal_its_own_losses(model, samples):
    case = case_of(model, samples, untrained=model)
    table = pair_table(case)
    assert all(row["model"] == row["untrained"] for row in table.values())
    with torch.no_grad():
        v_l, v_h = (gather_vectors(f, case.positions) for f in (model.features(samples.lr[0]), model.hr_features(samples.hr)))
        q_l, q_h = (nn.functional.normalize(q.double(), dim=-1) for q in model.decoupling.heads(v_l, v_h))
    logits = q_l @ q_h.mT / 0.07
    losses = [nn.functional.cross_entropy(x.flatten(0, 1), torch.arange(len(case.positions)).repeat(64)) for x in (logits, logits.mT)]
    assert table["bound, nats"]["model"] == pytest.approx(math.log(len(case.positions)) - float(sum(losses)) / 2, abs=1e-4)
    hits = (logits.argmax(-1) == torch.arange(len(case.positions))).double().mean().item()
    assert table["top-1"]["model"] == pytest.approx(hits, abs=1e-3)


def test_the_head_of_the_report_is_the_head_of_the_loss(model, samples):
    case = case_of(model, samples)
    read = gather_vectors(read_features(case, case.low()["head"], samples.lr[0]), case.positions)
    with torch.no_grad():
        v_l = gather_vectors(model.features(samples.lr[0]), case.positions)
        torch.testing.assert_close(read, model.decoupling.heads(v_l, v_l)[0], atol=1e-5, rtol=1e-4)


def test_doubts(model, samples):
    table = doubt_table(case_of(model, samples))
    assert {"false negatives", "share of f_l along E_f(hr)", "R² of f_l from E_f(hr)", "gradient of bc / pixel", "cosine of srnce and pixel"} <= set(table)
    assert table["share of f_l along E_f(hr)"]["chance"] == 1 / 16 and 0 <= table["share of f_l along E_f(hr)"]["value"] <= 1
    assert all(p.grad is None for p in model.parameters()), "a look leaves no gradient behind"
    same = Constructed(lambda lr: lr, extract=lambda hr: resize(hr, scale=1 / 4))
    contained = doubt_table(case_of(same, samples))
    assert contained["R² of f_l from E_f(hr)"]["value"] > 0.7 and "gradient of bc / pixel" not in contained


def test_features_on_the_large_grid_are_averaged_to_the_small_one(samples):
    torch.manual_seed(0)
    large = CRLSR(ModelConfig.from_flat(num_feat=8, num_block=2, input="upsampled")).eval()
    found = read_features(case_of(large, samples), large.features, samples.lr[0][:3])
    with torch.no_grad():
        expected = large.features(samples.lr[0][:3]).unflatten(-1, (SIDE, 4)).unflatten(-3, (SIDE, 4)).mean((-1, -3))
    torch.testing.assert_close(found, expected)


def test_probing_nothing_gives_no_rows():
    assert read_probes({"a": torch.ones(4, 2)}, {}, torch.arange(4)) == {}


def test_rows_without_a_label_take_no_part():
    x = torch.randn(120, 3, generator=generator("test", "x"))
    photo, known = torch.arange(120) % 10, torch.arange(120) % 3 > 0
    y = torch.where(known, x[:, 0], torch.nan)
    found = read_probes({"a": x}, {"some": y, "all": x[:, 1]}, photo)
    alone = read_probes({"a": x[known]}, {"some": y[known]}, photo[known])
    assert found["some"] == alone["some"] and found["some"]["a"].rows == int(known.sum()) and found["all"]["a"].rows == 120
    assert found["some"]["a"].r2 > 0.9 and set(found["some"]["a"].each) == set(range(10))
    one = read_probes({"a": x}, {"one": torch.where(photo == 4, x[:, 0], torch.nan)}, photo)["one"]["a"]
    assert math.isnan(one.r2) and one.each == {} and one.rows == 12, "a single photograph can hold nothing out"


def test_rows_are_read_once_and_are_the_features(model, samples):
    case = case_of(model, samples)
    calls = []
    net, case = case.model, Case(SimpleNamespace(features=lambda lr: calls.append(len(lr)) or model.features(lr), parameters=model.parameters), samples, case.positions)
    first, again = read_rows(case, "f_l", "lr b"), read_rows(case, "f_l", "lr b")
    assert first is again and calls == [64]
    features = read_features(case, net.features, samples.lr[1])
    assert torch.equal(first.pooled, pool_features(features)) and torch.equal(first.at, gather_vectors(features, case.positions))
    assert first.around is None and math.isnan(first.change)


def test_a_mixture_is_probed_where_its_labels_mean_one_thing(images):
    samples = draw_samples(images, Degradation.parse("multimodal", scale=4), patches=10, patch_size=SIDE)
    probes, left_out = degradation_probes(case_of(Constructed(lambda lr: lr), samples))
    kinds = [{type(step).__name__ for step in p.steps} for p in samples.params[0]]
    rows = {target: each["f_l"].rows for target, each in probes["degradation"].items()}
    assert rows["sigma"] == rows["cos 2θ"] == sum("MotionBlur" not in kind for kind in kinds) < 80
    assert rows["noise"] == sum("Jpeg" not in kind for kind in kinds) and rows["jpeg"] == 80 - rows["noise"] and left_out == {}
    assert 0 < probes["map"]["noise"]["f_l"].rows < 80 * len(case_of(None, samples).positions)


def test_intervals_over_photographs_are_those_of_a_bootstrap_of_r2():
    import numpy as np

    x, photo = torch.randn(480, 3, generator=generator("test", "interval")), torch.arange(24).repeat_interleave(20)
    size = 1 + (torch.arange(24) % 3)[photo]
    y = x[:, 0] + size * torch.randn(480, generator=generator("test", "noise"))
    probes = {"degradation": read_probes({"f_l": x, "less": x[:, :1] + x[:, 1:2]}, {"y": y}, photo)}
    report = ProbeReport("r", {}, {"degradation": table_of(probes["degradation"])}, probes=probes, photographs=tuple(f"p{i:02}" for i in range(24)))
    over, column = report.interval("degradation", "y", "f_l"), probes["degradation"]["y"]["f_l"]
    each = np.array(list(column.each.values()))
    assert over.mean == pytest.approx(column.r2) and over.low < column.r2 < over.high
    assert over.high - over.low == pytest.approx(2 * 1.96 * each.std(ddof=1) / math.sqrt(24), rel=0.15)
    less = report.interval("degradation", "y", "f_l", minus="less")
    assert less.mean == pytest.approx(column.r2 - probes["degradation"]["y"]["less"].r2) and less.low > 0
    records = probe_records(report)
    kept = next(r for r in records["probes"] if r["features"] == "f_l")
    assert kept["low"] == pytest.approx(over.low, abs=1e-6) and list(kept["photographs"]) == list(report.photographs) and kept["rows"] == 480
    assert [(r["features"], r["minus"]) for r in records["differences"]] == [("f_l", "less")]
    bars = report.figure("degradation").axes[0]
    assert len(bars.collections) == 3, "an interval for f_l, less and chance"
    with pytest.raises(ValueError, match="got 'y' from 'f_h', which no probe of 'degradation' gave, expected one of f_l, less, chance"):
        report.interval("degradation", "y", "f_h")

@pytest.fixture(scope="module")
def report(model, images):
    state = torch.random.get_rng_state()
    plain = CRLSR(ModelConfig.from_flat(num_feat=8, num_block=3, weight_bc=0.0, weight_srnce=0.0, weight_rec=0.0)).eval()
    torch.random.set_rng_state(state)
    log = [{"step": 1, "grad_pixel": 0.5, "grad_bc": 0.1, "cos_bc": -0.2}]
    found = diagnose(model, images, "iso+noise:0..25", controls={"plain L1": plain}, log=log, patches=5, patch_size=SIDE, num_vectors=20, name="ours")
    assert torch.equal(torch.random.get_rng_state(), state), "torch's generator is left alone"
    return found


def test_report_holds_every_group_with_its_controls(report):
    assert set(report.figures) == {"degradation", "map", "content", "two degradations", "spread", "detail", "pairs", "swap", "doubts"}
    columns = {"f_l", "head", "plain L1", "untrained", "lr filters"}
    assert list(report.rows("degradation")) == ["sigma", "noise"] and columns | {"f_h", "chance"} == set(report.rows("degradation")["noise"])
    assert columns | {"chance"} == set(report.rows("map")["sigma"]) and columns | {"f_h", "E_f", "chance"} == set(report.rows("content")["luma"])
    assert set(report.rows("detail")["sensitivity"]) == {"f_h", "E_f", "untrained", "clean lr filters", "hr filters"}
    assert set(report.rows("swap")["to hr"]) == {"model", "plain L1", "bicubic"}
    assert report.curves == {"share": {"bc": ([1], [0.2])}, "cosine": {"bc": ([1], [-0.2])}}
    assert report.settings == {"preset": "iso+noise:0..25", "scale": 4, "photographs": 8, "patches": 5, "patch_size": SIDE, "num_vectors": 20, "seed": 0}


def test_a_restorer_alone_is_a_model_and_a_control(model, images):
    few = dict(list(images.items())[:2])
    found = diagnose(model.restorer, few, "iso", controls={"whole": model}, patches=3, patch_size=SIDE, num_vectors=8)
    assert set(found.rows("swap")["to hr"]) == {"model", "whole", "bicubic"} and "pairs" not in found.figures
    assert found.rows("degradation")["sigma"]["f_l"] == found.rows("degradation")["sigma"]["whole"]


def test_report_survives_json(report):
    record = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    back = ProbeReport.from_dict(record)
    assert back.settings == report.settings and back.curves == report.curves
    assert back.left_out == report.left_out == {"sigma long": "the same as sigma", "sigma short": "the same as sigma", "cos 2θ": "always 0",
                                                "sin 2θ": "always 0", "jpeg": "defined in no draw"}
    assert "> No probe could ask for sigma long (the same as sigma); " in report.markdown()
    for group, rows in report.figures.items():
        for row, values in rows.items():
            for column, value in values.items():
                kept = back.figures[group][row][column]
                assert kept == value or (math.isnan(kept) and not math.isfinite(value))
    assert record["figures"]["swap"]["swapped"]["bicubic"] is None


def test_networks_that_nobody_trained_are_marked(model, images, report):
    assert report.untrained == () and "ntrained, as" not in report.markdown()
    few = dict(list(images.items())[:2])
    torch.manual_seed(0)
    net = CRLSR(model.config.replace(stop_gradient="high")).eval()
    for name in ("degradation remover", "SR decoder", "E_f", "heads of L_bc"):
        nn.init.normal_(next(networks_of(net)[name].parameters()))
    found = diagnose(net, few, "iso", patches=3, patch_size=SIDE, num_vectors=8)
    assert found.untrained == ("details remover", "heads of L_srnce", "D_rec")
    assert found.markdown().split("\n\n")[1].startswith("> Untrained, as chance drew it: details remover, heads of L_srnce, D_rec.")
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert ProbeReport.from_dict(record).untrained == found.untrained
    del record["untrained"]  # as older records are
    assert ProbeReport.from_dict(record).untrained == ()
    assert diagnose(net.restorer, few, "iso", patches=3, patch_size=SIDE, num_vectors=8).untrained == ()


def test_tables_and_pictures(report):
    text = report.markdown()
    assert text.startswith("## ours") and all(f"### {group}" in text for group in report.figures)
    line = next(line for line in report.table("swap").splitlines() if line.startswith("| swapped"))
    assert line.split("|")[-2].strip() == "∞"
    widths = {line.count("|") for line in report.table("degradation").splitlines()}
    assert len(widths) == 1 and "nan" not in text and "-0.00" not in text
    for group in report.figures:
        assert report.figure(group)._repr_png_().startswith(b"\x89PNG")


def test_plot_groups_gives_a_series_one_colour_and_place():
    from crlsr.viz import plot_groups

    figure = plot_groups({"x": {"a": 1.0, "b": 2.0}, "y": {"b": math.nan, "a": -1.0}, "z": {"b": math.inf}}, ylabel="y")
    bars = figure.axes[0].patches
    assert sorted((round(b.get_x() + b.get_width() / 2, 2), b.get_height()) for b in bars) == [(-0.21, 1.0), (0.21, 2.0), (0.79, -1.0)]
    assert len({b.get_facecolor() for b in bars}) == 2 and [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["x", "y", "z"]


def test_the_same_call_gives_the_same_report(model, images, report):
    few = dict(list(images.items())[:2])
    one, two = (diagnose(model, few, "bicubic", patches=3, patch_size=SIDE, num_vectors=8).to_dict() for _ in range(2))
    assert one == two and "degradation" not in one["figures"] and "map" not in one["figures"], "what does not vary is not probed"


@pytest.mark.parametrize("call, message", [
    (lambda model, images: diagnose(model, dict(list(images.items())[:1])), "images: got 1"),
    (lambda model, images: diagnose(model, images, controls={"x2": CRLSR(ModelConfig.from_flat(scale=2, num_feat=8, num_block=1))}), r"controls\['x2'\]: scale 2, expected 4"),
    (lambda model, images: diagnose(model, images, "isso"), "isso"),
    (lambda model, images: diagnose(model, images, patch_size=999), "smaller than an hr patch"),
    (lambda model, images: ProbeReport("r", {}, {"swap": {}}).table("swop"), "group: got 'swop', expected one of swap"),
])
def test_mistakes_are_named(model, images, call, message):
    with pytest.raises(ValueError, match=message) as error:
        call(model, images)
    assert "\n" not in str(error.value)


def test_parts_are_found_in_their_modules_and_nowhere_else():
    from crlsr.diagnosis import interventions, measures, report

    assert {"diagnose", "ProbeReport"} <= set(report.__all__)
    assert {"held_out_r2", "linear_cka", "uniformity", "effective_rank"} <= set(measures.__all__) - set(report.__all__)
    assert "swap_test" in set(interventions.__all__) - set(report.__all__)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run of two steps, and two small photographs."
    from crlsr.images import write_image
    from crlsr.training import fit, profile

    base = tmp_path_factory.mktemp("run")
    for name in ("chelsea", "coffee"):
        write_image(embedded_images("heldout")[name][:, :96, :96], base / "photos" / f"{name}.png")
    changes = {"steps": 2, "warmup_steps": 1, "num_feat": 8, "num_block": 2, "patch_size": 8, "batch_size": 2, "seed": 5, "weight_bc": 0.01,
               "keep_at": (0.5, 1.0), "log_every": 1}
    return fit(*profile("smoke", changes), base / "ours", progress=False), base


def test_untrained_is_what_training_started_from(run):
    from crlsr.inference import load_model
    from crlsr.training import profile
    from crlsr.training.step import new_state

    result, _ = run
    changes = {"num_feat": 8, "num_block": 2, "seed": 5, "weight_bc": 0.01}
    start = new_state(*profile("smoke", changes)).model.state_dict()
    fresh = _fresh(load_model(result.run_dir)).state_dict()
    assert all(torch.equal(value, start[name]) for name, value in fresh.items())


def test_the_notebook_diagnoses_a_run(run, monkeypatch):
    from crlsr.core import share_path
    from crlsr.studies import execution
    from crlsr.studies.execution import run_notebook
    from tests.kernels import Forked

    monkeypatch.setattr(execution, "_kernel_manager", lambda threads: Forked)  # it need not import torch
    result, base = run
    parameters = {"name": "ours", "model": str(result.run_dir), "controls": [f"again={result.run_dir}"], "run_dir": str(base / "diagnosis"),
                  "data": str(base / "photos"), "patches": 3, "patch_size": 12, "num_vectors": 8}
    notebook = share_path("nbs/reproduce/diagnose.ipynb")
    assert run_notebook(notebook, parameters, base / "diagnosis" / "diagnose.ipynb", products=["results.json"], threads=1)
    found = json.loads((base / "diagnosis" / "results.json").read_text(encoding="utf-8"))
    assert found["kind"] == "diagnosis" and found["trained_on"] == [] and found["config"]["preset"] == "iso" and found["config"]["num_vectors"] == 8
    assert found["metrics"]["degradation"]["sigma"]["again"] == found["metrics"]["degradation"]["sigma"]["f_l"]
    assert {"degradation.png", "swap.png", "swap-images.png"} <= set(found["pictures"])
    assert all((base / "diagnosis" / "pictures" / name).read_bytes().startswith(b"\x89PNG") for name in found["pictures"])
    record = json.loads((base / "diagnosis" / "diagnosis.json").read_text(encoding="utf-8"))
    sigma = next(row for row in record["probes"] if (row["group"], row["target"], row["features"]) == ("degradation", "sigma", "f_l"))
    assert sigma["r2"] == pytest.approx(found["metrics"]["degradation"]["sigma"]["f_l"], abs=1e-5) and sigma["low"] is None
    assert {row["minus"] for row in record["differences"]} >= {"again", "untrained", "lr filters"} and (record["step"], record["steps"]) == (2, 2)
    with pytest.raises(ValueError, match="unknown parameter 'patchs'; did you mean 'patches'"):
        run_notebook(notebook, {"patchs": 3}, base / "x.ipynb")


MEMBERS = {"kept": ("ours/kept-0.5.safetensors", "averaged weights at step 1 of 2", 1), "checkpoint": ("own/weights.pt", "averaged weights at step 2", 2),
           "bundled": ("crlsr-x4", "unknown whether any of the photographs was trained on", None)}


@pytest.mark.slow
@pytest.mark.parametrize("member", MEMBERS)
def test_the_notebook_takes_every_kind_of_model(run, member, monkeypatch):
    import shutil

    from crlsr.core import read_json, share_path
    from crlsr.studies.execution import run_notebook

    result, base = run
    (base / "own").mkdir(exist_ok=True)
    shutil.copy(base / "ours" / "checkpoint.pt", base / "own" / "weights.pt")  # nothing else lies beside it
    model, said, step = MEMBERS[member]
    model = model if member == "bundled" else str(base / model)
    out = base / f"diagnosis-{member}"
    parameters = {"name": member, "model": model, "run_dir": str(out), "data": str(base / "photos"), "patches": 2, "patch_size": 12, "num_vectors": 8,
                  "preset": "multimodal"}
    monkeypatch.chdir(base / "ours")  # a bundled model has nothing to do with what lies here
    run_notebook(share_path("nbs/reproduce/diagnose.ipynb"), parameters, out / "diagnose.ipynb", products=["results.json"], threads=1)
    printed = "".join("".join(o.get("text", "")) for cell in read_json(out / "diagnose.ipynb")["cells"] for o in cell.get("outputs", []))
    record = json.loads((out / "diagnosis.json").read_text(encoding="utf-8"))
    assert said in printed and record["probes"] and record["model"] == model
    assert record["step"] == step or member == "bundled"
    assert ("0 of the photographs were trained on" in printed) == (member == "kept")
