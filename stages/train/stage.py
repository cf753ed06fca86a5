"""Token shards -> weights: set the ranks up, train, write the four roles."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from model.weights import save_weights
from stages.contract import Runtime, fresh_role
from stages.device import device_name, process_group, torch_device
from stages.train.checkpoint import Checkpoints
from stages.train.config import Config
from stages.train.data import fingerprint, open_data
from stages.train.loop import Trainer, weights_metadata
from stages.train.report import report


def run(config: Config, inputs: Mapping[str, Path], out: Path, runtime: Runtime, *, seed: int) -> dict[str, Any]:
    """Train, going on from this run's newest checkpoint if there is one; rank 0 writes and reports."""
    device = torch_device(runtime)
    spans, validation = open_data(config, inputs, runtime.rank, runtime.world)
    checkpoints = Checkpoints(runtime.checkpoints, _identity(config, inputs, runtime, seed))
    with process_group(runtime, device):
        trainer = Trainer(config, spans, validation, runtime, device, checkpoints, seed)
        ended = trainer.run()
    if runtime.rank:
        return {}
    _write(trainer, out)
    return report(trainer, ended, device_name(device))


def _identity(config: Config, inputs: Mapping[str, Path], runtime: Runtime, seed: int) -> str:
    """What a checkpoint must share with this run to be resumed from."""
    parts = [config.model_dump(mode="json"), fingerprint(inputs), asdict(runtime.device), seed, torch.__version__]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _write(trainer: Trainer, out: Path) -> None:
    metadata = weights_metadata(trainer.config.network)
    save_weights(fresh_role(out, "raw") / "weights.safetensors", trainer.model.state_dict(), metadata)
    averaged = fresh_role(out, "ema")
    if trainer.ema:
        save_weights(averaged / "weights.safetensors", trainer.ema.state(), metadata)
    snapshots = fresh_role(out, "snapshots")
    for step in trainer.progress.snapshots:
        # Copied: until this stage is published, a retry may still need the checkpoint's own.
        shutil.copyfile(trainer.checkpoints.snapshot(step), snapshots / f"{step:06d}.safetensors")
    lines = [json.dumps(line) + "\n" for line in trainer.progress.curve]
    (fresh_role(out, "curve") / "curve.jsonl").write_text("".join(lines), encoding="utf-8")
