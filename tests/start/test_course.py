"""The course: a path of twenty notebooks at most in which each asks for earlier ones only, times that are counted, imports that are folded."""
import re
import shutil
from pathlib import Path

import pytest

from tests import notebooks, times

INDEX = notebooks.NBS / "index.ipynb"
LIBRARY = [path for path in notebooks.library_notebooks() if path != INDEX]
CELLS = notebooks.read(INDEX)["cells"]


PATHS = notebooks.reading_paths()


def shown(start):
    "The stored Markdown of the index's table whose first line begins so."
    texts = ["".join(out.get("data", {}).get("text/markdown", "")) for cell in CELLS for out in cell.get("outputs", [])]
    return next(text for text in texts if text.startswith(start))


def at(label):
    return notebooks.NBS / f"{label}.ipynb"


def needs(label, text=None):
    "Labels of the notebooks to which the line of what comes before links."
    text = notebooks.source(notebooks.read(at(label))["cells"][1]) if text is None else text
    line = next(line for line in text.splitlines() if "**Before**" in line)
    return [Path(*(at(label).parent / link).resolve().relative_to(notebooks.NBS).with_suffix("").parts).as_posix() for link in re.findall(r"\]\(([^)#]+)\)", line)]


def test_the_learners_path_is_a_day_and_goes_forwards():
    learner = PATHS["LEARNER"]
    assert len(learner) == len(set(learner)) <= 20 and learner == sorted(learner) and set(PATHS["HOUR"]) <= set(learner)
    assert all(at(label).is_file() for path in PATHS.values() for label in path)


@pytest.mark.parametrize("label", PATHS["LEARNER"])
def test_a_learners_notebook_needs_earlier_ones_of_the_path_only(label):
    earlier = PATHS["LEARNER"][: PATHS["LEARNER"].index(label)]
    assert set(needs(label)) <= set(earlier)
    assert not earlier or needs(label) or label == "04_degradation/01_kernels", "it says from where it goes on"


def test_a_need_that_the_path_does_not_meet_is_found():
    text = "- **Before**: blocks ([01_blocks](01_blocks.ipynb)), [a](../04_degradation/10_presets.ipynb).\n- **After**: [b](07_degradation_head.ipynb)"
    assert needs("06_networks/05_features", text) == ["06_networks/01_blocks", "04_degradation/10_presets"]


@pytest.mark.parametrize("path", LIBRARY, ids=notebooks.label)
def test_a_notebook_asks_only_for_what_exists_and_says_so_as_a_list(path):
    lines = notebooks.source(notebooks.read(path)["cells"][1]).splitlines()
    assert [line.split("**")[:2] for line in lines if line.startswith("- ")] == [["- ", name] for name in ("Before", "After", "Time")]
    assert all(at(label).is_file() and label < notebooks.label(path) for label in needs(notebooks.label(path)))


@pytest.mark.parametrize("path", LIBRARY, ids=notebooks.label)
def test_the_time_that_a_notebook_names_is_counted(path):
    assert abs(times.told(path) / times.minutes(path) - 1) <= 0.2, "run `python -m tests.times`"


def test_the_times_of_the_index_are_counted_and_its_hour_is_one():
    rows = re.findall(r"(?m)^\| \[[^]]+\]\((\S+)\.ipynb\)( ★)? \| .* \| (\d+) \|$", shown("| chapter, notebook"))
    assert [label for label, _, _ in rows] == [notebooks.label(path) for path in LIBRARY]
    assert [label for label, star, _ in rows if star] == PATHS["LEARNER"]
    for label, _, told in rows:
        assert abs(int(told) / times.minutes(at(label)) - 1) <= 0.2, f"{label}: run the index again"
    table = shown("| you want")
    for name, unit in (("HOUR", 1), ("LEARNER", 60), ("REPRODUCER", 60)):
        counted = sum(times.minutes(at(label)) for label in PATHS[name])
        line = next(line for line in table.splitlines() if all(f"]({label}.ipynb)" in line for label in PATHS[name]) and line.count("](") == len(PATHS[name]))
        value, word = re.search(r"\| (\d+) (minutes|hours) \|$", line).groups()
        assert abs(int(value) * (60 if word == "hours" else 1) / counted - 1) <= 0.2, f"{name}: run the index again"
    assert 48 <= sum(times.minutes(at(label)) for label in PATHS["HOUR"]) <= 72


def test_the_count_of_words_and_lines_is_what_its_rule_says(tmp_path):
    code = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    fold = {"jupyter": {"source_hidden": True}}
    cells = [{"cell_type": "markdown", "metadata": {}, "source": "# One [two three](not/read.ipynb) | four |\n" + "five " * 236},
             code | {"source": "a = 1\n\nb = 2\n" * 15}, code | {"metadata": fold, "source": "import os\n" * 99}]
    page = tmp_path / "page.ipynb"
    page.write_text(notebooks.json.dumps({"cells": cells, "metadata": {}}), encoding="utf-8")
    assert times.minutes(page) == 240 / 120 + 30 / 15


@pytest.mark.parametrize("label", PATHS["LEARNER"])
def test_what_precedes_the_first_idea_is_folded(label):
    for cell in notebooks.read(at(label))["cells"][2:]:
        if cell["cell_type"] == "markdown":
            break
        assert times.folded(cell), notebooks.source(cell)


def test_cleaning_keeps_what_is_folded(tmp_path):
    before = notebooks.read(at("08_refinement/03_saturation"))
    copy = tmp_path / "copy.ipynb"
    shutil.copy(at("08_refinement/03_saturation"), copy)
    notebooks.write_clean(copy, notebooks.read(copy))
    kept = [cell["metadata"] for cell in notebooks.read(copy)["cells"]]
    assert kept == [cell["metadata"] for cell in before["cells"]] and {"jupyter": {"source_hidden": True}} in kept


def test_doubts_are_called_by_their_numbers():
    for path in LIBRARY:
        text = " ".join(notebooks.source(cell) for cell in notebooks.read(path)["cells"] if cell["cell_type"] == "markdown")
        assert not re.search(r"(?i)doubt \(\d\)|(first|second|third|other) doubt", text), notebooks.label(path)
        assert set(re.findall(r"(?i)\bdoubt (\d)", text)) <= set("1234")


def test_the_table_of_weights_quotes_what_its_sources_say():
    def outputs(path):
        return "\n".join("".join(out.get("data", {}).get("text/markdown", "")) for cell in notebooks.read(path)["cells"] for out in cell.get("outputs", []))

    table = outputs(at("09_model/07_shares"))
    table = table[table.index("| where | `weight_bc`") :].splitlines()
    report = outputs(notebooks.ROOT / "data/reference/studies/recipe/report.ipynb")
    said = re.search(r"\| L\\_bc mutual, lr \| bc \| ([\d.]+) ± .*\| ([\d.]+) ± [^|]+\|[^|]+\|\n", report).groups()
    first = next(i for i, row in enumerate(table) if "`L_bc mutual, lr`" in row)
    found = [row.rstrip(" |").split(" | ")[-1] for row in table[first : first + 2]]
    assert found == [f"{100 * float(share):.1f}%" for share in said], "the report of the study has other shares"
