"""A whole network: every tensor to its group's form, with its row of the error table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.grid import quantize
from model.quantized import Coded
from stages.contract import StageError
from stages.quantize.clip import grid_of, scales_for
from stages.quantize.errors import TensorError, clip_shares, compare
from stages.quantize.groups import Group, group_of

if TYPE_CHECKING:
    from stages.quantize.config import Config, GroupConfig

FLOATS = {16: torch.float16, 32: torch.float32}


def quantize_network(
    tensors: Mapping[str, Tensor], config: Config, device: torch.device
) -> Iterator[tuple[str, Coded | Tensor, TensorError]]:
    """(name, stored form on the CPU, error row) of each tensor, in the order of names."""
    for name, tensor in sorted(tensors.items()):
        if not torch.isfinite(tensor).all():
            raise StageError(
                f"weights are finite numbers; {name} holds NaN or infinity; "
                "find the step where training diverged, and lower the learning rate"
            )
        try:
            yield name, *quantize_tensor(name, tensor.to(device, torch.float32), config)
        except ValueError as error:
            raise StageError(f"{name} cannot be quantised: {error}") from error


def quantize_tensor(name: str, w: Tensor, config: Config) -> tuple[Coded | Tensor, TensorError]:
    """The stored form of one fp32 tensor, and its error row."""
    group = group_of(name, w.shape, config.small_weights)
    rule = None if group == "vectors" else _rule(group, config)
    if rule is None or rule.bits >= 16:
        bits = config.vector_bits if rule is None else rule.bits
        return _as_float(name, group, w, bits)
    w_NRC = w.reshape(-1, *w.shape[-2:])
    scale_NR, quantile_NR = scales_for(w_NRC, rule, config)
    codes_NRC = quantize(w_NRC, scale_NR, grid_of(rule))
    coded = Coded(codes_NRC.reshape(w.shape).cpu(), scale_NR.reshape(w.shape[:-1]).cpu(), rule.bits)
    stored = coded.dequantize().to(w.device)
    return coded, compare(name, group, w, stored, rule.bits, _floored_rows(coded, rule), clip_shares(quantile_NR))


def _floored_rows(coded: Coded, rule: GroupConfig) -> float | None:
    if not rule.scale_floor:
        return None
    return float((coded.scales <= torch.tensor(rule.scale_floor).half()).double().mean())


def _rule(group: Group, config: Config) -> GroupConfig:
    return {"matrices": config.matrices, "embeddings": config.embeddings, "small": config.small}[group]


def _as_float(name: str, group: Group, w: Tensor, bits: int) -> tuple[Tensor, TensorError]:
    stored = w.to(FLOATS[bits])
    if not torch.isfinite(stored).all():
        raise ValueError(f"fp16 holds magnitudes up to 65504; got {w.abs().max().item():g}; store it with 32 bits")
    return stored.cpu(), compare(name, group, w, stored.float(), bits)
