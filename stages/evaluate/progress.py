"""How far a scoring pass is."""

from __future__ import annotations

import math
import time

from model.ledger import bits_per_byte
from model.referee import Referee
from stages.contract import Runtime

_PROGRESS_S = 0.5


class Progress:
    """Tells the flow how far this rank is and what the closed spans cost, a few times a second at most."""

    def __init__(self, runtime: Runtime, referee: Referee) -> None:
        self._runtime, self._referee, self._last_s = runtime, referee, -math.inf

    def adapted(self, done: int, total: int, loss: float) -> None:
        """Report epochs of adaptation before scoring."""
        self._runtime.report_progress(done, total, "epochs", loss=loss)

    def scored(self, targets: int) -> None:
        """Report targets of this rank's share."""
        now_s, total = time.monotonic(), self._referee.windows.targets
        done = min(targets * self._runtime.world, total)
        if now_s - self._last_s < _PROGRESS_S and done < total:
            return
        self._last_s = now_s
        account = self._referee.ledger.account
        so_far = {"bpb": bits_per_byte(account.nats, account.bytes)} if account.bytes else {}
        self._runtime.report_progress(done, total, "targets", **so_far)
