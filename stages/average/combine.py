"""The mean of several sets of weights, one file in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from model.weights import FormatError, load_weights
from stages.contract import StageError


def mean(states: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of tensors by name. Sums are fp64, the result has the dtypes of the first.

    So the mean of equal weights is that weight, bit for bit, in whatever order. Published sums in bf16 lose digits.
    """
    dtypes: dict[str, torch.dtype] = {}
    sums: dict[str, Tensor] = {}
    count = 0
    for state in states:
        for name, tensor in state.items():
            dtypes.setdefault(name, tensor.dtype)
            sums[name] = sums[name] + tensor if name in sums else tensor.double()
        count += 1
    return {name: (total / count).to(dtypes[name]) for name, total in sums.items()}


def mean_weights(paths: Sequence[Path]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(mean, metadata) of weight files that hold the same network."""
    first, metadata = _load(paths[0])

    def states() -> Iterator[dict[str, Tensor]]:
        yield first
        for path in paths[1:]:
            tensors, other = _load(path)
            _refuse_different(paths[0], first, metadata, path, tensors, other)
            yield tensors

    return mean(states()), metadata


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        tensors, metadata = load_weights(path)
    except FormatError as error:
        raise StageError(str(error)) from error
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise StageError(
                f"weights are finite numbers; {name} in {path.name} holds NaN or infinity; "
                "find the step where training diverged, and lower the learning rate"
            )
    return tensors, metadata


def _refuse_different(
    first_path: Path,
    first: dict[str, Tensor],
    metadata: dict[str, str],
    path: Path,
    tensors: dict[str, Tensor],
    other: dict[str, str],
) -> None:
    """Only weights of one network have a mean."""
    shapes, other_shapes = ({n: (t.dtype, tuple(t.shape)) for n, t in w.items()} for w in (first, tensors))
    differing = sorted(n for n in shapes.keys() | other_shapes.keys() if shapes.get(n) != other_shapes.get(n))
    if differing or metadata.get("network") != other.get("network"):
        what = f"{differing[0]}: {shapes.get(differing[0])} and {other_shapes.get(differing[0])}" if differing else ""
        raise StageError(
            f"weights to average belong to one network; {first_path.parent.name}/{first_path.name} and "
            f"{path.parent.name}/{path.name} differ {'in ' + what if what else 'in configuration'}; "
            "average runs of one recipe"
        )
