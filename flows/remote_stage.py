"""A worker's side of an assignment: fetch its source, run it, tell Prefect how it goes. Knows no stage and no key.

This is the only part of a stage's run that comes from the worker's own checkout, so it is small: the program that it
starts (`worker.py`) comes from the submitter.
"""

from __future__ import annotations

import contextvars
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from uuid import UUID

import httpx
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectException
from prefect.logging.loggers import PrefectLogAdapter
from prefect.states import Cancelled, Completed, Crashed, Failed

from artifacts.backend import NO_ROOM, host_name, room
from artifacts.errors import StoreError, StoreRefused
from artifacts.keyring import Credentials, held
from artifacts.safety import redact_text
from artifacts.store import Store
from flows import launch
from flows.blocks import use
from flows.ranks import Tail
from flows.remote import PROGRAM, Assignment, unpack_source
from flows.show import progress_text
from flows.signs import BEAT_EVERY_S, SAID
from flows.vigil import WORDS, Reason, Vigil, ended_before
from stages.contract import PARENT, StageError

Log = logging.Logger | PrefectLogAdapter

POLL_S = 0.2
LOG_EVERY_S = 30.0  # progress as a line of the log
SHOW_EVERY_S = 1.0  # Prefect's page gets progress at most this often, and at least each BEAT_EVERY_S
GRACE_S: Mapping[Reason, float] = {"cancelled": 7.0, "replaced": 7.0, "terminated": 24.0, "orphaned": 24.0}
LOG = "fairway-log"  # artifact of a stage's run
LAST_GRACE_S = 3.0
LAST_LINES, LAST_BYTES = 20, 1 << 16  # of what the program wrote by itself, for the log
LEVELS = {"said": logging.INFO, "warned": logging.WARNING}  # of a stage's output: rank 0's, the other ranks' warnings
HOME = "FAIRWAY_HOME"  # folder of a worker's machine that runs may use; `fairway worker` sets it


def home() -> Path:
    """The worker's folder: Prefect starts runs in a temporary one."""
    return Path(os.environ.get(HOME) or ".").absolute()


class Progress:
    """The bar on Prefect's page, which is the sign of life too: the dispatcher watches when it was last updated."""

    def __init__(self, label: str, log: Log | logging.LoggerAdapter[logging.Logger]) -> None:
        self._label, self._log = label, log
        self._logged_s = -LOG_EVERY_S
        self._counts = False  # whether the stage has said how far it is
        self._text = f"{label}: starting"
        self._percent = 0.0
        self._shown_s = time.monotonic()
        self._id: UUID | None = None
        self._write()

    def note(self, event: Mapping[str, Any]) -> None:
        """Take in one event of the program."""
        progress = event.get("progress")
        if progress is None:
            self._text = f"{self._label}: {event['text'] or event['kind']}"
            return
        if not self._counts:
            self._counts, self._logged_s = True, -LOG_EVERY_S  # its first word is worth a line at once
        self._percent = round(100.0 * min(1.0, progress["done"] / progress["total"]), 1) if progress["total"] else 0.0
        says = progress_text(launch.Progress(**progress)).replace("  ", ", ")
        self._text = f"{self._label}: {says}"

    def show(self, changed: bool) -> None:
        """Write if it is time to."""
        if changed and time.monotonic() - self._logged_s >= LOG_EVERY_S:
            self._logged_s = time.monotonic()
            self._log.info(self._text)
        silent_s = time.monotonic() - self._shown_s
        if silent_s >= BEAT_EVERY_S or (changed and silent_s >= SHOW_EVERY_S):
            self._shown_s = time.monotonic()
            self._write()

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Say that we live while the body waits for something that has a limit of its own."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(BEAT_EVERY_S):
                self._write()

        context = contextvars.copy_context()  # of the run, whose the bar is
        beater = threading.Thread(target=context.run, args=(beat,), name="beat", daemon=True)
        beater.start()
        try:
            yield
        finally:
            over.set()
            beater.join()

    def end(self, result: Mapping[str, Any]) -> None:
        """The last word."""
        if outcome := result.get("outcome"):
            self._percent, self._text = 100.0, f"{self._label}: {outcome}"
        else:
            self._text = f"{self._label}: {result.get('error', 'lost')}"
        self._write()

    def _write(self) -> None:
        try:
            if self._id is None:
                made = create_progress_artifact(progress=self._percent, key="fairway-progress", description=self._text)
                self._id = made if isinstance(made, UUID) else None
            else:
                update_progress_artifact(artifact_id=self._id, progress=self._percent, description=self._text)
        except (httpx.HTTPError, PrefectException, OSError):
            return  # a server that restarts must not end a training


