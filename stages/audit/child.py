"""`python -m stages.audit.child`: a scorer in a process of its own, which reads questions and writes answers.

It is started in an empty folder that holds the archive and the tokenizer, and is told nothing else but the protocol:
no path of validation data, and no environment but what a program needs. See `wire.py` for the messages.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from stages.audit.ours import ProtocolScorer
from stages.audit.state import digests
from stages.audit.watch import watch_training
from stages.audit.wire import WireError, receive, send
from stages.contract import Device, Runtime, die_with_parent
from stages.device import torch_device


def serve(questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the questions end."""
    scorer: ProtocolScorer | None = None
    while True:
        try:
            header, arrays = receive(questions)
        except WireError:
            return
        try:
            if header["ask"] == "open":
                scorer = _open(header)
            assert scorer is not None
            with watch_training() as seen:
                said, out = _answer(scorer, header, [torch.from_numpy(array) for array in arrays])
            said |= {"trained": seen.gradients + seen.steps, "trained_tokens": scorer.trained_tokens}
        except Exception as error:  # noqa: BLE001 - whatever happened, the one who asked must hear of it
            said, out = {"error": f"{type(error).__name__}: {error}"}, []
        send(answers, said, out)


def _open(header: dict[str, Any]) -> ProtocolScorer:
    here = Path.cwd()
    device = torch_device(Runtime(scratch=here, checkpoints=here, device=Device(**header["device"])))
    return ProtocolScorer(here, header["protocol"], device, whole=header["whole"])


def _answer(
    scorer: ProtocolScorer, header: dict[str, Any], tensors: list[torch.Tensor]
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Do what is asked; returns what to say and the arrays that go with it."""
    ask = header["ask"]
    if ask == "score":
        return _facts(scorer), [scorer.score(tensors[0], header["scored"]).numpy()]
    if ask == "price":
        return _facts(scorer), [scorer.price(tensors[0], header["scored"], tensors[1]).numpy()]
    if ask == "update":
        scorer.update(tensors[0], header["index"])
    elif ask == "expose":
        scorer.expose(tensors[0])
    elif ask == "reset":
        scorer.reset()
    elif ask == "state":
        return {"state": digests(scorer.state())}, []
    return _facts(scorer), []


def _facts(scorer: ProtocolScorer) -> dict[str, Any]:
    return {name: getattr(scorer, name) for name in ("vocab", "normalised", "log_probabilities", "exposed")}


def main() -> None:
    """Keep the pipe to ourselves: what a library prints goes to the log."""
    die_with_parent()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
