"""Score-first test-time training: after a chunk is scored, train on it; later chunks are scored with the new weights.

What does not adapt is named by globs over virtual names: parameters that are stacked over layers appear once per layer,
`blocks.<layer>.attn.q`, `blocks.<layer>.attn_scale`, the others by their own name. So "blocks.[01].*" freezes two whole
layers, "*.attn.k" all key matrices, "embed.*" the token table. Frozen slices are never handed to the optimizer.

Letters: R rows of a chunk, T inputs of a row, N tokens of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from model.windows import share

BANKS = ("attn.", "mlp.", "block.")  # parameters with one slice per layer along their first dimension


class Diverged(ValueError):
    """Training on a chunk left the numbers that floats can hold."""


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """How to train on a scored chunk."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.002
    momentum: float = 0.9  # SGD's, or AdamW's beta1
    beta2: float = 0.999
    weight_decay: float = 0.0  # decoupled
    epochs: int = 3
    batch_sequences: int = 32  # rows per step, all ranks together
    clip_norm: float = 1.0  # 0 = no clipping
    freeze: tuple[str, ...] = ()
    horizon_chunks: int = 0  # declared length of the cosine; 0 = constant


@dataclass(frozen=True)
class Slice:
    """Consecutive layers of a bank, or a whole parameter, with the optimizer's view of it."""

    parameter: nn.Parameter
    view: Tensor  # shares the parameter's storage
    layers: slice | None  # None: the whole parameter

    def take_gradient(self) -> None:
        """Point the view's gradient at its part of the parameter's; zero where this rank had no rows."""
        whole = self.parameter.grad
        if whole is None:
            self.view.grad = torch.zeros_like(self.view)
        else:
            self.view.grad = whole if self.layers is None else whole[self.layers]


def virtual_names(name: str, parameter: Tensor) -> list[str]:
    """The names that globs see: one per layer of a bank, else the parameter's own."""
    if not name.startswith(BANKS):
        return [name]
    return [f"blocks.{layer}.{name.removeprefix('block.')}" for layer in range(len(parameter))]


def adapting_slices(parameters: Iterable[tuple[str, nn.Parameter]], freeze: Iterable[str]) -> list[Slice]:
    """Everything that no glob of `freeze` matches. Raises ValueError for a glob that matches nothing."""
    named = [(parameter, virtual_names(name, parameter)) for name, parameter in parameters]
    known = [name for _, names in named for name in names]
    frozen = set[str]()
    for pattern in freeze:
        matched = {name for name in known if fnmatchcase(name, pattern)}
        if not matched:
            near = get_close_matches(pattern, known, n=3, cutoff=0.3) or known[:3]
            raise ValueError(
                f"ttt.freeze names parameters that exist; {pattern!r} matches none; nearest: {', '.join(near)}"
            )
        frozen |= matched
    slices = [s for parameter, names in named for s in _slices(parameter, [name not in frozen for name in names])]
    if not slices:
        raise ValueError(f"adaptation trains something; {', '.join(freeze)} freeze every parameter; free some")
    return slices


def _slices(parameter: nn.Parameter, adapts: list[bool]) -> list[Slice]:
    parameter.requires_grad_(any(adapts))
    if all(adapts):
        return [Slice(parameter, parameter.detach(), None)]
    edges = [i for i, (a, b) in enumerate(zip([False, *adapts], [*adapts, False], strict=True)) if a != b]
    runs = (slice(begin, end) for begin, end in zip(edges[::2], edges[1::2], strict=True))
    return [Slice(parameter, parameter.detach()[run], run) for run in runs]


class Adapter:
    """Trains a network on scored chunks. Optimizer state carries over from chunk to chunk.

    `autocast` gives the context of the forward pass. Under torch.distributed the rows of a batch are split over the
    ranks and gradients are summed, so that any number of ranks takes the steps of one.
    """

    def __init__(
        self,
        network: nn.Module,
        settings: Adaptation,
        context: int,
        *,
        forward: Callable[[Tensor], Tensor] | None = None,
        autocast: Callable[[], AbstractContextManager[object]] | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.steps = 0
        self._network, self._settings, self._context = network, settings, context
        self._forward = network if forward is None else forward
        self._autocast = autocast or nullcontext
        self._rank, self._world = rank, world
        self._slices = adapting_slices(network.named_parameters(), settings.freeze)
        self._optimizer = _optimizer([s.view for s in self._slices], settings)

    @property
    def adapting(self) -> int:
        """How many numbers adapt."""
        return sum(s.view.numel() for s in self._slices)

    def lr(self, chunk: int) -> float:
        """Learning rate on a chunk: a cosine from lr at chunk 0 to 0 at the last chunk of the horizon, and after it."""
        horizon = self._settings.horizon_chunks
        if not horizon:
            return self._settings.lr
        done = min(chunk / max(horizon - 1, 1), 1.0)
        return self._settings.lr * 0.5 * (1 + math.cos(math.pi * done))

    def update(self, tokens_N: Tensor, chunk: int) -> None:
        """Train on the whole rows of a chunk's tokens, N = targets + 1; what is left over is not trained on."""
        rows, context = (len(tokens_N) - 1) // self._context, self._context
        device = self._slices[0].view.device
        inputs_RT = tokens_N[: rows * context].view(rows, context).to(device)
        targets_RT = tokens_N[1 : rows * context + 1].view(rows, context).to(device)
        for group in self._optimizer.param_groups:
            group["lr"] = self.lr(chunk)
        size, epochs = self._settings.batch_sequences, range(self._settings.epochs)
        batches = [slice(begin, begin + size) for begin in range(0, rows, size)]
        norms = [self._step(inputs_RT[batch], targets_RT[batch]) for _ in epochs for batch in batches]
        self._network.zero_grad(set_to_none=True)
        if norms and not torch.stack(norms).isfinite().all():
            raise Diverged(f"adaptation keeps gradients finite; on chunk {chunk} they are not; lower ttt.lr")

    def _step(self, inputs_RT: Tensor, targets_RT: Tensor) -> Tensor:
        """One optimizer step on the mean loss of these rows; returns the gradient norm before clipping."""
        settings = self._settings
        self._network.zero_grad(set_to_none=True)
        first, stop = share(0, len(inputs_RT), self._rank, self._world)
        if first < stop:
            with self._autocast():
                logits_RTV = self._forward(inputs_RT[first:stop])
            flat = logits_RTV.flatten(0, 1).float(), targets_RT[first:stop].flatten()
            (functional.cross_entropy(*flat, reduction="sum") / targets_RT.numel()).backward()
        for s in self._slices:
            s.take_gradient()
            if self._world > 1:
                dist.all_reduce(s.view.grad)
        views = [s.view for s in self._slices]
        limit = settings.clip_norm or math.inf
        norm = nn.utils.clip_grad_norm_(views, limit)
        if settings.optimizer == "sgd" and settings.weight_decay:
            keep = 1 - self._optimizer.param_groups[0]["lr"] * settings.weight_decay
            for view in views:
                view.mul_(keep)
        self._optimizer.step()
        self.steps += 1
        return norm


def _optimizer(views: list[Tensor], settings: Adaptation) -> torch.optim.Optimizer:
    if settings.optimizer == "sgd":
        return torch.optim.SGD(views, lr=settings.lr, momentum=settings.momentum)
    betas = (settings.momentum, settings.beta2)
    return torch.optim.AdamW(views, lr=settings.lr, betas=betas, weight_decay=settings.weight_decay)
