"""studies: files and grids, what is refused before anything starts, what two studies share, and what is left to do."""
import json
import math
import re

import pytest

from crlsr.core import share_path
from crlsr.data import ImagePool, PatchSampler
from crlsr.degradation import Degradation
from crlsr.studies import Study, load_study, study_names
from crlsr.studies.execution import TRAIN, check_settings, declared_parameters
from crlsr.studies.studies import check_study, minutes_left, only, overview, plan_jobs
from crlsr.training.step import new_state, train_step

CONTROL = {"weight_bc": 0.0, "weight_srnce": 0.0, "weight_rec": 0.0}
FILE = """
question = "Does it matter?"
prediction = "No: within 0.02 dB."
decision = "By the interval."
profile = "smoke"
seeds = [0, 1]
[parameters]
steps = 100
[variants.l1]
weight_bc = 0.0
[variants.b]
temperature = 0.2
"""


# --- files -------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def written(tmp_path):
    "Writes a study with one change and loads it."
    def write(old="", new="", more=""):
        assert old in FILE
        (tmp_path / "mine.toml").write_text(FILE.replace(old, new, 1) + more, encoding="utf-8")
        return load_study(tmp_path / "mine.toml")

    return write


def test_a_file_becomes_a_study(written):
    study = written()
    assert study == Study("mine", "Does it matter?", "smoke", {"l1": {"weight_bc": 0.0}, "b": {"temperature": 0.2}}, {"steps": 100}, seeds=(0, 1),
                          prediction="No: within 0.02 dB.", decision="By the interval.")
    assert [job.name for job in plan_jobs(study)] == ["l1 seed 0", "b seed 0", "l1 seed 1", "b seed 1"]


@pytest.mark.parametrize("old, new, message", [
    ("question", "qestion", "unknown key 'qestion'; did you mean 'question'"), ('question = "Does it matter?"', "", "missing key 'question'"),
    ('decision = "By the interval."', 'decision = ""', "missing key 'decision'"), ("0.02 dB", "a little", "prediction: got .* expected a number"),
    ("seeds = [0, 1]", "seeds = 2", "seeds: got 2"), ("seeds = [0, 1]", "seeds = [0, 0]", "got the seeds"), ("seeds = [0, 1]", "seeds = [0.5]", r"seeds\[0\]: got 0.5"),
    ("seeds = [0, 1]", 'name = "x"', "unknown key 'name'"), ('profile = "smoke"', 'profile = "smok"', "profile: got 'smok'.*did you mean 'smoke'"),
    ("steps = 100", "stesp = 100", "unknown parameter 'stesp'; did you mean 'steps'"), ("steps = 100", 'steps = "100"', "steps: got '100'"), ("steps = 100", "seed = 3", "'seed' is given by the study"),
    ("temperature = 0.2", "temperature = -1.0", "variant 'b': temperature"), ("temperature = 0.2", "times = 0", "variant 'b': times: got 0"), ("temperature = 0.2", 'cost = "dear"', "variant 'b': study.cost"),
    ("[variants.b]\ntemperature = 0.2", "[variants]\nb = 3", "."), ("[parameters]", "parameters = 3\n[x]", "."), ("steps = 100", 'preset = "isso"', "isso"),
])
def test_a_mistake_in_a_file_is_one_line_that_names_file_and_key(written, old, new, message):
    with pytest.raises(ValueError, match=rf"(?s)mine\.toml.*{message}") as caught:
        written(old, new)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("more, message", [
    ("[by_profile.cpu]\nstesp = 3", "stesp"), ("[by_profile.cup]\nsteps = 3", "got 'cup'"), ("[by_profile]\ncpu = 3", "by_profile.cpu: got 3, expected a table"), ("[minutes.cpu]\nstep = 1.0", "did you mean 'steps'"),
    ("[minutes.cpu]\nsteps = true", "steps: got True"), ("[variants.b]", "."), ("[variants.c]\nseeds = []", "variant 'c': got the seeds"), ('notebook = "x"', "."),
])
def test_a_mistake_at_the_end_of_a_file(written, more, message):
    with pytest.raises(ValueError, match=rf"(?s)mine\.toml.*{message}"):
        written(more=more)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"= 3", b"", b"question = 3"])
def test_what_is_no_study_is_named(tmp_path, content):
    (tmp_path / "mine.toml").write_bytes(content)
    with pytest.raises(ValueError, match="mine.toml"):
        load_study(tmp_path / "mine.toml")


def test_a_study_that_is_not_there():
    with pytest.raises(ValueError, match="study: got 'smok', expected a .toml file or one of .*did you mean 'smoke'"):
        load_study("smok")
    with pytest.raises(FileNotFoundError, match="study: no file nowhere.toml"):
        load_study("nowhere.toml")