def carry_out(parameters: Mapping[str, Any], flow_run: UUID | None, log: Log) -> State[Any]:
    """Run one assignment in this machine's scratch; the state that its Prefect run ends in."""
    try:
        assignment = Assignment.from_json(parameters)
        if (ended := ended_before()) is not None:
            return Cancelled(message=ended.message) if ended.is_cancelled() else Crashed(message=ended.message)
        use(assignment.store, assignment.credentials)
        vigil = Vigil(flow_run)
        (home() / ".fairway" / "scratch").mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(
                dir=home() / ".fairway" / "scratch", prefix="stage-", ignore_cleanup_errors=True
            ) as folder,
            vigil.watching(),
        ):
            result = _execute(assignment, Path(folder), vigil, log)
            _keep_log(assignment, result)
            vigil.leave_if_replaced()
            return _state(assignment, result, vigil)
    except StageError as error:
        return Failed(name="Refused", message=str(error))
    except StoreRefused as error:  # until somebody mends the credentials, nobody's next try goes better
        return Failed(name="Refused", message=f"{worker_name()}: {error}")
    except (StoreError, OSError, httpx.HTTPError, PrefectException) as error:
        full = room(home()) if isinstance(error, OSError) and error.errno in NO_ROOM else ""
        return Crashed(message=redact_text(f"{worker_name()}: {type(error).__name__}: {error}{full}"))


def worker_name() -> str:
    """Who says it, for people who have to mend it."""
    return f"worker {os.environ.get('PREFECT__WORKER_NAME') or 'without a name'} on {host_name()}"


def _execute(assignment: Assignment, folder: Path, vigil: Vigil, log: Log) -> dict[str, Any]:
    """Start the published program and follow it until it has ended; its result, or {} if it left none."""
    progress = Progress(assignment.label, log)
    tree = folder / "tree"
    with progress.beating():  # a store that does not answer is asked again for minutes
        content = Store.open(assignment.store, proven=True).read_object(assignment.source)
    unpack_source(content, tree)
    (folder / "assignment.json").write_text(json.dumps(assignment.to_json()), encoding="utf-8")
    with tempfile.TemporaryFile() as said:
        process = _start(tree, folder, held(assignment.store), said)
        events = Tail(folder / "events.jsonl")
        stopper = _Stopper(process, vigil)
        try:
            while process.poll() is None:
                progress.show(_relay(assignment.label, events, progress, log))
                stopper.step()
                time.sleep(POLL_S)
        finally:
            stopper.end()
        progress.show(_relay(assignment.label, events, progress, log))
        result = folder / "result.json"
        ended = json.loads(result.read_text(encoding="utf-8")) if result.is_file() else {"exit": process.returncode}
        progress.end(ended)
        for line in _last_lines(said):
            log.warning(line)
    return ended


def _start(tree: Path, folder: Path, keys: Credentials | None, said: IO[bytes]) -> subprocess.Popen[bytes]:
    """The program, which writes to a file: nobody reads while it runs, and a full pipe would stop it for ever."""
    process = subprocess.Popen(
        [sys.executable, "-m", PROGRAM, str(folder)],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", PARENT: str(os.getpid())},
        stdin=subprocess.DEVNULL if keys is None else subprocess.PIPE,
        stdout=said,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # signals reach it through us only, so that we know which stop is meant
    )
    if keys is not None:
        _hand_over(process, keys)
    return process


