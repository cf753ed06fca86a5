"""A small records folder of the challenge that is right in everything, for tests that then break one thing."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

CODE = "import math\n\n\ndef main():\n    return math.pi\n\n\nmain()\n"
TARGETS, TEXT_BYTES = 62_021_632, 151_080_363  # SP1024
LOSSES = {1: 1.90001234, 2: 1.90112345, 3: 1.90223456}
MODEL_BYTES = 15_000_000
LN2 = 0.6931471805599453


def bpb(loss: float, text_bytes: int = TEXT_BYTES) -> float:
    """A score with these bytes below it, to eight decimals."""
    return round(loss / LN2 * TARGETS / text_bytes, 8)


def log(seed: int, **changes: Any) -> str:
    """A log in the shape of the challenge's baseline."""
    says: dict[str, Any] = {
        "code": len(CODE.encode()),
        "model": MODEL_BYTES + seed,
        "train_ms": 599_000,
        "eval_ms": 90_000,
        "shards": 80,
        "bytes": TEXT_BYTES,
        "ran_with": seed,
        "loss": LOSSES[seed],
        "extra": "",
        **changes,
    }
    loss, score = says["loss"], bpb(says["loss"], says["bytes"])
    return (
        f"train_loader:dataset:fineweb10B_sp1024 train_shards:{says['shards']}\n"
        f"val_loader:shards pattern=./fineweb_val_*.bin tokens:{TARGETS}\n"
        f"seed:{says['ran_with']}\n"
        f"step:0/9000 val_loss:6.9 val_bpb:4.1 train_time:0ms step_avg:0.01ms\n"
        f"stopping_early: wallclock_cap train_time:{says['train_ms']}ms step:{7000 + seed}/9000\n"
        f"Serialized model: 105783807 bytes\n"
        f"Code size: {says['code']} bytes\n"
        f"{says['extra']}"
        f"Serialized model int6+zstd: {says['model']} bytes\n"
        f"Total submission size int6+zstd: {says['code'] + says['model']} bytes\n"
        f"final_sliding_window val_loss:{loss:.4f} val_bpb:{score:.4f} stride:64 eval_time:{says['eval_ms']}ms\n"
        f"final_sliding_window_exact val_loss:{loss:.8f} val_bpb:{score:.8f}\n"
    )


def claims() -> dict[str, Any]:
    """The submission.json of the logs."""
    code = len(CODE.encode())
    scores = {seed: bpb(loss) for seed, loss in LOSSES.items()}
    return {
        "author": "A", "github_id": "a", "name": "N", "blurb": "B", "date": "2026-01-01", "track": "10min_16mb",
        "val_loss": round(statistics.fmean(LOSSES.values()), 8),
        "val_bpb": round(statistics.fmean(scores.values()), 8),
        "val_bpb_std": round(statistics.stdev(scores.values()), 8),
        "bytes_total": code + MODEL_BYTES + 3,
        "bytes_code": code,
        "seeds": list(LOSSES),
        "seed_results": {
            str(seed): {
                "val_loss": LOSSES[seed],
                "val_bpb": scores[seed],
                "artifact_bytes": code + MODEL_BYTES + seed,
                "steps": 7000 + seed,
            }
            for seed in LOSSES
        },
    }  # fmt: skip


def write(root: Path, **changes: Any) -> Path:
    """The folder. `claims` merges into submission.json, `log<seed>` into a log, others are files (None: none)."""
    folder = root / "track_10min_16mb" / "2026-01-01_Example"
    folder.mkdir(parents=True)
    files: dict[str, Any] = {
        "README.md": "# Example\n",
        "train_gpt.py": CODE,
        "submission.json": json.dumps(claims() | changes.pop("claims", {})),
        **{f"train_seed{seed}.log": log(seed, **changes.pop(f"log{seed}", {})) for seed in LOSSES},
        **changes,
    }
    for name, text in files.items():
        if text is not None:
            (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder
