"""Solutions: every exercise of the learner's path has one, under the exercise's own words, with a hint before it and code that asserts."""
import re
from typing import NamedTuple

import pytest

from tests import notebooks

LEARNER = notebooks.reading_paths()["LEARNER"]


class Part(NamedTuple):
    "What stands below the heading of one exercise."
    text: str  # the exercise
    cells: list[dict]


def words(text):
    return " ".join(text.split())


def exercises(nb):
    "Number -> text of the exercises of a notebook, and the rest of that cell."
    cell = next(text for cell in nb["cells"] if (text := notebooks.source(cell)).startswith("## Exercises"))
    *parts, rest = re.split(r"(?m)^(?:(\d+)\. |(?=Solutions: ))", cell)[1:]
    return {int(number): words(text) for number, text in zip(parts[0::2], parts[1::2]) if number}, rest


def solutions(nb):
    "(name of the notebook, number) -> what stands below that heading."
    found, part = {}, None
    for cell in nb["cells"]:
        text = notebooks.source(cell)
        if cell["cell_type"] == "markdown" and text.startswith("#"):
            heading, _, rest = text.partition("\n")
            match = re.fullmatch(r"### (\w+), exercise (\d+)", heading)
            part = found.setdefault((match[1], int(match[2])), Part(words(rest), [])) if match else None
        elif part:
            part.cells.append(cell)
    return found


def faults(part, text):
    "What is wrong with a solution of the exercise `text`."
    said = [notebooks.source(cell) for cell in part.cells if cell["cell_type"] == "markdown"]
    code = [notebooks.source(cell) for cell in part.cells if cell["cell_type"] == "code"]
    return [fault for fault, there in {
        "other words than the exercise": part.text != text,
        "no hint first": not said or not re.fullmatch(r"(?s)<details><summary>Hint</summary>\n\n.+\n\n</details>", said[0]),
        "no solution after the hint": len(said) < 3 or not said[1].startswith("**Solution.** "),
        "nothing asserted": not any("assert" in text for text in code),
        "nothing said at the end": not part.cells or part.cells[-1]["cell_type"] != "markdown",
    }.items() if there]


@pytest.mark.parametrize("label", LEARNER)
def test_every_exercise_of_the_learners_path_has_its_solution(label):
    folder, name = label.split("/")
    asked, rest = exercises(notebooks.read(notebooks.NBS / f"{label}.ipynb"))
    given = solutions(notebooks.read(notebooks.NBS / folder / "solutions.ipynb"))
    assert len(asked) >= 2 and {number for of, number in given if of == name} == asked.keys()
    assert {number: faults(given[name, number], text) for number, text in asked.items()} == dict.fromkeys(asked, [])
    assert f"](solutions.ipynb#{name})" in rest, "its exercises lead there"


def test_there_are_solutions_for_the_learners_chapters_only():
    assert {path.parent.name for path in notebooks.solution_notebooks()} == {label.split("/")[0] for label in LEARNER}
    for path in notebooks.solution_notebooks():
        assert {f"{path.parent.name}/{name}" for name, _ in solutions(notebooks.read(path))} <= {*LEARNER}


def test_they_start_from_their_notebooks_in_one_way():
    recalls = {next(text for cell in notebooks.read(path)["cells"] if (text := notebooks.source(cell)).startswith("def recall("))
               for path in notebooks.solution_notebooks()}
    assert len(recalls) == 1


def test_a_missing_part_is_found():
    def cells(*texts):
        return [{"cell_type": kind, "source": text} for kind, text in texts]

    hint, answer, end = "<details><summary>Hint</summary>\n\nLook.\n\n</details>", "**Solution.** So:", "Learn this."
    whole = cells(("markdown", "### 01_a, exercise 1\n\nAdd 1\nand 2."), ("markdown", hint), ("markdown", answer), ("code", "assert 1 + 2 == 3"), ("markdown", end))
    assert faults(solutions({"cells": whole})["01_a", 1], "Add 1 and 2.") == []
    for missing, fault in {1: "no hint first", 3: "nothing asserted", 4: "nothing said at the end"}.items():
        part = solutions({"cells": [cell for n, cell in enumerate(whole) if n != missing]})["01_a", 1]
        assert fault in faults(part, "Add 1 and 2.")
    assert faults(solutions({"cells": whole})["01_a", 1], "Add 1 and 3.") == ["other words than the exercise"]
    asked, rest = exercises({"cells": cells(("markdown", "## Exercises\n\n1. Add 1\n   and 2.\n2. More.\n\nSolutions: [x](y)"))})
    assert asked == {1: "Add 1 and 2.", 2: "More."} and rest == "Solutions: [x](y)"
