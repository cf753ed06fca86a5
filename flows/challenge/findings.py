"""What a check found: one value per finding, and the figures that it rests on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

# error: breaks a rule of the challenge, or contradicts its own evidence. strict: merged rows have passed with it, the
# strict policy does not let it pass. note: a reader should know.
Level = Literal["error", "strict", "note"]
LEVELS: tuple[Level, ...] = ("error", "strict", "note")


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be."""

    level: Level
    rule: str  # of the challenge: B1 size, B2 training time, ... (docs/submission.md)
    kind: str  # class of invalidity, such as I39; "" where it has none
    text: str
    evidence: Mapping[str, Any] = field(default_factory=dict)


def gathered(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Findings that say the same of several logs as one; a text that names its log begins with `log: `."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        about = finding.text.partition(": ")[2]
        groups.setdefault((finding.level, finding.kind, re.sub(r"\d[\d.,]*", "#", about)), []).append(finding)
    for group in groups.values():
        first = group[0]
        more = f" (and {len(group) - 1} more like it)" if len(group) > 1 else ""
        yield replace(first, text=first.text + more, evidence={"all": [each.text for each in group]} if more else {})


@dataclass(frozen=True)
class Report:
    """Everything about one folder."""

    folder: str
    record: bool
    figures: Mapping[str, Any]
    findings: tuple[Finding, ...]

    @property
    def board(self) -> bool:
        """Whether it passes as merged rows did."""
        return not any(finding.level == "error" for finding in self.findings)

    @property
    def strict(self) -> bool:
        """Whether it passes the strict policy."""
        return not any(finding.level in ("error", "strict") for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON."""
        return {
            "folder": self.folder,
            "track": "record" if self.record else "non-record",
            "passes": {"strict": self.strict, "board": self.board},
            "findings": [
                {"level": f.level, "rule": f.rule, "class": f.kind, "text": f.text, "evidence": dict(f.evidence)}
                for f in self.findings
            ],
            "figures": dict(self.figures),
        }
