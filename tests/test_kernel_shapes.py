"""kernel_shapes: quick checks."""
import pytest
import torch

from crlsr.kernel_shapes import disk_kernel, generalized_gaussian_kernel, motion_kernel, plateau_kernel, shift_kernel, sinc_kernel
from crlsr.kernels import gaussian_kernel


@pytest.mark.parametrize("kernel", [
    generalized_gaussian_kernel(2.0, 1.0, 0.3, 0.5, dtype=torch.float64), plateau_kernel(2.0, 1.0, 0.3, 2.0, dtype=torch.float64),
    motion_kernel(12.0, 0.3, 1.0, seed=5, dtype=torch.float64), disk_kernel(4.3, dtype=torch.float64), sinc_kernel(1.2, dtype=torch.float64),
])
def test_sum_and_centroid(kernel):
    offset = torch.arange(21, dtype=torch.float64) - 10
    assert abs(kernel.sum() - 1) < 1e-12 and abs(kernel.sum(0) @ offset) < 1e-12 and abs(kernel.sum(1) @ offset) < 1e-12


def test_shift():
    kernel = shift_kernel(gaussian_kernel(2.0, dtype=torch.float64), 1.5, -0.5)
    offset = torch.arange(len(kernel), dtype=torch.float64) - len(kernel) // 2
    assert abs(kernel.sum(0) @ offset - 1.5) < 1e-12 and abs(kernel.sum(1) @ offset + 0.5) < 1e-12
