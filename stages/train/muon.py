"""Muon for stacked matrices: momentum, then the nearest semi-orthogonal matrix as the update.

Method: Keller Jordan, https://kellerjordan.github.io/posts/muon/ (2024). One bank of equal shapes is one batched
Newton-Schulz call.

Letters: N matrices of a bank, R rows, C columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# Quintic coefficients of the method's author: steepest slope at zero, so that five steps bring every singular value of
# a normalised matrix near 1 (about 0.7 .. 1.2, not exactly 1).
QUINTIC = (3.4445, -4.7750, 2.0315)
NORM_EPS = 1e-7


def newton_schulz(g_NRC: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """Bring each matrix of [N, R, C] near its closest semi-orthogonal one, computing in `dtype`; same shape, `dtype`.

    In bf16 the order of roundings is part of the published optimizer: fusing the sums into the products (baddbmm)
    halves the rounding error, but moves the update by 3 % of its norm.
    """
    a, b, c = QUINTIC
    x = g_NRC.to(dtype)
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + NORM_EPS)
    tall = x.shape[-2] > x.shape[-1]
    if tall:  # the smaller Gram matrix of the two
        x = x.mT
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        polynomial = b * gram + torch.bmm(c * gram, gram)
        x = a * x + torch.bmm(polynomial, x)
    return x.mT if tall else x


def shape_scale(rows: int, columns: int) -> float:
    """sqrt(max(1, rows / columns)): the update's size for matrices that widen."""
    return max(1.0, rows / columns) ** 0.5


class Muon(Optimizer):
    """Orthogonalised momentum for matrices [R, C] and banks [N, R, C].

    lr: step size, times `shape_scale`; set per step from outside, as is `momentum`.
    weight_decay: decoupled, times lr.
    steps, dtype: Newton-Schulz iterations and their arithmetic.
    momentum_dtype: of the buffer, and of gradients on their way into it; None: as the gradients are.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        nesterov: bool = True,
        steps: int = 5,
        dtype: torch.dtype = torch.bfloat16,
        momentum_dtype: torch.dtype | None = None,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "momentum_dtype": momentum_dtype}
        super().__init__(params, {**defaults, "nesterov": nesterov, "steps": steps, "dtype": dtype})
        for parameter in (p for group in self.param_groups for p in group["params"]):
            if parameter.ndim not in (2, 3):
                raise ValueError(f"Muon takes matrices or banks of them; got shape {tuple(parameter.shape)}; use AdamW")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        gradient = gradient.to(group["momentum_dtype"] or gradient.dtype)
        if not state:
            state["momentum"] = torch.zeros_like(gradient)
        rows, columns = parameter.shape[-2:]
        update_NRC = direction(gradient.view(-1, rows, columns), state["momentum"].view(-1, rows, columns), group)
        apply(parameter, update_NRC, group)


def direction(gradient_NRC: Tensor, buffer_NRC: Tensor, group: dict[str, Any]) -> Tensor:
    """Take the gradient into the buffer, and return the update of every matrix, for a learning rate of 1."""
    buffer_NRC.mul_(group["momentum"]).add_(gradient_NRC)
    ahead_NRC = gradient_NRC.add(buffer_NRC, alpha=group["momentum"]) if group["nesterov"] else buffer_NRC
    update_NRC = newton_schulz(ahead_NRC, group["steps"], group["dtype"])
    return update_NRC * shape_scale(*gradient_NRC.shape[-2:])


def apply(parameter: Tensor, update_NRC: Tensor, group: dict[str, Any]) -> None:
    """Decay the parameter, then step along the update."""
    update = update_NRC.view(parameter.shape).to(parameter.dtype)
    parameter.mul_(1.0 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])
