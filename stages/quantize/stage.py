"""Weights -> quantised tensors and the error table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.quantized import Coded, save_quantized
from model.weights import FormatError, load_weights
from stages.contract import Runtime, StageError, fresh_role
from stages.device import device_name, torch_device
from stages.quantize.config import Config
from stages.quantize.errors import TensorError, summary
from stages.quantize.network import quantize_network


def run(config: Config, inputs: Mapping[str, Path], out: Path, runtime: Runtime) -> dict[str, Any]:
    """Write `quantized/quantized.safetensors` and `errors/errors.json`."""
    device = torch_device(runtime)
    if runtime.world > 1:
        raise StageError(f"quantize runs on one device; got {runtime.world} ranks; set devices.quantize.count = 1")
    try:
        tensors, metadata = load_weights(inputs["weights"] / "weights.safetensors")
    except FormatError as error:
        raise StageError(str(error)) from error
    stored: dict[str, Any] = {}
    rows: list[TensorError] = []
    for name, form, row in quantize_network(tensors, config, device):
        stored[name] = form
        rows.append(row)
        runtime.report_progress(min(len(rows), len(tensors)), len(tensors), "tensors", relative_rmse=row.relative_rmse)
    save_quantized(fresh_role(out, "quantized") / "quantized.safetensors", stored, metadata)
    groups = summary(rows)
    table = [row.row() for row in rows]
    path = fresh_role(out, "errors") / "errors.json"
    path.write_text(json.dumps(table, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return {
        "device": device_name(device),
        "tensors": _count_by_form(stored, rows),
        "bits_per_weight": groups["all"]["bits_per_weight"],
        "relative_rmse": groups["all"]["relative_rmse"],
        "pruned": sum(row.pruned for row in rows),
        "worst": max(rows, key=lambda row: row.relative_rmse).name if rows else None,
        "groups": groups,
    }


def _count_by_form(stored: Mapping[str, Any], rows: list[TensorError]) -> dict[str, int]:
    """How many tensors of each form, a bank counted by its layers: "int6" -> 66 for the published network."""
    counts: Counter[str] = Counter()
    for row in rows:
        counts[f"{'int' if isinstance(stored[row.name], Coded) else 'fp'}{row.bits}"] += row.matrices
    return dict(sorted(counts.items()))
