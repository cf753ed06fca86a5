"""`fairway score`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from flows.foreign import Question, inspect, score
from flows.show import PlainRun
from flows.tables import print_json, print_table, seconds_text


def score_file(arguments: argparse.Namespace) -> int:
    """Score an archive or a weights file that was made elsewhere."""
    given = inspect(Path(arguments.file))
    question = Question(
        recipe=arguments.recipe,
        scale=arguments.scale,
        overrides=tuple(arguments.set),
        protocols=tuple(arguments.protocol),
        val=arguments.val,
        tokenizer=arguments.tokenizer,
        store=arguments.store,
        cores=arguments.cores,
        argv=tuple(sys.argv),
    )
    with PlainRun(sys.stderr) as viewer:
        result = score(given, question, viewer)
    if arguments.json:
        print_json(result)
        return 0
    headings = ["protocol", "BPB", "nats/token", "tokens", "bytes", "took", "marks", "verdict"]
    title = f"{result['file']} · {result['kind']} of {result['bytes']:,} bytes · sha256 {result['sha256'][:16]}"
    print_table(headings, [_row(*each) for each in result["scores"].items()], title, "BPB nats/token tokens bytes took")
    return 0


def _row(name: str, each: dict[str, Any]) -> list[str]:
    took = "" if each["seconds"] is None else seconds_text(each["seconds"])
    return [
        name,
        f"{each['bpb']:.6f}",
        f"{each['nats_per_token']:.6f}",
        f"{each['tokens']:,}",
        f"{each['bytes']:,}",
        took,
        ", ".join(each["marks"]),
        each["verdict"],
    ]
