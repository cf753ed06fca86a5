"""Magnitude pruning: the smallest weights of each matrix become 0 before rounding.

Letters: N matrices, R rows, C columns.
"""

from __future__ import annotations

import torch
from torch import Tensor


def prune(w_NRC: Tensor, share: float) -> tuple[Tensor, int]:
    """(w_NRC without the weights below the `share` quantile of |w| in their matrix, how many became 0).

    As published by #417: strictly below `torch.quantile(|w|, share)`, which interpolates between its neighbours.
    """
    if not share:
        return w_NRC, 0
    size_NW = w_NRC.flatten(1).abs()
    # torch.quantile computes the rank in fp32, and refuses large tensors.
    rank = float(torch.tensor(share, dtype=torch.float32) * (size_NW.shape[1] - 1))
    below = int(rank)
    lowest_NK = size_NW.topk(min(below + 2, size_NW.shape[1]), largest=False).values
    limit_N = torch.lerp(lowest_NK[:, below], lowest_NK[:, min(below + 1, lowest_NK.shape[1] - 1)], rank - below)
    gone_NRC = w_NRC.abs() < limit_N[:, None, None]
    return w_NRC.masked_fill(gone_NRC, 0.0), int((gone_NRC & (w_NRC != 0)).sum())
