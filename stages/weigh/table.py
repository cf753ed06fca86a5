"""The size table: what the submission's bytes are made of, and what would bring them under the cap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from model.archive import Section


@dataclass(frozen=True)
class Part:
    """One line of the table."""

    part: str
    bytes: int
    weights: int = 0
    bits: int = 0  # stored width of its codes; 0 where that means nothing
    tensors: int = 0

    @property
    def bits_per_weight(self) -> float:
        """Bytes as bits over weights."""
        return 8 * self.bytes / self.weights if self.weights else 0.0


@dataclass(frozen=True)
class Sizes:
    """Model (the archive) and code against the cap. All in decimal bytes."""

    parts: tuple[Part, ...]  # of the archive; they add up to it
    model_bytes: int
    code_bytes: int
    cap_bytes: int

    @property
    def total_bytes(self) -> int:
        """What the challenge counts: model and code."""
        return self.model_bytes + self.code_bytes

    @property
    def margin_bytes(self) -> int:
        """What is left; negative over the cap."""
        return self.cap_bytes - self.total_bytes

    def to_dict(self) -> dict[str, Any]:
        """sizes.json. Its parts add up to the total."""
        parts = (*self.parts, Part("code", self.code_bytes))
        return {
            "parts": [{**asdict(part), "bits_per_weight": part.bits_per_weight} for part in parts],
            "model_bytes": self.model_bytes,
            "code_bytes": self.code_bytes,
            "total_bytes": self.total_bytes,
            "cap_bytes": self.cap_bytes,
            "margin_bytes": self.margin_bytes,
            "oversize": self.margin_bytes < 0,
        }


def archive_parts(sections: Sequence[Section], archive_bytes: int) -> tuple[Part, ...]:
    """One part per section, largest first, and the header; together exactly the archive."""
    parts = [Part(s.label, s.bytes, s.weights, s.bits if s.kind == "codes" else 0, len(s.tensors)) for s in sections]
    header = Part("header and checksum", archive_bytes - sum(part.bytes for part in parts))
    return (*sorted(parts, key=lambda part: -part.bytes), header)


def what_would_fit(sizes: Sizes) -> list[str]:
    """Single changes that would bring the total under the cap, estimated from the bytes of today.

    One bit less per code saves one bit per weight, near enough: entropy falls by one bit when the step doubles.
    """
    excess = -sizes.margin_bytes
    lines: list[str] = []
    for part in sizes.parts:
        fewer = math.ceil(8 * excess / part.weights) if part.weights else 0
        if part.bits and part.bits - fewer >= 4:
            saved = fewer * part.weights // 8
            lines.append(
                f"{part.part} with {part.bits - fewer} bits instead of {part.bits}: about {saved:,} bytes less"
            )
    coded = [part for part in sizes.parts if part.bits]
    if coded:
        largest = max(coded, key=lambda part: part.bytes)
        weights = math.ceil(excess * largest.weights / largest.bytes)
        share = 100 * weights / sum(part.weights for part in coded)
        lines.append(f"{weights:,} fewer weights ({share:.1f} %) at {largest.bits_per_weight:.2f} bits each")
    return lines


def render(sizes: Sizes) -> str:
    """The table as text, for people."""
    rows = [(p.part, f"{p.bytes:,}", f"{p.bits_per_weight:.2f} bits/weight" if p.weights else "") for p in sizes.parts]
    rows += [
        ("model", f"{sizes.model_bytes:,}", ""),
        ("code", f"{sizes.code_bytes:,}", ""),
        ("total", f"{sizes.total_bytes:,}", ""),
        ("cap", f"{sizes.cap_bytes:,}", ""),
        ("margin", f"{sizes.margin_bytes:,}", ""),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"  {name:<{widths[0]}}  {size:>{widths[1]}}  {note}".rstrip() for name, size, note in rows)
