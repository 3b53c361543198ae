"""How long a notebook takes to read, by one rule for all: `python -m tests.times` writes it into their Time lines.

120 words of prose a minute and 15 lines of code that are not folded, both ours: half the pace of a novel (about 240 words a minute), since there are
formulas, tables and pictures to look at, and code read for its idea, not for its errors. Exercises are read, not solved."""
from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from tests import notebooks

WORDS, LINES = 120, 15  # a minute
TIME = re.compile(r"(\*\*Time\*\*: )(\d+) minutes?")


def words(text: str) -> int:
    "Words of a text in Markdown; where links lead is not read, nor are the bars of tables."
    return sum(bool(re.search(r"\w", word)) for word in re.sub(r"\]\([^)]*\)", "]", text).split())


def folded(cell: dict) -> bool:
    "Whether JupyterLab shows a code cell closed."
    return bool(cell["metadata"].get("jupyter", {}).get("source_hidden"))


def minutes(path: Path) -> float:
    "To read a notebook once, by the rule."
    cells = notebooks.read(path)["cells"]
    prose = sum(words(notebooks.source(cell)) for cell in cells if cell["cell_type"] == "markdown")
    code = sum(bool(line.strip()) for cell in cells if cell["cell_type"] == "code" and not folded(cell) for line in notebooks.source(cell).splitlines())
    return prose / WORDS + code / LINES


def told(path: Path) -> int:
    "The minutes that a notebook's own Time line names."
    found = TIME.search(notebooks.source(notebooks.read(path)["cells"][1]))
    assert found, f"{notebooks.label(path)}: its second cell does not say '**Time**: N minutes'"
    return int(found[2])


def rounded(value: float) -> int:
    "As people say it: to the minute below 20, to five minutes above."
    return max(1, round(value)) if value < 20 else 5 * round(value / 5)


def main() -> None:
    for path in notebooks.library_notebooks():
        if path.stem == "index" or abs(told(path) / minutes(path) - 1) <= 0.1:  # what is right stays as it is
            continue
        now = rounded(minutes(path))
        nb = json.loads(path.read_text(encoding="utf-8"))
        text = TIME.sub(lambda found: f"{found[1]}{now} minute{'s' * (now > 1)}", notebooks.source(nb["cells"][1]))
        nb["cells"][1]["source"] = text.splitlines(keepends=True)
        path.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{notebooks.label(path)}: {now}")


if __name__ == "__main__":
    sys.exit(main())
