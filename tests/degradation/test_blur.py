"""blur, the quick path: separable sums and the folded blur and resize against loops, SciPy and the plain path."""
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings

from crlsr.degradation import blur as module
from crlsr.degradation.blur import blur, blur_resize, separate
from crlsr.degradation.kernels import delta_kernel, gaussian_kernel
from crlsr.images import resize


def random_tensor(*shape, dtype=torch.float32, seed=0):
    return torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def random_kernels(n, size, seed=0):
    kernels = random_tensor(n, size, size, dtype=torch.float64, seed=seed)
    return kernels / kernels.sum((1, 2), keepdim=True)


def plain(image, kernels, scale):
    return resize(blur(image, kernels), scale=1 / scale)


def reference_resize(line, scale):
    "One row of MATLAB's imresize by 1 / scale, by loops: the stretched cubic, mirrored with the edge pixel repeated."
    n, out = len(line), []
    for x in range(math.ceil(n / scale)):
        centre, total, weights = scale * x + (scale - 1) / 2, 0.0, 0.0
        for i in range(math.floor(centre - 2 * scale) - 1, math.ceil(centre + 2 * scale) + 2):
            t = abs(centre - i) / scale
            weight = 1.5 * t**3 - 2.5 * t**2 + 1 if t <= 1 else -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t <= 2 else 0.0
            j = i % (2 * n)
            total, weights = total + weight * line[min(j, 2 * n - 1 - j)], weights + weight
        out.append(total / weights)
    return np.array(out)


