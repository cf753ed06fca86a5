"""What `evaluate` left behind, read back for comparison."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.ledger import Event


@dataclass(frozen=True, kw_only=True)
class LedgerFile:
    """The ledger of one finished pass."""

    sha256: str
    targets: int
    events: tuple[Event, ...]
    head_N2: np.ndarray  # float32: nll and log Z of the first targets
    row_targets: np.ndarray  # sampled targets
    rows_NV: np.ndarray  # their logits

    @classmethod
    def read(cls, folder: Path) -> LedgerFile:
        """From the role `ledger` of `evaluate`."""
        table = json.loads((folder / "ledger.json").read_text(encoding="utf-8"))
        return cls(
            sha256=table["sha256"],
            targets=table["targets"],
            events=tuple(Event(*event) for event in table["events"]),
            head_N2=np.load(folder / "head.npy", allow_pickle=False),
            row_targets=np.array(table["sampled_targets"], dtype=np.int64),
            rows_NV=np.load(folder / "rows.npy", mmap_mode="r", allow_pickle=False),
        )
