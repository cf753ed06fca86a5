"""What a worker executes from the published source: key the assignment again, run its stage, publish.

    python -m flows.worker FOLDER      # FOLDER/assignment.json -> FOLDER/events.jsonl, FOLDER/result.json

It knows the store and not Prefect; whoever started it (`remote_stage.py`, from the worker's own checkout) tells Prefect
what it says, hands it the store's credentials through its standard input, and ends with it. SIGTERM: the stage writes a
checkpoint, which goes to the store; once more: at once.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from artifacts.errors import LeaseCancelled, StoreError, StoreRefused
from artifacts.keyring import Credentials, hang
from artifacts.records import Published
from artifacts.store import Store
from flows.closure import ROOT
from flows.hauling import told
from flows.identity import Identity
from flows.launch import Interrupted, StageFailed
from flows.mirror import Mirror
from flows.provenance import capture
from flows.remote import Assignment, check_components
from flows.rundoc import RunDocument
from flows.session import Event, Session
from flows.slots import Slots
from flows.step import keep_log, made
from stages.contract import StageError, die_with_parent

_RESULT_BYTES = 1 << 16  # room that is kept for what is said at the end
STOP_LIMIT_S = 3600.0  # whoever started us decides how long a stage may take to stop


class NoRuns:
    """Stands where a run's document would be: that belongs to the submitter."""

    def write_run(self, run: dict[str, Any]) -> None:
        """Nothing."""

    def read_run(self, run_id: str) -> dict[str, Any]:
        """Nothing."""
        return {}


class Office:
    """The folder of one assignment: what is told to whoever started us."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._ballast = folder / "ballast"
        with suppress(OSError):
            self._ballast.write_bytes(bytes(_RESULT_BYTES))

    @property
    def log(self) -> Path:
        """Where the stage's process writes."""
        return self.folder / "logs"

    def tell(self, event: Event) -> None:
        """Append one event."""
        line: dict[str, Any] = {"kind": event.kind, "text": event.text}
        if event.progress is not None:
            line["progress"] = asdict(event.progress)
        # On a full disk the stage's own writing decides, not a line for the eye.
        with suppress(OSError), self._lock, (self.folder / "events.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")

    def end(self, result: dict[str, Any]) -> None:
        """Leave the result, all of it or nothing, on a full disk too."""
        self._ballast.unlink(missing_ok=True)
        path = self.folder / "result.json"
        path.with_suffix(".part").write_text(json.dumps(result), encoding="utf-8")
        path.with_suffix(".part").replace(path)


def carry_out(assignment: Assignment, office: Office, session: Session) -> dict[str, Any]:
    """Run the assignment unless its record is there: {"outcome": found | created | same | conflict, ...}.

    Raises:
        StageError: the key does not come out the same.
        StageFailed, Interrupted, StoreError, LeaseCancelled: as from a step that runs here.
    """
    step = assignment.step()
    key, components = session.key(step)
    check_components(assignment, components)
    forced = bool(session.force)
    with session.store.lease(
        key,
        cancel=session.cancel,
        on_wait=lambda holder: office.tell(Event("note", step.label, f"waits for {holder}")),
    ) as lease:
        record = None if forced else session.find(step, components)
        if record is not None:
            return {"outcome": "found", "record": record.id}
        published, log = _run(assignment, session, lambda: lease.lost)
    seconds = published.ours.provenance["seconds"]
    return {"outcome": published.outcome, "record": published.record.id, "seconds": seconds, **log}


def _run(assignment: Assignment, session: Session, lost: Callable[[], bool]) -> tuple[Published, dict[str, str]]:
    step, key = assignment.step(), assignment.key
    lineage = {role: {"digest": each["digest"], "from": each["from"]} for role, each in assignment.inputs.items()}
    log = session.logs / f"{step.label}.log"
    with made(step, key, session, Mirror(session.store, key, lost=lost)) as result:
        kept = keep_log(session.store, log)  # the record mentions it, so `gc` keeps it as long
        published = session.store.publish(
            stage=step.stage,
            part=step.part,
            key=key,
            components=assignment.components,
            report=result.report,
            inputs=lineage,
            provenance={**session.provenance(), "run": assignment.run, **kept, **result.spent},
            folder=result.out,
            tell=told(session, step.label),
        )
    session.store.remove_attempt(key)
    return published, kept


def open_session(assignment: Assignment, office: Office) -> Session:
    """A session for one step: this source tree, the assignment's store, this machine."""
    store = Store.open(assignment.store, proven=True)
    scratch = office.folder / "scratch"
    scratch.mkdir()
    return Session(
        store=store,
        identity=Identity(ROOT),
        run=RunDocument(NoRuns(), {"id": assignment.run}),
        recipe="",
        scale="",
        seed=assignment.seed or 0,
        scratch=scratch,
        logs=office.log,
        slots=Slots(),
        provenance=lambda: {**capture(ROOT, list(sys.argv)), **assignment.provenance, **_flow_run()},
        tell=office.tell,
        repeat=assignment.components.get("repeat"),
        force=frozenset([assignment.stage]) if assignment.forced else frozenset(),
        deadline_s=assignment.deadline_s,
        grace_s=STOP_LIMIT_S,
    )


def _flow_run() -> dict[str, str]:
    """The Prefect run around us, so that a later hit can lead to it."""
    found = os.environ.get("PREFECT__FLOW_RUN_ID", "")
    return {"flow_run": found} if found else {}


def _result(assignment: Assignment, office: Office, session: Session) -> dict[str, Any]:
    """What came of it, errors by kind: "user" and "crash" are the stage's own, "machine" may go well elsewhere."""
    try:
        return carry_out(assignment, office, session)
    except (Interrupted, LeaseCancelled) as error:
        return {"error": "interrupted", "message": str(error)}
    except StageFailed as error:
        return {"error": error.kind, "message": str(error), **keep_log(session.store, Path(error.log))}
    except StageError as error:
        return {"error": "user", "message": str(error)}
    except StoreRefused as error:
        return {"error": "denied", "message": str(error)}
    except (StoreError, OSError) as error:
        return _machine(error)


def _machine(error: Exception) -> dict[str, Any]:
    """A failure that is not the stage's: another attempt may go well."""
    return {"error": "machine", "message": f"{type(error).__name__}: {error}"}


def main() -> int:
    """Carry out the assignment of a folder; the exit code is 0 whenever there is a result."""
    die_with_parent()
    office = Office(Path(sys.argv[1]))
    raw = json.loads((office.folder / "assignment.json").read_text(encoding="utf-8"))
    assignment = Assignment.from_json(raw)
    if assignment.credentials:
        hang(assignment.store, Credentials.loads(sys.stdin.buffer.read()))
    try:
        session = open_session(assignment, office)
    except StoreRefused as error:
        office.end({"error": "denied", "message": str(error)})
        return 0
    except (StoreError, OSError) as error:
        office.end(_machine(error))
        return 0

    def stop(number: int, frame: FrameType | None) -> None:
        if session.cancel.is_set():
            session.kill.set()
        session.cancel.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the worker's terminal is the worker's to hear
    office.end(_result(assignment, office, session))
    shutil.rmtree(session.scratch, ignore_errors=True)
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # drivers of object stores keep threads that can hold the interpreter for seconds
