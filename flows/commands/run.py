"""`fairway run`."""

from __future__ import annotations

import argparse
import json
import sys

from flows import show
from flows.prepare import Request, prepare
from flows.server import quiet


def run(arguments: argparse.Namespace) -> int:
    """Run a recipe and print its result."""
    request = Request(
        recipe=arguments.recipe,
        scale=arguments.scale,
        seed=arguments.seed,
        overrides=tuple(arguments.set),
        store=arguments.store,
        start=arguments.start,
        until=arguments.until,
        force=tuple(arguments.force),
        cores=arguments.cores,
        stage_limit_s=arguments.stage_limit,
        pool=arguments.pool,
        argv=tuple(sys.argv),
    )
    if request.pool:
        from flows.commands.serve import use_server

        use_server(arguments.folder)
    return run_request(request, arguments.json)


def run_request(request: Request, as_json: bool) -> int:
    """Run a request and print its result."""
    viewer = show.viewer()
    with prepare(request, viewer) as prepared:
        quiet()
        from flows import pipeline  # imports Prefect, which a wrong recipe must not wait for

        with viewer:
            result = pipeline.run(prepared)
    if as_json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        show.print_result(result)
    return 0
