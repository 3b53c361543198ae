"""The accepted results: reports that are what their runs say, a page that lists them, nothing else beside them."""
import json
import shutil
from pathlib import Path

import pytest

from crlsr.studies import build_report
from tests import notebooks, reference

STUDIES = reference.REFERENCE / "studies"
NAMES = sorted(path.parent.name for path in STUDIES.glob("*/study.json"))
QUICK = ("diagnosis", "recipe")  # a report takes some ten seconds


def said(report: Path) -> list[str]:
    "What a report says in words and tables, its pictures left out."
    texts = [out["data"]["text/markdown"] if "text/markdown" in out.get("data", {}) else out.get("text", "")
             for cell in notebooks.read(report)["cells"] for out in cell.get("outputs", [])]
    return ["".join(text) for text in texts if text]


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES])
def test_a_report_made_again_says_the_same_to_the_last_digit(name, tmp_path, monkeypatch):
    kept = said(STUDIES / name / "report.ipynb")
    shutil.copytree(STUDIES, tmp_path / "data/reference/studies")
    monkeypatch.chdir(tmp_path)
    folder = Path("data/reference/studies") / name
    for file in folder.glob("report.*"):
        file.unlink()
    assert said(build_report(folder)[0]) == kept and sum(text.count("\n|") for text in kept) > 20


@pytest.mark.parametrize("name", NAMES)
def test_a_report_is_that_of_the_runs_beside_it(name, tmp_path, monkeypatch):
    """By its record, of code cells, parameters and the content of all that it reads: nothing is left to execute."""
    shutil.copytree(STUDIES, tmp_path / "data/reference/studies")
    monkeypatch.chdir(tmp_path)
    report = Path("data/reference/studies") / name / "report.ipynb"
    before = report.read_bytes()
    monkeypatch.setattr("crlsr.studies.execution._execute", None)
    assert build_report(report.parent)[0] == report and report.read_bytes() == before


def test_the_page_lists_every_report():
    text = (reference.REFERENCE / "README.md").read_text(encoding="utf-8")
    assert reference.TABLE.search(text)[0] == reference.contents(), "python -m tests.reference OUT writes this table"
    assert {path.parent.name for path in STUDIES.glob("*/report.ipynb")} == set(NAMES)


def test_every_run_belongs_to_a_study():
    for part in ("studies", "under_way"):
        records = [json.loads(path.read_text()) for path in (reference.REFERENCE / part).glob("*/study.json")]
        listed = {run["dir"] for record in records for run in record["runs"]}
        assert {path.name for path in (reference.REFERENCE / part / "shared").glob("*")} <= listed, part
    assert {path.name for path in reference.REFERENCE.iterdir()} <= {"README.md", "readme.png", "studies", "under_way"}


def test_a_study_is_whole_or_under_way_and_not_reported():
    for path in reference.REFERENCE.glob("*/*/study.json"):
        folders = [path.parents[1] / "shared" / run["dir"] for run in json.loads(path.read_text())["runs"]]
        whole = all((folder / "results.json").is_file() for folder in folders)
        assert (path.parts[-3], (path.parent / "report.ipynb").is_file()) == (("studies", True) if whole else ("under_way", False)), path


def test_no_report_names_a_place_of_a_machine():
    for name in NAMES:
        assert not reference.PLACE.search((STUDIES / name / "report.ipynb").read_text(encoding="utf-8")), name
