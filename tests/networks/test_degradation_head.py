"""degradation_head: a reader that always learns, whose gradient enters the features by a signed factor."""
import pytest
import torch

from crlsr.core import generator
from crlsr.networks import AwarenessConfig, DegradationHead, awareness_loss, left_to_hide
from crlsr.networks.degradation_head import HIDDEN, scaled_gradient


def draw(*shape, key=0):
    return torch.randn(*shape, generator=generator("degradation_head", key), dtype=torch.float64)


@pytest.mark.parametrize("scale", [1.0, 0.25, 0.0, -3.0])
def test_the_value_stays_and_the_gradient_is_multiplied(scale):
    x = draw(3, 4).requires_grad_()
    y = scaled_gradient(x, scale)
    assert torch.equal(y, x)
    y.square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * scale * x.detach())


@pytest.mark.parametrize("scale", [1.0, -0.3])
def test_the_head_by_loops_and_its_own_gradient_never_reversed(scale):
    head, f_l = DegradationHead(4).double(), draw(2, 4, 3, 5).requires_grad_()
    targets = draw(2, 3, key=1)
    weight, bias = head.layer.weight, head.layer.bias
    expected = torch.zeros((), dtype=torch.float64)
    for b in range(2):
        for k in range(3):
            told = bias[k] + sum(weight[k, c] * f_l[b, c].sum() / 15 for c in range(4))
            expected = expected + (told - targets[b, k]) ** 2 / 6
    found = awareness_loss(head(f_l, scale), targets)
    torch.testing.assert_close(found, expected)
    by_hand = torch.autograd.grad(expected, [f_l, weight, bias])
    ours = torch.autograd.grad(found, [f_l, weight, bias])
    torch.testing.assert_close(ours[0], scale * by_hand[0])
    torch.testing.assert_close(ours[1:], by_hand[1:])


def test_what_is_not_known_is_left_out_and_pieces_add_up():
    guess, targets = draw(4, 3).requires_grad_(), draw(4, 3, key=2)
    targets[1], targets[3, 2] = float("nan"), float("nan")
    whole = awareness_loss(guess, targets)
    assert whole.item() == pytest.approx(sum((guess[b, k] - targets[b, k]).item() ** 2 for b in range(4) for k in range(3) if not targets[b, k].isnan()) / 12)
    torch.testing.assert_close(whole, sum(awareness_loss(g, t) for g, t in zip(guess.chunk(2), targets.chunk(2))) / 2)
    gradient, = torch.autograd.grad(whole, guess)
    assert torch.equal(gradient[1], torch.zeros(3, dtype=torch.float64)) and gradient[3, 2] == 0 and gradient[0].abs().min() > 0
    none = awareness_loss(guess, torch.full((4, 3), float("nan"), dtype=torch.float64))
    assert none == 0 and torch.equal(torch.autograd.grad(none, guess)[0], torch.zeros(4, 3, dtype=torch.float64))


def test_hiding_has_an_end():
    """The factor of each image makes of the gradient of its squared error that of h (1 - exp(-error / h)), which nothing can win by running away."""
    guess, targets = draw(5, 3, key=3).requires_grad_(), draw(5, 3, key=4)
    targets[1], targets[3, 2] = float("nan"), float("nan")
    error = torch.where(targets.isnan(), 0.0, guess - targets.nan_to_num()).square().mean(1)
    factor = left_to_hide(guess, targets)
    assert factor.shape == (5, 1) and not factor.requires_grad and factor[1] == 1
    torch.testing.assert_close(factor.squeeze(1), torch.exp(-error.detach() / HIDDEN))
    ours, = torch.autograd.grad(awareness_loss(scaled_gradient(guess, factor), targets), guess, retain_graph=True)
    torch.testing.assert_close(ours, torch.autograd.grad((HIDDEN * (1 - torch.exp(-error / HIDDEN))).mean(), guess)[0])
    assert left_to_hide(torch.full((1, 3), 1e4), torch.zeros(1, 3)) == 0


@pytest.mark.parametrize("share", [float("nan"), float("-inf")])
def test_a_share_is_a_number(share):
    with pytest.raises(ValueError, match="share_aware: got"):
        AwarenessConfig(share)
