"""spatial, blur: every lr pixel against blur, then resize, with its own kernel."""
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from crlsr.degradation import spatial as module
from crlsr.degradation.blur import blur, blur_resize
from crlsr.degradation.kernels import gaussian_kernel
from crlsr.degradation.spatial import FIELDS, manet_maps, spatial_blur_resize
from crlsr.images import resize


def random_tensor(*shape, dtype=torch.float32, seed=0):
    return torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def double_loop(image, sigma1, sigma2, theta, scale, size=21):
    "For each lr pixel: the whole image blurred with its kernel, shrunk, and that pixel kept."
    out = image.new_zeros(len(image), *sigma1.shape)
    for y in range(sigma1.shape[0]):
        for x in range(sigma1.shape[1]):
            kernel = gaussian_kernel(sigma1[y, x].item(), sigma2[y, x].item(), theta[y, x].item(), size, dtype=image.dtype)
            out[:, y, x] = resize(blur(image[None], kernel), scale=1 / scale)[0, :, y, x]
    return out


def maps_of(kind, height, width, seed=0):
    f1, f2, f3 = (FIELDS[kind](3 * seed + i, height, width) for i in range(3))
    return 0.2 + 3.8 * f1, 0.2 + 3.8 * f2, math.pi * f3


@pytest.mark.parametrize("kind", list(FIELDS))
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_every_kind_of_field_equals_the_double_loop(kind, dtype, tolerance):
    image, maps = random_tensor(2, 32, 40, dtype=dtype), maps_of(kind, 8, 10)
    assert (spatial_blur_resize(image, *maps, 4) - double_loop(image, *maps, 4)).abs().max() < tolerance


@pytest.mark.parametrize("mode", [1, 4, 6])
def test_manet_kernels_equal_the_double_loop(mode):
    image, maps = random_tensor(1, 22, 44), manet_maps(mode, 11, 22, 2)
    assert (spatial_blur_resize(image, *maps, 2) - double_loop(image, *maps, 2)).abs().max() < 1e-5


@settings(max_examples=12)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 3, 4]), st.sampled_from([1, 3, 7, 11]), st.integers(6, 19), st.integers(6, 31))
def test_any_size_and_scale_equals_the_double_loop(seed, scale, size, height, width):
    image = random_tensor(1, height, width, dtype=torch.float64, seed=seed)
    maps = [random_tensor(math.ceil(height / scale), math.ceil(width / scale), dtype=torch.float64, seed=seed + i) * top for i, top in enumerate((5, 5, 7))]
    assert (spatial_blur_resize(image, *maps, scale, size=size) - double_loop(image, *maps, scale, size)).abs().max() < 1e-12


def test_thin_oblique_and_vanishing_kernels():
    image = random_tensor(1, 48, 48)
    sigma1 = torch.tensor([4.0, 4.0, 0.0, 30.0]).repeat_interleave(3).expand(12, 12)
    sigma2 = torch.tensor([0.2, 0.0, 0.0, 0.05]).repeat_interleave(3).expand(12, 12)
    theta = torch.linspace(0, math.pi, 12)[:, None].expand(12, 12)
    found = spatial_blur_resize(image, sigma1, sigma2, theta, 4)
    assert (found - double_loop(image.double(), sigma1, sigma2, theta, 4)).abs().max() < 1e-4


def test_a_constant_map_is_an_invariant_blur():
    image, numbers = random_tensor(4, 3, 192, 160), [(0.3, 0.3, 0.0), (2.0, 2.0, 0.0), (4.0, 1.0, 0.7), (3.0, 0.4, 2.0)]
    maps = [torch.tensor(column, dtype=torch.float64)[:, None, None].expand(4, 48, 40) for column in zip(*numbers)]
    kernels = torch.stack([gaussian_kernel(*three) for three in numbers])
    assert (spatial_blur_resize(image, *maps, 4) - blur_resize(image, kernels, 4)).abs().max() < 2e-5


def test_the_kernel_is_that_of_the_lr_pixel():
    image = torch.zeros(1, 24, 96)
    image[0, 12, 45] = 1.0  # three pixels left of the edge between the two halves
    sigma = torch.full((6, 24), 0.2, dtype=torch.float64)
    sigma[:, 12:] = 3.0
    lr = spatial_blur_resize(image, sigma, sigma, torch.zeros_like(sigma), 4)[0]
    wide = resize(blur(image[None], gaussian_kernel(3.0)), scale=1 / 4)[0, 0]
    sharp = resize(image, scale=1 / 4)[0]
    torch.testing.assert_close(lr[:, 12:], wide[:, 12:], rtol=0, atol=1e-5)  # collects light from the sharp side
    torch.testing.assert_close(lr[:, :12], sharp[:, :12], rtol=0, atol=1e-4)  # σ 0.2 is almost no blur
    flat = torch.full((1, 24, 96), 0.3)
    torch.testing.assert_close(spatial_blur_resize(flat, sigma, sigma, torch.zeros_like(sigma), 4), torch.full((1, 6, 24), 0.3))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("height, width", [(48, 64), (45, 39)])
