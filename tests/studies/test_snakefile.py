"""The Snakefile: its jobs are those of the plan; and where Snakemake is there, a run that fails leaves the others going and is repeated alone."""
import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from crlsr.core import share_path
from crlsr.studies import load_study
from crlsr.studies.studies import plan_jobs
from tests.studies.conftest import write_notebook

SNAKEFILE = share_path("nbs/reproduce/Snakefile")
COMMAND = f"{shlex.quote(sys.executable)} -m crlsr"


def test_the_jobs_are_those_of_the_plan(tmp_path):
    head, rules = SNAKEFILE.read_text(encoding="utf-8").split("\nrule ", 1)
    names = {"config": {"study": "smoke", "out": str(tmp_path / "my runs"), "crlsr": COMMAND, "more": "--seeds 2"}}
    exec(compile(head, "Snakefile", "exec"), names)
    jobs = plan_jobs(load_study("smoke").replace(seeds=(0, 1)), tmp_path / "my runs")
    assert list(names["RUNS"]) == [job.out.as_posix() for job in jobs]
    pattern = re.search(r'output: f"(.*)"', rules)[1].replace("{OUT}", re.escape(names["OUT"])).replace("{{folder}}", "[^/]+").replace("{{notebook}}", "[^/]+")
    for job in jobs:
        assert shlex.split(names["words_of"](None, [job.out.as_posix()])) == ["--only", job.variant, "--seed", str(job.seed)]
        assert re.fullmatch(pattern, job.out.as_posix()), "the rule makes it"
    assert shlex.split(names["WORDS"]) == [*shlex.split(COMMAND), "reproduce", "smoke", "--out", str(tmp_path / "my runs"), "--seeds", "2"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("snakemake") is None, reason="snakemake is not on the path; it lives in an environment of its own, see nbs/reproduce/README.md")
def test_snakemake_runs_a_study_and_repeats_what_failed(tmp_path):
    given = ("profile: str = 'smoke'  # x\nname: str = ''  # x\nseed: int = 0  # x\nrun_dir: str = '.'  # x\ndata: None = None  # x\n"
             "val_data: None = None  # x\ntest_data: list[str] = ['embedded:heldout']  # x\npower: float = 2.0  # x")
    write_notebook(tmp_path / "power.ipynb", given, "import json, pathlib\nif power == 3.0 and pathlib.Path('broken').exists():\n    raise OSError('injected')\n"
                   "pathlib.Path(run_dir, 'results.json').write_text(json.dumps({'product': (seed + 10.0) ** power}))")
    write_notebook(tmp_path / "list.ipynb", "runs: str = '.'  # x", "print(runs)")
    (tmp_path / "toy.toml").write_text('question = "?"\nprediction = "1000"\ndecision = "?"\nprofile = "smoke"\nnotebook = "power.ipynb"\nreport = "list.ipynb"\n'
                                       '[variants.square]\n[variants."to the third"]\npower = 3.0\n')
    (tmp_path / "broken").touch()

    def snakemake():
        return subprocess.run(["snakemake", "-s", SNAKEFILE, "--cores", "2", "--keep-going", "--config", "study=toy.toml", f"crlsr={COMMAND}"], cwd=tmp_path, capture_output=True, text=True)

    first = snakemake()
    results = list(tmp_path.glob("runs/shared/*/results.json"))
    assert first.returncode == 1 and "OSError: injected" in first.stderr + first.stdout and len(results) == 1 and not (tmp_path / "runs/toy").exists(), first.stderr
    stamp = results[0].stat().st_mtime_ns
    (tmp_path / "broken").unlink()
    second = snakemake()
    assert second.returncode == 0 and results[0].stat().st_mtime_ns == stamp, second.stderr
    record = json.loads((tmp_path / "runs/toy/study.json").read_text())
    products = {run["name"]: json.loads((tmp_path / "runs/shared" / run["dir"] / "results.json").read_text())["product"] for run in record["runs"]}
    assert products == {"square": 100.0, "to the third": 1000.0} and (tmp_path / "runs/toy/report.html").exists()
