"""Arguments of the commands that need a Prefect server. Imported with the command line, so it imports nothing."""

from __future__ import annotations

import argparse
from collections.abc import Callable

SERVER_COMMANDS = ("up", "down", "deploy", "worker")


def add_server(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    common: Callable[[argparse.ArgumentParser], argparse.ArgumentParser],
) -> None:
    """Add them."""

    def command(name: str, text: str) -> argparse.ArgumentParser:
        added = common(commands.add_parser(name, help=text, description=text))
        added.add_argument("--folder", default=".fairway/up", help="where `up` keeps its state (default: .fairway/up)")
        return added

    up = command("up", "start a Prefect server and workers on this machine, and deploy")
    up.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    up.add_argument("--port", type=int, default=4200, help="port of the server (default: 4200)")
    up.add_argument("--cpu-limit", type=int, default=4, help="runs that may be under way at once (default: 4)")
    up.add_argument("--no-workers", action="store_true", help="server and deployments only")
    down = command("down", "stop what `up` started; running stages write a checkpoint")
    down.add_argument("--erase", action="store_true", help="forget the server's history too; artifacts stay")
    deploy = command("deploy", "put pools, deployments and automations on the Prefect server")
    for each in (up, deploy):
        each.add_argument("--cpu-pool", default="cpu", help="pool of the runs (default: cpu)")
        each.add_argument("--gpu-pool", default="gpu", help="pool of the accelerated stages (default: gpu)")
        each.add_argument("--prune", action="store_true", help="delete deployments that this checkout does not have")
    worker = command("worker", "run a worker of a pool here, in the foreground; this folder is its home")
    worker.add_argument("--pool", required=True, help="the pool")
    worker.add_argument("--limit", type=int, default=1, help="runs at once (default: 1; 0: any number)")
    worker.add_argument("--name", default="", help="its name on the page (default: host and pool)")
