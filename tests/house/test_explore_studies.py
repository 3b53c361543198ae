"""The browser of studies: figures against results.json and read_outcome, every control answered, damaged folders in one line, a quick redraw."""
import base64
import html
import io
import json
import re
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crlsr.images import write_image
from crlsr.studies.outcomes import read_outcome
from crlsr.studies.studies import read_results
from crlsr.viz import _COLOURS
from tests import notebooks
from tests.house import explorers
from tests.house.explorers import PHOTOS, record, written

STUDIES = notebooks.NBS / "explore" / "studies.ipynb"
HELPERS = """
import json
c = explorer.controls
def go(path, **changes):  # another folder, and what is changed there, the rest as at first
    c.filling = True
    c.folder.value, c.path.value, c.metric.value, c.curves.value = "", str(path), "psnr", "loss"
    c.filling = False
    explorer.enter_folder()
    for name, value in changes.items():
        getattr(c, name).value = value
def state():
    s = explorer.setting
    return {"parts": {name: part.value for name, part in explorer.panels.parts.items()} | {"whole": explorer.panels.whole.value}, "study": str(s.study),
            "runs": s.runs, "test": s.test, "photo": s.photo, "studies": [name for name, _ in c.study.options], "tests": c.test.options, "photos": [value for _, value in c.photo.options]}
"""
HOSTILE = "</b><img src=x onerror=alert(1)>\u202e $&"


@pytest.fixture(scope="module")
def run():
    "Runs code in the kernel of the explorer, all cells executed; returns what the code's last line prints as JSON."
    with explorers.kernel(STUDIES, HELPERS) as execute:
        yield execute


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    "Studies of three seeds, of one seed with hostile names, of plain L1 at two lengths."
    root = tmp_path_factory.mktemp("studies")
    arms = (("l1", 0, 0), ("small", 0.01, 1), ("none", 0.0, 2), ("large", -0.2, 3))
    written(root, "three", [record(name, seed, gain, bc) for name, gain, bc in arms for seed in (10, 11, 12)])
    written(root, "one", [record("l1", 0, 0), record(HOSTILE, 0, 0.1, 1), record("other", 0, 0.05, 2)], planned=3)
    written(root, "control", [record("twice", seed, 0.02, 0, 800) for seed in (10, 11, 12)])
    return root


