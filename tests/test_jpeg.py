"""jpeg: quick checks."""
import torch

from crlsr.jpeg import jpeg


def test_multiples_of_one_code():
    out = jpeg(torch.rand(3, 19, 33), 50) * 255
    assert out.shape == (3, 19, 33) and torch.equal(out, out.round())
