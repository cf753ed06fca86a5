"""Rows to test against: those of the public board, which are data, or a file of one's own.

A row is comparable when its scores were counted over the same text; the denominator's bytes tell.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

from configs.complaints import nearest
from configs.load import FOLDER
from flows.statistics import Scores, estimate
from flows.validation import same_size
from stages.contract import StageError

URL = "https://github.com/openai/parameter-golf/pull/{}"


@dataclass(frozen=True)
class Reference:
    """A row: its scores, and what they were counted over."""

    name: str
    scores: Scores
    text_bytes: int | None  # None: not known
    source: str
    about: str = ""
    seeds: tuple[int, ...] = ()  # of the values, in their order; empty: not known
    ours: bool = False  # made by Fairway, so that equal seeds are equal initial weights and batches
    validation: str = ""  # of ours: the name of its data


def reference(text: str) -> Reference:
    """The row of the public board with this number, or the row in a .toml or .json file.

    Raises:
        StageError: there is no such row, or the file holds none.
    """
    if text.endswith((".toml", ".json")):
        return _from_file(Path(text))
    table, number = board(), text.removeprefix("#")
    if number not in table["rows"]:
        known = sorted(table["rows"], key=int)
        raise StageError(
            f"a reference is a row of the public board, a set of seeds in the store, or a .toml or .json file; got "
            f"{text!r}{nearest(number, known)}; there are {', '.join(known)}"
        )
    row = table["rows"][number]
    return _row(f"#{number}", row, table[row["tokens"]], URL.format(number))


@cache
def board() -> dict[str, Any]:
    """The rows of the public board as data."""
    return tomllib.loads((FOLDER / "reference_rows.toml").read_text(encoding="utf-8"))


def comparable(reference: Reference, text_bytes: int, validation: str) -> bool | None:
    """Whether a row was scored on the data that has this size and name; None if the row does not say."""
    if reference.validation:
        return reference.validation == validation
    return None if reference.text_bytes is None else same_size(reference.text_bytes, text_bytes)


def _row(name: str, row: Mapping[str, Any], tokens: Mapping[str, Any], source: str) -> Reference:
    factor = tokens.get("nats_per_bpb")
    nats = row.get("nats_per_token")
    bpb = row.get("bpb")
    if bpb is None and nats is not None and factor:
        bpb = [value / factor for value in nats]
    if not _numbers(bpb) or not (nats is None or _numbers(nats)):
        raise StageError(
            f"a reference row holds bpb = [...], one number per seed, or nats_per_token = [...] with nats_per_bpb; "
            f"{name} ({source}) does not; write its per-seed values"
        )
    scores = Scores(estimate(bpb), factor, estimate(nats) if nats else None)
    return Reference(name, scores, tokens.get("bytes"), source, row.get("about", ""), tuple(row.get("seeds", ())))


def _numbers(values: object) -> TypeGuard[Sequence[float]]:
    return isinstance(values, Sequence) and bool(values) and all(isinstance(value, int | float) for value in values)


def _from_file(path: Path) -> Reference:
    """A row of one's own, or a challenge submission.json with scores per seed."""
    try:
        text = path.read_text(encoding="utf-8")
        table = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, UnicodeDecodeError, ValueError) as error:  # the errors of both parsers are ValueErrors
        raise StageError(f"a reference file is readable TOML or JSON; {path} is not: {error}; mend it") from error
    if not isinstance(table, dict):
        raise StageError(f"a reference file holds a table; {path} holds {type(table).__name__}; write bpb = [...]")
    results = next((table[name] for name in ("seed_results", "seeds") if isinstance(table.get(name), dict)), None)
    if results is not None and "bpb" not in table:
        table = _submission(results)
    return _row(path.name, table, table, str(path))


def _submission(results: Mapping[str, Any]) -> dict[str, Any]:
    """The per-seed scores of a submission.json; the ratio of its losses tells the tokenizer."""
    rows = [row for row in results.values() if isinstance(row, dict) and isinstance(row.get("val_bpb"), int | float)]
    bpb = [row["val_bpb"] for row in rows]
    nats = [row["val_loss"] for row in rows if isinstance(row.get("val_loss"), int | float)]
    ratio = {"nats_per_token": nats, "nats_per_bpb": sum(nats) / sum(bpb)} if nats and len(nats) == len(bpb) else {}
    return {"bpb": bpb, **ratio}
