"""`fairway credentials`: a store's credentials as a block of the Prefect server. Values come from no argument."""

from __future__ import annotations

import argparse
import json
import sys
from uuid import uuid4

from artifacts.backend import open_backend
from artifacts.store import Store
from flows.commands.serve import use_server
from flows.commands.serve_arguments import DEFAULT_FOLDER
from flows.tables import print_json, print_table
from stages.contract import StageError


def let_in(store: str, name: str, folder: str = DEFAULT_FOLDER) -> None:
    """Read the block of that name, or of FAIRWAY_STORE_CREDENTIALS, into this process's memory. Errors of `use`."""
    use_server(folder)
    from flows import blocks  # imports Prefect

    blocks.use(store, name)


def credentials(arguments: argparse.Namespace) -> int:
    """Whichever of them it is."""
    use_server(arguments.folder)
    actions = {"save": save, "check": check, "ls": ls}
    return actions[arguments.action](arguments)


def save(arguments: argparse.Namespace) -> int:
    """Make or replace a block."""
    from flows import blocks

    if arguments.stdin:
        fields = _read_stdin()
    elif not (fields := blocks.from_environment(arguments.store)):
        slug = blocks.own_type(arguments.store).get_block_type_slug()
        variables = ", ".join(blocks.TYPES[slug].environment.values())
        raise StageError(
            f"the values of a block come from the environment or with --stdin; none of {variables} is set; set them, "
            "or pipe a JSON object of fields in"
        )
    name = blocks.save(arguments.name, arguments.store, fields)
    if arguments.json:
        print_json({"block": name, "fields": sorted(fields)})
    else:
        sys.stdout.write(f"{name} has {', '.join(sorted(fields))}\n")
    return 0


def _read_stdin() -> dict[str, str]:
    try:
        fields = json.load(sys.stdin)
    except ValueError:
        fields = None
    if not isinstance(fields, dict) or not all(isinstance(value, str) for value in fields.values()):
        # What came is not shown: it is a secret.
        raise StageError('--stdin takes one JSON object of texts, such as {"access_key": "...", "secret_key": "..."}')
    return fields


def check(arguments: argparse.Namespace) -> int:
    """Open the store with a block's values: StoreRefused if they are wrong, StoreUnavailable without a bucket."""
    from flows import blocks

    blocks.own_type(arguments.store)
    name = blocks.use(arguments.store, arguments.name)
    count = sum(1 for _ in Store.open(arguments.store).records())
    if not count:
        _try_to_write(arguments.store)
    if arguments.json:
        print_json({"block": name, "store": arguments.store, "artifacts": count})
    else:
        sys.stdout.write(f"{name} opens {arguments.store}, which has {count} artifacts\n")
    return 0


def _try_to_write(store: str) -> None:
    """A bucket that is not there lists as an empty one; whoever comes to an empty store comes to write."""
    backend, path = open_backend(store), f"tmp/check-{uuid4().hex}"
    backend.write(path, b"")
    backend.delete(path)


def ls(arguments: argparse.Namespace) -> int:
    """Blocks by name; no value is asked for."""
    from flows import blocks

    lines = blocks.listed()
    if arguments.json:
        print_json(lines)
    else:
        print_table(["block", "for"], [[line["block"], line["for"]] for line in lines])
    return 0
