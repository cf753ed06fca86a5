"""What a submission.json says, in whichever of its many shapes. Numbers keep the digits that were written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from flows.challenge.log import decimals

BASELINE = ("author", "github_id", "name", "blurb", "date", "val_loss", "val_bpb", "bytes_total", "bytes_code")
_BYTES = ("artifact_bytes", "bytes_total", "total_bytes", "artifact_size_bytes")
_TOTAL = ("bytes_total", "artifact_bytes_max", "artifact_bytes", "artifact_size_bytes")
_DIGITS = 30  # before and after the point, more than anything that is measured has
_STD = re.compile(r"(?:^|_)std(?:_|$)")


@dataclass(frozen=True)
class Entry:
    """One seed's results as declared."""

    seed: str
    fields: Mapping[str, Any]

    def number(self, *names: str) -> Decimal | None:
        """The first of these fields that is a number."""
        return next((found for name in names if (found := as_number(self.fields.get(name))) is not None), None)

    @property
    def artifact_bytes(self) -> int | None:
        """Code and model as declared."""
        found = self.number(*_BYTES)
        return None if found is None else int(found)

    @property
    def steps(self) -> int | None:
        """Training steps as declared."""
        found = self.number("steps", "stop_step", "step_stop")
        return None if found is None else int(found)


@dataclass(frozen=True)
class Claims:
    """A submission.json."""

    raw: Mapping[str, Any]
    entries: tuple[Entry, ...] = ()
    seeds: tuple[str, ...] = ()  # every seed that it names
    disclosed: Mapping[str, Decimal] = field(default_factory=dict)  # BPB of further runs that it tells of

    def number(self, *names: str) -> Decimal | None:
        """The first of these top-level fields that is a number."""
        return Entry("", self.raw).number(*names)

    @property
    def val_bpb(self) -> Decimal | None:
        """The headline."""
        return self.number("val_bpb")

    @property
    def total_bytes(self) -> int | None:
        """Code and model."""
        found = self.number(*_TOTAL)
        return None if found is None else int(found)

    @property
    def code_bytes(self) -> int | None:
        """The code."""
        found = self.number("bytes_code", "code_bytes")
        return None if found is None else int(found)

    def bpb_of(self, entry: Entry) -> Decimal | None:
        """An entry's BPB: its val_bpb, or of several the one nearest to the headline."""
        if (found := entry.number("val_bpb")) is not None:
            return found
        values = [
            v for name in entry.fields if name.endswith("bpb") and (v := as_number(entry.fields[name])) is not None
        ]
        anchor = self.val_bpb
        return min(values, key=lambda value: abs(value - anchor)) if values and anchor is not None else None

    def spreads(self) -> Iterator[tuple[str, str, Decimal]]:
        """(field, bpb or loss, value) of every standard deviation of a score."""
        for name in self.raw:
            value = as_number(self.raw[name])
            if value is not None and _STD.search(name.lower()):
                if "loss" in name or "nats" in name:
                    yield name, "loss", value
                elif "bpb" in name:
                    yield name, "bpb", value


def read_claims(text: str) -> Claims:
    """The claims of a submission.json. Raises ValueError if it is no JSON object."""
    raw = json.loads(text, parse_float=Decimal)
    if not isinstance(raw, dict):
        raise ValueError(f"submission.json is a JSON object; it is {type(raw).__name__}")
    entries = tuple(_entries(raw))
    seeds = list(dict.fromkeys([*(entry.seed for entry in entries), *_named_seeds(raw)]))
    return Claims(raw, entries, tuple(seeds), dict(_disclosed(raw, {entry.seed for entry in entries})))


def as_number(value: Any) -> Decimal | None:
    """A finite number of a size that can be reckoned with; what else stands there is none."""
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        return None
    number = Decimal(value)
    exponent = number.as_tuple().exponent
    fits = isinstance(exponent, int) and exponent >= -_DIGITS and number.adjusted() <= _DIGITS
    return number if fits else None


def same(declared: Decimal, measured: Decimal | float) -> bool:
    """Whether a declared number is a measured one rounded, or cut, to the digits that it has."""
    unit = Decimal(1).scaleb(-decimals(declared))
    return abs(declared - Decimal(measured)) <= unit * Decimal("0.501") or 0 <= Decimal(measured) - declared < unit


def _entries(raw: Mapping[str, Any]) -> Iterator[Entry]:
    for name in ("seed_results", "seeds"):
        given = raw.get(name)
        if isinstance(given, dict) and any(isinstance(each, dict) for each in given.values()):
            yield from (Entry(str(seed), each) for seed, each in given.items() if isinstance(each, dict))
            return
        if isinstance(given, list) and any(isinstance(each, dict) for each in given):
            yield from (Entry(str(each["seed"]), each) for each in given if isinstance(each, dict) and "seed" in each)
            return
    seeds, scores = raw.get("seeds"), raw.get("seed_scores")
    if isinstance(seeds, list) and isinstance(scores, list):
        yield from (Entry(str(seed), {"val_bpb": score}) for seed, score in zip(seeds, scores, strict=False))


def _named_seeds(raw: Mapping[str, Any]) -> Iterator[str]:
    given = raw.get("seeds")
    if isinstance(given, dict):
        yield from map(str, given)
    elif isinstance(given, list):
        yield from (str(seed) for seed in given if isinstance(seed, int) and not isinstance(seed, bool))
    seed = raw.get("seed")
    if isinstance(seed, int) and not isinstance(seed, bool):
        yield str(seed)


def _disclosed(raw: Mapping[str, Any], known: set[str]) -> Iterator[tuple[str, Decimal]]:
    """Scores of seeds that are told somewhere else than among the results, whatever they are called."""
    for name, value in raw.items():
        if name not in ("seed_results", "seeds") and isinstance(value, dict):
            for inner in value.values():
                if not isinstance(inner, dict) or not known & inner.keys():
                    continue
                scores = {seed: as_number(score) for seed, score in inner.items() if seed.isdigit()}
                yield from ((seed, score) for seed, score in scores.items() if score is not None and seed not in known)
