from __future__ import annotations

import torch

from model.config import GPTConfig
from model.mlp import activate, feed_forward

Z = torch.tensor([-2.0, -0.5, 0.0, 0.5, 3.0])


def test_relu2_is_the_square_of_the_positive_part():
    assert activate(Z, GPTConfig()).tolist() == [0.0, 0.0, 0.0, 0.25, 9.0]


def test_leaky_relu2_squares_the_leaky_rectifier_and_so_is_positive_on_both_sides():
    config = GPTConfig(activation="leaky_relu2", leaky_slope=0.5)
    assert activate(Z, config).tolist() == [1.0, 0.0625, 0.0, 0.25, 9.0]


def test_leaky_relu2_passes_gradient_below_zero_and_relu2_does_not():
    for activation, want in (("relu2", 0.0), ("leaky_relu2", 2 * 0.5 * 0.5 * -2.0)):
        z = torch.tensor(-2.0, requires_grad=True)
        activate(z, GPTConfig(activation=activation)).backward()
        assert z.grad is not None
        assert z.grad.item() == want


def test_feed_forward_is_down_of_the_activated_up():
    x, up, down = torch.tensor([[[2.0, 1.0]]]), torch.tensor([[1.0, 1.0], [-1.0, 0.0]]), torch.tensor([[0.5, 7.0]])
    assert feed_forward(x, up, down, GPTConfig()).tolist() == [[[4.5]]]
