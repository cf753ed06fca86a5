"""Bits per matrix under a byte budget, from the weights alone.

A matrix's cost is the entropy of its codes, its error the squared error over its squared norm: every matrix reads
normalised input, so a matrix twice as large may be off by twice as much. Codes are compressed by contexts as well, so
the prediction is a few percent above what the context coder makes, and near what a byte compressor makes.

Letters: R rows, C columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.grid import dequantize, quantize
from stages.quantize.clip import grid_of, scales_for
from stages.quantize.prune import prune
from stages.quantize.rules import Rule

if TYPE_CHECKING:
    from stages.quantize.config import Config


@dataclass(frozen=True)
class Choice:
    """What a matrix costs and loses at some number of bits."""

    bits: int
    bytes: float
    error: float  # squared error over squared norm


def entropy_bytes(codes_RC: Tensor) -> float:
    """Codes at their own frequencies, without any context: bytes."""
    counts = torch.bincount(codes_RC.reshape(-1).long() + 128).double()
    shares = counts[counts > 0] / codes_RC.numel()
    return float(-(shares * shares.log2()).sum()) * codes_RC.numel() / 8


def price(w_RC: Tensor, rule: Rule, config: Config) -> Choice:
    """A matrix under a rule."""
    pruned_1RC, _ = prune(w_RC[None], rule.prune)
    scale_1R, _ = scales_for(pruned_1RC, rule, config)
    codes_1RC = quantize(pruned_1RC, scale_1R, grid_of(rule))
    error = float((dequantize(codes_1RC, scale_1R)[0] - w_RC).double().square().sum())
    norm = float(w_RC.double().square().sum())
    return Choice(rule.bits, entropy_bytes(codes_1RC) + 2 * scale_1R.numel(), error / norm if norm else 0.0)


def least_error(choices: Mapping[str, Sequence[Choice]], budget: float) -> dict[str, int]:
    """Bits per matrix: all at the fewest, then one step at a time where the error falls most per byte, while it fits.

    choices: per matrix, by ascending bits. budget: bytes of all matrices together; the fewest bits fit.
    """
    at = dict.fromkeys(choices, 0)
    left = budget - sum(options[0].bytes for options in choices.values())
    while True:
        steps: list[tuple[float, str, float]] = []
        for name, options in choices.items():
            if at[name] + 1 < len(options):
                now, then = options[at[name]], options[at[name] + 1]
                cost = max(then.bytes - now.bytes, 1.0)
                if cost <= left:
                    steps.append(((now.error - then.error) / cost, name, cost))
        if not steps or max(steps)[0] <= 0:
            return {name: choices[name][index].bits for name, index in at.items()}
        _, name, cost = max(steps)
        at[name] += 1
        left -= cost


def from_the_middle(
    choices: Mapping[str, Sequence[Choice]], layers: Mapping[str, int], budget: float
) -> dict[str, int]:
    """Bits per matrix: all at the most, then layer by layer at the fewest, from the middle outward, until it fits.

    layers: per matrix, its layer. With 11 layers the order is 5, 6, 4, 7, 3 and so on.
    """
    count = max(layers.values(), default=-1) + 1
    outward = sorted(range(count), key=lambda layer: (abs(layer - count // 2), -layer))
    lowered = set[int]()

    def chosen() -> dict[str, Choice]:
        return {name: options[0 if layers[name] in lowered else -1] for name, options in choices.items()}

    for layer in outward:
        if sum(choice.bytes for choice in chosen().values()) <= budget:
            break
        lowered.add(layer)
    return {name: choice.bits for name, choice in chosen().items()}
