"""What a stage in a pool has said so far. Prefect's server has it while the stage runs, the store when it has ended.

A stage's run logs the stage's own lines under a name of their own (`said.train` below the run's logger), so that they
can be told from what Prefect, the worker and the bar say in the same log.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId, LogFilterTimestamp
from prefect.exceptions import PrefectException

from flows.signs import SAID
from stages.contract import StageError

PAGE = 200  # the most that a server gives at once
LATE = timedelta(seconds=10)  # by which a line may come after a later one of another process


class Said:
    """Rank 0's lines of one attempt at a stage, and the other ranks' warnings, as they come."""

    def __init__(self, flow_run: str) -> None:
        self._flow_run = LogFilterFlowRunId(any_=[UUID(flow_run)])
        self._since: Any = None  # a time of Prefect's own type
        self._seen: set[UUID | None] = set()

    def lines(self) -> list[str]:
        """Those that are new since the last call. StageError if the server does not give them."""
        try:
            with get_client(sync_client=True) as client:
                return self._read(client)
        except (httpx.HTTPError, PrefectException) as error:
            raise StageError(
                f"what a stage has said so far is asked of the Prefect server, which does not give it: "
                f"{type(error).__name__}; try again, or when the stage has ended: then the store has it"
            ) from error

    def _read(self, client: SyncPrefectClient) -> list[str]:
        asked = LogFilter(flow_run_id=self._flow_run, timestamp=LogFilterTimestamp(after_=self._since))
        told: list[str] = []
        newest, offset = self._since, 0
        while page := client.read_logs(asked, limit=PAGE, offset=offset):
            offset += len(page)
            told += [line.message for line in page if line.id not in self._seen and f".{SAID}." in line.name]
            self._seen.update(line.id for line in page)
            newest = page[-1].timestamp - LATE
        self._since = newest
        return told
