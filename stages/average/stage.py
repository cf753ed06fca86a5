"""Train's outputs -> one set of weights: the last, a moving average, or a mean of several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from model.weights import save_weights
from stages.average.combine import mean_weights
from stages.average.config import Config
from stages.contract import Runtime, StageError, fresh_role


def run(config: Config, inputs: Mapping[str, Path], out: Path, runtime: Runtime) -> dict[str, Any]:
    """Write `weights/weights.safetensors`."""
    torch.set_num_threads(runtime.device.threads)
    paths = chosen_files(config, inputs)
    tensors, metadata = mean_weights(paths)
    save_weights(fresh_role(out, "weights") / "weights.safetensors", tensors, metadata)
    return {
        "kind": config.kind,
        "averaged": len(paths),
        "tensors": len(tensors),
        "weights": sum(tensor.numel() for tensor in tensors.values()),
    }


def chosen_files(config: Config, inputs: Mapping[str, Path]) -> list[Path]:
    """The weight files whose mean is wanted: one for `raw` and `ema`, snapshots in the order of their steps."""
    if config.kind in ("raw", "ema"):
        path = inputs[config.kind] / "weights.safetensors"
        if not path.is_file():
            raise StageError(
                f"average.kind {config.kind!r} needs what train keeps under that name; there is none; "
                + ("set train.ema.enabled = true" if config.kind == "ema" else "run train again")
            )
        return [path]
    if config.kind == "mean":
        others = sorted(inputs["others"].rglob("*.safetensors"))
        if not others:
            raise StageError("average.kind 'mean' needs the weights of other runs; there are none; name some")
        return [inputs["raw"] / "weights.safetensors", *others]
    snapshots = sorted(inputs["snapshots"].glob("*.safetensors"))
    if not snapshots:
        raise StageError(
            f"average.kind {config.kind!r} needs snapshots of the warmdown; train took none; "
            "set train.snapshots.every, or choose average.kind 'ema'"
        )
    if config.kind == "swa":
        return snapshots
    if config.last > len(snapshots):
        raise StageError(
            f"average.last counts snapshots from the end; got {config.last}, train took {len(snapshots)}; "
            "lower average.last, or take more with train.snapshots"
        )
    return snapshots[-config.last :]