def _last_lines(said: IO[bytes]) -> list[str]:
    said.seek(max(0, said.seek(0, os.SEEK_END) - LAST_BYTES))
    return said.read().decode("utf-8", "replace").splitlines()[-LAST_LINES:]


def _relay(label: str, events: Tail, progress: Progress, log: Log) -> bool:
    """Pass on what the program tells: the stage's output as log lines, the rest as progress; whether there was any."""
    changed = False
    for event in map(json.loads, events.lines()):
        if event["kind"] in LEVELS:
            log.getChild(f"{SAID}.{label}").log(LEVELS[event["kind"]], event["text"])
        else:
            changed = True
            progress.note(event)
    return changed


def _hand_over(process: subprocess.Popen[bytes], keys: Credentials) -> None:
    """Give the program the store's credentials: a pipe leaves them in no list of processes, environment or file."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it has ended already, and its output says why
        process.stdin.write(keys.dumps())
        process.stdin.close()
    process.stdin = None


class _Stopper:
    """Ends the program when the vigil says so: SIGTERM, after the grace again, then SIGKILL."""

    def __init__(self, process: subprocess.Popen[bytes], vigil: Vigil) -> None:
        self._process, self._vigil = process, vigil
        self._asked = 0
        self._next_s = 0.0

    def step(self) -> None:
        """Do what is due."""
        if not self._vigil.stopped.is_set() or time.monotonic() < self._next_s:
            return
        self._asked += 1
        if self._asked == 1:
            self._process.terminate()
            self._next_s = time.monotonic() + GRACE_S[self._vigil.verdict()]
        elif self._asked == 2:
            self._process.terminate()  # no more grace for the stage
            self._next_s = time.monotonic() + LAST_GRACE_S
        else:
            self.end()

    def end(self) -> None:
        """Nothing stays: its stage and ranks are bound to its life."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()


def _state(assignment: Assignment, result: Mapping[str, Any], vigil: Vigil) -> State[Any]:
    outcome, error = result.get("outcome"), result.get("error")
    if outcome:
        _link(assignment, result)
        name = {"found": "Cached", "conflict": "Conflict"}.get(outcome, "Completed")
        return Completed(name=name, message=f"{assignment.stage}/{assignment.key[:12]}")
    if error in ("user", "crash"):
        return Failed(name="Refused" if error == "user" else "Failed", message=result["message"])
    if error == "denied":
        return Failed(name="Refused", message=f"{worker_name()}: {redact_text(result['message'])}")
    reason = vigil.verdict()
    if reason == "cancelled":
        return Cancelled(message=vigil.message or WORDS[reason])
    if reason:
        return Crashed(message=WORDS[reason])
    text = result.get("message") or f"the program on the worker ended with code {result.get('exit')}"
    return Crashed(message=redact_text(f"{worker_name()}: {text}"))


def _keep_log(assignment: Assignment, result: Mapping[str, Any]) -> None:
    """Say where the whole log is, on the page; the dispatcher reads it there for its run's document."""
    if digest := result.get("log"):
        text = f"Object `{digest}` of {assignment.store}\n\n`fairway runs logs {assignment.run} '{assignment.label}'`"
        with suppress(httpx.HTTPError, PrefectException, OSError):
            create_markdown_artifact(key=LOG, markdown=text, description=f"The whole log of {assignment.label}")


def _link(assignment: Assignment, result: Mapping[str, Any]) -> None:
    """What was made, for Prefect's page: names of inputs and output, so that lineage can be followed there."""
    rows = [
        f"| {role} | {', '.join(sorted({each['stage'] + '/' + each['key'][:12] for each in given['from']}))} |"
        for role, given in assignment.inputs.items()
    ]
    try:
        create_link_artifact(
            link=f"{assignment.store}/records/{assignment.stage}/{assignment.key}.json",
            link_text=f"{assignment.stage}/{assignment.key[:12]} ({result['outcome']})",
            key="fairway-artifact",
            description="\n".join([f"### {assignment.label}", "| reads | from |", "|---|---|", *rows]),
        )
    except (httpx.HTTPError, PrefectException, OSError):
        return
