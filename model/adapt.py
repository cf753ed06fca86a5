"""Score-first test-time training: after a chunk is scored, train on it; later chunks are scored with the new weights.

Between updates the network holds the weights that score: the learned ones, or with Polyak averaging their shadow.

Letters: R rows of a chunk, T inputs of a row, N tokens of a chunk, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.descent import Compute, Diverged, Stepper
from model.protocol import Adaptation


def learning_rate(settings: Adaptation, chunk: int) -> float:
    """The rate on a chunk: warm-up, then a cosine to 0 at the last chunk of the horizon and after it, times the ramp.

    PR #714: the cosine alone. PR #1232: (chunk + 1) / W over the first W chunks, 5 % of them, then the cosine over the
    others. PR #1033: cosine * (1 + 2 min(chunk / (0.3 horizon), 1)).
    """
    horizon = settings.horizon_chunks
    if not horizon:
        return settings.lr
    warmup = max(int(horizon * settings.warmup_share), 1) if settings.warmup_share else 0
    if chunk < warmup:
        scale = (chunk + 1) / warmup
    else:
        done = min((chunk - warmup) / max(horizon - 1 - warmup, 1), 1.0)
        scale = 0.5 * (1 + math.cos(math.pi * done))
    ramp = 1 + settings.ramp_gain * min(chunk / (settings.ramp_share * horizon), 1.0) if settings.ramp_gain else 1.0
    return settings.lr * scale * ramp


class Adapter:
    """Trains a network on scored chunks. Optimizer state carries over from chunk to chunk.

    `compute` says how the network is called (as it is, on one process, when not given). `bytes_V` are the weights of
    target tokens in a byte-weighted loss. `bos` marks where documents start, for adapters that forget at each.
    """

    def __init__(
        self,
        network: nn.Module,
        settings: Adaptation,
        context: int,
        compute: Compute | None = None,
        bytes_V: Tensor | None = None,
        bos: int = -1,
    ) -> None:
        compute = compute or Compute(forward=network)
        lora = settings.lora if settings.lora.rank else None
        self._stepper = Stepper(network, settings, compute, lora=lora)
        self._settings, self._context, self._bos = settings, context, bos
        if settings.byte_weighted and bytes_V is None:
            raise ValueError("a byte-weighted loss needs the bytes of each token; ttt.byte_weighted came without them")
        if settings.lora.reset == "document" and bos < 0:
            raise ValueError(
                "adapters forget at a document's BOS; this tokenizer has none; use ttt.lora.reset 'chunk' or 'never'"
            )
        self._bytes_V = bytes_V.to(self._stepper.device) if settings.byte_weighted and bytes_V is not None else None
        self._shadows = [tensor.clone() for tensor in self._stepper.tensors] if settings.polyak_decay else []

    @property
    def steps(self) -> int:
        """Optimizer steps so far."""
        return self._stepper.steps

    @property
    def trained_tokens(self) -> int:
        """Inputs that went forward in training so far, by all ranks."""
        return self._stepper.tokens

    @property
    def adapting(self) -> int:
        """How many numbers learn."""
        return self._stepper.learning

    def update(self, tokens_N: Tensor, chunk: int) -> None:
        """Train on the whole rows of a chunk's tokens, N = targets + 1; what is left over is not trained on."""
        self._swap()
        inputs_RT, targets_RT, weights_RT = self._rows(tokens_N)
        size, lr = self._settings.batch_sequences, learning_rate(self._settings, chunk)
        norms: list[Tensor] = []
        for _ in range(self._settings.epochs):
            for begin in range(0, len(inputs_RT), size):
                batch = slice(begin, begin + size)
                shares_RT = weights_RT[batch] / weights_RT[batch].sum().clamp_min(1e-6)
                norms.append(self._stepper.step(inputs_RT[batch], targets_RT[batch], shares_RT, lr)[0])
                self._follow()
        self._stepper.release()
        self._swap()
        if norms and not torch.stack(norms).isfinite().all():
            raise Diverged(f"adaptation keeps gradients finite; on chunk {chunk} they are not; lower ttt.lr")

    def _rows(self, tokens_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, targets and the targets' weights; adapters that forget at each document see the last one only."""
        context, reset, padding = self._context, self._settings.lora.reset, 0
        if reset == "chunk":
            self._stepper.restart()
        elif reset == "document":
            starts = (tokens_N == self._bos).nonzero()
            if len(starts):
                self._stepper.restart()
                tokens_N = tokens_N[int(starts[-1]) :]
            padding = -(len(tokens_N) - 1) % context  # documents are short: a row that is not full counts as well
        targets = len(tokens_N) - 1
        rows = (targets + padding) // context
        tokens_N = functional.pad(tokens_N, (0, padding)).to(self._stepper.device)
        inputs_RT = tokens_N[: rows * context].view(rows, context)
        targets_RT = tokens_N[1 : rows * context + 1].view(rows, context)
        weights_RT = (
            torch.ones(rows, context, device=tokens_N.device) if self._bytes_V is None else self._bytes_V[targets_RT]
        )
        if padding:
            weights_RT.view(-1)[targets:] = 0.0
        if self._stepper.blind:
            weights_RT[:, : self._stepper.blind] = 0.0
        return inputs_RT, targets_RT, weights_RT

    def _follow(self) -> None:
        """Move the shadow towards the learned weights."""
        if self._shadows:
            for shadow, learned in zip(self._shadows, self._stepper.tensors, strict=True):
                shadow.lerp_(learned, 1 - self._settings.polyak_decay)

    def _swap(self) -> None:
        """Exchange the learned weights and their shadow."""
        if not self._shadows:
            return
        for learned, shadow in zip(self._stepper.tensors, self._shadows, strict=True):
            kept = learned.clone()
            learned.copy_(shadow)
            shadow.copy_(kept)
        for learner in self._stepper.learners:
            learner.write()
