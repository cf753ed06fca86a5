"""Checkpoints: everything that a run needs to go on as if nothing had happened, on this machine or another.

One checkpoint is one weights file (`model/weights.py`, so damage is found by its CRC-32) named by its step; the rest of
the state travels in its metadata. Warmdown snapshots are files of their own, written once, which a checkpoint lists.
A file gets its final name only when its bytes are on the disk. Files are written by one thread while training goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from model.weights import FormatError, load_weights, save_weights

KEPT = 2  # checkpoints: the last one, and one more in case that one is damaged


@dataclass
class Progress:
    """What a checkpoint holds beside tensors."""

    step: int = 0
    expected_steps: int = 0  # what horizons scale to, measured or configured
    train_s: float = 0.0  # seconds on the training clock
    last: dict[str, float] = field(default_factory=dict)  # the last finished step, as a line of the curve
    curve: list[dict[str, float]] = field(default_factory=list)
    snapshots: list[int] = field(default_factory=list)  # steps of the warmdown snapshots so far
    qat_steps: int = 0  # updates so far with weights on their grid; once one was, all later ones are


class Checkpoints:
    """The checkpoints of one run in `folder`; files of any other `identity` are never resumed from."""

    def __init__(self, folder: Path, identity: str) -> None:
        self._folder = folder
        self._identity = identity
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def newest_step(self) -> int:
        """The step of the newest checkpoint that is whole and this run's own; 0 if there is none."""
        for path in sorted(self._folder.glob("step-*.safetensors"), reverse=True):
            loaded = self._load(path)
            if loaded is not None:
                return loaded[0].step
        return 0

    def load(self, step: int) -> tuple[Progress, dict[str, Tensor]]:
        """The checkpoint of `step`, which `newest_step` returned."""
        loaded = self._load(self._checkpoint(step))
        assert loaded is not None, f"the checkpoint of step {step} was whole a moment ago"
        return loaded

    def forget_all_but(self, step: int) -> None:
        """Delete whatever a run that goes on from `step` will write anew, or must not mix up with its own."""
        kept = {self._checkpoint(step)}
        if step:
            kept |= {self.snapshot(at) for at in self.load(step)[0].snapshots}
        for path in self._folder.iterdir():
            if path.is_file() and path not in kept:
                path.unlink()

    def save(self, progress: Progress, tensors: Mapping[str, Tensor]) -> None:
        """Write a checkpoint in the background; the state is copied before this returns."""
        metadata = {"identity": self._identity, "progress": json.dumps(asdict(progress))}
        path, copied = self._checkpoint(progress.step), _to_host(tensors)

        def write() -> None:
            _write_durably(path, copied, metadata)
            for old in sorted(self._folder.glob("step-*.safetensors"))[:-KEPT]:
                old.unlink()

        self._submit(write)

    def save_snapshot(self, step: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Write the warmdown snapshot of `step` in the background."""
        path, copied = self.snapshot(step), _to_host(tensors)
        self._submit(lambda: _write_durably(path, copied, metadata))

    def snapshot(self, step: int) -> Path:
        """Where the snapshot of `step` lies."""
        return self._folder / f"snapshot-{step:06d}.safetensors"

    def wait(self) -> None:
        """Return when everything is on the disk; raises what the writing raised."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Wait, and end the writing thread."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()

    def _submit(self, write: Callable[[], None]) -> None:
        self.wait()  # at most one copy of the state waits in memory
        self._pending = self._writer.submit(write)

    def _checkpoint(self, step: int) -> Path:
        return self._folder / f"step-{step:09d}.safetensors"

    def _load(self, path: Path) -> tuple[Progress, dict[str, Tensor]] | None:
        """The checkpoint in `path`, or None if it is damaged, foreign, or lacks one of its snapshots."""
        try:
            tensors, metadata = load_weights(path)
            if metadata.get("identity") != self._identity:
                return None
            raw: dict[str, Any] = json.loads(metadata["progress"])
            for step in raw["snapshots"]:
                load_weights(self.snapshot(step))
        except (FormatError, OSError):
            return None
        return Progress(**raw), tensors


def _to_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def _write_durably(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write `path` so that a crash at any moment leaves either the whole file or none under its name."""
    unfinished = path.with_suffix(".unfinished")
    save_weights(unfinished, tensors, metadata)
    with unfinished.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
