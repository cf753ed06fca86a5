"""Where each row is clipped: at its largest magnitude, at a quantile, or where the squared error is least.

The search over quantiles is GPTQ-lite of PR #414; published runs keep one quantile per matrix, ours one per row.
All matrices of a bank are searched together.

Letters: N matrices, R rows, C columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.grid import Grid, choose_scales, dequantize, quantize

if TYPE_CHECKING:
    from stages.quantize.config import Config
    from stages.quantize.rules import Rule


def grid_of(rule: Rule) -> Grid:
    """The grid of a rule's codes."""
    return Grid(bits=rule.bits, floor=rule.scale_floor, full_range=rule.full_range)


def scales_for(w_NRC: Tensor, rule: Rule, config: Config) -> tuple[Tensor, Tensor]:
    """(fp16 scale_NR, quantile_NR that each row was clipped at)."""
    grid = grid_of(rule)
    if rule.clip == "search":
        return search(w_NRC, config.search_quantiles, grid, per_matrix=config.search_per == "matrix")
    quantile = rule.quantile if rule.clip == "quantile" else 1.0
    (clip_NR,) = row_quantiles(w_NRC, [quantile])
    return choose_scales(clip_NR, grid), torch.full_like(clip_NR, quantile)


def search(w_NRC: Tensor, quantiles: Sequence[float], grid: Grid, per_matrix: bool) -> tuple[Tensor, Tensor]:
    """(scale_NR, quantile_NR) of the candidate with the least squared error; the first of equals."""
    best_NR = torch.full(w_NRC.shape[:2], torch.inf, device=w_NRC.device)
    scale_NR = torch.zeros_like(best_NR, dtype=torch.float16)
    quantile_NR = torch.zeros_like(best_NR)
    for quantile, clip_NR in zip(quantiles, row_quantiles(w_NRC, quantiles), strict=True):
        candidate_NR = choose_scales(clip_NR, grid)
        error_NR = squared_error(w_NRC, candidate_NR, grid)
        if per_matrix:
            error_NR = error_NR.sum(1, keepdim=True).expand_as(error_NR)
        better_NR = error_NR < best_NR
        best_NR = torch.where(better_NR, error_NR, best_NR)
        scale_NR = torch.where(better_NR, candidate_NR, scale_NR)
        quantile_NR = torch.where(better_NR, quantile, quantile_NR)
    return scale_NR, quantile_NR


def squared_error(w_NRC: Tensor, scale_NR: Tensor, grid: Grid) -> Tensor:
    """What the search minimises: the sum of squared errors of each row."""
    return (dequantize(quantize(w_NRC, scale_NR, grid), scale_NR) - w_NRC).square_().sum(-1)


def row_quantiles(w_NRC: Tensor, quantiles: Sequence[float]) -> list[Tensor]:
    """Quantiles of |w| in each row, with linear interpolation as in `torch.quantile`, which refuses large tensors.

    Sorts only as far down as the smallest quantile needs.
    """
    columns = w_NRC.shape[-1]
    # torch.quantile computes ranks in fp32; the same here, so that published clips come out to the digit.
    ranks = (torch.tensor(quantiles, dtype=torch.float32) * (columns - 1)).tolist()
    top = w_NRC.abs().topk(columns - int(min(ranks)), dim=-1).values  # descending: rank r stands at columns - 1 - r
    found: list[Tensor] = []
    for rank in ranks:
        below = int(rank)
        above = min(below + 1, columns - 1)
        low, high = top[..., columns - 1 - below], top[..., columns - 1 - above]
        found.append(torch.lerp(low, high, rank - below))
    return found
