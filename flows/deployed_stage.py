"""The flow `stage`: one stage of a run that goes on elsewhere. It runs what it is sent, and starts no run itself.

Workers import this module from their own checkout (its name is the deployment's entry point). It stands alone because
each stage waits for its import: nothing that drives or reports a run belongs here.
"""

from __future__ import annotations

import os
from typing import Any, cast

from prefect import flow, get_run_logger
from prefect.logging.loggers import PrefectLogAdapter

from flows.remote_stage import carry_out, home
from flows.vigil import own_id


@flow(name="stage", persist_result=False, validate_parameters=False)
def stage(
    stage: str = "",
    part: str = "",
    key: str = "",
    source: str = "",
    store: str = "",
    config: dict[str, Any] | None = None,
    components: dict[str, Any] | None = None,
    inputs: dict[str, Any] | None = None,
    seed: int | None = None,
    device: dict[str, Any] | None = None,
    attempt: int = 0,
    forced: bool = False,
    deadline_s: float | None = None,
    run: str = "",
    provenance: dict[str, Any] | None = None,
    format: int = 0,
    credentials: str = "",
    preflight: bool = False,
) -> Any:
    """One stage of a run, sent by value; see `remote.Assignment`. `preflight` asks only what this machine has."""
    sent = {name: value for name, value in locals().items() if name != "preflight"}
    os.chdir(home())
    if preflight:
        from flows.preflight import answer

        return answer(store, credentials)
    log = cast(PrefectLogAdapter, get_run_logger())  # which is declared as less than it is
    return carry_out({**sent, "provenance": provenance or {}}, own_id(), log)
