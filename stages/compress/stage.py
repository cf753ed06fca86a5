"""Quantised tensors -> the archive, read back and compared before it counts as made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from model.archive import read_quantized, write_archive
from model.config import from_dict
from model.quantized import Coded, equal, load_quantized
from model.weights import FormatError
from stages.compress.chains import chains_for
from stages.compress.config import Config
from stages.contract import Runtime, StageError, fresh_role


def run(config: Config, inputs: Mapping[str, Path], out: Path, runtime: Runtime) -> dict[str, Any]:
    """Write `archive/archive.fwy`."""
    torch.set_num_threads(runtime.device.threads)
    try:
        quantized, metadata = load_quantized(inputs["quantized"] / "quantized.safetensors")
        network = from_dict(json.loads(metadata["network"]))
    except FormatError as error:
        raise StageError(str(error)) from error
    except (KeyError, ValueError) as error:
        raise StageError(f"quantised tensors carry their network's configuration; {error}; run `quantize`") from error
    path = fresh_role(out, "archive") / "archive.fwy"
    sections = write_archive(path, quantized, network, config.constants, chains_for(config))
    decoded, decoded_network, constants = read_quantized(path)
    if not equal(decoded, quantized) or (decoded_network, constants) != (network, config.constants):
        raise RuntimeError(
            "the archive does not decode to what was stored: a bug in model/archive.py, please report it"
        )
    weights = sum(t.codes.numel() if isinstance(t, Coded) else t.numel() for t in quantized.values())
    archive_bytes = path.stat().st_size
    return {
        "archive_bytes": archive_bytes,
        "bits_per_weight": 8 * archive_bytes / max(1, weights),
        "sections": [
            {
                "label": section.label,
                "bytes": section.bytes,
                "weights": section.weights,
                "steps": " > ".join(section.chain.names),
            }
            for section in sections
        ],
    }
