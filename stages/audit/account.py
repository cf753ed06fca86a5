"""What the flow tells the audit about the other stages: the role `records`, one file `records.json`.

{"schema": 1, "steps": [{"stage", "part", "key", "components", "device", "process_s", "timer_s", "source",
"inputs": {role: {"digest", "from": [[stage, part, role], ...]}}, "outputs": {role: digest}}, ...]}

`process_s` is what the stage's process took from start to end, `timer_s` what its own clock says, null where it has
none; `components` is what the key was made of; `device` what was asked for, null for a stage that takes any.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.contract import StageError

SCHEMA = 1
Origin = tuple[str, str, str]  # (stage, part, role)


@dataclass(frozen=True, kw_only=True)
class StepFacts:
    """One finished step."""

    stage: str
    part: str
    key: str
    components: Mapping[str, Any]
    device: Mapping[str, Any] | None
    process_s: float
    timer_s: float | None
    source: str
    inputs: Mapping[str, tuple[str, tuple[Origin, ...]]]  # role -> (digest, where it comes from)
    outputs: Mapping[str, str]  # role -> digest

    @property
    def label(self) -> str:
        """`stage` or `stage[part]`."""
        return f"{self.stage}[{self.part}]" if self.part else self.stage

    @property
    def reads_train_tokens(self) -> bool:
        """Whether token shards of the training split went in."""
        return any(stage == "tokenize" and part.startswith("train-") for stage, part, _ in self._origins())

    @property
    def reads_val(self) -> bool:
        """Whether anything of the validation split went in, as documents or as tokens."""
        return any(
            (stage == "corpus" and role == "val") or (stage == "tokenize" and part.startswith("val-"))
            for stage, part, role in self._origins()
        )

    def _origins(self) -> list[Origin]:
        return [origin for _, origins in self.inputs.values() for origin in origins]


@dataclass(frozen=True)
class Account:
    """All steps above the audit."""

    steps: Mapping[tuple[str, str], StepFacts]

    @classmethod
    def read(cls, path: Path) -> Account:
        """From `records.json`. Raises StageError for another schema."""
        table = json.loads(path.read_text(encoding="utf-8"))
        if table.get("schema") != SCHEMA:
            raise StageError(
                f"the audit reads an account of schema {SCHEMA}; {path.name} has {table.get('schema')!r}; run it by "
                "`fairway run` or `fairway audit` of the same version"
            )
        return cls.of(table["steps"])

    @classmethod
    def of(cls, steps: Sequence[Mapping[str, Any]]) -> Account:
        """From the list `steps` of the file."""
        facts = [
            StepFacts(
                **{name: step[name] for name in ("stage", "part", "key", "components", "device")},
                **{name: step[name] for name in ("process_s", "timer_s", "source", "outputs")},
                inputs={
                    role: (given["digest"], tuple((o[0], o[1], o[2]) for o in given["from"]))
                    for role, given in step["inputs"].items()
                },
            )
            for step in steps
        ]
        return cls({(each.stage, each.part): each for each in facts})

    def made_by(self, stage: str, part: str = "") -> list[StepFacts]:
        """A step and everything that it was made from, in the account's order."""
        seen: set[tuple[str, str]] = set()
        waiting = [(stage, part)]
        while waiting:
            here = waiting.pop()
            if here not in seen and here in self.steps:
                seen.add(here)
                waiting += [(s, p) for _, origins in self.steps[here].inputs.values() for s, p, _ in origins]
        return [step for id_, step in self.steps.items() if id_ in seen]

    def evaluations(self) -> dict[str, StepFacts]:
        """Protocol -> its step, of those that score the archive."""
        return {
            part: step for (stage, part), step in self.steps.items() if stage == "evaluate" and "archive" in step.inputs
        }
