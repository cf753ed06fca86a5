"""Gradient descent on a network that is being scored: which numbers learn, and one step on rows of tokens.

What learns is a list of `Learner`s. A `Part` is a parameter, or consecutive layers of a bank, that learns directly. A
`LowRank` leaves its part as it was and learns two thin matrices instead: W + A B stands in the network's own storage
while it runs, and the chain rule turns the gradient of W into those of A and B. So the network, compiled or not, is the
same in all cases, and so is what is scored.

Letters: R rows of a step, T inputs of a row, V vocabulary; banks are [L, O, I], adapters A [L, O, r] and B [L, r, I].
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from model.grid import Grid, dequantize, quantize, row_scales, soft_round_residual
from model.names import BANKS, matching, virtual_names
from model.protocol import Descent, FakeQuantise, LowRankSettings
from model.windows import share

ADAPTER_STD = 0.01  # of A at the start, B being zero (PR #1033's specification of rank 8 adapters)


class Diverged(ValueError):
    """Training on validation tokens left the numbers that floats can hold."""


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How a network is called: compiled or not, under which autocast, as which of how many ranks."""

    forward: Callable[[Tensor], Tensor]
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    rank: int = 0
    world: int = 1


class Part:
    """Consecutive layers of a bank, or a whole parameter, with the optimizer's view of it."""

    def __init__(self, name: str, parameter: nn.Parameter, layers: slice | None = None) -> None:
        self.name, self.parameter, self.layers = name, parameter, layers
        whole = parameter.detach()  # shares the parameter's storage
        self.view = whole if layers is None else whole[layers]
        self.tensors = [self.view]
        self.is_matrix = parameter.ndim - name.startswith(BANKS) >= 2

    def gradient(self) -> Tensor:
        """The part's share of the parameter's gradient; zero where this rank had no rows."""
        whole = self.parameter.grad
        if whole is None:
            return torch.zeros_like(self.view)
        return whole if self.layers is None else whole[self.layers]

    def take_gradient(self) -> None:
        """Give every learning tensor its gradient."""
        self.view.grad = self.gradient()

    def write(self) -> None:
        """Bring the network up to date with what was learned: the view is the network."""


