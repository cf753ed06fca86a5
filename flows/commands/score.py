"""`fairway score`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.foreign import Question, inspect, score
from flows.show import PlainRun
from flows.tables import print_json, print_table, seconds_text
from stages.contract import StageError
from stages.urls import filesystem


def score_file(arguments: argparse.Namespace) -> int:
    """Score an archive or a weights file that was made elsewhere."""
    with local_copy(arguments.file) as path:
        return _score(path, arguments)


@contextmanager
def local_copy(source: str) -> Iterator[Path]:
    """A file of this host with what lies at a path or URL; a copy goes at the end. Raises StageError."""
    if "://" not in source:
        yield Path(source)
        return
    fs, inside = filesystem(source)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, inside.rsplit("/", 1)[-1])
        try:
            fs.get_file(inside, str(path))
        except Exception as error:  # every filesystem has errors of its own
            raise StageError(f"score reads a file; {source} is not there: {type(error).__name__}: {error}") from error
        yield path


def _score(path: Path, arguments: argparse.Namespace) -> int:
    given = inspect(path)
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
