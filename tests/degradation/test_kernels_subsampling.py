"""subsampling: every s-th pixel, and moved kernels against polynomials, closed forms and bicubic."""
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from crlsr.degradation import kernel_families as kernel_shapes
from crlsr.degradation.kernels import blur, delta_kernel, gaussian_kernel, sfold_shift, shift_kernel, subsample
from crlsr.images import resize

shifts = st.floats(-3, 3)


def random_kernels(*shape, dtype=torch.float64, seed=0):
    kernel = torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return kernel / kernel.sum((-2, -1), keepdim=True)


def moments(kernel):
    "Sum, mean and covariance of (x, y), pixels from the centre."
    k = kernel.double().numpy()
    offset = np.arange(len(k)) - len(k) // 2
    x, y = (offset[None, :] * k).sum() / k.sum(), (offset[:, None] * k).sum() / k.sum()
    dx, dy = offset[None, :] - x, offset[:, None] - y
    return np.array([k.sum(), x, y, (k * dx**2).sum(), (k * dx * dy).sum(), (k * dy**2).sum()])


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(12, 24), (2, 3, 13, 7), (5, 1, 1)])
def test_subsample_keeps_the_first_pixel_of_each_block(scale, shape):
    image = torch.arange(math.prod(shape)).reshape(shape)
    out = subsample(image, scale)
    assert out.shape[-2:] == (math.ceil(shape[-2] / scale), math.ceil(shape[-1] / scale))
    for row in range(out.shape[-2]):
        for column in range(out.shape[-1]):
            assert torch.equal(out[..., row, column], image[..., row * scale, column * scale])


@given(shifts, shifts, st.integers(0, 9))
def test_a_shift_moves_the_centroid_and_keeps_sum_and_covariance(dx, dy, seed):
    kernel = random_kernels(7, 7, seed=seed)
    before, after = moments(kernel), moments(shift_kernel(kernel, dx, dy))
    np.testing.assert_allclose(after - before, [0, dx, dy, 0, 0, 0], atol=1e-9)


@given(shifts, st.integers(0, 9))
def test_a_shift_evaluates_the_cubic_through_four_neighbours(d, seed):
    kernel = random_kernels(7, 7, seed=seed)
    moved, transposed = shift_kernel(kernel, d, 0.0), shift_kernel(kernel.T, 0.0, d)
    torch.testing.assert_close(moved, transposed.T, rtol=0, atol=1e-15)
    margin = (len(moved) - 7) // 2
    padded = np.pad(kernel.numpy(), margin + 6)  # zeros around, then rows of length len(moved) + 12
    for place in range(len(moved)):
        at = place + 6 - d  # where the moved kernel's entry lies in the padded one
        nodes = np.arange(math.ceil(at) - 2, math.ceil(at) + 2)  # two neighbours on either side
        for row in range(7):
            values = padded[row + margin + 6, nodes]
            expected = sum(v * np.prod([(at - m) / (n - m) for m in nodes if m != n]) for v, n in zip(values, nodes))
            assert moved[row + margin, place].item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("dx, dy", [(0, 0), (1, 0), (-2, 3), (0, -1)])
def test_a_whole_shift_moves_the_entries(dx, dy):
    kernel = random_kernels(5, 5, dtype=torch.float32)
    moved = shift_kernel(kernel, float(dx), float(dy))
    margin = max(abs(dx), abs(dy))
    expected = np.roll(np.pad(kernel.numpy(), margin), (dy, dx), (0, 1))
    assert moved.dtype == torch.float32 and np.array_equal(moved.numpy(), expected)


def test_a_shift_of_a_batch_is_the_shift_of_each():
    kernels = random_kernels(3, 9, 9)
    for one, moved in zip(kernels, shift_kernel(kernels, 1.5, -0.5)):
        torch.testing.assert_close(moved, shift_kernel(one, 1.5, -0.5))
    assert torch.autograd.gradcheck(lambda k: shift_kernel(k, 0.5, 1.5), random_kernels(3, 3).requires_grad_())


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("kernel", [delta_kernel(7, dtype=torch.float64), gaussian_kernel(1.7, 0.6, 0.5, 13, dtype=torch.float64), random_kernels(9, 9)])
def test_a_ramp_shrinks_to_the_ramp_of_bicubic(scale, kernel):
    y, x = torch.meshgrid(*[torch.arange(96, dtype=torch.float64)] * 2, indexing="ij")
    ramp = (0.3 * x - 1.1 * y)[None, None]
    d = sfold_shift(scale)
    aligned, bicubic = subsample(blur(ramp, shift_kernel(kernel, d, d)), scale), resize(blur(ramp, kernel), 1 / scale)
    inner = (..., slice(6, -6), slice(6, -6))
    torch.testing.assert_close(aligned[inner], bicubic[inner], rtol=0, atol=1e-6)
    off = (subsample(blur(ramp, kernel), scale) - bicubic)[inner]
    torch.testing.assert_close(off, torch.full_like(off, -d * (0.3 - 1.1)), rtol=0, atol=1e-6)  # what the shift has to make up for


@pytest.mark.parametrize("scale, sigma, size", [(2, 3.0, 41), (3, 4.0, 51), (4, 5.0, 65)])
def test_a_dot_lands_where_bicubic_has_it(scale, sigma, size):
    "Sums over the lr grid are exact up to aliasing, exp(-2 pi² sigma² / scale²) < 1e-12 here, and up to what the window cuts off."
    image = torch.zeros(1, 1, 144, 144, dtype=torch.float64)
    image[..., 70, 77] = 1
    d = sfold_shift(scale)
    lr = subsample(blur(image, shift_kernel(gaussian_kernel(sigma, size=size, dtype=torch.float64), d, d)), scale)[0, 0]
    place = torch.arange(len(lr), dtype=torch.float64) * scale + (scale - 1) / 2  # hr position of the lr pixels' centres
    assert (lr.sum(0) @ place / lr.sum()).item() == pytest.approx(77, abs=1e-6)
    assert (lr.sum(1) @ place / lr.sum()).item() == pytest.approx(70, abs=1e-6)


def test_kernel_shapes_offers_the_same_functions():
    assert kernel_shapes.subsample is subsample and kernel_shapes.shift_kernel is shift_kernel and kernel_shapes.sfold_shift is sfold_shift


@pytest.mark.parametrize("call, message", [
    (lambda: subsample(torch.zeros(3), 2), r"image: got shape \(3,\)"),
    (lambda: subsample(torch.zeros(3, 3), 0), "scale: got 0"),
    (lambda: sfold_shift(0), "scale: got 0"),
    (lambda: shift_kernel(torch.ones(4, 4), 0.5, 0.5), r"kernel: got shape \(4, 4\)"),
    (lambda: shift_kernel(torch.ones(3, 5), 0.5, 0.5), r"kernel: got shape \(3, 5\)"),
    (lambda: shift_kernel(torch.ones(1, 1, 3, 3), 0.5, 0.5), "kernel: got shape"),
    (lambda: shift_kernel(torch.ones(3, 3), math.nan, 0.5), "dx: got nan"),
    (lambda: shift_kernel(torch.ones(3, 3), 0.5, math.inf), "dy: got inf"),
])
def test_errors_are_one_line_that_names_the_argument(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
