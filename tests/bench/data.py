"""What a training batch costs: crop and degrade, decoded images in memory, against a plain-L1 step of the cpu profile."""
from __future__ import annotations

import torch

from crlsr.core import generator
from tests.bench import paired


def _share(preset: str) -> str:
    "A batch of the cpu profile ('ours') against a plain-L1 step ('plain'); the ratio is how many batches fit in a step."
    from crlsr.data import ImagePool, PatchSampler
    from crlsr.degradation import Degradation
    from crlsr.model import CRLSR
    from crlsr.training import profile

    config, train = profile("cpu")
    model = CRLSR(config.replace(weight_bc=0.0, weight_srnce=0.0, weight_rec=0.0))
    pool = ImagePool("embedded:train")
    for i in range(len(pool)):
        pool.pixels(i)  # decoded before the clock starts
    sampler = PatchSampler(pool, Degradation.parse(preset, config.network.scale), train.patch_size, train.batch_size, 0)
    batch, optimizer, steps = sampler.batch(0), torch.optim.Adam(model.parameters()), iter(range(10**6))

    def step() -> None:
        optimizer.zero_grad()
        model.objective(batch.lr, batch.hr, generator("bench"))[0].total.backward()
        optimizer.step()

    return paired(lambda: sampler.batch(next(steps)), step, pairs=25)  # a draw costs more or less by its kernels: many pairs


ROWS = {
    "data-share-iso": lambda: _share("iso"),
    "data-share-aniso": lambda: _share("aniso+noise:0..25"),
    "data-share-multimodal": lambda: _share("multimodal"),
    "data-share-spatial": lambda: _share("spatial"),
}
