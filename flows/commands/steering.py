"""`fairway runs cancel` and `retry`: of runs on this machine, and of runs that a server's workers carry out."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from artifacts.store import Store
from flows.asked import asked_again
from flows.commands.serve import use_server
from flows.prepare import Request
from flows.rundoc import find_run
from flows.tables import print_json
from stages.contract import StageError

Document = dict[str, Any]


def _found(store: Store, arguments: argparse.Namespace) -> Document:
    document = find_run(store, arguments.run)
    arguments.run = document["id"]  # what was typed may be a part of it
    return document


def cancel(arguments: argparse.Namespace) -> int:
    """Stop a run: its stages write a checkpoint, the next run goes on from there."""
    document = _found(Store.open(arguments.store), arguments)
    if document["state"] != "running":
        raise StageError(f"only a run that goes on can be cancelled; {arguments.run} is {document['state']}")
    if document.get("flow_run"):
        use_server(arguments.folder)
        _set_state(document["flow_run"], "CANCELLING", "Cancelling")
    else:
        _signal(document)
    return _said(arguments, "asked to stop")


def _signal(document: Document) -> None:
    here = socket.gethostname()
    if document["host"] != here:
        raise StageError(
            f"a run without a server is cancelled on its own machine; it is on {document['host']}, not {here}"
        )
    try:
        line = Path(f"/proc/{document['pid']}/cmdline").read_bytes()
    except OSError:
        line = b""
    if b"fairway" not in line and b"flows" not in line:
        raise StageError(f"the process {document['pid']} of this run is gone; `fairway runs ls` will call it crashed")
    os.kill(document["pid"], signal.SIGTERM)


def retry(arguments: argparse.Namespace) -> int:
    """Run again what a run was asked for; what is in the store is not made again."""
    document = _found(Store.open(arguments.store), arguments)
    if document["state"] == "running":
        raise StageError(f"only a run that has ended can be retried; {arguments.run} is running; cancel it first")
    if document.get("flow_run"):
        use_server(arguments.folder)
        _set_state(document["flow_run"], "SCHEDULED", "AwaitingRetry")
        return _said(arguments, "scheduled again")
    from flows.commands.run import run_request

    with asked_again(document) as again:
        return run_request(
            Request(
                recipe=again["asked"],
                scale=document["scale"],
                seed=document["seed"],
                overrides=tuple(document["overrides"]),
                store=arguments.store,
                argv=tuple(sys.argv),
            ),
            arguments.json,
        )


def _set_state(flow_run: str, kind: str, name: str) -> None:
    from uuid import UUID

    from prefect.client.orchestration import get_client  # a run on one machine needs no client
    from prefect.client.schemas.objects import State, StateType
    from prefect.exceptions import ObjectNotFound

    state: State[Any] = State(type=StateType(kind), name=name)
    try:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(UUID(flow_run), state, force=kind == "SCHEDULED")
    except ObjectNotFound as error:
        raise StageError(f"the Prefect server has no run {flow_run}; does PREFECT_API_URL name another?") from error


def _said(arguments: argparse.Namespace, what: str) -> int:
    if arguments.json:
        print_json({"run": arguments.run, "did": what})
    else:
        sys.stdout.write(f"{arguments.run}: {what}\n")
    return 0
