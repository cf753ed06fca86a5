"""The few numbers that a finished training leaves in its record."""

from __future__ import annotations

import resource
from typing import Any

import torch

from stages.train.loop import Trainer


def report(trainer: Trainer, ended: str, device: str) -> dict[str, Any]:
    """Metrics of a finished run; seconds are those of the training clock, over all attempts."""
    progress, config = trainer.progress, trainer.config
    tokens = progress.step * config.batch_tokens
    scored = [line for line in progress.curve if "val_loss" in line]
    return {
        "params": sum(parameter.numel() for parameter in trainer.parameters),
        "steps": progress.step,
        "expected_steps": progress.expected_steps,
        "tokens": tokens,
        "epochs": tokens / trainer.spans.stream.tokens,
        "seconds": progress.train_s,
        "tokens_per_s": tokens / max(progress.train_s, 1e-9),
        "train_loss": progress.last.get("train_loss"),
        "val_loss": scored[-1]["val_loss"] if scored else None,
        "val_bpb": scored[-1]["val_bpb"] if scored else None,
        "snapshots": len(progress.snapshots),
        "qat": config.qat.mode,
        "qat_steps": progress.qat_steps,
        "peak_memory_bytes": peak_memory_bytes(trainer.device),
        "device": device,
        "attention": trainer.attention.name,
        "ended_by": ended,
        "resumed_from_step": trainer.resumed.step,
    }


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that was in use: of the GPU where there is one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