def test_bits_do_not_depend_on_the_batch(threads, height, width):
    shape, before = (math.ceil(height / 4), math.ceil(width / 4)), torch.get_num_threads()
    image, maps = random_tensor(4, 3, height, width), [torch.stack(m) for m in zip(*(maps_of(kind, *shape) for kind in FIELDS))]
    try:
        torch.set_num_threads(threads)
        whole = spatial_blur_resize(image, *maps, 4)
        order = torch.tensor([2, 0, 3, 1])
        assert torch.equal(whole[order], spatial_blur_resize(image[order], *(m[order] for m in maps), 4))
        for i in range(4):
            assert torch.equal(whole[i], spatial_blur_resize(image[i].clone(), *(m[i] for m in maps), 4))
            assert torch.equal(whole[i], spatial_blur_resize(image[i, None], *(m[i, None] for m in maps), 4)[0])
    finally:
        torch.set_num_threads(before)


def test_gradient():
    maps, image = maps_of("smooth", 5, 4), random_tensor(2, 14, 12, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: spatial_blur_resize(x, *maps, 3, size=5), image)
    weight = random_tensor(2, 5, 4, dtype=torch.float64, seed=1)
    (spatial_blur_resize(image, *maps, 3) * weight).sum().backward()
    found, image.grad = image.grad, None
    (double_loop(image, *maps, 3) * weight).sum().backward()
    torch.testing.assert_close(found, image.grad)
    torch.testing.assert_close(spatial_blur_resize(image, *maps, 3).detach(), spatial_blur_resize(image.detach(), *maps, 3))


def test_dtypes_modes_and_caches():
    image, maps = random_tensor(2, 30, 34), maps_of("smooth", 15, 17)
    half = spatial_blur_resize(image.bfloat16(), *maps, 2)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half, spatial_blur_resize(image.bfloat16().float(), *maps, 2).bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(spatial_blur_resize(image, *maps, 2), spatial_blur_resize(image, *maps, 2))
    with torch.inference_mode():
        spatial_blur_resize(random_tensor(1, 26, 26), *maps_of("smooth", 13, 13), 2)
    spatial_blur_resize(random_tensor(1, 26, 26).requires_grad_(), *maps_of("smooth", 13, 13), 2).sum().backward()
    assert module._axis.cache_info().maxsize <= 16


@pytest.mark.gpu
def test_cuda_equals_cpu():
    image, maps = random_tensor(3, 64, 72), maps_of("smooth", 16, 18)
    found = spatial_blur_resize(image.cuda(), *(m.cuda() for m in maps), 4)
    torch.testing.assert_close(found.cpu(), spatial_blur_resize(image, *maps, 4), rtol=0, atol=1e-5)


ones = torch.ones(8, 8)


@pytest.mark.parametrize("call, message", [
    (lambda: spatial_blur_resize(torch.rand(3, 32, 32), ones, ones, torch.ones(8, 7), 4), r"theta: got shape \(8, 7\), expected \(8, 8\)"),
    (lambda: spatial_blur_resize(torch.rand(2, 3, 32, 32), ones, ones, ones, 4), r"sigma1: got shape \(8, 8\), expected \(2, 8, 8\)"),
    (lambda: spatial_blur_resize(torch.rand(3, 32, 32), ones, -ones, ones, 4), "sigma2: got -1 to -1, expected finite numbers >= 0"),
    (lambda: spatial_blur_resize(torch.rand(3, 32, 32), ones, ones, ones * math.nan, 4), "theta: got nan"),
    (lambda: spatial_blur_resize(torch.rand(3, 32, 32), ones, ones, ones, 4, size=20), "size, scale: got 20, 4"),
    (lambda: spatial_blur_resize(torch.rand(3, 10, 32), ones[:3], ones[:3], ones[:3], 4), "sides > 10"),
    (lambda: spatial_blur_resize(torch.rand(32, 32), ones, ones, ones, 4), "image: got"),
])
def test_errors_are_one_line_that_names_the_argument(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
