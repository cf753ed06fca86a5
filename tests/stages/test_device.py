"""A requested device is used exactly, or refused with what is there instead."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from stages.contract import Device, Runtime, StageError
from stages.device import process_group, torch_device


def test_cpu_uses_the_stated_threads_and_deterministic_kernels(runtime: Runtime):
    assert torch_device(replace(runtime, device=Device(threads=1))) == torch.device("cpu")
    assert torch.get_num_threads() == 1
    assert torch_device(runtime) == torch.device("cpu")
    assert torch.get_num_threads() == 2
    assert torch.are_deterministic_algorithms_enabled()


def test_the_compiler_is_loaded_for_those_who_compile_and_no_others_and_made_deterministic_for_them():
    lines = """
import sys, torch
from pathlib import Path
from stages.contract import Runtime
from model.compiler import compiled
from stages.device import torch_device
torch_device(Runtime(scratch=Path("."), checkpoints=Path(".")))
print("torch._inductor" in sys.modules)
compiled(torch.sin)
print(sys.modules["torch._inductor.config"].deterministic)
"""
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_gpu_that_is_not_there_is_refused_with_what_is(runtime: Runtime):
    with pytest.raises(StageError, match=r"asks for 8 CUDA device.*this machine offers 0"):
        torch_device(replace(runtime, device=Device(kind="cuda", count=8), world=8))


def test_a_gpu_of_another_model_is_refused_by_name(runtime: Runtime, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA A100-SXM4-80GB")
    with pytest.raises(StageError, match=r"contains 'H100'.*A100"):
        torch_device(replace(runtime, device=Device(kind="cuda", model="H100")))


def test_fewer_ranks_than_the_recipe_asks_for_are_refused(runtime: Runtime):
    with pytest.raises(StageError, match=r"devices.count is 2, 1 rank"):
        torch_device(replace(runtime, device=Device(count=2)))


def test_one_rank_needs_no_process_group(runtime: Runtime):
    with process_group(runtime, torch.device("cpu")):
        assert not torch.distributed.is_initialized()
