"""`fairway accept OLD [NEW] --reason ...`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from artifacts.store import Store
from flows import show
from flows.accept import SCALE
from flows.accept import accept as prove
from flows.asked import asked_again
from flows.commands.planning import maker
from flows.prepare import Request, prepare
from flows.provenance import user
from flows.tables import print_json


def accept(arguments: argparse.Namespace) -> int:
    """Prove at smoke scale that two states of a stage's code give equal bytes, and record it."""
    store = Store.open(arguments.store)
    old = store.resolve(arguments.old)
    new = store.resolve(arguments.new) if arguments.new else None
    given = {"asked": arguments.recipe} if arguments.recipe else maker(store, old)
    viewer = show.PlainRun(sys.stderr)
    request = Request(recipe=given["asked"], scale=SCALE, store=arguments.store, argv=tuple(sys.argv))
    with (
        asked_again(given) as again,
        prepare(replace(request, recipe=again["asked"]), viewer) as prepared,
        viewer,
    ):
        acceptance = prove(prepared, old, arguments.reason, new, user())
        prepared.session.run.finish("completed")
    compared = acceptance.evidence["compared"]
    if arguments.json:
        print_json({"stage": acceptance.stage, "reason": acceptance.reason, "compared": compared})
    else:
        sys.stdout.write(f"accepted: both codes of {acceptance.stage} give equal bytes in {', '.join(compared)}\n")
    return 0
