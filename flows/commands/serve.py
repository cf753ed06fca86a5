"""`fairway up`, `down`, `deploy` and `worker`."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from artifacts.errors import StoreRefused, StoreUnavailable, StoreUnsupported
from artifacts.store import Store
from flows.clock import ahead_s, words
from flows.server import quiet
from flows.tables import print_json
from flows.up import (
    LOOPBACK,
    Running,
    admits,
    answers,
    api_address,
    down,
    erase,
    up,
    worker_command,
    worker_environment,
)
from stages.contract import StageError

# How drivers say that there is nothing to refuse.
_NO_CREDENTIALS = ("NoCredentialsError", "DefaultCredentialsError", "CredentialUnavailableError")


def serve(arguments: argparse.Namespace) -> int:
    """Whichever of them it is."""
    commands = {"up": up_command, "down": down_command, "deploy": deploy_command, "worker": worker_command_line}
    return commands[arguments.command](arguments)


def use_server(folder: str) -> str:
    """The address of the Prefect server for this process. StageError if none is known or it does not answer."""
    os.environ.update(api_address(Path(folder)))
    quiet()
    api = os.environ.get("PREFECT_API_URL", "")
    if not api:
        raise StageError(
            "this command needs a Prefect server; none is configured; start one with `fairway up`, or set "
            "PREFECT_API_URL"
        )
    if not answers(api):
        raise StageError(f"the Prefect server answers; {api} does not; start it, or set PREFECT_API_URL to another")
    if not admits(api):
        raise StageError(
            f"the Prefect server at {api} has a password, and what this machine says is not it; set "
            "PREFECT_API_AUTH_STRING to the server's own (PREFECT_SERVER_API_AUTH_STRING)"
        )
    return api


def up_command(arguments: argparse.Namespace) -> int:
    """Start server and workers, deploy, and say where everything is."""
    folder = Path(arguments.folder)
    if arguments.host not in LOOPBACK:
        sys.stderr.write(
            f"fairway: {arguments.host} is open to the network and Prefect's server has no password by default; "
            "see docs/deploy.md\n"
        )
    home = Path.cwd()
    if not Running.read(folder).alive("server"):
        sys.stderr.write("fairway: starting the server; the first time in a folder takes longest\n")
    try:
        running = up(folder, arguments.host, arguments.port, {}, home)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped waiting; the server goes on starting; `fairway down` ends it") from None
    os.environ["PREFECT_API_URL"] = running.api
    deployed = _deploy(arguments, arguments.cpu_limit)
    # Runs are limited by their pool, over all workers; a GPU machine takes one stage at a time.
    workers = {} if arguments.no_workers else {arguments.cpu_pool: 0, arguments.gpu_pool: 1}
    running = up(folder, arguments.host, arguments.port, workers, home)
    if arguments.json:
        told = {"api": running.api, "processes": sorted(running.processes), "deployments": deployed.names}
        print_json({**told, "store": deployed.store})
        return 0
    sys.stdout.write(
        f"page      {running.api.removesuffix('/api')}\n"
        f"api       export PREFECT_API_URL={running.api}\n"
        f"store     {deployed.store}\n"
        f"running   {', '.join(sorted(running.processes))}; logs in {folder}\n"
        f"start     prefect deployment run score/score -p recipe=quickstart -p scale=smoke\n"
        f"stop      fairway down\n"
    )
    return 0


def down_command(arguments: argparse.Namespace) -> int:
    """Stop what `up` started."""
    folder = Path(arguments.folder)
    if Running.read(folder).alive("server"):
        sys.stderr.write("fairway: stopping; running stages write a checkpoint first, which may take half a minute\n")
    stopped = down(folder)
    if arguments.erase:
        erase(folder)
    if arguments.json:
        print_json({"stopped": stopped})
    else:
        later = "" if arguments.erase else "; runs that were under way go on with the next `fairway up`"
        sys.stdout.write(f"stopped {', '.join(stopped)}{later}\n" if stopped else _nothing(folder))
    return 0


def _nothing(folder: Path) -> str:
    """`down` typed in another folder than `up` finds nothing, while everything runs."""
    return f"nothing was running that `fairway up` started from {folder.absolute()}\n"


def deploy_command(arguments: argparse.Namespace) -> int:
    """Put pools, deployments and automations on the server."""
    api = use_server(arguments.folder)
    deployed = _deploy(arguments)
    if arguments.json:
        print_json({"api": api, "deployments": deployed.names, "store": deployed.store, "deleted": deployed.deleted})
    else:
        gone = f"deleted   {', '.join(deployed.deleted)}\n" if deployed.deleted else ""
        sys.stdout.write(f"server    {api}\nstore     {deployed.store}\ndeployed  {', '.join(deployed.names)}\n{gone}")
    return 0


@dataclass(frozen=True)
class _Deployed:
    """What to tell of a deployment."""

    names: list[str]
    deleted: list[str]
    store: str


def _deploy(arguments: argparse.Namespace, cpu_limit: int | None = None) -> _Deployed:
    quiet()
    from flows.deploy import Plan, deploy, shared_store  # imports Prefect

    if arguments.credentials:
        from flows import blocks

        blocks.register()  # first of all: whoever has no block yet makes one with the page's form
        blocks.use(arguments.store, arguments.credentials)
    _try(arguments.store)
    pools, named = (arguments.cpu_pool, arguments.gpu_pool), arguments.credentials
    plan = Plan(arguments.store, *pools, arguments.prune, named, arguments.notify, cpu_limit)
    deployed = deploy(plan)
    return _Deployed(list(deployed.deployments), list(deployed.pruned), shared_store(arguments.store))


def _try(store: str) -> None:
    """Refuse to deploy a store that can be nowhere, or refuses this machine's credentials, as it would elsewhere.

    A machine that has none, or is not where the store is, may deploy all the same, and hears of it.
    """
    try:
        Store.open(store)
    except StoreUnsupported:
        raise
    except (StoreRefused, StoreUnavailable) as error:
        if isinstance(error, StoreRefused) and not any(name in str(error) for name in _NO_CREDENTIALS):
            raise
        sys.stderr.write(f"fairway: {error}\n")


def worker_command_line(arguments: argparse.Namespace) -> int:
    """Become a worker of a pool; this folder is its home."""
    api = use_server(arguments.folder)
    command = worker_command(arguments.pool, arguments.limit, arguments.name)
    os.environ.update(worker_environment(api, Path.cwd()))
    if difference_s := ahead_s(api):
        sys.stderr.write(f"fairway: this machine's clock is {words(difference_s)}; it is reckoned with, but set it\n")
        # A worker asks for what is due by its own clock.
        prefetch_s = float(os.environ["PREFECT_WORKER_PREFETCH_SECONDS"]) + difference_s
        os.environ["PREFECT_WORKER_PREFETCH_SECONDS"] = f"{prefetch_s:.0f}"
    sys.stdout.flush()
    os.execv(command[0], command)  # its signals and its exit code are ours
    raise AssertionError  # execv does not return