@pytest.mark.parametrize("height, width, scale, size", [(24, 32, 4, 7), (25, 30, 2, 11), (31, 22, 3, 21), (22, 23, 1, 5)])
def test_equals_scipy_and_a_loop(height, width, scale, size):
    image, kernel = random_tensor(1, 1, height, width, dtype=torch.float64), random_kernels(1, size)[0]
    blurred = scipy.ndimage.correlate(image[0, 0].numpy(), kernel.numpy(), mode="mirror")
    rows = np.stack([reference_resize(column, scale) for column in blurred.T], axis=1)
    expected = np.stack([reference_resize(row, scale) for row in rows])
    np.testing.assert_allclose(blur_resize(image, kernel, scale, tol=1e-12)[0, 0].numpy(), expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(blur_resize(image.float(), kernel.float(), scale)[0, 0].numpy(), expected, rtol=0, atol=1e-5)


@settings(max_examples=15)
@given(st.floats(0, 6), st.floats(0, 6), st.floats(-4, 4), st.sampled_from([2, 3, 4]), st.integers(22, 70), st.integers(22, 140))
def test_gaussians_equal_the_plain_path(sigma1, sigma2, theta, scale, height, width):
    image = random_tensor(1, 2, height, width)
    kernel = gaussian_kernel(sigma1, sigma2, theta)
    assert (blur_resize(image, kernel, scale) - plain(image, kernel, scale)).abs().max() < 1e-5


def test_each_image_of_a_batch_has_its_own_kernel():
    s1, s2, theta = (low + (high - low) * random_tensor(8, seed=i) for i, (low, high) in enumerate([(0.2, 4), (0.2, 4), (0, math.pi)]))
    kernels, image = gaussian_kernel(s1, s2, theta), random_tensor(8, 1, 192, 192)
    assert (blur_resize(image, kernels, 4) - plain(image, kernels, 4)).abs().max() < 1e-5
    exact = plain(image.double(), kernels.double(), 4)
    assert (blur_resize(image.double(), kernels.double(), 4, tol=1e-10) - exact).abs().max() < 1e-10


def test_several_bands_in_both_directions():
    image, kernel = random_tensor(1, 3, 300, 420), gaussian_kernel(3.0, 1.0, 0.7)
    assert (blur_resize(image, kernel, 4) - plain(image, kernel, 4)).abs().max() < 1e-5
    assert (blur_resize(image, kernel, 2) - plain(image, kernel, 2)).abs().max() < 1e-5


@given(st.integers(0, 10**6), st.sampled_from([1, 3, 9, 21]), st.sampled_from([1e-2, 1e-5, 1e-9]))
def test_separate_keeps_its_bound(seed, size, tol):
    s1, s2, theta = (random_tensor(3, seed=seed + i) * 4 for i in range(3))
    kernels = torch.cat([random_kernels(1, size, seed), gaussian_kernel(s1, s2, theta, size, dtype=torch.float64)])
    for kernel, terms in zip(kernels, separate(kernels, tol)):
        left_out = (kernel - terms.vertical.T @ terms.horizontal).abs().sum().item()
        assert left_out <= terms.error + 1e-12 and terms.error <= 1.01 * tol
        assert terms.vertical.shape == terms.horizontal.shape and len(terms.vertical) <= size


def test_separate_is_as_short_as_the_best_sum():
    for terms, kernel in zip(separate(kernels := gaussian_kernel(torch.tensor([3.5, 4.0]), 1.5, 0.5, dtype=torch.float64), 1e-5), kernels):
        u, s, vh = torch.linalg.svd(kernel)
        errors = [(kernel - (u[:, :r] * s[:r]) @ vh[:r]).abs().sum().item() for r in range(22)]
        assert len(terms.vertical) <= 1 + next(r for r, error in enumerate(errors) if error <= 1e-5)
    separable = torch.outer(random_tensor(7), random_tensor(7, seed=1))
    for kernel in (gaussian_kernel(2.0), gaussian_kernel(3.0, 1.0, math.pi / 2), delta_kernel(), separable):
        assert len(separate(kernel)[0].vertical) == 1


@given(st.floats(0.01, 6), st.floats(0.01, 6), st.floats(0, math.pi), st.sampled_from([1, 3, 9, 21]))
def test_halves_are_the_singular_value_decomposition(sigma1, sigma2, theta, size):
    kernels = gaussian_kernel(sigma1, sigma2, theta, size, dtype=torch.float64)[None]
    vertical, horizontal = module._even_and_odd_terms(kernels)
    torch.testing.assert_close(vertical.mT @ horizontal, kernels, rtol=0, atol=1e-14)
    torch.testing.assert_close(vertical.norm(dim=2), torch.linalg.svdvals(kernels), rtol=0, atol=1e-14)


@pytest.mark.parametrize("scale, crop", [(4, 1), (4, 7), (3, 5), (2, 12), (1, 3)])
def test_a_crop_is_the_inner_part(scale, crop):
    image = random_tensor(3, 3, 66, 71, dtype=torch.float64)
    kernels = torch.stack([gaussian_kernel(3.0, 0.7, 0.5, dtype=torch.float64), gaussian_kernel(1.5, dtype=torch.float64), random_kernels(1, 21)[0].double()])
    inner = blur_resize(image, kernels, scale, tol=1e-12, crop=crop)
    torch.testing.assert_close(inner, plain(image, kernels, scale)[..., crop:-crop, crop:-crop], rtol=0, atol=1e-10)
    assert torch.equal(inner[1:2], blur_resize(image[1:2], kernels[1], scale, tol=1e-12, crop=crop))


def test_separate_without_a_centre():
    kernel = torch.zeros(5, 5)
    kernel[0, 1], kernel[3, 4] = 0.25, 0.75  # the centre, by which one-term sums divide, is 0
    (terms,) = separate(kernel)
    torch.testing.assert_close((terms.vertical.T @ terms.horizontal).float(), kernel)
    assert len(terms.vertical) == 2
    image = random_tensor(1, 1, 20, 20)
    torch.testing.assert_close(blur_resize(image, kernel, 2), plain(image, kernel, 2), rtol=0, atol=1e-6)


def test_factors_hold_no_denormal_numbers():
    s1, s2, theta = (random_tensor(50, seed=i) * 4 for i in range(3))
    tiny = torch.finfo(torch.float32).tiny
    for terms in separate(gaussian_kernel(s1, s2, theta)):
        for factor in (terms.vertical.float(), terms.horizontal.float()):
            assert not ((factor != 0) & (factor.abs() < tiny)).any()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("height, width", [(64, 64), (65, 43), (129, 101)])  # odd sizes: images of a batch start anywhere
def test_bits_do_not_depend_on_the_batch(threads, height, width):
    image, before = random_tensor(5, 3, height, width), torch.get_num_threads()
    kernels = torch.cat([gaussian_kernel(torch.tensor([0.3, 2.0, 4.0, 3.9]), torch.tensor([0.3, 2.0, 0.5, 3.7]), torch.tensor([0.0, 0, 0.7, 1.0])),
                         random_kernels(1, 21).float()])
    try:
        torch.set_num_threads(threads)
        for scale in (1, 4):
            whole = blur_resize(image, kernels, scale)
            order = torch.tensor([3, 4, 0, 2, 1])
            assert torch.equal(whole[order], blur_resize(image[order], kernels[order], scale))
            for i in range(5):
                assert torch.equal(whole[i : i + 1], blur_resize(image[i : i + 1].clone(), kernels[i], scale))
            assert torch.equal(whole, blur_resize(image.contiguous(memory_format=torch.channels_last), kernels, scale))
    finally:
        torch.set_num_threads(before)


def test_gradient_is_that_of_the_plain_path():
    kernels, grads = gaussian_kernel(torch.tensor([2.0, 3.0]), 1.0, 0.4, dtype=torch.float64), []
    weight = random_tensor(2, 2, 12, 9, dtype=torch.float64, seed=1)
    for run in (lambda x: blur_resize(x, kernels, 4, tol=1e-12), lambda x: plain(x, kernels, 4)):
        image = random_tensor(2, 2, 48, 36, dtype=torch.float64).requires_grad_()
        (run(image) * weight).sum().backward()
        grads.append(image.grad)
    torch.testing.assert_close(*grads, rtol=0, atol=1e-10)
    asks = gaussian_kernel(2.0, 1.0, 0.3).requires_grad_()
    blur_resize(random_tensor(1, 1, 32, 32), asks, 4).sum().backward()
    assert asks.grad.abs().sum() > 0


def test_plain_convolution_is_taken_where_it_is_cheaper(monkeypatch):
    image, kernel = random_tensor(1, 3, 64, 64), random_kernels(1, 21)[0].float()
    assert module._prefers_convolution(21, (3, 64, 64), 21, 1) and not module._prefers_convolution(21, (3, 64, 64), 21, 4)
    assert not module._prefers_convolution(1, (3, 64, 64), 3, 1)
    convolved = []
    monkeypatch.setattr(module, "blur", lambda x, k: convolved.append(1) or blur(x, k))
    for scale, count in ((4, 0), (1, 1)):
        assert (blur_resize(image, kernel, scale) - plain(image, kernel, scale)).abs().max() < 1e-5
        assert len(convolved) == count


def test_caches_are_bounded():
    bands = module._taps(4000, 4, 21, 16, 0, torch.float32, torch.device("cpu"))
    tensors = {id(part): part for _, part in bands}.values()
    assert len(bands) == 63 and sum(part.numel() * 4 for part in tensors) < 2**20
    for length in range(100, 140):
        module._taps(length, 4, 21, 16, 0, torch.float32, torch.device("cpu"))
    assert module._taps.cache_info().currsize <= 16


def test_dtypes_and_modes():
    image, kernel = random_tensor(2, 3, 40, 44), gaussian_kernel(2.0, 1.0, 0.3)
    expected = blur_resize(image, kernel, 4)
    for dtype in (torch.float16, torch.bfloat16):
        half = image.to(dtype)
        out = blur_resize(half, kernel, 4)
        assert out.dtype == dtype
        torch.testing.assert_close(out, blur_resize(half.float(), kernel, 4).to(dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(blur_resize(image, kernel, 4), expected)
    with torch.inference_mode():
        assert torch.equal(blur_resize(random_tensor(1, 1, 57, 59), kernel, 4), blur_resize(random_tensor(1, 1, 57, 59), kernel, 4))
    blur_resize(random_tensor(1, 1, 57, 59).requires_grad_(), kernel, 4).sum().backward()  # matrices cached in inference mode


@pytest.mark.gpu
def test_cuda_equals_cpu():
    image, kernels = random_tensor(2, 3, 100, 92), gaussian_kernel(torch.tensor([2.0, 4.0]), torch.tensor([2.0, 1.0]), 0.4)
    found = blur_resize(image.cuda(), kernels.cuda(), 4)
    torch.testing.assert_close(found.cpu(), blur_resize(image, kernels, 4), rtol=0, atol=1e-5)


@pytest.mark.parametrize("call, message", [
    (lambda: separate(torch.rand(4, 4)), r"kernels: got torch.float32 of shape \(4, 4\)"),
    (lambda: separate(torch.rand(5)), "kernels: got"),
    (lambda: separate(torch.ones(3, 3, dtype=torch.long)), "kernels: got torch.int64"),
    (lambda: blur_resize(torch.rand(3, 32, 32), delta_kernel(), 4), "image: got torch.float32"),
    (lambda: blur_resize(torch.rand(1, 3, 10, 64), delta_kernel(), 4), "sides > 10"),
    (lambda: blur_resize(torch.zeros(1, 1, 32, 32, dtype=torch.uint8), delta_kernel(), 4), "image: got torch.uint8"),
    (lambda: blur_resize(torch.rand(1, 3, 32, 32), delta_kernel(), 0), "scale, kernels: got 0"),
    (lambda: blur_resize(torch.rand(1, 3, 32, 32), delta_kernel(), 2.5), "scale, kernels: got 2.5.*whole scale"),
    (lambda: blur_resize(torch.rand(1, 3, 32, 32), delta_kernel() * 4, 4), "kernel: its weights add up to 4"),
    (lambda: blur_resize(torch.rand(1, 3, 32, 32), delta_kernel(), 4, crop=4), "crop: got 4, expected >= 0 and less than half of 8"),
    (lambda: blur_resize(torch.rand(1, 3, 32, 32), delta_kernel(), 4, crop=-1), "crop: got -1"),
    (lambda: blur_resize(torch.rand(2, 3, 32, 32), torch.rand(3, 5, 5), 4), r"got 4, \(3, 5, 5\)"),
])
def test_errors_are_one_line_that_names_the_argument(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
