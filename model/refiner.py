"""A gated low-rank correction of the normalised stream before the head.

PR #1232 calls it FlowRefiner and its latent step a velocity; it has neither time nor noise nor a loss of its own.

Letters: B sequences, T positions, D width, Z latent width, F hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import GPTConfig


class Refiner(nn.Module):
    """x + sigmoid(gate) up(z + outer(gelu(inner(z)))) with z = down(x)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        latent, hidden = config.refiner.latent, config.refiner.hidden
        self.down = nn.Parameter(torch.zeros(latent, config.dim))
        self.inner = nn.Parameter(torch.zeros(hidden, latent))
        self.inner_bias = nn.Parameter(torch.zeros(hidden))
        self.outer = nn.Parameter(torch.zeros(latent, hidden))
        self.outer_bias = nn.Parameter(torch.zeros(latent))
        self.up = nn.Parameter(torch.zeros(config.dim, latent))
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the corrected stream in its own dtype."""
        dtype = x_BTD.dtype
        z_BTZ = functional.linear(x_BTD, self.down.to(dtype))
        hidden_BTF = functional.gelu(functional.linear(z_BTZ, self.inner.to(dtype), self.inner_bias.to(dtype)))
        z_BTZ = z_BTZ + functional.linear(hidden_BTF, self.outer.to(dtype), self.outer_bias.to(dtype))
        return x_BTD + functional.linear(z_BTZ, (torch.sigmoid(self.gate) * self.up).to(dtype))
