"""One step of the river: a hit in the store, or a run of its stage. Knows the store, not Prefect.

The order of a miss is: lease, look again, lay out the inputs, restore checkpoints, run, publish, name. The lease only
saves money; what makes two runs of one key safe is that the store creates a record only if there is none.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.backend import NO_ROOM, room
from artifacts.errors import StoreError
from artifacts.records import Published
from artifacts.store import Store
from flows.hauling import told
from flows.identity import Components
from flows.launch import Interrupted, Job, StageFailed, Watch, launch
from flows.mirror import Mirror
from flows.ranks import Said
from flows.river import Step
from flows.rundoc import utc_now
from flows.session import Elsewhere, Event, Outcome, Session
from flows.snapshot import copy_files, snapshot
from stages.contract import Device, StageError

FULLY_VERIFIED = ("evaluate", "audit")  # a score must never rest on a stamp: every byte is hashed again


def hit_or_run(step: Step, session: Session) -> Outcome:
    """The record of `step`, from the store or from a run of its stage.

    Raises:
        StageFailed, Interrupted: see `launch`.
        StageError: `--from` forbids running this step.
        DamagedArtifact: an input is not what it was; the caller sets its record aside and starts again.
    """
    if session.cancel.is_set():
        raise Interrupted(f"{step.label} was not started")
    started = time.monotonic()
    key, components = session.key(step)
    forced = step.stage in session.force
    record = None if forced else session.find(step, components)
    published: Published | None = None
    if record is None:
        if step.stage in session.frozen:
            raise StageError(
                f"--from takes every stage above it from the store; {step.label} has no record there; "
                f"run without --from, or with --from {step.stage}"
            )
        if session.elsewhere is not None and session.elsewhere.takes(step):
            _store_written(step, session)
            return _made_elsewhere(step, key, components, session, session.elsewhere)
        with session.store.lease(
            key,
            cancel=session.cancel,
            on_wait=lambda holder: session.tell(Event("note", step.label, f"waits for {holder}")),
        ) as lease:
            # Somebody else may have made it while we waited.
            record = None if forced else session.find(step, components)
            if record is None:
                published = _run(step, key, components, session, lambda: lease.lost)
                record = published.record
    name = session.store.assign_name(session.recipe, session.scale, session.seed, step.stage, step.part, record.key)
    if published is None:
        outcome = Outcome(step, record, "cached", name, time.monotonic() - started)
    else:  # what the stage took, without the wait for cores
        outcome = Outcome(step, record, "ran", name, published.ours.provenance["seconds"], _note(step, published))
    session.finish(outcome)
    return outcome


def _made_elsewhere(step: Step, key: str, components: Components, session: Session, elsewhere: Elsewhere) -> Outcome:
    """The outcome of a step that another machine runs; who runs it holds the lease and publishes."""
    started = time.monotonic()
    record, made_now, note = elsewhere.make(step, key, components, session)
    if made_now:
        session.store.note(record)  # its publisher ends with it and leaves no index
    name = session.store.assign_name(session.recipe, session.scale, session.seed, step.stage, step.part, record.key)
    seconds = record.provenance.get("seconds", 0.0) if made_now else time.monotonic() - started
    outcome = Outcome(step, record, "ran" if made_now else "cached", name, seconds, note)
    session.finish(outcome)
    return outcome


def _run(step: Step, key: str, components: Components, session: Session, lost: Callable[[], bool]) -> Published:
    """Run the stage and publish; `record` of the result counts, `ours` is what was just made."""
    with made(step, key, session, Mirror(session.store, key, lost=lost)) as result:
        session.refuse_change(step)
        kept = keep_log(session.store, session.logs / f"{step.label}.log")
        published = session.store.publish(
            stage=step.stage,
            part=step.part,
            key=key,
            components=components,
            report=result.report,
            inputs=session.lineage(step),
            provenance={**session.provenance(), "run": session.run.id, **kept, **result.spent},
            folder=result.out,
            tell=told(session, step.label),
        )
    session.store.remove_attempt(key)
    return published


@dataclass(frozen=True)
class Made:
    """A stage's output that is not stored yet."""

    out: Path
    report: dict[str, Any]
    spent: dict[str, Any]  # source digest, start, end and seconds


