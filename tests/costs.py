"""What a step of each variant costs against one of plain L1 as in the study `control`: `python -m tests.costs` prints, `--write` puts it into the study files.

Steps of both are taken in turn, on one thread, and counted in CPU seconds, so that a busy machine disturbs both alike; states of the schedule count as long as they last.
The batch is ready beforehand: it costs both alike, and workers make it beside the training."""
from __future__ import annotations

import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from crlsr.core import share_path
from crlsr.data import ImagePool, PatchSampler
from crlsr.degradation import Degradation
from crlsr.model import ModelConfig
from crlsr.studies.execution import check_settings, declared_parameters
from crlsr.studies.studies import load_study, study_names
from crlsr.training.estimate import _kinds
from crlsr.training.profiles import TrainConfig
from crlsr.training.step import new_state, train_step

PAIRS = 15


def _steps(model: ModelConfig, train: TrainConfig) -> list[tuple[float, Callable[[], object]]]:
    "Steps that stand for a run, one of each kind, with the part of the run that it stands for."
    train = train.replace(probe_every=0)
    state = new_state(model, train)
    sampler = PatchSampler(ImagePool("embedded:train"), Degradation.parse(train.preset, model.network.scale), train.patch_size, train.batch_size, 0, train.pairing)
    batch, found = sampler.batch(0), {}
    for part, step, kind in zip(*_kinds(state, train)):
        found[kind] = found.get(kind, (0.0, step))[0] + part, step

    def run(step: int) -> None:
        state.step = step
        if state.model.shares:
            state.model.factors.fill_(1e-9)  # whatever was measured: all terms are computed
        train_step(state, batch, train)

    whole = sum(part for part, _ in found.values())
    return [(part / whole, lambda step=step: run(step)) for part, step in found.values()]


def _seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def cost(model: ModelConfig, train: TrainConfig) -> tuple[float, float]:
    "CPU seconds of a mean step over those of plain L1, and the quartile range of the pairs."
    [(_, control)] = _steps(*plain_l1())
    arms = _steps(model, train)
    for _, run in [*arms, (1.0, control)] * 2:
        run()
    ratios = []
    for _ in range(PAIRS):
        plain = [_seconds(control)]
        ours = 0.0
        for part, run in arms:
            ours += part * _seconds(run)
            plain.append(_seconds(control))
        ratios.append(ours / statistics.fmean(plain))
    low, middle, high = statistics.quantiles(ratios)
    return middle, high - low


def plain_l1() -> tuple[ModelConfig, TrainConfig]:
    "What all costs are shares of: the curve from which equal time is read."
    study = load_study("control")
    return check_settings({**declared_parameters(share_path(study.notebook)), **study.settings("L1")})


def main() -> None:
    torch.set_num_threads(1)
    known: dict[tuple[str, str], tuple[float, float]] = {}
    for name in study_names():
        study = load_study(name)
        if study.profile != "cpu" or "train" not in study.notebook:
            continue
        path = share_path(f"nbs/reproduce/studies/{name}.toml")
        text = Path(path).read_text()
        for variant in study.variants:
            given = {**declared_parameters(share_path(study.notebook)), **study.settings(variant)}
            model, train = check_settings(given)
            if model == plain_l1()[0] and train.method == "crlsr":
                continue
            key = model.digest(), train.replace(preset="multimodal", data="", val_data=None, seed=0).digest()
            if key not in known:
                known[key] = cost(model, train)
            ratio, spread = known[key]
            was = study.variants[variant].get("cost")
            print(f"{name:20} {variant:45} {ratio:.3f} (quartiles {spread:.3f} apart), in the file {was}", flush=True)
            if "--write" in sys.argv[1:]:
                text = _written(text, variant, ratio)
        if "--write" in sys.argv[1:]:
            Path(path).write_text(text)


def _written(text: str, variant: str, ratio: float) -> str:
    "The study file with the cost of a variant, at the end of its table where it had none."
    head = next(line for line in text.splitlines() if line in (f'[variants."{variant}"]', f"[variants.{variant}]"))
    before, table = text.split(head + "\n", 1)
    match = re.search(r"\n(?=\n|\[|#)", table + "\n\n")
    table, after = table[: match.start() + 1], table[match.start() + 1 :]
    table = re.sub(r"(?m)^cost = .*\n?", "", table).rstrip("\n") + f"\ncost = {ratio:.2f}\n"
    return before + head + "\n" + table + after


if __name__ == "__main__":
    main()