class LowRank:
    """W + A B for one part, of which A and B learn and W does not."""

    def __init__(self, part: Part, rank: int) -> None:
        if not part.is_matrix:
            raise ValueError(f"adapters are for matrices; ttt.lora.targets match {part.name}, which is none")
        rows, columns = part.view.shape[-2:]
        if rank > min(rows, columns):
            raise ValueError(
                f"an adapter's rank is at most a side of its matrix; {part.name} is {rows} x {columns}, ttt.lora.rank "
                f"is {rank}; lower it"
            )
        self._part, self._base = part, part.view.clone()
        leading = part.view.shape[:-2]
        self._a_LOr = part.view.new_zeros(*leading, rows, rank)
        self._b_LrI = part.view.new_zeros(*leading, rank, columns)
        self.tensors = [self._a_LOr, self._b_LrI]
        self.reset()

    def take_gradient(self) -> None:
        """dA = dW B^T and dB = A^T dW."""
        gradient_LOI = self._part.gradient()
        self._a_LOr.grad = gradient_LOI @ self._b_LrI.mT
        self._b_LrI.grad = self._a_LOr.mT @ gradient_LOI

    def write(self) -> None:
        """Merge: the network runs with W + A B."""
        self._part.view.copy_(self._base + self._a_LOr @ self._b_LrI)

    def reset(self) -> None:
        """A small and random, always the same; B zero, so that the network is what it was."""
        digest = hashlib.sha256(f"{self._part.name}/{self._part.layers}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        self._a_LOr.copy_(torch.randn(self._a_LOr.shape, generator=generator) * ADAPTER_STD)
        self._b_LrI.zero_()
        self.write()


Learner = Part | LowRank


def learners(
    network: nn.Module, settings: Descent, field: str = "ttt", lora: LowRankSettings | None = None
) -> list[Learner]:
    """What learns, by the globs of `settings`, or of `lora` alone; all other parameters stop asking for gradients.

    `field` names the settings in the ValueError for a glob that matches nothing, or when nothing is left to learn.
    """
    parameters = list(network.named_parameters())
    known = [name for each, parameter in parameters for name in virtual_names(each, parameter.shape)]
    if lora:
        chosen = matching(lora.targets, known, f"{field}.lora.targets")
    else:
        chosen = matching(settings.adapt, known, f"{field}.adapt") if settings.adapt else set(known)
        chosen -= matching(settings.freeze, known, f"{field}.freeze")
    if not chosen:
        raise ValueError(
            f"adaptation trains something; {field}.freeze ({', '.join(settings.freeze)}) leaves nothing; free some"
        )
    parts = list(parts_of(parameters, chosen))
    learning = {part.parameter for part in parts}
    for _, parameter in parameters:
        parameter.requires_grad_(parameter in learning)
    return [LowRank(part, lora.rank) for part in parts] if lora else list(parts)


def parts_of(parameters: Iterable[tuple[str, nn.Parameter]], chosen: set[str]) -> Iterator[Part]:
    """The chosen virtual names as few parts: a whole parameter, or runs of consecutive layers."""
    for name, parameter in parameters:
        wanted = [virtual in chosen for virtual in virtual_names(name, parameter.shape)]
        if all(wanted):
            yield Part(name, parameter)
            continue
        edges = [i for i, (a, b) in enumerate(zip([False, *wanted], [*wanted, False], strict=True)) if a != b]
        for begin, end in zip(edges[::2], edges[1::2], strict=True):
            yield Part(name, parameter, slice(begin, end))


class Stepper:
    """Takes optimizer steps on weighted rows; any number of ranks takes the steps of one.

    The rows of a step are split over the ranks and gradients are summed, so `update` is called by all of them.
    """

    def __init__(
        self,
        network: nn.Module,
        settings: Descent,
        compute: Compute,
        field: str = "ttt",
        lora: LowRankSettings | None = None,
    ) -> None:
        self.steps = 0
        self.tokens = 0  # that went forward in training, by all ranks
        self.learners = learners(network, settings, field, lora)
        self.tensors = [tensor for learner in self.learners for tensor in learner.tensors]
        self._network, self._settings, self._compute = network, settings, compute
        self._optimizer = _optimizer(self.tensors, settings)
        self._on_grid = _grid_of(network, settings.fake_quantise, field)
        self.blind = len(dict(network.named_parameters()).get("memory.tokens", ()))
        """Positions at the start of a row that see memory in place of tokens: nothing is learned from their targets."""

    @property
    def learning(self) -> int:
        """How many numbers learn."""
        return sum(tensor.numel() for tensor in self.tensors)

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return self.tensors[0].device

    def step(self, inputs_RT: Tensor, targets_RT: Tensor, weights_RT: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        """One step on sum(weights * nll); returns the gradient norm before clipping and this rank's part of the sum."""
        settings, compute = self._settings, self._compute
        self._network.zero_grad(set_to_none=True)
        first, stop = share(0, len(inputs_RT), compute.rank, compute.world)
        loss = torch.zeros((), device=self.device)
        with self._on_grid():
            for begin in range(first, stop, settings.microbatch_sequences or max(stop - first, 1)):
                rows = slice(begin, min(begin + (settings.microbatch_sequences or stop), stop))
                with compute.autocast():
                    logits_RTV = compute.forward(inputs_RT[rows])
                logits, targets = logits_RTV.flatten(0, 1).float(), targets_RT[rows].flatten()
                part = functional.cross_entropy(logits, targets, reduction="none") @ weights_RT[rows].flatten()
                part.backward()
                loss += part.detach()
        for learner in self.learners:
            learner.take_gradient()
        if compute.world > 1:
            for tensor in self.tensors:
                assert tensor.grad is not None
                dist.all_reduce(tensor.grad)
        norm = nn.utils.clip_grad_norm_(self.tensors, settings.clip_norm or math.inf)
        self._descend(lr)
        self.steps += 1
        self.tokens += inputs_RT.numel()
        return norm, loss

    def _descend(self, lr: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        if self._settings.optimizer == "sgd" and self._settings.weight_decay:
            for tensor in self.tensors:
                tensor.mul_(1 - lr * self._settings.weight_decay)
        self._optimizer.step()
        for learner in self.learners:
            learner.write()

    def restart(self) -> None:
        """Forget what adapters have learned, and the optimizer's memory of it."""
        self._optimizer.state.clear()
        for learner in self.learners:
            if isinstance(learner, LowRank):
                learner.reset()

    def release(self) -> None:
        """Give the memory of gradients back."""
        self._network.zero_grad(set_to_none=True)
        for tensor in self.tensors:
            tensor.grad = None


def _optimizer(tensors: Sequence[Tensor], settings: Descent) -> torch.optim.Optimizer:
    if settings.optimizer == "sgd":
        return torch.optim.SGD(tensors, lr=settings.lr, momentum=settings.momentum)
    betas = (settings.momentum, settings.beta2)
    return torch.optim.AdamW(tensors, lr=settings.lr, betas=betas, weight_decay=settings.weight_decay)


def _grid_of(network: nn.Module, settings: FakeQuantise, field: str) -> Callable[[], AbstractContextManager[object]]:
    """Contexts in which the targeted matrices are on their grid; a gradient taken in it is that of the raw weights."""
    if not settings.bits:
        return nullcontext
    grid = Grid(bits=settings.bits, floor=settings.scale_floor, full_range=settings.full_range)
    parameters = list(network.named_parameters())
    known = [name for each, parameter in parameters for name in virtual_names(each, parameter.shape)]
    parts = list(parts_of(parameters, matching(settings.targets, known, f"{field}.fake_quantise.targets")))
    for part in parts:
        if not part.is_matrix:
            raise ValueError(f"a grid has a scale per row; {field}.fake_quantise.targets match {part.name}, no matrix")

    @contextmanager
    def on_grid() -> Iterator[None]:
        kept = [part.view.clone() for part in parts]
        slopes: list[Tensor] = []
        for part in parts:
            scales = row_scales(part.view.abs().amax(-1), grid)
            if settings.soft_temperature:
                soft, slope = _soft(part.view, scales, grid, settings.soft_temperature)
                slopes.append(slope)
                part.view.copy_(soft)
            else:
                part.view.copy_(dequantize(quantize(part.view, scales, grid), scales))
        try:
            yield
            for part, slope in zip(parts, slopes, strict=False):
                part.gradient().mul_(slope)
        finally:
            for part, raw in zip(parts, kept, strict=True):
                part.view.copy_(raw)

    return on_grid


def _soft(w_RC: Tensor, scales_R: Tensor, grid: Grid, temperature: float) -> tuple[Tensor, Tensor]:
    """Softly rounded weights and their derivative by the raw ones; scales are constants."""
    step = scales_R.to(w_RC.dtype)[..., None]
    with torch.enable_grad():
        codes_RC = (w_RC / step).detach().requires_grad_()
        soft_RC = soft_round_residual(codes_RC, temperature).clamp(grid.bottom, grid.top)
        (slope_RC,) = torch.autograd.grad(soft_RC.sum(), codes_RC)
    return soft_RC.detach() * step, slope_RC
