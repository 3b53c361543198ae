"""noise: quick checks."""
import torch

from crlsr.core import generator
from crlsr.degradation import add_noise
from crlsr.noise import gaussian_noise


def test_same_numbers_as_add_noise():
    image = torch.rand(3, 9, 7)
    assert torch.equal(gaussian_noise(image, 13.0, generator("noise", 7)), add_noise(image[None], 13.0, [7])[0])
