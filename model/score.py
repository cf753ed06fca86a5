"""The scoring loop: the referee's windows through a network, and adaptation where the referee allows it.

Letters: B windows, T inputs of a window, S scored positions of each, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from model.adapt import Adapter
from model.mixer import Mixer
from model.referee import Referee

Forward = Callable[[Tensor, int], Tensor]
"""(inputs_BT, scored) -> logits_BSV of the last S = `scored` positions."""


class Scorer:
    """Runs a network on handed-out inputs, without gradients.

    `shape` (batch, length) is that of a batch in the middle of a stream. Every window is padded to its length: a
    network may tell windows of different lengths apart (rotary bases do, by the NTK rule), the last window's is a
    matter of where the stream ends, and that no price may know. With `whole_batches` batches are padded as well, so
    that a compiled network is compiled for two numbers of scored positions and not for every shape at the edges of a
    stream. Padding lies to the right and below: a causal network does not see it. Without a `shape` nothing is padded,
    as in the published code.
    """

    def __init__(
        self,
        network: Callable[..., Tensor],
        device: torch.device,
        dtype: torch.dtype,
        shape: tuple[int, int] | None = None,
        whole_batches: bool = False,
    ) -> None:
        self._network, self._device, self._dtype = network, device, dtype
        self._shape, self._whole_batches = shape, whole_batches

    def __call__(self, inputs_BT: Tensor, scored: int) -> Tensor:
        """Return logits_BSV, in fp32, on the device."""
        batch, length = inputs_BT.shape
        last = scored
        if self._shape is not None:
            rows, columns = self._shape if self._whole_batches else (batch, self._shape[1])
            if (batch, length) != (rows, columns):
                inputs_BT = functional.pad(inputs_BT, (0, columns - length, 0, rows - batch))
                # Two values of `last` are two graphs; every irregular window shares the second.
                last = scored if length == columns else columns
        first = last - scored - (inputs_BT.shape[1] - length)
        with torch.inference_mode(), autocast(self._device, self._dtype):
            logits = self._network(inputs_BT.to(self._device, non_blocking=True), last=last)
        return logits[:batch, first : first + scored]


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Matrix arithmetic in `dtype` over fp32 parameters."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def score(
    referee: Referee,
    forward: Forward,
    adapter: Adapter | None = None,
    report: Callable[[int], None] = lambda _targets: None,
    mixer: Mixer | None = None,
    temperature: float = 1.0,
) -> None:
    """Score the referee's whole stream; `adapter` trains on each chunk that is scored, save the last.

    Logits are divided by `temperature`; then `mixer` blends them with an expert that learns from each scored chunk.

    The result is in the referee's ledger. `report` hears the targets that this rank has scored so far.
    """
    scored = 0
    while referee.open_span() is not None:
        while (handout := referee.take()) is not None:
            logits_KV = forward(handout.inputs_BT, handout.scored).flatten(0, 1)
            logits_KV = logits_KV if temperature == 1 else logits_KV / temperature
            if mixer is None:
                referee.commit(handout.lo, logits_KV)
            else:
                mixer.commit(referee, handout, logits_KV)
            scored += handout.hi - handout.lo
            report(scored)
        revealed = referee.close_span()
        if mixer is not None:
            mixer.update(revealed)
        if adapter is not None and not referee.finished:
            adapter.update(revealed.tokens, revealed.index)
