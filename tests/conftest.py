"""Fixtures only: no helper here hides an assertion."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.contract import Device, Runtime

# More threads than free cores make tiny tensors a hundred times slower: idle workers spin. Read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in a stage's process: spinning threads starve each other


@pytest.fixture
def shared_data() -> Path:
    """Real text and the challenge's published tokenizers, where this checkout has them beside it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the published tokenizers and texts are not beside this checkout")
    return folder


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    """A one-process CPU runtime with folders of its own."""
    for name in ("scratch", "checkpoints"):
        (tmp_path / "runtime" / name).mkdir(parents=True)
    return Runtime(
        scratch=tmp_path / "runtime" / "scratch",
        checkpoints=tmp_path / "runtime" / "checkpoints",
        device=Device(threads=2),
    )


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One torch thread: on tiny tensors threads only wait for each other, tenfold on a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
