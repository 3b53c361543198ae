"""Prints every row, or those named: `python -m tests.bench step-full-vs-l1`."""
from __future__ import annotations

import importlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from crlsr.core import generator, nearest, seed_everything


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


def step_full_vs_l1() -> str:
    "One training step of the cpu profile: the plain-L1 control ('ours') against CRL-SR ('plain'); the ratio is what CRL-SR costs."
    from crlsr.model import CRLSR
    from crlsr.training import profile

    config, train = profile("cpu")
    hr = torch.rand(train.batch_size, 3, train.patch_size * config.scale, train.patch_size * config.scale, generator=generator("bench"))
    lr = torch.rand(train.batch_size, 3, train.patch_size, train.patch_size, generator=generator("bench", "lr"))

    def step_of(model: torch.nn.Module) -> Callable[[], None]:
        optimizer = torch.optim.Adam(model.parameters())

        def step() -> None:
            optimizer.zero_grad()
            losses, _ = model.objective(lr, hr, generator("bench", "positions"))
            losses.total.backward()
            optimizer.step()

        return step

    seed_everything(0)
    return paired(step_of(CRLSR(config.replace(weight_bc=0.0, weight_srnce=0.0, weight_rec=0.0))), step_of(CRLSR(config)))


def data_share() -> str:
    "A batch of the cpu profile, cropped and degraded ('ours'), against a plain-L1 step; the ratio is how many batches fit in a step."
    from crlsr.data import ImagePool, PatchSampler
    from crlsr.degradation import Degradation
    from crlsr.model import CRLSR
    from crlsr.training import profile

    config, train = profile("cpu")
    model = CRLSR(config.replace(weight_bc=0.0, weight_srnce=0.0, weight_rec=0.0))
    sampler = PatchSampler(ImagePool("embedded:train"), Degradation.parse("iso", config.scale), train.patch_size, train.batch_size, 0)
    batch = sampler.batch(0)
    optimizer = torch.optim.Adam(model.parameters())
    steps = iter(range(10**6))

    def step() -> None:
        optimizer.zero_grad()
        model.objective(batch.lr, batch.hr, generator("bench"))[0].total.backward()
        optimizer.step()

    return paired(lambda: sampler.batch(next(steps)), step)


def rows() -> dict[str, Callable[[], str]]:
    "All rows: those of this folder's modules, by name."
    found = {"step-full-vs-l1": step_full_vs_l1, "data-share": data_share}
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        found |= importlib.import_module(f"tests.bench.{path.stem}").ROWS
    return found


def main(names: list[str]) -> int:
    found = rows()
    for name in names or found:
        if name not in found:
            print(f"bench: no row '{name}'{nearest(name, found) or '; rows: ' + ', '.join(found)}", file=sys.stderr)
            return 2
        print(f"{name}: {found[name]()}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
