"""Takes what studies found into data/reference, so that anybody can make the reports again: `python -m tests.reference OUT [STUDY…]`.

Where a study is whole, the report of each one there is written anew. Of each finished run its results.json is taken, and of its log what reports and figures read, to six digits; of two variants the model too, which the page of findings draws; of a diagnosis what f_l has beyond plain L1's. Nothing else: other weights, pictures and executed notebooks stay in OUT.

A study of which runs are missing goes to data/reference/under_way instead, where nothing reads it: it is reported when it is whole. `python -m tests.reference --lay OUT` does the reverse, so that `crlsr reproduce STUDY --out OUT` goes on from what is kept."""
from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import crlsr
from crlsr.core import plain, read_jsonl, share_path, write_json
from crlsr.studies import build_report, load_study
from crlsr.studies.running import study_record
from crlsr.studies.studies import SHARED, plan_jobs, read_record, run_folders

REFERENCE = Path(__file__).parents[1] / "data/reference"
KEPT = re.compile(r"step|pixel|bc|srnce|aware|gradient|decode|head|learning_rate|psnr.*|grad_.*|cos_.*|share_.*|weight_.*|val.*")
MODELS = {"recipe": ("L_bc to decoded f_h, lr", "L_bc to decoded f_h, features")}  # study -> variants whose model of the first seed is taken
PLACE = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|Users|mnt|var)/")


def slim(row: dict[str, Any]) -> dict[str, Any]:
    "A row of a log without times, its numbers to six digits."
    return {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in row.items() if KEPT.fullmatch(key)}


def planned_record(out: Path, study: str) -> dict[str, Any]:
    "Its study.json; where its runs were started one by one and none is there, what that would say."
    if record := read_record(out / study / "study.json"):
        return record
    found = load_study(study)
    return study_record(found, plan_jobs(found, out))


def take(out: Path, study: str, reference: Path = REFERENCE) -> tuple[int, int]:
    """The finished runs of a study, and the number of those that are not; all are checked before the first is written.

    Raises ValueError where a record holds a path of this machine, was made by other numerics than the rest, or in a checkout with changes."""
    record, texts, numerics, missing, models = planned_record(out, study), {}, set(), 0, {}
    if not record.get("runs"):
        raise FileNotFoundError(f"{out / study}: has no study.json with runs")
    for run in record["runs"]:
        folder, name = out / SHARED / run["dir"], run["name"]
        results = read_record(folder / "results.json")
        if not results:
            missing += 1
            continue
        numerics.add(results.get("numerics"))
        if results.get("clean") is False:
            raise ValueError(f"{folder}: was made in a checkout with changes, which nobody can have again")
        texts[folder / "results.json"] = json.dumps(results, ensure_ascii=False, separators=(",", ":")) + "\n"
        if name in MODELS.get(study, ()) and name not in models:
            models[name] = folder / "model.safetensors"
        if asked := read_record(folder / "diagnosis.json"):
            asked = {key: value for key, value in asked.items() if key != "probes"} | {"differences": [
                row for row in asked.get("differences", []) if (row["features"], row["minus"]) == ("f_l", "plain L1")]}
            texts[folder / "diagnosis.json"] = json.dumps(asked, ensure_ascii=False, separators=(",", ":")) + "\n"
        if (folder / "log.jsonl").is_file():
            texts[folder / "log.jsonl"] = "".join(json.dumps(slim(row), separators=(",", ":")) + "\n" for row in read_jsonl(folder / "log.jsonl"))
    if len(numerics) > 1:
        raise ValueError(f"{out / study}: was made by several numerics, {sorted(map(str, numerics))}, expected one")
    texts = {path: text.replace(f"{out.resolve()}/", "") for path, text in texts.items()}  # places in OUT are those in the reference
    for path, text in texts.items():
        if found := PLACE.search(text):
            raise ValueError(f"{path}: names a place of this machine: …{text[found.start():][:60]}…")
    target = reference / ("under_way" if missing else "studies")
    for path, text in texts.items():
        kept = target / SHARED / path.parent.name / path.name
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(text, encoding="utf-8")
    for path in models.values():
        shutil.copyfile(path, target / SHARED / path.parent.name / path.name)
    (target / study).mkdir(parents=True, exist_ok=True)
    write_json(target / study / "study.json", record)
    if not missing:
        no_more_under_way(study, reference / "under_way")
    return sum(path.name == "results.json" for path in texts), missing