def text(part: str) -> str:
    "What is read of HTML, cells apart."
    return html.unescape(re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", re.sub("<title>.*?</title>", " ", part)))).strip()


def cells(table: str) -> dict[str, list[str]]:
    "Arm -> the figures of its line, by the table's head."
    head = re.findall(r"<th scope='col'[^>]*>(.*?)</th>", table)[1:]
    rows = re.findall(r"<tr><th scope='row'[^>]*>(.*?)</th>(.*?)</tr>", table)
    return {text(name): dict(zip(head, map(html.unescape, re.findall(r"<td[^>]*>(.*?)</td>", rest)))) for name, rest in rows}


def scores(root: Path, name: str, preset: str, metric: str = "psnr") -> np.ndarray:
    "(seeds, photographs, draws) of an arm, from the files."
    found = {each["seed"]: each for each in (json.loads(file.read_text()) for file in sorted(root.glob("shared/three*/results.json"))) if each["name"] == name}
    return np.array([next(np.array(row["scores"][metric].split(), float).reshape(12, 2) for row in found[seed]["metrics"] if row["preset"] == preset) for seed in sorted(found)])


@pytest.mark.parametrize("test, presets, metric", [("iso: primary", ["iso"], "psnr"), ("new sources: mean of 2", ["motion", "disk"], "psnr"), ("motion", ["motion"], "psnr"),
                                                   ("iso: primary", ["iso"], "ssim"), ("disk", ["disk"], "detail_correlation")])
def test_the_table_is_that_of_results_and_read_outcome(run, toy, test, presets, metric):
    chosen = [("l1", 10), ("small", 10), ("none", 11), ("large", 12)]
    got = run(f"go({str(toy)!r}, study={str(toy / 'three')!r}, runs={chosen}, test={test!r}, metric={metric!r})\nprint(json.dumps(state()))")
    outcome, digits = read_outcome(toy / "three"), 4 if metric == "ssim" else 3
    found, own = cells(got["parts"]["table"]), metric == "psnr" and test != "motion"
    assert list(found) == ["l1", "small", "none", "large"] and found["l1"]["difference"] == "control" and "redrawn in" in got["parts"]["message"]
    for arm, row in found.items():
        ours, base = (np.mean([scores(toy, name, preset, metric) for preset in presets], 0) for name in (arm, "l1"))
        assert row["seeds"] == "3" and abs(float(row["mean"]) - ours.mean()) < 0.51 * 10**-digits
        if arm == "l1":
            continue
        assert abs(float(row["difference"]) - (ours - base).mean()) < 0.51 * 10**-digits
        ends = [float(value) for value in re.findall(r"[-+]?\d+\.\d+", row["over seeds"] + row["over photographs"])]
        assert ends[0] <= float(row["difference"]) <= ends[1] and ends[2] <= float(row["difference"]) <= ends[3]
        finding = [one for one in outcome.at_equal_steps["l1"] if one.arm == arm and one.endpoint == test.partition(":")[0]]
        assert ("verdict" in row) == own == bool(finding) or metric == "ssim"
        if own:
            claim = finding[0].claim
            assert row["verdict"] == finding[0].verdict and [row["over seeds"], row["over photographs"]] == [claim.over_seeds.ends(), claim.over_photographs.ends()]
    said = text(got["parts"]["table"])
    assert ("is no endpoint of the study" in said) != own and ("at equal time large" in said) == own
    if own:
        timed = next(one for one in outcome.at_equal_time["l1"] if one.arm == "large" and one.endpoint == test.partition(":")[0])
        assert f"at equal time large {timed.claim.over_seeds.text()}, photographs {timed.claim.over_photographs.ends()}: {timed.verdict}" in said
        assert found["large"]["verdict"] == "worse"


def test_one_seed_has_no_interval_and_no_verdict(run, toy):
    got = run(f"go({str(toy)!r}, study={str(toy / 'one')!r})\nprint(json.dumps(state()))")
    assert text(got["parts"]["status"]) == "screening: seeds 0–1, validation; no verdict; 3 of 6 runs finished, 3 missing or damaged"
    found, said = cells(got["parts"]["table"]), text(got["parts"]["table"])
    assert all(not {"over seeds", "verdict"} & row.keys() for row in found.values()) and "one seed: no interval over seeds" in said
    assert "one seed, no verdict" in text(got["parts"]["says"])
    names = [key for key in found if key not in ("l1", "other")]
    assert len(names) == 1 and "</b><img src=x onerror=alert(1)>" in names[0] and "\\u202e" in names[0]
    for part in got["parts"].values():
        assert "<img src=x" not in part and "\u202e" not in part, "a name is text"


def test_a_folder_is_opened_on_what_differs_most(run, toy):
    got = run(f"go({str(toy)!r})\nprint(json.dumps(state()))")
    assert Path(got["study"]).name == "three" and got["studies"] == ["three: 12 of 12 runs", "control: 3 of 3 runs", "one: 3 of 6 runs"]
    gap = {name: abs((scores(toy, name, "iso") - scores(toy, "l1", "iso")).mean()) for name in ("small", "none", "large")}
    first, second, _ = sorted(gap, key=gap.get, reverse=True)
    assert got["runs"] == [["l1", 10], [first, 10], [second, 10]] and got["test"] == "iso: primary"
    apart = {photo: sum(abs((scores(toy, name, "iso") - scores(toy, "l1", "iso")).mean((0, 2))[i]) for name in (first, second)) for i, photo in enumerate(PHOTOS)}
    assert got["photo"] == max(("test/03", "test/05"), key=apart.get), "of those whose pictures were kept"
    means = (scores(toy, "large", "iso") - scores(toy, "l1", "iso")).mean((0, 2))
    assert f"large: {means.mean():+.3f} against l1 (worse); without photograph 07 {np.delete(means, 7).mean():+.3f}." == text(got["parts"]["says"])
    assert got["photos"][:2] == ["test/03", "test/05"] and sorted(got["photos"]) == PHOTOS


def test_dots_are_sorted_and_say_their_differences(run, toy):
    figures = run(f"go({str(toy)!r}, test='disk', runs=[('l1', 10), ('large', 10)], photo='test/07')\nprint(json.dumps(state()))")["parts"]["figures"]
    dots = re.findall(r"translate\(([\d.]+) ([\d.]+)\)'><title>large, (test/\d\d): ([-+\d.]+)</title>", figures)
    means = (scores(toy, "large", "disk") - scores(toy, "l1", "disk")).mean((0, 2))
    order = [PHOTOS.index(name) for *_, name, _ in dots]
    assert sorted(order) == [*range(12)] and order[0] == 7 and (np.diff(means[order]) > -1e-9).all()
    assert np.abs(np.array([float(value) for *_, value in dots]) - means[order]).max() < 0.00051
    xs, ys = ([float(dot[i]) for dot in dots] for i in (0, 1))
    assert xs == sorted(xs) and all(a >= b - 0.1 for a, b in zip(ys, ys[1:])), "higher is more"
    slope, offset = np.polyfit(means[order], ys, 1)
    assert np.abs(slope * means[order] + offset - ys).max() < 0.2


@pytest.mark.parametrize("kind, ends", [("loss", {"l1, seed 10": 1 / 400 + 0.0, "small, seed 10": 1 / 400 + 0.03}), ("PSNR", {"l1, seed 10": 24.0, "small, seed 10": 24.0}),
                                        ("share", {"small, seed 10, bc": 0.05}), ("cosine", {"small, seed 10, bc": 0.3})])
def test_curves_are_those_of_the_logs(run, toy, kind, ends):
    figures = run(f"go({str(toy)!r}, runs=[('l1', 10), ('small', 10)], curves={kind!r})\nprint(json.dumps(state()))")["parts"]["figures"]
    label = html.unescape(re.search(r"aria-label='([^']*)'", figures)[1])
    said = {name: float(value) for name, value in re.findall(r"([^;:]+) ends at ([\d.]+)", label.partition(": ")[2] if kind != "loss" else label.rpartition("mean: ")[2])}
    assert {name.strip(): value for name, value in said.items()} == pytest.approx(ends, rel=1e-3), "eight rows: an eighth is one"
    assert "averaged weights kept at step 200" in figures


def test_crops_are_those_of_the_pictures(run, toy):
    got = run(f"go({str(toy)!r}, runs=[('l1', 10), ('large', 11)], photo='test/05', across=1.0, down=0.0)\nprint(json.dumps(state()))")
    shown = re.findall(r"<b [^>]*title='([^']*)'>.*?<span[^>]*>(.*?)</span>.*?<img class='widget-image' alt='([^']*)' src='data:image/png;base64,([^']*)'", got["parts"]["crops"])
    assert [title for title, *_ in shown] == ["lr", "bicubic", "l1, seed 10", "large, seed 11", "hr"] and all(len(alt) > 10 for _, _, alt, _ in shown)
    for title, caption, _, data in shown:
        folder = toy / "shared" / ("three10" if title.startswith("large") else "three0") / "pictures"
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        hr = np.asarray(Image.open(folder / "test_05.hr.png"))[:60, 44:]
        if title != "bicubic":
            kind = title if title in ("lr", "hr") else "sr"
            file = np.asarray(Image.open(folder / f"test_05.{kind}.png"))
            file = file[:15, 11:].repeat(4, 0).repeat(4, 1) if kind == "lr" else file[:60, 44:]
            assert np.array_equal(picture, file.repeat(2, 0).repeat(2, 1))
        if title not in ("lr", "hr"):
            luma = [part @ np.array([65.481, 128.553, 24.966]) / 255 for part in (picture[::2, ::2].astype(float), hr.astype(float))]
            assert abs(float(caption.split()[0]) - 10 * np.log10(255**2 / ((luma[0] - luma[1]) ** 2).mean())) < 0.006
    assert shown[0][1] == "iso:2.4" and "row 0, column 44" in shown[0][2] and "alt='All of test/05" in got["parts"]["whole"]
    got = run("c.photo.value = 'test/07'\nprint(json.dumps(state()))")
    assert got["parts"]["crops"] == "" and "no pictures of test/07 were kept" in got["parts"]["message"]


def test_every_control_is_answered(run, toy):
    rows = run(f"""
rows = []
for name, value in (("study", {str(toy / 'one')!r}), ("runs", [("l1", 10), ("none", 11)]), ("test", "motion"), ("metric", "ssim"), ("curves", "PSNR"), ("photo", "test/05"), ("across", 0.1), ("down", 0.4),
                    ("runs", [(name, seed) for name in ("l1", "small", "none", "large") for seed in (10, 11)])):
    go({str(toy)!r})
    before = state()["parts"]
    getattr(c, name).value = value
    rows.append([name, [part for part in before if part != "message" and before[part] != state()["parts"][part]], explorer.panels.parts["message"].value])
print(json.dumps(rows))""")
    expected = {"study": {"status", "table"}, "test": {"table", "figures"}, "metric": {"table", "figures"}, "curves": {"figures"}, "photo": {"crops", "figures", "whole"},
                "across": {"crops", "whole"}, "down": {"crops", "whole"}, "runs": {"table", "figures", "crops"}}
    for name, changed, message in rows:
        assert expected[name] <= set(changed) and "redrawn in" in message, (name, changed, message)
    assert "crops of 4 of 8 runs" in rows[-1][2] and "status" not in rows[2][1]


DAMAGE = {
    "nowhere": (lambda root: root.rename(root.with_name("gone")), "no such folder"),
    "empty": (lambda root: [file.unlink() for file in root.rglob("*.json")], "expected a study or finished runs below it"),
    "no result": (lambda root: [file.unlink() for file in root.rglob("results.json")], "has no results.json of a training"),
    "half a result": (lambda root: [file.write_text(file.read_text()[:99]) for file in root.rglob("results.json")], "has no results.json of a training"),
    "no training": (lambda root: edit(root, lambda each: each["config"].pop("train")), "a record of its runs is damaged (KeyError"),
    "a list for a mapping": (lambda root: edit(root, lambda each: each.update(config=dict(each["config"], train=[]))), "a record of its runs is damaged (TypeError"),
    "figures of another count": (lambda root: edit(root, lambda each: each["metrics"][0]["scores"].update(psnr="1 2 3")), "cannot reshape"),
    "not a number": (lambda root: edit(root, lambda each: each["metrics"][0]["scores"].update(psnr=" ".join(["nan"] * 24))), "finite"),
    "a damaged picture": (lambda root: [file.write_bytes(b"no picture") for file in root.rglob("*.sr.png")], ".sr.png"),
    "another size": (lambda root: [write_image(torch.rand(3, 40, 40), file) for file in root.rglob("*.sr.png")], "lr, sr and hr have sides"),
}


def edit(root: Path, change) -> None:
    for file in root.rglob("results.json"):
        each = json.loads(file.read_text())
        change(each)
        file.write_text(json.dumps(each))


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_said_in_a_line_and_the_last_pictures_stay(run, tmp_path, damage):
    root = tmp_path / "<i>studies"
    written(root, "two", [record("l1", 0, 0), record("arm", 0, 0.1, 1)])
    act, message = DAMAGE[damage]
    act(root)
    before, after = run(f"a = state()['parts']\ngo({str(root)!r})\nprint(json.dumps([a, state()['parts']]))")
    said = text(after.pop("message"))
    assert message in said and "redrawn" not in said and "\n" not in said
    before.pop("message")
    assert after == before and len(after["table"]) > 500


def test_a_damaged_log_leaves_the_curves_out(run, tmp_path):
    written(tmp_path, "two", [record("l1", 0, 0), record("arm", 0, 0.1, 1)])
    for file in tmp_path.rglob("log.jsonl"):
        file.write_text("{]\n")
    got = run(f"go({str(tmp_path)!r})\nprint(json.dumps(state()))")["parts"]
    assert "redrawn in" in got["message"] and "no log that can be read" in got["figures"] and got["figures"].count("<svg class='widget-image'") == 1


def test_nothing_chosen_and_nothing_typed(run, toy):
    lines = run(f"go({str(toy)!r})\na = state()['parts']\nc.runs.value = ()\nb = state()['parts']\ngo({str(toy)!r})\nc.path.value = ' '\nprint(json.dumps([a, b, state()['parts']]))")
    assert "runs: got none" in lines[1]["message"] and "folder: got none" in lines[2]["message"]
    assert all({**each, "message": 0} == {**lines[0], "message": 0} for each in lines[1:])


def test_runs_that_are_added_are_read(run, tmp_path):
    written(tmp_path, "grows", [record("l1", 0, 0), record("arm", 0, 0.1, 1)])
    first = run(f"go({str(tmp_path)!r})\nprint(json.dumps(state()))")
    file = tmp_path / "shared/grows1/results.json"
    file.write_text(json.dumps(record("arm", 0, 0.3, 1)))
    second = run("c.metric.value = 'ssim'\nc.metric.value = 'psnr'\nprint(json.dumps(state()))")
    rows = [float(cells(state["parts"]["table"])["arm"]["difference"]) for state in (first, second)]
    assert rows[1] > rows[0] + 0.2, "a study under way is read as it is now"


def test_runs_come_before_the_reference_where_there_are_studies(run, tmp_path):
    got = run(f"""
root = Path({str(tmp_path)!r})
a = str(first_folder(root))
(root / "runs/deep/er").mkdir(parents=True)
(root / "runs/deep/er/study.json").write_text("{{}}")
print(json.dumps([a, str(first_folder(root)), str(root_of(Path({str(tmp_path)!r}))), str(root_of(Path({str(STUDIES.parent)!r})))]))""")
    assert got == [str(tmp_path / "data/reference/studies"), str(tmp_path / "runs"), str(notebooks.ROOT), str(notebooks.ROOT)]


def test_the_reference_results_are_offered(run):
    """Whichever of them has grown the largest is opened; which that is changes as studies are finished."""
    root = notebooks.ROOT / "data/reference/studies"
    got = run(f"go('.')\nc.folder.value = {str(root)!r}\nprint(json.dumps(state()))")
    counts = {name: int(count) for name, count in (re.fullmatch(r"(.+): (\d+) of .+", line).groups() for line in got["studies"])}
    found = {path.parent.name: len(read_results(path.parent)[1]) for path in root.glob("*/study.json")}
    outcome = read_outcome(root / next(iter(counts)))
    row = cells(got["parts"]["table"])[next(iter(outcome.groups))]
    assert counts == {name: found[name] for name in counts} and next(iter(counts.values())) == max(counts.values())
    assert float(row["mean"]) == round(statistics.fmean(each["metrics"][0]["psnr"] for each in next(iter(outcome.groups.values()))), 3)


def test_arms_are_told_apart_without_colour(run):
    dashes, shapes, colours = run("print(json.dumps([DASHES, SHAPES, COLOURS]))")
    assert len(set(dashes)) == len(set(shapes)) == len(set(colours)) == 6 and tuple(colours) == _COLOURS[:6]


def test_a_redraw_is_quick(run, toy):
    times = run(f"""
go({str(toy)!r})
times = {{}}
for name, values in (("across", (0.1, 0.2, 0.3)), ("photo", ("test/03", "test/07", "test/05")), ("test", ("motion", "disk", "iso: primary")), ("metric", ("ssim", "detail_energy", "psnr")),
                     ("curves", ("share", "PSNR", "loss")), ("runs", ([("l1", 10)], [("l1", 10), ("large", 11)], [(name, 10) for name in ("l1", "small", "none", "large")]))):
    times[name] = timed(getattr(c, name), values)
print(json.dumps(times))""")
    print({name: f"{value:.0f} ms" for name, value in times.items()})
    assert max(times.values()) <= 200, f"at most 200 ms of processor time, got {times}"
