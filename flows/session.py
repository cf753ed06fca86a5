"""What the steps of one run share: the store, the identity, the machine, and whoever listens."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from artifacts.errors import DamagedArtifact
from artifacts.record import Record
from artifacts.store import Store
from flows.identity import Components, Identity, find, key_of
from flows.launch import GRACE_S, Progress
from flows.river import Step, StepId
from flows.rundoc import RunDocument
from flows.slots import Slots
from flows.snapshot import Frozen, Packed
from stages.contract import StageError


@dataclass(frozen=True)
class Outcome:
    """What a step ended with."""

    step: Step
    record: Record
    state: Literal["cached", "ran"]
    artifact: str  # its name in the store, such as quickstart/full/1337/train@2
    seconds: float  # that this run spent on it
    note: str = ""  # what a person should know, such as a conflict


@dataclass(frozen=True)
class Event:
    """What happens in a run, for whoever shows it."""

    kind: Literal["start", "progress", "said", "warned", "done", "failed", "note"]
    label: str
    text: str = ""
    progress: Progress | None = None
    outcome: Outcome | None = None


class Elsewhere(Protocol):
    """Other machines that run some of the steps."""

    def takes(self, step: Step) -> bool:
        """Whether the step runs there."""
        ...

    def make(self, step: Step, key: str, components: Components, session: Session) -> tuple[Record, bool, str]:
        """The step's record, whether it was made now, and what a person should know of it."""
        ...


def gpus(step: Step) -> int:
    """How many GPUs a step keeps busy while it runs."""
    return step.device.count if step.device is not None and step.device.kind == "cuda" else 0


@dataclass
class Session:
    """See the module. One per run; its methods may be called from several threads."""

    store: Store
    identity: Identity
    run: RunDocument
    recipe: str
    scale: str
    seed: int
    scratch: Path
    logs: Path
    slots: Slots = field(default_factory=Slots)
    provenance: Callable[[], Mapping[str, Any]] = dict
    tell: Callable[[Event], None] = lambda event: None
    force: frozenset[str] = frozenset()  # stages that run even if their result is in the store
    frozen: frozenset[str] = frozenset()  # stages above `--from`: taken from the store or refused
    cancel: threading.Event = field(default_factory=threading.Event)
    kill: threading.Event = field(default_factory=threading.Event)  # no more grace for what runs
    deadline_s: float | None = None
    grace_s: float = GRACE_S
    done: dict[StepId, Outcome] = field(default_factory=dict)
    stages: tuple[str, ...] = ()  # all that may run, so that their source is of one moment
    packed: Packed | None = None  # what `bundle` reads
    outside: Callable[[Step], str | None] = lambda step: None  # digest, now, of what a step reads outside the store
    elsewhere: Elsewhere | None = None
    repeat: str | None = None
    # Whether this run stops because another process takes it over: what it has sent elsewhere then goes on.
    handed_over: Callable[[], bool] = lambda: False
    _frozen: Frozen | None = None
    # Closures are remembered as they are computed; and CPython 3.11 can fail when two threads are in `ast.parse`.
    parsing: threading.Lock = field(default_factory=threading.Lock)

    def frozen_tree(self, stage: str) -> Frozen:
        """The source as keyed: copied when the first stage of this run runs, for all that may run."""
        with self.parsing:
            if self._frozen is None or self._frozen.identity is not self.identity:
                root = Path(tempfile.mkdtemp(prefix="tree-", dir=self.scratch))
                self._frozen = Frozen(self.identity, root, self.packed)
                self._frozen.add(self.stages)
            self._frozen.add([stage])
            return self._frozen

    def key(self, step: Step) -> tuple[str, Components]:
        """The step's key and what it was made of."""
        with self.parsing:
            # What no device computes gives the same bytes each time: only the rest is worth repeating.
            components = self.identity.components(step, self.repeat if step.device is not None else None)
        return key_of(components), components

    def find(self, step: Step, components: Components) -> Record | None:
        """The step's record: under its own key, or under one that was accepted as equivalent. A damaged one is none."""
        try:
            return find(self.store, components)
        except DamagedArtifact as damage:
            self.tell(Event("note", step.label, f"{damage.path} is damaged and set aside; the stage runs again"))
            self.store.quarantine(step.stage, key_of(components))
            return None

    def finish(self, outcome: Outcome) -> None:
        """Note a finished step, in the run's document too, and tell."""
        step = outcome.step
        self.done[step.id] = outcome
        busy = gpus(step) if outcome.state == "ran" else 0
        self.run.step(
            step.stage,
            step.part,
            write=outcome.state == "ran",  # hits come in bursts: whatever is written next tells of them
            state=outcome.state,
            key=outcome.record.key,
            artifact=outcome.artifact,
            seconds=round(outcome.seconds, 3),
            **({"gpu_s": round(busy * outcome.seconds, 3)} if busy else {}),
        )
        self.tell(Event("done", step.label, outcome.note, outcome=outcome))

    def lose(self, step: Step, seconds: float) -> None:
        """Count an attempt that left no result."""
        self.run.lose(step.stage, step.part, seconds, gpus(step))

    def lineage(self, step: Step) -> dict[str, dict[str, Any]]:
        """{role: digest and producers} of a step's inputs; an input from outside the store has no producer."""
        return {
            role: {
                "digest": given.digest,
                "from": [self.done[stage, part].record.producer(its) for stage, part, its in given.origin],
            }
            for role, given in step.inputs.items()
        }

    def set_aside(self, damage: DamagedArtifact) -> tuple[list[str], list[str]]:
        """Quarantine the records that hold what is damaged; their labels, and those that another run has mended."""
        held = [o for o in self.done.values() if any(f.sha256 in str(damage) for f in o.record.files)]
        aside = [o for o in held if self.store.quarantine(o.record.stage, o.record.key)]
        for outcome in aside:
            del self.done[outcome.step.id]
            if outcome.state == "ran":  # it is made again, and only the second time counts as a result
                self.run.step(*outcome.step.id, write=False, gpu_s=0.0)
                self.lose(outcome.step, outcome.seconds)
        return [o.step.label for o in aside], [o.step.label for o in held if o not in aside]

    def refuse_change(self, step: Step) -> None:
        """StageError if what the step has read from outside the store is no longer what its key says."""
        now = self.outside(step)
        if now is not None and now not in [given.digest for given in step.inputs.values()]:
            raise StageError(
                f"a source must not change while it is read; what {step.stage} reads has changed since this run began, "
                "so its result is not kept; run again when the source is complete"
            )