def no_more_under_way(study: str, folder: Path) -> None:
    "Removes a study from what is under way, with the runs that no other there has."
    shutil.rmtree(folder / study, ignore_errors=True)
    wanted = {run["dir"] for path in folder.glob("*/study.json") for run in read_record(path)["runs"]}
    for path in (folder / SHARED).glob("*"):
        if path.name not in wanted:
            shutil.rmtree(path)
    if not wanted:
        shutil.rmtree(folder, ignore_errors=True)


def lay(out: Path, reference: Path = REFERENCE) -> int:
    """Lays the kept runs in OUT, for `crlsr reproduce` to find as finished; what is there stays. How many were laid.

    Models and executed notebooks are not kept: the notebook of such a run is the one that it would execute, without outputs."""
    laid = 0
    for path in sorted(reference.glob("*/*/study.json")):
        notebook = share_path(load_study(path.parent.name).notebook)
        for run in read_record(path)["runs"]:
            kept, target = path.parents[1] / SHARED / run["dir"], out / SHARED / run["dir"]
            if not (kept / "results.json").is_file() or target.exists():
                continue
            shutil.copytree(kept, target)
            shutil.copyfile(notebook, target / notebook.name)
            write_json((target / notebook.name).with_suffix(".json"), {"digest": run["digest"], "version": crlsr.__version__})
            laid += 1
    return laid


def reports(studies: Path = REFERENCE / "studies") -> list[Path]:
    "Every study's report as an executed notebook, as `crlsr report` makes it, without times and places; the page beside it is not kept, the site has one."
    made = []
    for study in sorted(path.parent for path in studies.glob("*/study.json")):
        notebook, page = build_report(study, force=True)  # the library may say it otherwise
        page.unlink()
        found = json.loads(notebook.read_text(encoding="utf-8"))
        for part in (found, *found["cells"]):
            for key in ("papermill", "execution"):
                part["metadata"].pop(key, None)
        notebook.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        made.append(notebook)
    return made


def contents(studies: Path = REFERENCE / "studies") -> str:
    "The table of the reports there, a line a study."
    lines = ["| report | question | runs |", "| --- | --- | ---: |"]
    for notebook in sorted(studies.glob("*/report.ipynb")):
        record, folders = read_record(notebook.parent / "study.json"), run_folders(notebook.parent)
        finished = sum((folder / "results.json").is_file() for folder in folders)
        lines.append(f"| [{notebook.parent.name}](studies/{notebook.parent.name}/report.ipynb) | {plain(record['question'], markdown=True)} | {finished} of {len(folders)} |")
    return "\n".join(lines) + "\n"


TABLE = re.compile(r"\| report \| question \|.*\n(?:\|.*\n)+")


def main() -> None:
    if sys.argv[1:2] == ["--lay"]:
        print(f"{lay(Path(sys.argv[2]))} runs laid in {sys.argv[2]}")
        return
    out, *studies = sys.argv[1:]
    found = {study: take(Path(out), study) for study in studies or sorted(path.parent.name for path in Path(out).glob("*/study.json"))}
    for study, (taken, missing) in found.items():
        print(f"{study}: {taken} runs taken" + f", {missing} not finished: under way" * (missing > 0))
    if all(missing for _, missing in found.values()):
        return  # no report has anything new to say
    os.chdir(REFERENCE.parents[1])  # a report names the folder as it is called from the checkout
    print(*reports(REFERENCE.relative_to(Path.cwd()) / "studies"), sep="\n")
    readme = REFERENCE / "README.md"
    readme.write_text(TABLE.sub(lambda _: contents(), readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
