"""Small models whose output depends on everything that they can see, and images for them."""
import torch

from crlsr.core import generator
from crlsr.model import CRLSR, ModelConfig

CONFIG = ModelConfig.from_flat(num_feat=8, num_block=2, weight_bc=0, weight_srnce=0, weight_rec=0)


def build(**changes) -> CRLSR:
    "A model whose output depends on everything it can see."
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CRLSR(CONFIG.replace(**changes)).eval()
        torch.nn.init.normal_(model.restorer.decoder.tail.conv.weight, std=0.1)
    return model


def image(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=generator("image", *shape))
