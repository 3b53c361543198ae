"""A row about studies: what several runs at a time reach on several cores."""
from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path


def jobs_scaling(rounds: int = 3, steps: int = 400) -> str:
    "N trainings of one thread each, N at a time, against one alone: the share of N times its throughput, kernels and scoring included; the median of rounds in turn."
    from crlsr.studies import Study
    from crlsr.studies.execution import THREADS
    from crlsr.studies.running import run_jobs
    from crlsr.studies.studies import plan_jobs

    cores = min(len(os.sched_getaffinity(0)), 8)
    small = {"steps": steps, "threads": 1, "pictures": 0, "checkpoint_every": steps, "weight_bc": 0.0, "weight_srnce": 0.0, "weight_rec": 0.0}
    study = Study("scaling", "How much do runs slow each other down?", "smoke", {"l1": {}}, small, seeds=tuple(range(cores)))

    def seconds(count: int) -> float:
        "Of so many jobs, all at a time; one thread in every library, also where a job is alone."
        before = {name: os.environ.get(name) for name in THREADS}
        os.environ.update(dict.fromkeys(THREADS, "1"))
        try:
            with tempfile.TemporaryDirectory() as folder:
                planned = plan_jobs(study.replace(seeds=study.seeds[:count]), Path(folder))
                start = time.perf_counter()
                run_jobs(planned, jobs=count)
                return time.perf_counter() - start
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})

    pairs = [(seconds(1), seconds(cores)) for _ in range(rounds)]
    alone, together = (statistics.median(column) for column in zip(*pairs))
    share = statistics.median(one / all_ for one, all_ in pairs)
    return f"{share:.0%} of {cores} times one job  (alone {alone:.3g} s, {cores} at a time {together:.3g} s, median of {rounds} rounds)"


ROWS = {"jobs-scaling": jobs_scaling}
