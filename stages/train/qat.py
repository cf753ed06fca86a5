"""Quantisation-aware training: the forward pass computes with weights on their grid, masters and gradients stay fp32.

The weights are replaced inside the traced function, by an argument: the plain and the quantised step are two graphs,
both compiled before the clock starts, and no flag can be folded into either (the published runs' was, PR #417: their
late QAT never ran). Grid, scales, codes and their way back are those of the quantiser (`model/grid.py`). Scales come
from outside the graph, where their rounding to fp16 is kept: a compiler may fuse it away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from model.grid import Grid, dequantize, quantize, row_scales, soft_round_residual

if TYPE_CHECKING:
    from stages.train.config import QatConfig, QatGrid

MEMBERS: dict[str, tuple[str, ...]] = {
    "attention": ("attn.q", "attn.k", "attn.v", "attn.o"),
    "mlp": ("mlp.up", "mlp.down"),
    "auxiliary": ("bigram.proj", "ve.proj"),
}


class OnGrid(NamedTuple):
    """What the quantised step is told from outside its graph."""

    scales: dict[str, Tensor]  # fp16 [..., R] by parameter name: the steps of every row's grid
    hardness: Tensor  # [], how hard a soft rounding is; the straight-through one does not read it


class FakeQuantise:
    """Which parameters are on which grid, and how they are rounded to it."""

    def __init__(self, config: QatConfig) -> None:
        groups: dict[str, QatGrid] = {name: getattr(config, name) for name in MEMBERS}
        self._grids = {
            member: Grid(bits=group.bits, floor=group.scale_floor, full_range=group.full_range)
            for name, group in groups.items()
            if group.bits
            for member in MEMBERS[name]
        }
        self._form = config.soft.form if config.mode == "soft" else ""

    @torch.no_grad()
    def scales(self, model: nn.Module) -> dict[str, Tensor]:
        """The scales of the parameters that are on a grid, for the weights as they are now."""
        return {
            name: row_scales(parameter.abs().amax(-1), self._grids[name])
            for name, parameter in model.named_parameters()
            if name in self._grids
        }

    def weights(self, model: nn.Module, on_grid: OnGrid) -> dict[str, Tensor]:
        """The parameters that are on a grid, by name, as the forward pass shall see them."""
        found: dict[str, Tensor] = {}
        for name, scale in on_grid.scales.items():
            parameter, grid = model.get_parameter(name), self._grids[name]
            if self._form:
                found[name] = soft(parameter, scale, grid, on_grid.hardness, self._form)
            else:
                found[name] = hard(parameter, scale, grid)
        return found


def hard(w: Tensor, scale_R: Tensor, grid: Grid) -> Tensor:
    """w [..., R, C] rounded to the grid of its rows, exactly as stored; the gradient passes as if it were w."""
    with torch.no_grad():
        stored = dequantize(quantize(w, scale_R, grid), scale_R).to(w.dtype)
    return stored + (w - w.detach())  # 0 to the last bit, where w + (stored - w) would round once more


def soft(w: Tensor, scale_R: Tensor, grid: Grid, hardness: Tensor, form: str) -> Tensor:
    """w [..., R, C] on the way to its grid, by a formula whose own derivative is the gradient; scales are constants."""
    step = scale_R.to(w.dtype)[..., None]
    codes = soft_round_sigmoid(w / step, hardness) if form == "sigmoid" else soft_round_residual(w / step, hardness)
    return codes.clamp(grid.bottom, grid.top) * step


def soft_round_sigmoid(x: Tensor, a: Tensor) -> Tensor:
    """floor + 1/2 + tanh(a (x - floor - 1/2)) / (2 tanh(a / 2)): x for small a, its rounding for large (PR #1232)."""
    middle = x.detach().floor() + 0.5
    return middle + torch.tanh(a * (x - middle)) / (2.0 * torch.tanh(a / 2.0))
