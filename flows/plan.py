"""What a run would do, before anything runs: `cached`, `run` and why, or `depends`. Imports neither torch nor Prefect.

A step whose inputs are not made yet has no key. It says `depends` if nothing but those inputs can differ from its last
record: then it is cached if the stages above reproduce their bytes. Otherwise it says `run`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from artifacts.errors import DamagedArtifact
from artifacts.record import File, Record
from configs.load import Loaded
from flows.account import account_of
from flows.identity import Components, Identity, find, key_of, unknown_roles
from flows.identity import Memory as Finds
from flows.river import Outside, Step, StepId, river
from flows.why import Change, explain, published_source

State = Literal["cached", "run", "depends"]
UNKNOWN_PART = "?"  # ends the name of a part that stands for all parts of a stage that has not run


class Memory(Finds, Protocol):
    """What a plan asks of the store."""

    def latest(self, recipe: str, scale: str, seed: int, stage: str, part: str = "") -> Record | None:
        """The newest record of a name."""
        ...

    def read_object(self, sha256: str) -> bytes:
        """The bytes of a small object."""
        ...


@dataclass(frozen=True)
class Planned:
    """One step of a plan."""

    step: Step
    state: State
    reasons: tuple[str, ...]  # why it is not cached; a note if it is
    key: str | None  # None while an input is not known
    record: Record | None  # what it is cached as
    expected_s: float | None  # from its last run; 0 for what is cached, None if it never ran

    @property
    def label(self) -> str:
        """`stage` or `stage[part]`."""
        return self.step.label


def plan(
    loaded: Loaded,
    seed: int,
    outside: Outside,
    memory: Memory,
    identity: Identity,
    force: Collection[str] = (),
) -> list[Planned]:
    """Every step of the river with what a run would do about it, in river order.

    Args:
        loaded: the recipe at its scale.
        seed: of the run.
        outside: fingerprints of what comes from outside.
        memory: the store.
        identity: of the source tree that would run.
        force: stages that run in any case.
    """
    planner = _Planner(loaded, seed, memory, identity, frozenset(force))
    outputs: dict[StepId, tuple[File, ...] | None] = {}
    planned: list[Planned] = []
    records: dict[StepId, Record | None] = {}
    for step in river(loaded.recipe, seed, outside, outputs, account_of(records.get)):
        for known in planner.parts(step):
            planned.append(planner.look(known))
            records[known.id] = planned[-1].record
            outputs[known.id] = planned[-1].record.files if planned[-1].record else None
    return planned


def is_done(planned: Iterable[Planned]) -> bool:
    """Whether a run would find everything in the store."""
    return all(each.state == "cached" for each in planned)


@dataclass(frozen=True)
class _Planner:
    loaded: Loaded
    seed: int
    memory: Memory
    identity: Identity
    force: frozenset[str]

    def look(self, step: Step) -> Planned:
        """What a run would do about one step."""
        parts = self.identity.components(step)
        unknown = unknown_roles(parts)
        key = None if unknown else key_of(parts)
        forced = step.stage in self.force
        try:
            record = find(self.memory, parts) if key and not forced else None
        except DamagedArtifact:
            return Planned(step, "run", ("its record is damaged",), key, None, None)
        if record is not None:
            note = () if record.key == key else (f"accepted as equal to {record.key[:12]}",)
            return Planned(step, "cached", note, key, record, 0.0)
        last = self._last(step.stage, step.part)
        if last is None:
            return Planned(step, "run", ("no record of this recipe, scale and seed",), key, None, None)
        changes = [str(change) for change in self._changes(last, parts)]
        waits = [f"inputs: {role} {_from(step, role)}" for role in unknown]
        state: State = "depends" if unknown and not changes and not forced else "run"
        reasons = (*(["forced"] if forced else []), *changes, *waits)
        expected_s = last.provenance.get("seconds")
        return Planned(step, state, reasons or ("its record is gone",), key, None, expected_s)

    def parts(self, step: Step) -> Iterator[Step]:
        """The step; or, for parts that are not known before the corpus is made, those of the last corpus."""
        split = step.part.removesuffix(f"-{UNKNOWN_PART}")
        if split == step.part:
            yield step
            return
        corpus = self._last("corpus", "")
        stems = [file.path.split(".")[0] for file in corpus.role(split)] if corpus else []
        for stem in stems or [UNKNOWN_PART]:
            yield replace(step, part=f"{split}-{stem}")

    def _last(self, stage: str, part: str) -> Record | None:
        if part.endswith(UNKNOWN_PART):
            return None
        try:
            return self.memory.latest(self.loaded.recipe.name, self.loaded.scale, self.seed, stage, part)
        except DamagedArtifact:
            return None

    def _changes(self, last: Record, parts: Components) -> list[Change]:
        stage = parts["stage"]
        if last.components["code"] in self.memory.equivalents(stage, parts["code"]):
            parts = {**parts, "code": last.components["code"]}  # code that was accepted as equal is no change
        return explain(
            last.components,
            parts,
            lambda: published_source(last, self.memory),
            lambda: self.identity.source(stage),
        )


def _from(step: Step, role: str) -> str:
    stages = dict.fromkeys(stage for stage, _, _ in step.inputs[role].origin)
    return f"comes after {', '.join(stages)}" if stages else "is not known yet"
