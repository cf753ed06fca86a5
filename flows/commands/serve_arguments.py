"""Arguments of the commands that need a Prefect server. Imported with the command line, so it imports nothing."""

from __future__ import annotations

import argparse
from collections.abc import Callable

SERVER_COMMANDS = ("up", "down", "deploy", "worker")
DEFAULT_STORE = ".fairway"
DEFAULT_FOLDER = ".fairway/up"
OPENS_NO_STORE = (*SERVER_COMMANDS, "schedule", "recipes", "credentials")


def add_server(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    common: Callable[[argparse.ArgumentParser], argparse.ArgumentParser],
) -> None:
    """Add them."""

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return _folder(common(commands.add_parser(name, help=text, description=text)))

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
        each.add_argument(
            "--notify", default="", metavar="TYPE/NAME",
            help="notification block that is told of failed audits and new best scores, such as slack-webhook/team",
        )  # fmt: skip
        each.add_argument("--prune", action="store_true", help="delete deployments that this checkout does not have")
    worker = command("worker", "run a worker of a pool here, in the foreground; this folder is its home")
    worker.add_argument("--pool", required=True, help="the pool")
    worker.add_argument(
        "--limit", type=int, default=1, help="stages at once (default: 1); 0, for runs: the pool's limit"
    )
    worker.add_argument("--name", default="", help="its name on the page (default: host and pool)")
    _add_schedule(commands, common)
    _add_credentials(commands, common)


def _add_schedule(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    common: Callable[[argparse.ArgumentParser], argparse.ArgumentParser],
) -> None:
    schedule = commands.add_parser("schedule", help="repeat seeds at set times, on a Prefect server")
    actions = schedule.add_subparsers(dest="action", required=True, metavar="ACTION")
    seeds = _folder(common(actions.add_parser("seeds", help="several seeds of a recipe, again and again")))
    seeds.add_argument("recipe", help="a built-in recipe or a .toml file, whose text the server keeps")
    seeds.add_argument("--seeds", default="42,1337,2025", help="seeds of the training (default: 42,1337,2025)")
    seeds.add_argument("--cron", required=True, help='when, such as "0 2 * * *"')
    seeds.add_argument("--timezone", default="UTC", help="of the cron fields (default: UTC)")
    seeds.add_argument("--scale", default="full", help="smoke, one-gpu or full (default)")
    seeds.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override a field")
    seeds.add_argument("--pool", default="", help="pool of the accelerated stages (default: the deployment's)")
    seeds.add_argument("--name", default="", help="name of the schedule (default: of recipe, scale and kind)")
    seeds.add_argument("--paused", action="store_true", help="made, and off until somebody turns it on")
    how = seeds.add_mutually_exclusive_group(required=True)
    how.add_argument("--fresh", action="store_true", help="true repeats: accelerated stages run again each time")
    how.add_argument("--watch", action="store_true", help="run only if code, configuration or data changed")
    _folder(common(actions.add_parser("ls", help="every schedule")))
    remove = _folder(common(actions.add_parser("rm", help="delete a schedule")))
    remove.add_argument("schedule", help="its name")


def _add_credentials(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    common: Callable[[argparse.ArgumentParser], argparse.ArgumentParser],
) -> None:
    text = "a store's credentials as a block of the Prefect server"
    keys = commands.add_parser("credentials", help=text, description=text)
    actions = keys.add_subparsers(dest="action", required=True, metavar="ACTION")
    save = _folder(common(actions.add_parser("save", help="make or replace a block; values never come as arguments")))
    save.add_argument("name", help="of the block, such as lab")
    save.add_argument(
        "--stdin", action="store_true",
        help="read one JSON object of fields (default: the variables in which the store's driver would look)",
    )  # fmt: skip
    check = _folder(common(actions.add_parser("check", help="open the store with a block's values")))
    check.add_argument("name", help="of the block, or type/name")
    _folder(common(actions.add_parser("ls", help="blocks that can open a store")))


def add_steering(
    actions: argparse._SubParsersAction[argparse.ArgumentParser],
    common: Callable[[argparse.ArgumentParser], argparse.ArgumentParser],
) -> None:
    """`runs logs`, `cancel`, `retry`."""
    for action, text in (
        ("logs", "the logs of a run's stages"),
        ("cancel", "stop a run; its stages write a checkpoint"),
        ("retry", "run again what a run was asked for; what is in the store is not made again"),
    ):
        command = _folder(common(actions.add_parser(action, help=text)))
        command.add_argument("run", help="run id, or a part of it that no other has")
        if action == "logs":
            command.add_argument("stage", nargs="?", default="", help="only this stage")
            command.add_argument("--follow", "-f", action="store_true", help="print what comes until the run has ended")


def add_pool(run: argparse.ArgumentParser) -> None:
    """`run --pool`."""
    run.add_argument("--pool", default="", help="Prefect work pool of the accelerated stages (default: this machine)")
    _folder(run)


def add_doctor(doctor: argparse.ArgumentParser) -> None:
    """`doctor --pool`."""
    doctor.add_argument("--pool", default="", help="ask the workers of this pool whether a stage would run there")
    _folder(doctor)


def _folder(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    command.add_argument("--folder", default=DEFAULT_FOLDER, help="where `up` keeps its state (default: .fairway/up)")
    return command
