"""Parallel Muon: every rank keeps the momentum of its own share of the matrices, and orthogonalises only those.

Matrices of one shape stand in one stack, whatever bank they belong to, padded with zeros to a multiple of the ranks.
Per stack: reduce-scatter the gradients, update the share, all-gather the updates. Transfers are asynchronous: the
other parameters' step runs beside the first, and the next stack's arithmetic beside the second.
Method: PR #549 (banks with reduce-scatter and all-gather). One rank alone does the same arithmetic as `Muon`.

Letters: N matrices of a stack, M = padded N, S = M / ranks, R rows, C columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from stages.train.muon import Muon, apply, direction

# torch 2.13 renamed both and warns at the old names.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@dataclass
class Stack:
    """The matrices of one shape, and this rank's share of them."""

    parameters: list[Tensor]
    counts: list[int]  # matrices of each parameter
    group: dict[str, Any]
    gradient_MRC: Tensor  # what is sent: every matrix, then zeros
    share_SRC: Tensor  # the mean gradient of this rank's matrices
    momentum_SRC: Tensor
    received: dist.Work | None = None  # the reduce-scatter in flight

    def split(self, stacked_MRC: Tensor) -> list[Tensor]:
        """The part of every parameter in something stacked like the gradients."""
        return list(stacked_MRC[: sum(self.counts)].split(self.counts))


class ShardedMuon(Muon):
    """`Muon` over `world` ranks, of which this is `rank`. A step is `start_reduce`, then `step`."""

    def __init__(self, params: Iterable[Any], rank: int, world: int, **settings: Any) -> None:
        super().__init__(params, **settings)
        self._rank, self._world = rank, world
        self._stacks: list[Stack] = []
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                shapes.setdefault(parameter.shape[-2:], []).append(parameter)
            self._stacks += [self._stack(parameters, group) for parameters in shapes.values()]
        self._stacks.sort(key=lambda stack: -stack.gradient_MRC.numel())  # the longest transfer starts first

    def _stack(self, parameters: list[Tensor], group: dict[str, Any]) -> Stack:
        counts = [len(parameter) if parameter.ndim == 3 else 1 for parameter in parameters]
        share = -(-sum(counts) // self._world)
        like, shape = parameters[0], parameters[0].shape[-2:]
        dtype = group["momentum_dtype"] or like.dtype

        def zeros(matrices: int) -> Tensor:
            return torch.zeros(matrices, *shape, dtype=dtype, device=like.device)

        return Stack(parameters, counts, group, zeros(share * self._world), zeros(share), zeros(share))

    @torch.no_grad()
    def start_reduce(self) -> None:
        """Send this rank's gradients; each rank will hold the mean of its own matrices'."""
        for stack in self._stacks:
            for parameter, part_NRC in zip(stack.parameters, stack.split(stack.gradient_MRC), strict=True):
                if parameter.grad is None:
                    part_NRC.zero_()
                else:
                    part_NRC.copy_(parameter.grad.view(part_NRC.shape))
            stack.received = _reduce_scatter(stack.share_SRC, stack.gradient_MRC, async_op=True)

    @torch.no_grad()
    def _finish_reduce(self) -> None:
        """Wait until every share has arrived. Only who needs them waits, so that AdamW's step need not."""
        for stack in self._stacks:
            if stack.received is not None:
                stack.received.wait()
                stack.share_SRC /= self._world
                stack.received = None

    def shares(self) -> list[Tensor]:
        """The mean gradients of this rank's matrices, which may be scaled before the step."""
        self._finish_reduce()
        return [stack.share_SRC for stack in self._stacks]

    @torch.no_grad()
    def gradient_norms(self) -> dict[Tensor, Tensor]:
        """The norm of every parameter's mean gradient, [] each, equal on all ranks."""
        self._finish_reduce()
        squares: list[Tensor] = []
        for stack in self._stacks:
            squares_M = torch.zeros(len(stack.gradient_MRC), device=stack.share_SRC.device)
            share = len(stack.share_SRC)
            squares_M[self._rank * share : (self._rank + 1) * share] = stack.share_SRC.float().square().sum((1, 2))
            squares.append(squares_M)
        flat = torch.cat(squares)
        dist.all_reduce(flat)
        norms: dict[Tensor, Tensor] = {}
        for stack, squares_M in zip(self._stacks, flat.split([len(each) for each in squares]), strict=True):
            for parameter, part_N in zip(stack.parameters, stack.split(squares_M), strict=True):
                norms[parameter] = part_N.sum().sqrt()
        return norms

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter from the shares."""
        self._finish_reduce()
        gathered: list[tuple[Stack, Tensor, dist.Work | None]] = []
        for stack in self._stacks:
            update_SRC = direction(stack.share_SRC, stack.momentum_SRC, stack.group)
            update_MRC = update_SRC.new_empty(stack.gradient_MRC.shape)
            gathered.append((stack, update_MRC, _all_gather(update_MRC, update_SRC.contiguous(), async_op=True)))
        for stack, update_MRC, work in gathered:
            if work is not None:
                work.wait()
            for parameter, update_NRC in zip(stack.parameters, stack.split(update_MRC), strict=True):
                apply(parameter, update_NRC, stack.group)

    @torch.no_grad()
    def momenta(self) -> dict[Tensor, Tensor]:
        """Every parameter's whole momentum, gathered from all ranks: what `Muon` keeps."""
        whole: dict[Tensor, Tensor] = {}
        for stack in self._stacks:
            momentum_MRC = torch.empty_like(stack.gradient_MRC)
            _all_gather(momentum_MRC, stack.momentum_SRC)
            for parameter, part_NRC in zip(stack.parameters, stack.split(momentum_MRC), strict=True):
                whole[parameter] = part_NRC.view(parameter.shape)
        return whole

    @torch.no_grad()
    def set_momenta(self, momenta: Mapping[Tensor, Tensor]) -> None:
        """Keep this rank's share of what `momenta` returned; a parameter that is not there starts anew."""
        for stack in self._stacks:
            whole_MRC = torch.zeros_like(stack.gradient_MRC)
            for parameter, part_NRC in zip(stack.parameters, stack.split(whole_MRC), strict=True):
                if parameter in momenta:
                    part_NRC.copy_(momenta[parameter].view(part_NRC.shape))
            share = len(stack.momentum_SRC)
            stack.momentum_SRC.copy_(whole_MRC[self._rank * share : (self._rank + 1) * share])
