"""Shares one machine's cores and GPUs among the stage processes of a run.

Hits never wait here; only processes do. CPU work takes as many cores as it has threads, GPU work takes whole devices,
so that two protocols scored at once do not slow each other down, and never share a GPU's memory.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from flows.claims import Claim, claim
from stages.contract import Device


def usable_cores() -> int:
    """Cores that this process may use: its affinity mask, cut to the container's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        allowance, _, period = quota.read_text(encoding="ascii").strip().partition(" ")
        if allowance != "max" and int(period or 0):
            cores = min(cores, max(1, int(allowance) // int(period)))
    return cores


def usable_gpus() -> tuple[str, ...]:
    """Names for CUDA_VISIBLE_DEVICES of the GPUs that this process may use. Asks the driver, not torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(name for name in (part.strip() for part in visible.split(",")) if name and name != "-1")
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in listed.splitlines() if line.strip())


class Slots:
    """Cores and GPUs of this machine, lent to one stage process at a time."""

    def __init__(self, cores: int | None = None, gpus: tuple[str, ...] | None = None) -> None:
        self.cores = cores or usable_cores()
        self._free_cores = self.cores
        self._gpus = gpus
        self._free_gpus: list[str] | None = None
        self._changed = threading.Condition()

    @contextmanager
    def lend(self, device: Device, cancel: threading.Event) -> Iterator[Mapping[str, str]]:
        """Wait for room and yield the environment that goes with it; a request above the machine's size gets it all.

        Whether a requested GPU exists is checked by the stage itself, whose message says what is missing.
        Once `cancel` is set nothing is waited for, and nothing may have been lent: whoever borrows looks at it.
        """
        cores = min(self.cores, max(1, device.threads * device.count))
        held: list[Claim] = []
        with self._changed:
            if device.kind == "cuda" and self._free_gpus is None:
                self._gpus = usable_gpus() if self._gpus is None else self._gpus
                self._free_gpus = list(self._gpus)
            wanted = min(device.count, len(self._gpus or ())) if device.kind == "cuda" else 0
            while not cancel.is_set():
                # Other processes of this machine have claims too, and say nothing when they let go.
                found = claim(self._free_gpus or (), wanted) if self._free_cores >= cores else None
                if found is not None:
                    held = found
                    break
                self._changed.wait(0.2)
            self._free_cores -= cores
            for each in held:
                (self._free_gpus or []).remove(each.gpu)
        gpus = [each.gpu for each in held]
        try:
            yield {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
        finally:
            with self._changed:
                for each in held:
                    each.release()
                self._free_cores += cores
                if self._free_gpus is not None:
                    self._free_gpus += gpus
                self._changed.notify_all()
