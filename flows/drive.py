"""Drives the river: submits its steps, hands outputs back, and survives a damaged artifact. Knows no Prefect.

The river is a generator that looks into `outputs` for what a step reads. Here `outputs` waits for the step that is
asked about, so the parts of a mapped stage run side by side, and the stage below them starts when the last one is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from artifacts.errors import DamagedArtifact
from artifacts.record import File, Record
from configs.recipe import Recipe
from flows.account import account_of
from flows.launch import Interrupted
from flows.river import Input, Outside, Step, StepId, river
from flows.step import Event, Outcome, Session

REPAIRS = 16  # damaged records set aside in one run before it gives up: a failing disk damages without end


class Pending(Protocol):
    """A submitted step: Prefect's future, or concurrent.futures'."""

    def result(self) -> Outcome:
        """Wait and return, or raise what the step raised."""
        ...


Submit = Callable[[Step], Pending]


class Outputs(Mapping[StepId, "tuple[File, ...] | None"]):
    """The files of every submitted step; asking for a step's files waits for it."""

    def __init__(self) -> None:
        self._pending: dict[StepId, Pending] = {}
        self._known: dict[StepId, Outcome] = {}  # asking a Prefect future takes milliseconds each time

    def add(self, step: StepId, pending: Pending) -> None:
        """Note a submitted step."""
        self._pending[step] = pending

    def wait(self, step: StepId) -> Outcome:
        """Wait for a step; raises what it raised."""
        if step not in self._known:
            self._known[step] = self._pending[step].result()
        return self._known[step]

    def outcomes(self) -> list[Outcome]:
        """Wait for all, in river order; the first error is raised when every step has ended."""
        errors = self.settle()
        if errors:
            raise errors[0]
        return [self.wait(step) for step in self._pending]

    def settle(self) -> list[Exception]:
        """Wait until nothing runs any more. Errors that say something come before mere interruptions."""
        errors: list[Exception] = []
        for step in self._pending:
            try:
                self.wait(step)
            except Exception as error:  # noqa: BLE001 - collected, and raised by whoever asked
                errors.append(error)
        return sorted(errors, key=lambda error: isinstance(error, Interrupted))

    def __getitem__(self, step: StepId) -> tuple[File, ...] | None:
        return self.wait(step).record.files

    def __iter__(self) -> Iterator[StepId]:
        return iter(list(self._pending))

    def __len__(self) -> int:
        return len(self._pending)


def stages_in_order(recipe: Recipe) -> tuple[str, ...]:
    """The river's stages from source to mouth."""
    outputs: dict[StepId, tuple[File, ...] | None] = {}
    names: dict[str, None] = {}
    for step in river(recipe, 0, Outside(corpus=Input(None), source=Input(None)), outputs):
        outputs[step.id] = None
        names[step.stage] = None
    return tuple(names)


def drive(recipe: Recipe, outside: Outside, session: Session, submit: Submit, until: str = "") -> list[Outcome]:
    """Flow the river down to stage `until` (empty: all of it); every outcome in river order.

    A damaged artifact is set aside and the river flows again: what is sound is found in the store, what is missing is
    made again, and what reads it is keyed by what it has become.
    """
    for attempt in range(REPAIRS + 1):
        try:
            return _flow(recipe, outside, session, submit, until)
        except DamagedArtifact as damage:
            if attempt == REPAIRS:
                raise
            aside, mended = session.set_aside(damage)
            if not aside and not mended:
                raise
            what = f"set aside {', '.join(aside)}; what it held is made again" if aside else "mended by another run"
            session.tell(Event("note", "store", f"damaged: {damage.path}; {what}"))
    raise AssertionError("the last attempt returns or raises")


def anything_to_run(recipe: Recipe, outside: Outside, session: Session) -> bool:
    """Whether some step has no record, found without making one."""
    outputs: dict[StepId, tuple[File, ...] | None] = {}
    records: dict[StepId, Record] = {}
    for step in river(recipe, session.seed, outside, outputs, account_of(records.get)):
        record = session.find(step, session.key(step)[1])
        if record is None or step.stage in session.force:
            return True
        outputs[step.id], records[step.id] = record.files, record
    return False


def _flow(recipe: Recipe, outside: Outside, session: Session, submit: Submit, until: str) -> list[Outcome]:
    order = stages_in_order(recipe)
    last = order.index(until) if until else len(order) - 1
    outputs = Outputs()
    try:
        for step in river(recipe, session.seed, outside, outputs, account_of(lambda id: outputs.wait(id).record)):
            if order.index(step.stage) > last:
                break
            outputs.add(step.id, submit(step))
            if not step.config.SPEC.mapped:
                outputs.wait(step.id)  # nothing below may start in vain: an archive over the cap is not worth scoring
    except Exception:
        outputs.settle()
        raise
    except BaseException:  # Ctrl-C without our handler, or Prefect's termination
        session.cancel.set()
        outputs.settle()
        raise
    return outputs.outcomes()
