"""The device that a recipe asks for: used exactly, or refused before anything is read.

Process-wide settings that results depend on (CPU threads, deterministic kernels) are made here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from stages.contract import Runtime, StageError


def torch_device(runtime: Runtime) -> torch.device:
    """The device of this rank, with the process set up for it.

    Raises StageError when the requested kind, count or model is not there: a laptop may plan a run for eight GPUs, but
    only a machine that has them may execute it.
    """
    wanted = runtime.device
    if runtime.world != wanted.count:
        raise StageError(
            f"a stage runs with as many ranks as its recipe asks for; devices.count is {wanted.count}, "
            f"{runtime.world} rank(s) were started; start it with --nproc-per-node {wanted.count}"
        )
    if wanted.kind == "cpu":
        return _cpu(wanted.threads)
    if wanted.kind == "cuda":
        return _cuda(runtime)
    raise StageError(f"a device is cpu or cuda; got {wanted.kind!r}; set devices.<stage>.kind")


def _cpu(threads: int) -> torch.device:
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode(
        "error"
    )  # what use_deterministic_algorithms does, less a second: `model/compiler.py`
    # Deterministic mode also fills every fresh tensor, which costs time and hides nothing that we read.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    return torch.device("cpu")


def _cuda(runtime: Runtime) -> torch.device:
    wanted = runtime.device
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found <= runtime.local_rank:
        raise StageError(
            f"the recipe asks for {wanted.count} CUDA device(s), one per rank; this machine offers {found}; "
            "run it where they are, or choose a scale for this machine (--scale smoke)"
        )
    name = torch.cuda.get_device_name(runtime.local_rank)
    if wanted.model.lower() not in name.lower():
        raise StageError(
            f"the recipe asks for a device whose name contains {wanted.model!r}; device {runtime.local_rank} is "
            f"{name!r}; run it there, or change devices.<stage>.model, which makes it another result"
        )
    torch.set_num_threads(wanted.threads)
    device = torch.device("cuda", runtime.local_rank)
    torch.cuda.set_device(device)
    return device


def device_name(device: torch.device) -> str:
    """What a report says about the device: the GPU's name, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


@contextmanager
def process_group(runtime: Runtime, device: torch.device) -> Iterator[None]:
    """`torch.distributed` for the body, when there is more than one rank; the launcher's environment says where."""
    if runtime.world == 1:
        yield
        return
    dist.init_process_group(
        # gloo beside nccl carries small host values, so that a decision never waits for the GPU's queue.
        backend="cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        rank=runtime.rank,
        world_size=runtime.world,
        timeout=timedelta(minutes=10),
        device_id=device if device.type == "cuda" else None,
    )
    try:
        yield
        dist.barrier()  # gloo aborts a rank whose peer goes away while it still listens
    finally:
        dist.destroy_process_group()