# --- grids -----------------------------------------------------------------------------------------------------------------

def test_a_misspelt_parameter_is_refused_while_planning():
    with pytest.raises(ValueError, match="variant 'a': unknown parameter 'setps'; did you mean 'steps'"):
        plan_jobs(Study("s", "?", "smoke", {"a": {"setps": 3}}))


@pytest.mark.parametrize("where", ["parameters", "by_profile", "variants"])
@pytest.mark.parametrize("name, value", [("seed", 7), ("name", "same"), ("run_dir", "/elsewhere"), ("profile", "cpu")])
def test_what_tells_the_runs_apart_is_the_study_s_own(where, name, value):
    change = {name: value}
    study = Study("s", "?", "smoke", {"l1": CONTROL, "a": change if where == "variants" else {}}, change if where == "parameters" else {},
                  {"smoke": change} if where == "by_profile" else {}, seeds=(0, 1, 2))
    with pytest.raises(ValueError, match=f"study 's', variant '[al1]+': '{name}' is given by the study"):
        plan_jobs(study)


@pytest.mark.parametrize("seeds", [(), (0, 1, 0), (-1,)])
def test_seeds_are_whole_numbers_each_only_once(seeds):
    with pytest.raises(ValueError, match="study 's', variant 'l1': got the seeds"):
        plan_jobs(Study("s", "?", "smoke", {"l1": {}}, seeds=seeds))


@pytest.mark.parametrize("change, message", [
    ({"steps": -1}, "steps: got -1"), ({"steps": "abc"}, "steps: got 'abc'"), ({"preset": "bogus"}, "bogus"), ({"test_presets": ["bogus"]}, "bogus"), ({"pictures": -3}, "pictures: got -3"),
    ({"test_data": "mydata"}, "test_data: got 'mydata'"), ({"data": "nowhere"}, "source 'nowhere'"), ({"test_data": ["embedded"]}, "holds 6 training photographs"),
])
def test_a_value_that_a_run_cannot_take_is_refused_while_planning_and_names_its_variant(change, message):
    study = Study("s", "?", "smoke", {"l1": CONTROL, "a": change})
    with pytest.raises((ValueError, FileNotFoundError), match=f"study 's', variant 'a'.*{message}"):
        plan_jobs(study)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        plan_jobs(only(study.replace(variants={"l1": change}), []))


def test_a_control_of_equal_time_makes_more_steps():
    study = Study("s", "?", "smoke", {"l1": CONTROL, "longer": {"times": 1.6, **CONTROL}, "a": {}}, {"steps": 100})
    jobs = {job.variant: job.parameters for job in plan_jobs(study)}
    assert [p["steps"] for p in jobs.values()] == [100, 160, 100]
    assert jobs["longer"].keys() == jobs["l1"].keys() and study.replace(parameters={}).settings("longer")["steps"] == 576, "360 of the profile"


def test_a_variant_may_have_seeds_of_its_own():
    study = Study("s", "?", "smoke", {"l1": CONTROL, "a": {"seeds": [1, 5]}}, seeds=(0, 1))
    assert [job.name for job in plan_jobs(study)] == ["l1 seed 0", "l1 seed 1", "a seed 1", "a seed 5"]


def test_a_variant_may_have_a_control_of_its_own():
    arm = {"steps": 7, "control": "deep l1"}
    study = Study("s", "?", "smoke", {"l1": CONTROL, "deep l1": {"steps": 5, **CONTROL}, "other": {"steps": 6}, "deep": arm})
    assert {job.variant: job.digest for job in plan_jobs(study)}["deep"] == plan_jobs(study.replace(variants={"deep": {"steps": 7}}))[0].digest, "the run is the same"
    assert list(only(study, ["deep"]).variants) == ["l1", "deep l1", "deep"] and list(only(study, ["other"]).variants) == ["l1", "other"]
    for control in ("deep", "deep l2"):
        with pytest.raises(ValueError, match=f"control: got '{control}', expected another variant of the study"):
            plan_jobs(study.replace(variants=study.variants | {"deep": {"control": control}}))


def test_two_variants_that_are_one_run_are_a_mistake():
    with pytest.raises(ValueError, match="study 's': 'a' and 'b' are the same run"):
        plan_jobs(Study("s", "?", "smoke", {"a": {"steps": 5}, "b": {"steps": 5}}))


def test_parameters_of_a_profile_are_those_of_that_profile_only():
    study = Study("s", "?", "smoke", {"l1": CONTROL}, {"steps": 5, "batch_size": 2}, by_profile={"cpu": {"steps": 7}})
    assert [study.replace(profile=name).common["steps"] for name in ("smoke", "gpu", "cpu")] == [5, 5, 7]
    assert plan_jobs(study)[0].parameters["steps"] == 5 and study.common == {"profile": "smoke", "steps": 5, "batch_size": 2}
    assert study.replace(profile="cpu").common == {"profile": "cpu", "steps": 7, "batch_size": 2}


