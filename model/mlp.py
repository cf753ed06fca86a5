"""The feed-forward part: two matrices with a squared rectifier between them (arXiv:2109.08668).

Letters: B sequences, T positions, D width, F hidden width.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from model.config import GPTConfig


def activate(z: Tensor, config: GPTConfig) -> Tensor:
    """The squared rectifier: relu(z)^2, or leaky_relu(z, slope)^2, which lets gradient pass below zero."""
    if config.activation == "leaky_relu2":
        return functional.leaky_relu(z, config.leaky_slope).square()
    return functional.relu(z).square()


def feed_forward(x_BTD: Tensor, up_FD: Tensor, down_DF: Tensor, config: GPTConfig) -> Tensor:
    """down(activate(up(x))), position by position."""
    return functional.linear(activate(functional.linear(x_BTD, up_FD), config), down_DF)
