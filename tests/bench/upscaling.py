"""What enlarging costs: against its convolutions alone, by the size of a tile, and what a smaller overlap saves. On one thread."""
from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from crlsr.inference import OVERLAP, upscale
from crlsr.model import CRLSR
from crlsr.training import profile
from tests.bench import on_one_thread, paired
from tests.peak import peak

SIDE = 256  # of the lr image


def _net() -> nn.Module:
    "The network of the bundled recipe, not trained: what it costs does not depend on its weights."
    torch.manual_seed(0)
    return CRLSR(profile("bundled", {"weight_bc": 0.0, "weight_srnce": 0.0, "weight_rec": 0.0})[0]).eval()


def _photo(side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)


def convolutions(net: nn.Module, run: Callable[[], object]) -> Callable[[], None]:
    "A function that runs every convolution that `run` runs in `net`, alone, on inputs of the same shape and layout."
    calls: list[tuple[nn.Module, torch.Tensor]] = []
    hooks = [part.register_forward_hook(lambda conv, inputs, output: calls.append((conv, torch.randn_like(inputs[0])))) for part in net.modules() if isinstance(part, nn.Conv2d)]
    run()
    for hook in hooks:
        hook.remove()

    def alone() -> None:
        with torch.inference_mode():
            for conv, x in calls:
                conv(x)

    return alone


def upscale_conv_peak() -> str:
    "`upscale` of an array in one tile ('ours') against its convolutions alone ('plain'): the ratio is the share that no other code could save."
    net, photo = _net(), _photo()
    run = lambda: upscale(photo, net)  # noqa: E731
    return on_one_thread(lambda: paired(run, convolutions(net, run)))


def upscale_overlap() -> str:
    "Tiles of 128 with the default overlap ('ours') and with the exact one ('plain')."
    net, photo = _net(), _photo()
    return on_one_thread(lambda: paired(lambda: upscale(photo, net, tile=128, overlap=OVERLAP), lambda: upscale(photo, net, tile=128)))


def upscale_batch() -> str:
    "Sixteen images of 32x32 as a list ('ours') and one by one ('plain')."
    net, photos = _net(), [_photo(32)] * 16
    return on_one_thread(lambda: paired(lambda: upscale(photos, net), lambda: [upscale(photo, net) for photo in photos]))


def upscale_channels_last() -> str:
    "The restorer with its weights in channels-last order, too ('ours'), and as it is: features in that order, weights not ('plain')."
    nets = [_net().restorer.to(memory_format=layout) for layout in (torch.channels_last, torch.contiguous_format)]
    return on_one_thread(lambda: paired(*[lambda net=net: upscale(_photo(128), net) for net in nets]))


def upscale_bfloat16() -> str:
    "The restorer in bfloat16 ('ours') and in float32 ('plain')."
    nets = [_net().restorer.to(kind) for kind in (torch.bfloat16, torch.float32)]
    return on_one_thread(lambda: paired(*[lambda net=net: upscale(_photo(128), net) for net in nets], pairs=3))


def _one_tile(tile: int) -> str:
    "In a process of its own: lr megapixels a second and how far the process grew."
    torch.set_num_threads(1)
    net, photo = _net(), _photo(512)
    upscale(photo[:32, :32], net)
    before, start = peak(), time.perf_counter()
    upscale(photo, net, tile=tile, overlap=OVERLAP)
    seconds = time.perf_counter() - start
    grown = (peak() - before) / 2**20
    return f"{tile}: {photo.shape[0] * photo.shape[1] / 1e6 / seconds:.3f} MP/s, +{grown:.0f} MiB"


def upscale_tiles() -> str:
    "lr megapixels a second and peak memory of a 512x512 image against the side of a tile; 12 MiB of it are the result."
    code = "import sys; from tests.bench.upscaling import _one_tile; print(_one_tile(int(sys.argv[1])))"
    return "; ".join(subprocess.run([sys.executable, "-c", code, str(tile)], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]).stdout.strip()
                     for tile in (64, 128, 256, 512))


ROWS = {"upscale-conv-peak": upscale_conv_peak, "upscale-tiles": upscale_tiles, "upscale-overlap": upscale_overlap, "upscale-batch": upscale_batch,
        "upscale-channels-last": upscale_channels_last, "upscale-bfloat16": upscale_bfloat16}