@contextmanager
def made(
    step: Step,
    key: str,
    session: Session,
    mirror: Mirror | None = None,
    config: Mapping[str, Any] | None = None,
) -> Iterator[Made]:
    """Run the stage; its output lives as long as the `with`.

    `mirror` keeps checkpoints for another attempt; `config` is what the stage is told instead of the step's own.
    """
    folder = session.scratch / f"{step.label.replace('[', '-').strip(']')}-{key[:8]}"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        tree = session.frozen_tree(step.stage)
        source = snapshot(tree, step.stage, folder / "source", session.store)
        _store_written(step, session)
        inputs = _lay_out(step, folder / "inputs", tree.packed, session)
        device = Device(**step.device.model_dump()) if step.device else Device()
        checkpoints = folder / "checkpoints"
        if mirror is not None:
            mirror.restore(checkpoints)
        with session.slots.lend(_share(step, device), session.cancel) as extra:
            if session.cancel.is_set():  # and nothing may have been lent
                raise Interrupted(f"{step.label} was not started")
            session.run.step(step.stage, step.part, state="running", key=key)
            session.tell(Event("start", step.label))
            job = Job(
                stage=step.stage,
                config=step.config.model_dump(mode="json") if config is None else config,
                inputs=inputs,
                source_root=source.root,
                seed=step.seed,
                device=device,
                workers=1 if step.config.SPEC.mapped else session.slots.cores,
                environment=extra,
            )
            started, started_at = time.monotonic(), utc_now()
            with _paid_for(step, session), mirror.copying(checkpoints) if mirror is not None else nullcontext():
                report = launch(job, folder, session.logs / f"{step.label}.log", _watch(step, session))
        seconds = round(time.monotonic() - started, 3)
        spent = {"source": source.sha256, "started": started_at, "finished": utc_now(), "seconds": seconds}
        yield Made(folder / "out", report, spent)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        text = (
            f"{step.label} needs room for its files on this machine ({error}){room(session.scratch)}; make room there"
        )
        raise StageFailed(step.stage, "machine", text, session.logs / f"{step.label}.log") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _paid_for(step: Step, session: Session) -> Iterator[None]:
    """Whatever ends an attempt without a result - a failure, a cancelled run - its time was paid for."""
    started = time.monotonic()
    try:
        yield
    except BaseException:
        kept = keep_log(session.store, session.logs / f"{step.label}.log")
        session.run.step(step.stage, step.part, write=False, **kept)
        session.lose(step, time.monotonic() - started)
        raise


def _watch(step: Step, session: Session) -> Watch:
    return Watch(
        cancel=session.cancel,
        kill=session.kill,
        deadline_s=session.deadline_s,
        grace_s=session.grace_s,
        on_progress=lambda progress: session.tell(Event("progress", step.label, progress=progress)),
        on_line=lambda said: session.tell(_line(step, said)),
    )


def _line(step: Step, said: Said) -> Event:
    return (
        Event("warned", step.label, f"rank {said.rank}: {said.text}")
        if said.warns
        else Event("said", step.label, said.text)
    )


def keep_log(store: Store, log: Path) -> dict[str, str]:
    """{"log": digest} of a stage's whole log, now in the store; {} if it said nothing. A record or run mentions it."""
    try:
        return {"log": store.put_file(log).sha256} if log.stat().st_size else {}
    except (StoreError, OSError):
        return {}  # what it said last is in the message


def _lay_out(step: Step, root: Path, packed: Path, session: Session) -> Mapping[str, Path]:
    """Read-only folders of the step's inputs. Roles without files lie outside: the stage reads them where they are."""
    folders: dict[str, Path] = {}
    for role, given in step.inputs.items():
        if given.files and given.origin:
            folders[role] = root / role
            verify = "full" if step.stage in FULLY_VERIFIED else "stamp"
            session.store.fetch(given.files, folders[role], verify=verify, tell=told(session, step.label))
        elif given.files:
            folders[role] = root / role
            copy_files((file.path for file in given.files), packed, folders[role])
    return folders


def _store_written(step: Step, session: Session) -> None:
    """Put what the flow itself wrote into the store, where every input of a stage comes from."""
    for given in step.inputs.values():
        if given.written:
            path = session.scratch / f"written-{given.digest}"
            path.write_bytes(given.written)
            session.store.put_file(path)
            path.unlink()


def _share(step: Step, device: Device) -> Device:
    """What a step takes of the machine: mapped CPU parts one core each, everything else its device's request."""
    return Device(threads=1) if step.config.SPEC.mapped and step.device is None else device


def _note(step: Step, published: Published) -> str:
    if published.outcome == "conflict":
        return f"{step.label} gave other bytes than its record; the record stays, the new result is kept as a conflict"
    return ""