def test_a_part_of_a_study_keeps_its_control_and_its_digests():
    study = Study("s", "?", "smoke", {"l1": CONTROL, "a": {}, "b": {"temperature": 0.2}})
    whole = {job.variant: job.digest for job in plan_jobs(study)}
    part = {job.variant: job.digest for job in plan_jobs(only(study, ["b"]))}
    assert part == {name: whole[name] for name in ("l1", "b")}
    with pytest.raises(ValueError, match="variant: study 's' has no 'c'; it has: l1, a, b"):
        only(study, ["c"])


def test_a_run_is_the_same_whatever_it_is_called():
    first = Study("s", "?", "smoke", {"l1": CONTROL, "a": {}}, {"steps": 7})
    second = Study("t", "?", "smoke", {"plain": CONTROL, "b": {"times": 2.0}}, {"steps": 7})
    a, b = plan_jobs(first, "runs"), plan_jobs(second, "runs")
    assert a[0].dir == b[0].dir and a[0].digest == b[0].digest and (a[0].variant, b[0].variant) == ("l1", "plain")
    assert len({job.dir for job in (*a, *b)}) == 3


def test_without_photographs_a_plan_is_provisional():
    study = Study("s", "?", "smoke", {"l1": CONTROL}, {"test_data": ["nowhere"]})
    (job,) = plan_jobs(study, absent=True)
    assert job.absent == ("nowhere",) and not job.finished
    with pytest.raises(FileNotFoundError, match="study 's', variant 'l1': source 'nowhere'"):
        plan_jobs(study)
    (here,) = plan_jobs(study.replace(parameters={}), absent=True)
    assert here.absent == () and here.digest == plan_jobs(study.replace(parameters={}))[0].digest != job.digest


# --- runs that read others --------------------------------------------------------------------------------------------------------

def reading(model, **changes):
    return Study("d", "?", "smoke", {"a": {"model": model, **changes}}, {"data": "embedded:heldout"}, notebook="nbs/reproduce/diagnose.ipynb", report="")


def test_a_run_is_named_by_study_and_variant():
    trained = {(job.variant, job.seed): job for job in plan_jobs(load_study("smoke"), "out")}
    (job,) = plan_jobs(reading("{smoke: crlsr}/kept-0.2.safetensors", controls=["plain={smoke: l1}"]), "out")
    assert job.parameters["model"] == f"{trained['crlsr', 0].dir}/kept-0.2.safetensors" and job.parameters["controls"] == [f"plain={trained['l1', 0].dir}"]
    assert job.needs == (trained["crlsr", 0], trained["l1", 0]) and "profile" not in job.parameters
    assert plan_jobs(reading("{smoke: crlsr}/kept-0.2.safetensors", controls=["plain={smoke: l1}"]), "elsewhere")[0].digest == job.digest
    assert plan_jobs(reading("{smoke: l1}/kept-0.2.safetensors", controls=["plain={smoke: l1}"]), "out")[0].digest != job.digest


@pytest.mark.parametrize("model, message", [("{smok: l1}", "did you mean 'smoke'"), ("{smoke: l2}", "no 'l2' with seed 0 in 'smoke'; it has: l1, crlsr")])
def test_a_run_that_no_study_has_is_named(model, message):
    with pytest.raises(ValueError, match=message):
        plan_jobs(reading(model))


# --- how long ---------------------------------------------------------------------------------------------------------------------

def test_minutes_follow_steps_and_cost_and_are_corrected_by_what_was_done(tmp_path, monkeypatch):
    study = Study("s", "?", "smoke", {"l1": CONTROL, "a": {"cost": 1.5}}, {"steps": 2000}, seeds=(0, 1), minutes={"smoke": {"steps": 2.0, "rest": 1.0}})
    jobs = plan_jobs(study, tmp_path)
    assert [job.minutes for job in jobs] == [5.0, 7.0] * 2 and minutes_left(jobs) == 24.0 and minutes_left([*jobs, *jobs]) == 24.0
    jobs[0].dir.mkdir(parents=True)
    (jobs[0].dir / "results.json").write_text('{"minutes": {"all": 10.0}}')
    monkeypatch.setattr(type(jobs[0]), "finished", property(lambda job: (job.dir / "results.json").exists()))
    assert minutes_left(jobs) == 2 * 19.0
    assert minutes_left(plan_jobs(study.replace(minutes={}), tmp_path)) is None


@pytest.fixture
def few_studies(monkeypatch):
    """Some of the studies, for all take their seconds: two that share runs, one of diagnoses and those that it reads, one that needs no photographs."""
    names = ["control", "diagnosis", "recipe", "recipe_confirmed", "smoke"]
    monkeypatch.setattr("crlsr.studies.studies.study_names", lambda: names)
    return names


