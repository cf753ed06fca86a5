"""A whole network: every tensor to its rule's form, with its row of the error table.

A bank whose layers share one rule is stored as a bank; one whose layers differ is stored matrix by matrix, under
virtual names (`model/names.py`), and joined again by whoever reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.grid import quantize
from model.names import virtual_names
from model.quantized import Coded
from stages.contract import StageError
from stages.quantize.clip import grid_of, scales_for
from stages.quantize.errors import TensorError, clip_shares, compare
from stages.quantize.fit import Choice, from_the_middle, least_error, price
from stages.quantize.groups import Group, group_of
from stages.quantize.prune import prune
from stages.quantize.rules import Rule, fitted_names, rules_for

if TYPE_CHECKING:
    from stages.quantize.config import Config

FLOATS = {16: torch.float16, 32: torch.float32}

Stored = tuple[str, Coded | Tensor, TensorError]


def quantize_network(tensors: Mapping[str, Tensor], config: Config, device: torch.device) -> Iterator[Stored]:
    """(name, stored form on the CPU, error row) of each tensor, in the order of names."""
    for name, tensor in sorted(tensors.items()):
        if not torch.isfinite(tensor).all():
            raise StageError(
                f"weights are finite numbers; {name} holds NaN or infinity; "
                "find the step where training diverged, and lower the learning rate"
            )
    try:
        rules = rules_for({name: tensor.shape for name, tensor in tensors.items()}, config)
        if config.fit.budget_bytes:
            rules |= fitted_rules(tensors, rules, config, device)
    except ValueError as error:
        raise StageError(str(error)) from error
    for name, tensor in sorted(tensors.items()):
        try:
            yield from _stored(name, tensor.to(device, torch.float32), rules, config)
        except ValueError as error:
            raise StageError(f"{name} cannot be quantised: {error}") from error


def fitted_rules(
    tensors: Mapping[str, Tensor], rules: Mapping[str, Rule], config: Config, device: torch.device
) -> dict[str, Rule]:
    """Virtual name -> rule of the matrices whose bits the budget chooses."""
    fitted = set(fitted_names({name: tensor.shape for name, tensor in tensors.items()}, config))
    choices: dict[str, list[Choice]] = {}
    layers: dict[str, int] = {}
    others = 0.0
    for name, tensor in tensors.items():
        w = tensor.to(device, torch.float32)
        names = virtual_names(name, w.shape)
        for layer, (virtual, part) in enumerate(zip(names, w if len(names) > 1 else [w], strict=True)):
            rule = rules.get(virtual)
            matrix = part.reshape(-1, *part.shape[-2:])[0] if part.ndim > 1 else part
            if virtual in fitted and rule:
                choices[virtual] = [price(matrix, rule.with_bits(bits), config) for bits in config.fit.bits]
                layers[virtual] = layer
            elif rule and rule.bits < 16:
                others += price(matrix, rule, config).bytes
            else:
                others += part.numel() * (rule.bits if rule else config.vector_bits) / 8
    return {
        virtual: rules[virtual].with_bits(bits) for virtual, bits in _chosen(choices, layers, others, config).items()
    }


def _chosen(
    choices: Mapping[str, list[Choice]], layers: Mapping[str, int], others: float, config: Config
) -> dict[str, int]:
    fit = config.fit
    least = others + sum(options[0].bytes for options in choices.values())
    if least > fit.budget_bytes:
        raise ValueError(
            f"fit.budget_bytes holds at least the archive with {fit.bits[0]} bits in every matrix; that is predicted "
            f"to take {least:,.0f} bytes and the budget is {fit.budget_bytes:,}; raise it, or allow fewer fit.bits"
        )
    budget = fit.budget_bytes - others
    return least_error(choices, budget) if fit.order == "error" else from_the_middle(choices, layers, budget)


def _stored(name: str, w: Tensor, rules: Mapping[str, Rule], config: Config) -> Iterator[Stored]:
    """A tensor as a whole, or matrix by matrix where its layers have different rules."""
    group = group_of(name, w.shape, config.small_weights)
    names = virtual_names(name, w.shape)
    if group == "vectors":
        yield name, *_as_float(name, group, w, config.vector_bits)
    elif len({rules[virtual] for virtual in names}) == 1:
        yield name, *quantize_tensor(name, group, w, rules[names[0]], config)
    else:
        for virtual, matrix in zip(names, w, strict=True):
            yield virtual, *quantize_tensor(virtual, group, matrix, rules[virtual], config)


def quantize_tensor(
    name: str, group: Group, w: Tensor, rule: Rule, config: Config
) -> tuple[Coded | Tensor, TensorError]:
    """The stored form of one fp32 bank, matrix or table, and its error row."""
    w_NRC, pruned = prune(w.reshape(-1, *w.shape[-2:]), rule.prune)
    if rule.bits >= 16:
        return _as_float(name, group, w, rule.bits, w_NRC.reshape(w.shape), pruned)
    scale_NR, quantile_NR = scales_for(w_NRC, rule, config)
    codes_NRC = quantize(w_NRC, scale_NR, grid_of(rule))
    coded = Coded(codes_NRC.reshape(w.shape).cpu(), scale_NR.reshape(w.shape[:-1]).cpu(), rule.bits)
    stored = coded.dequantize().to(w.device)
    row = compare(name, group, w, stored, rule.bits, _floored_rows(coded, rule), clip_shares(quantile_NR), pruned)
    return coded, row


def _floored_rows(coded: Coded, rule: Rule) -> float | None:
    if not rule.scale_floor:
        return None
    return float((coded.scales <= torch.tensor(rule.scale_floor).half()).double().mean())


def _as_float(
    name: str, group: Group, w: Tensor, bits: int, kept: Tensor | None = None, pruned: int = 0
) -> tuple[Tensor, TensorError]:
    """A tensor, or what pruning kept of it, as floats; its error is against `w`."""
    stored = (w if kept is None else kept).to(FLOATS[bits])
    if not torch.isfinite(stored).all():
        raise ValueError(f"fp16 holds magnitudes up to 65504; got {w.abs().max().item():g}; store it with 32 bits")
    return stored.cpu(), compare(name, group, w, stored.float(), bits, pruned=pruned)
