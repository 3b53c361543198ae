"""degradation_head: a regression on recent images, whose gradient enters the features by a signed factor."""
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crlsr.core import generator
from crlsr.networks import AwarenessConfig, DegradationHead, awareness_loss, left_to_hide, pool_features
from crlsr.networks.degradation_head import HIDDEN, scaled_gradient

ONE = torch.ones(3, dtype=torch.float64)
NONE = torch.full((4, 3), float("nan"), dtype=torch.float64)


def draw(*shape, key=0):
    return torch.randn(*shape, generator=generator("degradation_head", *(key if isinstance(key, tuple) else (key,))), dtype=torch.float64)


def weighted_ridge(x, y, weights, price=4.0):
    "By numpy: standardised columns, weighted squares plus a price on each direction."
    total, w = weights.sum(), weights[:, None]
    centre, bias = (w * x).sum(0) / total, (w * y).sum(0) / total
    spread = np.sqrt((w * (x - centre) ** 2).sum(0) / total)
    z = (x - centre) / spread
    rows = np.concatenate([np.sqrt(w) * z, np.sqrt(price) * np.eye(z.shape[1])])
    inner = np.linalg.lstsq(rows, np.concatenate([np.sqrt(w) * (y - bias), np.zeros((z.shape[1], y.shape[1]))]), rcond=None)[0]
    return lambda new: bias + (new - centre) / spread @ inner


@pytest.mark.parametrize("scale", [1.0, 0.25, 0.0, -3.0])
def test_the_value_stays_and_the_gradient_is_multiplied(scale):
    x = draw(3, 4).requires_grad_()
    y = scaled_gradient(x, scale)
    assert torch.equal(y, x)
    y.square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * scale * x.detach())


def test_a_row_is_mean_and_deviation_of_each_channel():
    maps = draw(2, 3, 4, 5)
    expected = np.concatenate([maps.numpy().mean((2, 3)), maps.numpy().std((2, 3))], 1)
    np.testing.assert_allclose(pool_features(maps).numpy(), expected, atol=1e-9)
    assert pool_features(maps.bfloat16()).dtype == torch.float32
    even = torch.full((1, 2, 3, 3), 0.5, requires_grad=True)
    assert torch.equal(torch.autograd.grad(pool_features(even)[:, 2:].sum(), even)[0], torch.zeros_like(even))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 99))
def test_the_head_is_the_weighted_ridge_regression_of_all_images_before(sizes, key):
    """Of one step, and of many: an image counts 0.98 for each step since with an image that is known."""
    head, x, y, weights = DegradationHead(2).double(), np.zeros((0, 4)), np.zeros((0, 3)), np.zeros(0)
    for step, size in enumerate([4, *sizes]):
        f_l, targets = draw(size, 2, 3, 5, key=(key, step, "f")), draw(size, 3, key=(key, step, "t"))
        for piece in zip(f_l.split(2), targets.split(2)):
            head.remember(*piece)
        head.remember(f_l[:4], NONE[: len(f_l[:4])])  # not known
        head.after_step()
        head.remember(f_l, NONE.repeat(2, 1)[:size]), head.after_step()  # nothing to learn: nothing changes
        x, y = np.concatenate([x, pool_features(f_l)]), np.concatenate([y, targets])
        weights = np.concatenate([0.98 * weights, np.ones(size)])
    assert head.images.item() == pytest.approx(weights.sum())
    new = draw(3, 2, 3, 5, key=(key, "new"))
    np.testing.assert_allclose(head(new).numpy(), weighted_ridge(x, y, weights)(pool_features(new).numpy()), rtol=1e-6, atol=1e-8)
    mean = (weights[:, None] * y).sum(0) / weights.sum()
    np.testing.assert_allclose(head.spread.numpy(), np.sqrt((weights[:, None] * (y - mean) ** 2).sum(0) / weights.sum()), rtol=1e-8)


def test_before_it_has_read_anything_it_says_zero_and_asks_for_nothing():
    head, f_l = DegradationHead(3), torch.randn(2, 3, 4, 4, requires_grad=True)
    told = head(f_l)
    assert torch.equal(told, torch.zeros(2, 3)) and torch.equal(head.spread, torch.ones(3))
    assert torch.equal(torch.autograd.grad(told.sum(), f_l)[0], torch.zeros_like(f_l))
    head.after_step()
    assert head.images == 0


