"""The page of findings: no number of its own, and the README says what it says."""
import json
import re

from tests import notebooks

PAGE = notebooks.NBS / "00_start" / "03_findings.ipynb"


def prose(cells):
    return "\n".join(notebooks.source(cell) for cell in cells if cell["cell_type"] == "markdown")


def figures_in(text):
    "Numbers that a reader could take for a result: decimals, shares, decibels, seeds and the like; not names, doubts, exercises, addresses and minutes."
    text = re.sub(r"\]\([^)]*\)|`[^`]*`|\*\*Time\*\*.*|\b[Dd]oubts? \d|\bL1\b|(?m:^\d\. )|\b\d\d_\w+|\bR²", "", text)
    return re.findall(r"\S*\d\S*", text)


def test_the_prose_has_no_number_of_its_own():
    assert figures_in(prose(notebooks.read(PAGE)["cells"])) == []
    assert figures_in("Doubt 1: see [01_method](01_method.ipynb), plain L1, +0.03 dB, 8 seeds and 5 %") == ["+0.03", "8", "5"]


def test_the_readme_quotes_its_four_lines():
    cell = next(cell for cell in notebooks.read(PAGE)["cells"] if notebooks.source(cell).startswith("lines = four_lines()"))
    lines = "".join(cell["outputs"][0]["data"]["text/markdown"])
    assert len(lines.splitlines()) == 4 and all(re.search(r"[+-]\d\.\d{3} dB|\d\.\d\d to|not measured yet|no run yet", line) for line in lines.splitlines())
    assert lines in (notebooks.ROOT / "README.md").read_text(encoding="utf-8"), "the README has other lines than the page of findings: copy them"


def test_the_figures_of_the_page_are_those_of_the_reference():
    "The first arm's mean, from the files alone."
    reference = notebooks.ROOT / "data/reference/studies"
    runs = [(row["name"], row["seed"], reference / "shared" / row["dir"] / "results.json") for row in json.loads((reference / "recipe/study.json").read_text())["runs"]]
    found = {(name, seed): json.loads(path.read_text()) for name, seed, path in runs if path.is_file()}
    control, arm, differences = runs[0][0], "L_bc mutual, lr", []
    for name, seed in found:
        if name == arm and (control, seed) in found:
            a, b = (next(row for row in found[which, seed]["metrics"] if row["preset"] == "multimodal")["scores"]["psnr"].split() for which in (arm, control))
            differences += [float(x) - float(y) for x, y in zip(a, b, strict=True)]
    text = "\n".join("".join(out.get("data", {}).get("text/markdown", "")) for cell in notebooks.read(PAGE)["cells"] for out in cell.get("outputs", []))
    row = next(line for line in text.splitlines() if line.startswith("| L\\_bc mutual, lr |"))
    assert float(row.split(" | ")[1]) == round(sum(differences) / len(differences), 3)
