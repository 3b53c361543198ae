"""Rows about the training engine: options that are on or off by measurement, and what a checkpoint costs."""
from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench import paired

L1 = {"weight_bc": 0.0, "weight_srnce": 0.0, "weight_rec": 0.0}


def _step(changes: dict[str, Any]) -> Callable[[], object]:
    "One whole training step of the cpu profile, batch included in the preparation only."
    from crlsr.data import ImagePool, PatchSampler
    from crlsr.degradation import Degradation
    from crlsr.training import profile
    from crlsr.training.step import new_state, train_step

    model, config = profile("cpu", {"data": "embedded:train", **changes})
    state = new_state(model, config)
    batch = PatchSampler(ImagePool(config.data), Degradation.parse("iso", model.network.scale), config.patch_size, config.batch_size, 0).batch(0)
    return lambda: train_step(state, batch, config)


def channels_last() -> str:
    "A plain-L1 step with features in channels-last order ('ours') and in PyTorch's usual order ('plain')."
    return paired(_step({**L1, "channels_last": True}), _step({**L1, "channels_last": False}))


def bfloat16() -> str:
    "A plain-L1 step in bfloat16 ('ours') and in float32 ('plain'); off by default, because what it does to the result is not measured."
    return paired(_step({**L1, "precision": "bfloat16"}), _step(L1))


def engine_overhead() -> str:
    "A step by the engine, with guards, clipping, average and log figures ('plain'), and objective, backward and Adam alone ('ours')."
    import torch

    from crlsr.core import generator
    from crlsr.data import ImagePool, PatchSampler
    from crlsr.degradation import Degradation
    from crlsr.training import profile
    from crlsr.training.step import new_state

    model, config = profile("cpu", {"data": "embedded:train", **L1})
    state = new_state(model, config)
    batch = PatchSampler(ImagePool(config.data), Degradation.parse("iso", model.network.scale), config.patch_size, config.batch_size, 0).batch(0)
    lr, hr = (image.to(memory_format=torch.channels_last) for image in (batch.lr, batch.hr))

    def bare() -> None:
        state.optimizer.zero_grad()
        state.model.objective(lr, hr, generator("bench"))[0].total.backward()
        state.optimizer.step()

    return paired(bare, _step(L1))


def checkpoint_cost() -> str:
    "Writing both files of a checkpoint of the cpu profile, flushed to the disk ('ours'), against a plain-L1 step ('plain')."
    from crlsr.training import profile
    from crlsr.training.loop import save_state
    from crlsr.training.step import new_state

    model, config = profile("cpu", {"data": "embedded:train"})
    state = new_state(model, config)
    with tempfile.TemporaryDirectory() as folder:
        return paired(lambda: save_state(state, config, Path(folder)), _step(L1))


ROWS = {"step-channels-last": channels_last, "step-bfloat16": bfloat16, "engine-overhead": engine_overhead, "checkpoint-cost": checkpoint_cost}
