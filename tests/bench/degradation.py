"""What a degraded batch costs, 16x3x192x192, kernels 21x21, scale 4, noise: folded or gathered against one convolution per sample."""
from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Callable
from pathlib import Path

import torch

from crlsr.core import generator
from tests.bench import paired

_HR = (16, 3, 192, 192)
_NOISE = 10 / 255


def _noisy(lr: torch.Tensor) -> torch.Tensor:
    "Noise from a generator of each image."
    return lr + _NOISE * torch.stack([torch.randn(one.shape, generator=generator("noise", i)) for i, one in enumerate(lr)])


def _batch(round_kernels: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    draw = generator("bench", "degradation")
    hr = torch.rand(_HR, generator=draw)
    sigma1, sigma2, turn = torch.rand(3, _HR[0], dtype=torch.float64, generator=draw)
    first = 0.2 + 3.8 * sigma1
    return hr, [first, first if round_kernels else 0.2 + 3.8 * sigma2, math.pi * turn]


def _with_denormals(sigma1: torch.Tensor, sigma2: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    "The same kernels as most code makes them: float32 throughout, so that the smallest weights are denormal numbers, on which a convolution may crawl."
    sigma1, sigma2, theta = (value.float()[:, None, None] for value in (sigma1, sigma2, theta))
    y, x = torch.meshgrid(*[torch.arange(21.0) - 10] * 2, indexing="ij")
    along, across = theta.cos() * x + theta.sin() * y, theta.cos() * y - theta.sin() * x
    weight = torch.exp(-0.5 * ((along / sigma1) ** 2 + (across / sigma2) ** 2))
    return weight / weight.sum((1, 2), keepdim=True)


def _against_plain(round_kernels: bool) -> str:
    """Ours, making the kernels included, against `blur` of the batch by one grouped convolution, `resize` and noise, kernels ready.
    The plain path is shown at its best, with our kernels; beside it the ratio with kernels that keep their denormal weights, as usually written."""
    from crlsr.degradation.blur import blur, blur_resize
    from crlsr.degradation.kernels import gaussian_kernel
    from crlsr.images import resize

    hr, numbers = _batch(round_kernels)
    kernels, usual = gaussian_kernel(*numbers), _with_denormals(*numbers)
    ours = lambda: _noisy(blur_resize(hr, gaussian_kernel(*numbers), 4))
    plain = lambda chosen: lambda: _noisy(resize(blur(hr, chosen), scale=1 / 4))
    worst = (ours() - plain(kernels)()).abs().max().item()
    return f"{paired(ours, plain(kernels))}, worst difference {worst:.0e}; with denormal weights {paired(ours, plain(usual)).split()[0]}"


def _peak(run: Callable[[], object]) -> float:
    "Memory in MiB that a call adds at its peak to what was there before; nan where the system cannot tell."
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        run()
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # give back what earlier calls left, or it would be reused unseen
        reset.write_text("5")
        before = int(re.search(r"VmRSS:\s+(\d+)", status.read_text())[1])
        run()
        return (int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) - before) / 1024
    except (OSError, AttributeError, TypeError):
        return math.nan


def degrade_iso() -> str:
    "Round Gaussians, one for each image."
    return _against_plain(True)


def degrade_aniso() -> str:
    "Rotated Gaussians, one for each image."
    return _against_plain(False)


def degrade_spatial() -> str:
    """Our rotated Gaussians, one for each image ('ours'), against smooth maps of σ1, σ2 and θ ('plain'): the ratio is what varying costs.
    The numbers of the kernels are drawn before, and so are the maps."""
    from crlsr.degradation.blur import blur_resize
    from crlsr.degradation.kernels import gaussian_kernel
    from crlsr.degradation.spatial import smooth_field, spatial_blur_resize

    hr, numbers = _batch(False)
    h, w = _HR[2] // 4, _HR[3] // 4
    fields = [torch.stack([smooth_field(3 * i + which, h, w) for i in range(_HR[0])]) for which in range(3)]
    maps = 0.2 + 3.8 * fields[0], 0.2 + 3.8 * fields[1], math.pi * fields[2]
    invariant = lambda: _noisy(blur_resize(hr, gaussian_kernel(*numbers), 4))
    varying = lambda: _noisy(spatial_blur_resize(hr, *maps, 4))
    held = hr.numel() * hr.element_size() / 2**20  # the batch itself, in MiB
    memory = [held + _peak(run) for run in (invariant, varying)]
    return f"{paired(invariant, varying)}, memory with the batch {memory[0]:.0f} and {memory[1]:.0f} MiB"


ROWS = {"degrade-iso": degrade_iso, "degrade-aniso": degrade_aniso, "degrade-spatial": degrade_spatial}