def test_the_overview_has_one_pace(tmp_path, monkeypatch, few_studies):
    """A machine that took ten times the minutes for one run will for all, those of other studies too: so rows add up."""
    before = {row["study"]: row["minutes_left"] for row in overview(tmp_path)}
    job = plan_jobs(load_study("smoke"), tmp_path)[0]
    job.dir.mkdir(parents=True)
    (job.dir / "results.json").write_text(json.dumps({"minutes": {"all": 10 * job.minutes}}))
    monkeypatch.setattr(type(job), "finished", property(lambda job: (job.dir / "results.json").exists()))
    after = {row["study"]: row["minutes_left"] for row in overview(tmp_path)}
    assert all(after[name] == pytest.approx(10 * before[name], rel=0.01) for name in few_studies if name != "smoke")
    assert after["all"] == pytest.approx(10 * (before["all"] - job.minutes), rel=0.01)


def test_the_overview_counts_a_shared_run_once(tmp_path, few_studies):
    rows = {row["study"]: row for row in overview(tmp_path)}
    every = {job.dir for name in few_studies for job in plan_jobs(load_study(name), tmp_path, absent=True)}
    assert [*rows] == [*few_studies, "all"] and rows["all"]["runs"] == len(every) < sum(row["runs"] for name, row in rows.items() if name != "all")
    assert rows["smoke"]["finished"] == 0 and rows["smoke"]["minutes_left"] > 0 and rows["smoke"]["absent"] == []


# --- the studies of the project --------------------------------------------------------------------------------------------------

TRAINED = [name for name in study_names() if name != "diagnosis"]


def test_every_study_is_what_its_page_says():
    for name in study_names():
        study = load_study(name)
        if name != "diagnosis":
            given = study.settings(next(iter(study.variants)))
            assert given["weight_bc"] == given["weight_srnce"] == given["weight_rec"] == 0, f"{name}: the first is plain L1"
        if name.endswith("_confirmed") or name == "control":
            assert study.seeds == tuple(range(10, 18)) and study.parameters["test_data"] == ["B100"], "fresh seeds, photographs that chose nothing"
        if 0 in study.seeds and name not in ("smoke", "diagnosis"):
            assert study.parameters["test_data"] == ["BSDS500:validation"], "what chooses looks at validation photographs"
    assert len(load_study("bc_negatives").variants) > 15 and len(load_study("srnce_negatives").variants) > 8 and len(load_study("recipe_confirmed").variants) <= 5


@pytest.mark.parametrize("name", TRAINED)
def test_every_variant_is_a_config_under_every_profile(name):
    study = load_study(name)
    for profile in ("smoke", "cpu", "gpu", "paper"):
        check_study(study.replace(profile=profile), absent=True)
    jobs = plan_jobs(study, absent=True)
    assert len({job.dir for job in jobs}) == len(jobs) and all(re.fullmatch(r"seed\d+-[0-9a-f]{12}", job.dir.name) for job in jobs)


def steps_of(name, profile, **smaller):
    "A step of the engine in the middle of training for each variant: its name, what was taught, what the step found."
    study, declared, pool = load_study(name).replace(profile=profile), declared_parameters(share_path(TRAIN)), ImagePool("embedded:train")
    for variant in study.variants:
        model_config, train = check_settings({**declared, **study.settings(variant), **smaller, "batch_size": 2, "patch_size": 16, "data": "embedded:train"})
        sampler = PatchSampler(pool, Degradation.parse(train.preset, scale=model_config.network.scale), train.patch_size, train.batch_size, 0, train.pairing)
        state = new_state(model_config, train)
        state.step = train.steps * 2 // 5 // 25 * 25  # where shares are measured, E_f is ready, and no loss has ended
        before = [weight.clone() for weight in state.model.restorer.parameters()]
        figures = train_step(state, sampler.batch(0), train)
        yield variant, [bool((a != b).any()) for a, b in zip(before, state.model.restorer.parameters())], figures


def check_steps(name, profile, **smaller):
    for variant, moved, figures in steps_of(name, profile, **smaller):
        assert any(moved), f"{name}, {variant}: nothing was taught"
        assert all(math.isfinite(value) for value in figures.values() if value is not None), f"{name}, {variant}: {figures}"


@pytest.mark.parametrize("name", TRAINED)
def test_every_variant_makes_a_step(name):
    "With narrow networks; with those of the profiles below."
    check_steps(name, "cpu", num_feat=8)


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["gpu", "paper"])
@pytest.mark.parametrize("name", TRAINED)
def test_every_variant_makes_a_step_with_the_networks_of_a_profile(name, profile):
    check_steps(name, profile)
