"""Takes what studies found into data/reference, so that anybody can make the reports again: `python -m tests.reference OUT [STUDY…]`.

Of each finished run its results.json is taken, and of its log what reports and figures read, to six digits. Nothing else: weights, pictures and executed notebooks stay in OUT."""
from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from crlsr.core import read_jsonl, write_json
from crlsr.studies.studies import SHARED, read_record, run_folders

REFERENCE = Path(__file__).parents[1] / "data/reference"
KEPT = re.compile(r"step|pixel|bc|srnce|aware|gradient|decode|head|learning_rate|psnr.*|grad_.*|cos_.*|share_.*|val.*")
PLACE = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|Users|mnt|var)/")


def slim(row: dict[str, Any]) -> dict[str, Any]:
    "A row of a log without times, its numbers to six digits."
    return {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in row.items() if KEPT.fullmatch(key)}


def take(out: Path, study: str, target: Path = REFERENCE / "studies") -> tuple[int, int]:
    """The finished runs of a study, and the number of those that are not.

    Raises ValueError where a record holds a path of this machine, was made by other numerics than those beside it, or in a checkout with changes."""
    record, taken, missing = read_record(out / study / "study.json"), 0, 0
    if not record.get("runs"):
        raise FileNotFoundError(f"{out / study}: has no study.json with runs")
    for folder in run_folders(out / study):
        results = read_record(folder / "results.json")
        if not results:
            missing += 1
            continue
        if results.get("clean") is False:
            raise ValueError(f"{folder}: was made in a checkout with changes, which nobody can have again")
        texts = {"results.json": json.dumps(results, ensure_ascii=False, separators=(",", ":")) + "\n"}
        if (folder / "log.jsonl").is_file():
            texts["log.jsonl"] = "".join(json.dumps(slim(row), separators=(",", ":")) + "\n" for row in read_jsonl(folder / "log.jsonl"))
        for name, text in texts.items():
            if found := PLACE.search(text):
                raise ValueError(f"{folder / name}: names a place of this machine: …{text[found.start():][:60]}…")
            path = target / SHARED / folder.name / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        taken += 1
    (target / study).mkdir(parents=True, exist_ok=True)
    write_json(target / study / "study.json", record)
    return taken, missing


def main() -> None:
    out, *studies = sys.argv[1:]
    for study in studies or sorted(path.parent.name for path in Path(out).glob("*/study.json")):
        taken, missing = take(Path(out), study)
        print(f"{study}: {taken} runs taken" + f", {missing} not finished" * (missing > 0))


if __name__ == "__main__":
    main()
