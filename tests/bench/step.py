"""What a training step of the cpu profile costs: CRL-SR against its control, and the control against its convolutions alone. On one thread."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from crlsr.core import generator, seed_everything
from crlsr.model import CRLSR, Labels, ModelConfig, new_model
from crlsr.model.estimating_control import matched_network
from crlsr.networks import Restorer
from crlsr.networks.blocks import num_parameters
from crlsr.training import profile
from tests.bench import on_one_thread, paired

OFF = {"weight_bc": 0.0, "weight_srnce": 0.0, "weight_rec": 0.0}
SETTLED = {"weight_bc": 4e-4, "weight_srnce": 0.012, "srnce_negatives": "positions", "guidance_window": 12, "guidance_end": 0.6, "stop_gradient": "high"}


def _batch(config: ModelConfig) -> tuple[Tensor, Tensor]:
    "Random lr and hr patches of the cpu profile's size."
    _, train = profile("cpu")
    side = train.patch_size
    lr = torch.rand(train.batch_size, 3, side, side, generator=generator("bench", "lr"))
    return lr, torch.rand(train.batch_size, 3, side * config.network.scale, side * config.network.scale, generator=generator("bench"))


def _step_of(config: ModelConfig, progress: tuple[float, ...] = (0.0,), method: str = "crlsr") -> Callable[[], None]:
    "One optimizer step of a new model for each moment of training, its images in pairs that were degraded alike."
    seed_everything(0)
    model, (lr, hr) = new_model(method, config), _batch(config)
    if method == "crlsr" and config.shares:
        model.factors.fill_(1e-3)  # as measured: a term at a factor of 0 is not computed
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], fused=True)
    labels = Labels(torch.arange(len(lr)), torch.arange(len(lr)) // 2)

    def step() -> None:
        for moment in progress:
            optimizer.zero_grad()
            losses, _ = model.objective(lr, hr, generator("bench", "positions"), progress=moment, labels=labels)
            losses.total.backward()
            optimizer.step()
            model.after_step()

    return step


def _flops(step: Callable[[], None]) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def _full_vs_l1(changes: dict[str, Any], progress: tuple[float, ...] = (0.0,), name: str = "cpu") -> str:
    config, _ = profile(name)
    control, full = _step_of(config.replace(**OFF), progress), _step_of(config.replace(**changes), progress)
    flops = _flops(full) / _flops(control)
    return f"{on_one_thread(lambda: paired(control, full, pairs=25))}  (FLOPs x{flops:.2f})"


def step_full_vs_l1() -> str:
    "The plain-L1 control ('ours') against CRL-SR ('plain'): the ratio is what CRL-SR costs; beside it the ratio of FLOPs."
    return _full_vs_l1({})


def step_window_vs_l1() -> str:
    "The same with the training-only networks on a window of 12x12 of 24x24 lr pixels."
    return _full_vs_l1({"guidance_window": 12})


def step_settled_vs_l1() -> str:
    "The setting that the first study of the losses settled on, ten steps spread over training: its contrastive terms end at 60 % of it."
    return _full_vs_l1(SETTLED, tuple((i + 0.5) / 10 for i in range(10)))


def _estimating_vs_l1(matched: bool, moment: float = 0.5) -> str:
    config, _ = profile("cpu")
    control = _step_of(config.replace(**OFF))
    if matched:
        config = config.replace(network=matched_network(config, num_parameters(Restorer(config.network))))
    rival = _step_of(config, (moment,), "estimating")
    return f"{on_one_thread(lambda: paired(control, rival, pairs=25))}  (FLOPs x{_flops(rival) / _flops(control):.2f}, num_feat {config.network.num_feat})"


def step_estimating_vs_l1() -> str:
    "The plain-L1 control ('ours') against the estimating control of the same width ('plain'): the ratio is what estimating costs."
    return _estimating_vs_l1(False)


def step_estimating_matched_vs_l1() -> str:
    "The same for an estimating control that is narrower, so that it needs no more parameters at inference."
    return _estimating_vs_l1(True)


def step_estimating_warmup_vs_l1() -> str:
    "The same in the encoder's warm-up, which is contrast alone."
    return _estimating_vs_l1(False, 0.0)


def step_bundled_vs_l1() -> str:
    "The recipe of the bundled models, ten steps spread over training: what its control may take more in steps, but for the data, which cost both alike."
    return _full_vs_l1({}, tuple((i + 0.5) / 10 for i in range(10)), "bundled")


def convolutions_of(model: nn.Module, run: Callable[[], object]) -> Callable[[], None]:
    "A function that runs every convolution that `run` runs in `model`, alone: forward and backward, on inputs of the same shape and layout."
    calls: list[tuple[nn.Conv2d, Tensor, Tensor]] = []

    def note(conv: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = torch.randn_like(inputs[0]).requires_grad_(inputs[0].requires_grad)  # the first one has no gradient to hand on
        calls.append((conv, x, torch.randn_like(output)))

    hooks = [part.register_forward_hook(note) for part in model.modules() if isinstance(part, nn.Conv2d)]
    run()
    for hook in hooks:
        hook.remove()

    def alone() -> None:
        for conv, x, gradient in calls:
            conv(x).backward(gradient)

    return alone


def step_conv_peak() -> str:
    "The control's step ('ours') against its convolutions alone ('plain'): the ratio is the share of the step that no other code could save."
    config = profile("cpu")[0].replace(**OFF)
    seed_everything(0)
    model, (lr, hr) = CRLSR(config), _batch(config)
    alone = convolutions_of(model, lambda: model.objective(lr, hr))
    return on_one_thread(lambda: paired(_step_of(config), alone, pairs=25))


ROWS: dict[str, Callable[[], str]] = {"step-full-vs-l1": step_full_vs_l1, "step-window-vs-l1": step_window_vs_l1,
                                      "step-estimating-vs-l1": step_estimating_vs_l1, "step-estimating-matched-vs-l1": step_estimating_matched_vs_l1,
                                      "step-estimating-warmup-vs-l1": step_estimating_warmup_vs_l1,
                                      "step-settled-vs-l1": step_settled_vs_l1, "step-bundled-vs-l1": step_bundled_vs_l1, "step-conv-peak": step_conv_peak}
