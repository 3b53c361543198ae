"""`make bench`: one row a line, `name: 8.3x  (ours 15.4 ms, plain 128 ms, median of 9 pairs)`."""
from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def paired(ours: Callable[[], object], plain: Callable[[], object], pairs: int = 9) -> str:
    "Medians of both and of the ratio plain/ours, timed in turn after a warm-up, so that a drift of the machine hits both."
    times: list[tuple[float, float]] = []
    for pair in range(pairs + 2):
        row = []
        for run in (ours, plain):
            start = time.perf_counter()
            run()
            row.append((time.perf_counter() - start) * 1e3)
        if pair >= 2:
            times.append((row[0], row[1]))
    ratio = statistics.median(b / a for a, b in times)
    a, b = (statistics.median(column) for column in zip(*times))
    return f"{ratio:.2f}x  (ours {a:.3g} ms, plain {b:.3g} ms, median of {pairs} pairs)"


def on_one_thread(measure: Callable[[], str]) -> str:
    "A measurement with one thread of torch, whose number is given back afterwards."
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return measure()
    finally:
        torch.set_num_threads(before)
