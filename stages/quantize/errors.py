"""The error table: what rounding did to each tensor, so that a lost point of BPB has a place to be looked for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from torch import Tensor

from stages.quantize.groups import Group, matrix_count


@dataclass(frozen=True, kw_only=True)
class TensorError:
    """One tensor: how it is stored, and how far that is from what was trained."""

    name: str
    group: Group
    shape: tuple[int, ...]
    matrices: int  # as published tables count: the layers of a bank
    bits: int
    weights: int
    squared_error: float  # sum over all weights, of (stored - trained)^2
    squared_norm: float  # sum over all weights, of trained^2
    max_error: float
    zeros: float  # fraction of weights stored as 0
    floored_rows: float | None = None  # fraction of rows whose scale is the floor; None without a floor
    clips: dict[str, float] | None = None  # quantile -> fraction of rows clipped there; None for floats
    pruned: int = 0  # weights that magnitude pruning set to 0

    @property
    def mse(self) -> float:
        """Mean squared error."""
        return self.squared_error / max(1, self.weights)

    @property
    def relative_rmse(self) -> float:
        """Root mean square of the error over that of the weights."""
        return math.sqrt(self.squared_error / self.squared_norm) if self.squared_norm else 0.0

    def row(self) -> dict[str, object]:
        """The JSON row: every field, and both derived numbers."""
        return {**asdict(self), "mse": self.mse, "relative_rmse": self.relative_rmse}


def compare(
    name: str,
    group: Group,
    trained: Tensor,
    stored: Tensor,
    bits: int,
    floored_rows: float | None = None,
    clips: dict[str, float] | None = None,
    pruned: int = 0,
) -> TensorError:
    """The row of one tensor, from its weights before and after (fp32, one shape); sums in fp64."""
    error = (stored - trained).double()
    return TensorError(
        name=name,
        group=group,
        shape=tuple(trained.shape),
        matrices=matrix_count(trained.shape) if group != "vectors" else 1,
        bits=bits,
        weights=trained.numel(),
        squared_error=float(error.square().sum()),
        squared_norm=float(trained.double().square().sum()),
        max_error=float(error.abs().max()) if trained.numel() else 0.0,
        zeros=float((stored == 0).double().mean()) if trained.numel() else 0.0,
        floored_rows=floored_rows,
        clips=clips,
        pruned=pruned,
    )


def clip_shares(quantile_NR: Tensor) -> dict[str, float]:
    """Fraction of rows by the quantile that clips them, smallest first."""
    counts = Counter(f"{quantile:.6g}" for quantile in quantile_NR.flatten().tolist())
    return {quantile: counts[quantile] / quantile_NR.numel() for quantile in sorted(counts, key=float)}


def summary(errors: Iterable[TensorError]) -> dict[str, dict[str, float | int]]:
    """Per group and for "all": tensors as published tables count them, weights, bits per weight, relative RMSE."""
    found: dict[str, dict[str, float | int]] = {}
    rows = list(errors)
    for group in [*dict.fromkeys(row.group for row in rows), "all"]:
        members: Sequence[TensorError] = [row for row in rows if group in (row.group, "all")]
        weights = sum(row.weights for row in members)
        norm = sum(row.squared_norm for row in members)
        found[group] = {
            "tensors": sum(row.matrices for row in members),
            "weights": weights,
            "bits_per_weight": sum(row.bits * row.weights for row in members) / max(1, weights),
            "relative_rmse": math.sqrt(sum(row.squared_error for row in members) / norm) if norm else 0.0,
        }
    return found
