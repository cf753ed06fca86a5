"""What ranks tell each other. With one rank nothing is sent and nothing changes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def mean_over_ranks(tensors: Sequence[Tensor], world: int) -> None:
    """Replace each tensor by its mean over all ranks, in one all-reduce of one flat fp32 buffer."""
    if world == 1:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    flat /= world
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def sum_over_ranks(value: Tensor, world: int) -> Tensor:
    """The sum of `value` over all ranks."""
    if world > 1:
        dist.all_reduce(value)
    return value


def from_all_ranks(value: Tensor, world: int) -> list[Tensor]:
    """Every rank's `value`, by rank; they have one shape."""
    if world == 1:
        return [value]
    found = [torch.empty_like(value) for _ in range(world)]
    dist.all_gather(found, value)
    return found


def from_first_rank(values: Sequence[float], world: int) -> list[float]:
    """Rank 0's numbers on every rank: what depends on a clock, a signal or a disk must be decided once.

    Sent between hosts, so that no GPU queue has to drain for it.
    """
    if world == 1:
        return list(values)
    sent = torch.tensor(values, dtype=torch.float64)
    dist.broadcast(sent, src=0)
    return sent.tolist()