def test_what_never_varies_is_told_and_read_without_a_division_by_zero():
    head = DegradationHead(2)
    head.remember(torch.ones(5, 2, 3, 3), torch.tensor([[-1.6, -1.6, 0.0]]).expand(5, 3))
    head.after_step()
    assert torch.equal(head.spread, torch.ones(3))
    torch.testing.assert_close(head(torch.randn(2, 2, 3, 3)), torch.tensor([[-1.6, -1.6, 0.0]]).expand(2, 3))


def test_it_is_state_and_no_weight_and_hears_of_all_processes():
    head, f_l, targets = DegradationHead(2), torch.randn(6, 2, 3, 3), torch.randn(6, 3)
    assert not list(head.parameters())
    alone = DegradationHead(2)
    alone.remember(f_l, targets), alone.after_step()
    other = torch.cat([pool_features(f_l[3:]), targets[3:]], 1)
    head.gather = lambda rows: torch.cat([rows, other])
    head.remember(f_l[:3], targets[:3]), head.after_step()
    again = DegradationHead(2)
    again.load_state_dict(head.state_dict())
    for reader in (head, again):
        torch.testing.assert_close(reader(f_l), alone(f_l))


@pytest.mark.parametrize("scale", [1.0, -0.3])
def test_the_loss_by_loops_and_its_gradient_by_the_factor(scale):
    head, f_l, targets = DegradationHead(2).double(), draw(2, 2, 3, 5, key=1).requires_grad_(), draw(2, 3, key=2)
    head.remember(draw(9, 2, 3, 5, key=3), draw(9, 3, key=4)), head.after_step()
    expected = torch.zeros((), dtype=torch.float64)
    for b in range(2):
        row = [f_l[b, c].mean() for c in range(2)] + [f_l[b, c].std(correction=0) for c in range(2)]
        for k in range(3):
            told = head.mean[4 + k] + sum(head.weight[i, k] * (row[i] - head.mean[i]) for i in range(4))
            expected = expected + ((told - targets[b, k]) / head.spread[k]) ** 2 / 6
    found = awareness_loss(head(f_l, scale), targets, head.spread)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, f_l)[0], scale * torch.autograd.grad(expected, f_l)[0])


def test_what_is_not_known_is_left_out_and_pieces_add_up():
    guess, targets = draw(4, 3).requires_grad_(), draw(4, 3, key=2)
    targets[1], targets[3, 2] = float("nan"), float("nan")
    whole = awareness_loss(guess, targets, ONE)
    assert whole.item() == pytest.approx(sum((guess[b, k] - targets[b, k]).item() ** 2 for b in range(4) for k in range(3) if not targets[b, k].isnan()) / 12)
    torch.testing.assert_close(whole, sum(awareness_loss(g, t, ONE) for g, t in zip(guess.chunk(2), targets.chunk(2))) / 2)
    gradient, = torch.autograd.grad(whole, guess)
    assert torch.equal(gradient[1], torch.zeros(3, dtype=torch.float64)) and gradient[3, 2] == 0 and gradient[0].abs().min() > 0
    none = awareness_loss(guess, NONE, ONE)
    assert none == 0 and torch.equal(torch.autograd.grad(none, guess)[0], torch.zeros(4, 3, dtype=torch.float64))


def test_hiding_has_an_end():
    """The factor of each image makes of the gradient of its squared error that of h (1 - exp(-error / h)), which nothing can win by running away."""
    guess, targets, spread = draw(5, 3, key=3).requires_grad_(), draw(5, 3, key=4), torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    targets[1], targets[3, 2] = float("nan"), float("nan")
    error = (torch.where(targets.isnan(), 0.0, guess - targets.nan_to_num()) / spread).square().mean(1)
    factor = left_to_hide(guess, targets, spread)
    assert factor.shape == (5, 1) and not factor.requires_grad and factor[1] == 1
    torch.testing.assert_close(factor.squeeze(1), torch.exp(-error.detach() / HIDDEN))
    ours, = torch.autograd.grad(awareness_loss(scaled_gradient(guess, factor), targets, spread), guess, retain_graph=True)
    torch.testing.assert_close(ours, torch.autograd.grad((HIDDEN * (1 - torch.exp(-error / HIDDEN))).mean(), guess)[0])
    assert left_to_hide(torch.full((1, 3), 1e4), torch.zeros(1, 3), torch.ones(3)) == 0


@pytest.mark.parametrize("share", [float("nan"), float("-inf")])
def test_a_share_is_a_number(share):
    with pytest.raises(ValueError, match="share_aware: got"):
        AwarenessConfig(share)
