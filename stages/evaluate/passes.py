"""One scoring pass, set up as evaluate runs it; what it is made of is in `model/protocol.py`."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from model.bytes import ByteTable
from model.ledger import Excerpt, Ledger, bits_per_byte
from model.pre_eval import RULES, PreAdapter
from model.protocol import Protocol, windows_of
from model.referee import Referee
from model.stream import TokenStream
from stages.contract import Runtime

_PROGRESS_S = 0.5


def make_referee(
    protocol: Protocol,
    stream: TokenStream,
    table: ByteTable,
    vocab: int,
    excerpts: Sequence[Excerpt],
    runtime: Runtime,
) -> Referee:
    """The referee of this rank, with an empty ledger."""
    windows = windows_of(protocol, len(stream))
    return Referee(
        stream,
        windows,
        Ledger(table, windows.context, windows.targets, excerpts),
        vocab=vocab,
        batch_windows=protocol.batch_windows,
        chunk=protocol.chunk_tokens,
        rank=runtime.rank,
        world=runtime.world,
    )


def adapt_first(referee: Referee, pre_adapter: PreAdapter, progress: Progress) -> list[dict[str, float]]:
    """Train on all of the stream before it is scored; the score carries every rule that this breaks."""
    (first, why), *also = RULES.items()
    return pre_adapter.run(referee.exception(first, why, **dict(also)), progress.epochs)


class Progress:
    """Tells the flow how far this rank is and what the closed spans cost, a few times a second at most."""

    def __init__(self, runtime: Runtime, referee: Referee) -> None:
        self._runtime, self._referee, self._last_s = runtime, referee, -math.inf

    def epochs(self, done: int, total: int, loss: float) -> None:
        """Report epochs of adaptation before scoring."""
        self._runtime.report_progress(done, total, "epochs", loss=loss)

    def __call__(self, scored: int) -> None:
        """Report `scored` targets of this rank's share."""
        now_s, total = time.monotonic(), self._referee.windows.targets
        done = min(scored * self._runtime.world, total)
        if now_s - self._last_s < _PROGRESS_S and done < total:
            return
        self._last_s = now_s
        account = self._referee.ledger.account
        so_far = {"bpb": bits_per_byte(account.nats, account.bytes)} if account.bytes else {}
        self._runtime.report_progress(done, total, "targets", **so_far)
