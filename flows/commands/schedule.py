"""`fairway schedule`."""

from __future__ import annotations

import argparse
import sys

from flows.commands.seeds import parse_seeds
from flows.commands.serve import use_server
from flows.commands.serve_arguments import DEFAULT_STORE
from flows.tables import print_json, print_table


def schedule(arguments: argparse.Namespace) -> int:
    """Make, list or remove schedules of seeds."""
    use_server(arguments.folder)
    from flows.schedule import Repeated, add, listed, remove  # imports Prefect

    if arguments.action == "seeds":
        wanted = Repeated(
            recipe=arguments.recipe,
            seeds=parse_seeds(arguments.seeds),
            cron=arguments.cron,
            timezone=arguments.timezone,
            scale=arguments.scale,
            overrides=tuple(arguments.set),
            pool=arguments.pool,
            fresh=arguments.fresh,
            store=_store(arguments.store),
            credentials=arguments.credentials or "",
            name=arguments.name,
            active=not arguments.paused,
        )
        told = add(wanted)
        text = f"{told}: {wanted.cron} {wanted.timezone}{'' if wanted.active else ', paused'}"
    elif arguments.action == "rm":
        remove(arguments.schedule)
        told = arguments.schedule
        text = f"{told}: removed; runs that it has started go on"
    else:
        lines = listed()
        if arguments.json:
            print_json({"schedules": lines})
        else:
            names = ["schedule", "cron", "timezone", "active", "recipe", "scale", "seeds", "how", "pool"]
            print_table(names, [[_text(line[name]) for name in names] for line in lines])
        return 0
    if arguments.json:
        print_json({"schedule": told})
    else:
        sys.stdout.write(f"{text}\n")
    return 0


def _store(given: str) -> str:
    """A store that was asked for, as workers know it; nothing for the default, which is the deployment's."""
    from flows.deploy import shared_store

    return "" if given == DEFAULT_STORE else shared_store(given)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "paused"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
