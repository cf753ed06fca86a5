"""Adaptation on the whole stream before any of it is scored, as PRs #398 and #417 did: no legal score comes of it.

It is here because these are published results. The stream comes from the referee by exception only, so that each score
after it carries the rules that it breaks: C1 (every price knows later tokens through the weights), C3 (trained before
scored) and C4 (many passes).

Letters: R rows of a step, T inputs of a row, N targets of the stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.descent import Compute, Diverged, Stepper
from model.protocol import Phase
from model.windows import share

RULES = {
    "C3": "trains on the validation tokens before it scores them",
    "C1": "every target is scored with weights that have learned from the tokens after it",
    "C4": "passes over the validation tokens many times",
}


def rate_of(phase: Phase, epoch: int) -> float:
    """The learning rate of an epoch; the cosine's last epoch is one step of it above 0, as published."""
    cosine = 0.5 * (1 + math.cos(math.pi * epoch / phase.epochs))
    return phase.lr * (cosine if phase.schedule == "cosine" else 1.0)


def steps_of(phase: Phase, rows: int, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The rows of each step of an epoch and the weight of each, which sum to one.

    A step takes the next rows of every lane; lanes weigh the same, rows of a lane weigh the same.
    """
    usable = rows // phase.batch_sequences * phase.batch_sequences if phase.drop_tail else rows
    order = np.arange(usable)
    if phase.order == "permutation":
        order = np.random.Generator(np.random.PCG64(epoch)).permutation(usable)
    lanes = [order[slice(*share(0, usable, lane, phase.lanes))] for lane in range(phase.lanes)]
    size = phase.batch_sequences // phase.lanes
    for begin in range(0, max(len(lane) for lane in lanes), size):
        parts = [part for lane in lanes if len(part := lane[begin : begin + size])]
        weights = [np.full(len(part), 1.0 / len(part) / len(parts), dtype=np.float32) for part in parts]
        yield np.concatenate(parts), np.concatenate(weights)


class PreAdapter:
    """Runs the phases, by their names in the configuration, one after the other; they share no optimizer state.

    Raises ValueError, before anything runs, for globs that match nothing and for phases without a single step.
    """

    def __init__(
        self, network: nn.Module, phases: Mapping[str, Phase], context: int, targets: int, compute: Compute
    ) -> None:
        self._network, self._phases, self._context, self._compute = network, phases, context, compute
        self.steps = 0
        self.trained_tokens = 0  # inputs that went forward in training, by all ranks
        rows = targets // context
        for name, phase in phases.items():
            Stepper(network, phase, compute, f"pre_eval.{name}")
            if not rows or (phase.drop_tail and rows < phase.batch_sequences):
                raise ValueError(
                    f"a phase takes at least one step; pre_eval.{name} has {rows} rows of {context} tokens for batches "
                    f"of {phase.batch_sequences}; lower its batch_sequences"
                )

    def run(self, tokens_N1: Tensor, report: Callable[[int, int, float], None]) -> list[dict[str, float]]:
        """Train on all tokens [N + 1]; `report` hears (epochs done, epochs, mean loss). Returns what each phase did."""
        total, done = sum(phase.epochs for phase in self._phases.values()), 0
        told: list[dict[str, float]] = []
        for name, phase in self._phases.items():
            stepper = Stepper(self._network, phase, self._compute, f"pre_eval.{name}")
            losses: list[float] = []
            for epoch in range(phase.epochs):
                losses.append(self._epoch(stepper, phase, tokens_N1, epoch, name))
                done += 1
                report(done, total, losses[-1])
            stepper.release()
            self.steps += stepper.steps
            self.trained_tokens += stepper.tokens
            told.append(
                {
                    "steps": stepper.steps,
                    "parameters": stepper.learning,
                    "first_loss": losses[0],
                    "last_loss": losses[-1],
                }
            )
        return told

    def _epoch(self, stepper: Stepper, phase: Phase, tokens_N1: Tensor, epoch: int, name: str) -> float:
        """The mean loss over the steps of an epoch, each taken before its update."""
        rows, context = (len(tokens_N1) - 1) // self._context, self._context
        inputs = tokens_N1[: rows * context].view(rows, context)
        targets = tokens_N1[1 : rows * context + 1].view(rows, context)
        losses: list[Tensor] = []
        norms: list[Tensor] = []
        for chosen, weights in steps_of(phase, rows, epoch):
            inputs_RT, targets_RT = (part[torch.from_numpy(chosen)].to(stepper.device) for part in (inputs, targets))
            weights_RT = torch.from_numpy(weights)[:, None].repeat(1, context).to(stepper.device)
            weights_RT[:, : stepper.blind] = 0.0
            weights_RT /= context - stepper.blind
            norm, loss = stepper.step(inputs_RT, targets_RT, weights_RT, rate_of(phase, epoch))
            norms.append(norm)
            losses.append(loss)
        if not torch.stack(norms).isfinite().all():
            raise Diverged(
                f"adaptation keeps gradients finite; in epoch {epoch} they are not; lower pre_eval.{name}.lr"
            )
        mean = torch.stack(losses).double().mean().cpu()
        if self._compute.world > 1:
            dist.all_reduce(mean)
        return float(mean)
