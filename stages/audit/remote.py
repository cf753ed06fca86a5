"""Scorers in another process: what is audited cannot reach the tokens that it is judged on, only ask for none of them.

One process serves all protocols of a run, since starting it costs more than auditing a small network. It is started in
a folder with hard copies of archive and tokenizer; its environment has what an interpreter and a GPU driver need.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from io import BufferedReader, BufferedWriter
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.audit import child
from stages.audit.state import State
from stages.audit.subject import Scorer
from stages.audit.wire import WireError, receive, send
from stages.contract import PARENT, Device

SHIPPED = (("archive", "archive.fwy"), ("tokenizer", "tokenizer.model"), ("tokenizer", "bytes.npy"))
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
_INHERITED_PREFIXES = ("CUDA_", "NVIDIA_", "TRITON_", "TORCHINDUCTOR_")


class ScorerFailed(RuntimeError):
    """The scorer's process ended, or could not do what was asked."""


def ship(inputs: Mapping[str, Path], folder: Path) -> Path:
    """A new folder with copies of what a submission ships: archive and tokenizer."""
    folder.mkdir(parents=True)
    for role, name in SHIPPED:
        shutil.copyfile(inputs[role] / name, folder / name)
    return folder


def environment(scratch: Path) -> dict[str, str]:
    """What the scorer's process may know of the machine."""
    kept = {k: v for k, v in os.environ.items() if k in _INHERITED or k.startswith(_INHERITED_PREFIXES)}
    fixed = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(scratch), PARENT: str(os.getpid())}
    # The code that runs is the code that audits, wherever this process found it.
    root = str(Path(__file__).resolve().parents[2])
    return {**kept, **fixed, "PYTHONPATH": os.pathsep.join([root, *filter(None, [kept.get("PYTHONPATH")])])}


class ScorerProcess:
    """The process; a context manager that never leaves it behind."""

    def __init__(self, folder: Path, scratch: Path, device: Device) -> None:
        self._device = device
        self._log = scratch / "scorer.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", child.__name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=folder,
                env=environment(scratch),
                close_fds=True,
            )

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def __enter__(self) -> ScorerProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        try:
            self._process.stdin.close()
        except BrokenPipeError:  # what was still to be written has no reader
            return

    def open(self, protocol: Mapping[str, Any], whole: bool = False) -> RemoteScorer:
        """A scorer for one protocol; the one before it is forgotten."""
        return RemoteScorer(self, {"protocol": dict(protocol), "device": asdict(self._device), "whole": whole})

    def ask(self, ask: str, arrays: Sequence[np.ndarray] = (), **also: Any) -> tuple[dict[str, Any], list[np.ndarray]]:
        """One question and its answer."""
        questions, answers = self._process.stdin, self._process.stdout
        assert isinstance(questions, BufferedWriter)
        assert isinstance(answers, BufferedReader)
        try:
            send(questions, {"ask": ask, **also}, arrays)
            said, out = receive(answers)
        except (WireError, BrokenPipeError) as error:
            tail = self._log.read_text(encoding="utf-8", errors="replace")[-500:]
            raise ScorerFailed(f"the scorer's process ended while it was asked to {ask}: {tail or error}") from error
        if "error" in said:
            raise ScorerFailed(f"the scorer was asked to {ask}: {said['error']}")
        return said, out


class RemoteScorer(Scorer):
    """A scorer that lives there. It says what it is; that it keeps to it is what the audit finds out."""

    def __init__(self, process: ScorerProcess, opening: dict[str, Any]) -> None:
        self._process = process
        self.trained_while_scoring = 0
        self._hear(process.ask("open", **opening)[0])

    def _hear(self, said: Mapping[str, Any]) -> int:
        self.vocab, self.exposed = int(said["vocab"]), bool(said["exposed"])
        self.normalised, self.log_probabilities = bool(said["normalised"]), bool(said["log_probabilities"])
        self.trained_tokens = int(said["trained_tokens"])
        return int(said["trained"])

    def reset(self) -> None:
        """Forget everything that was not in the archive."""
        self._hear(self._process.ask("reset")[0])

    def score(self, inputs_BT: Tensor, scored: int) -> Tensor:
        """logits_BSV."""
        said, (logits_BSV,) = self._process.ask("score", [inputs_BT.numpy()], scored=scored)
        self.trained_while_scoring += self._hear(said)
        return torch.from_numpy(logits_BSV)

    def price(self, inputs_BT: Tensor, scored: int, targets_KM: Tensor) -> Tensor:
        """nll_KM."""
        said, (nll_KM,) = self._process.ask("price", [inputs_BT.numpy(), targets_KM.numpy()], scored=scored)
        self.trained_while_scoring += self._hear(said)
        return torch.from_numpy(nll_KM)

    def update(self, tokens: Tensor, index: int) -> None:
        """Learn from a scored chunk."""
        self._hear(self._process.ask("update", [tokens.numpy()], index=index)[0])

    def expose(self, tokens_N1: Tensor) -> None:
        """Take the whole stream."""
        self._hear(self._process.ask("expose", [tokens_N1.numpy()])[0])

    def state(self) -> Iterable[State]:
        """Hashes of its parts, made over there."""
        said, _ = self._process.ask("state")
        return [(name, digest.encode()) for name, digest in said["state"].items()]
