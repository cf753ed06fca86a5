"""Runs one stage in a process of its own, watches it, and never leaves it behind.

The stage's process gets a JOB.json (see `stages/contract.py`), the source tree that its key was made of, and an
environment built from an allow-list: a variable that is not named here cannot change a result. It lives in a session
of its own, so that Ctrl-C in a terminal reaches the launcher only; the launcher then asks the stage to stop (SIGTERM:
train writes a checkpoint), and ends its whole process group if it does not.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts.backend import room
from flows.ranks import Output, Said
from stages.contract import EXIT_USER_ERROR, PARENT, Device, Runtime, runtime_to_json

POLL_S = 0.05
OUTPUT_EVERY_S = 0.25
GRACE_S = 20.0  # between SIGTERM and SIGKILL: time for a checkpoint
LOG_TAIL_LINES = 12
_ROOM_FOR_A_WORD_BYTES = 1 << 16  # with less, a stage cannot even say why it failed

# What a stage's process inherits. Thread counts and the hash seed are set, not inherited.
INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "USER", "LOGNAME", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
INHERITED_PREFIXES = ("CUDA_", "NVIDIA_", "NCCL_", "TRITON_", "TORCHINDUCTOR_")
# Only `corpus` and `vocabulary` reach outside; credentials and proxies are theirs alone.
NETWORK_STAGES = ("corpus", "vocabulary")
NETWORK_PREFIXES = ("AWS_", "GOOGLE_", "GCS_", "AZURE_", "HF_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_")

_RANKS = (  # torchrun's agent must die with us as well; see `die_with_parent`
    "import os, runpy; from stages.contract import PARENT, die_with_parent; die_with_parent(); "
    "os.environ[PARENT] = str(os.getpid()); "
    "runpy.run_module('torch.distributed.run', run_name='__main__', alter_sys=True)"
)


class StageFailed(RuntimeError):
    """A stage's process ended without a report.

    `kind` is "user" (input or configuration), "machine" (its disk is full: it may go well elsewhere) or "crash".
    """

    def __init__(self, stage: str, kind: str, message: str, log: Path | str) -> None:
        super().__init__(message)
        self.stage = stage
        self.kind = kind
        self.log = log


class Interrupted(Exception):
    """The run was cancelled (Ctrl-C, SIGTERM, or another step failed) before this step was done."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One execution of a stage: everything that its process is told."""

    stage: str
    config: Mapping[str, Any]  # the whole configuration, defaults and locations included
    inputs: Mapping[str, Path]
    source_root: Path  # the tree that holds `stages/` and `model/`, as keyed
    seed: int | None = None
    device: Device = field(default_factory=Device)
    workers: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)  # additions, such as CUDA_VISIBLE_DEVICES


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a stage is, from its own progress lines."""

    done: float
    total: float
    unit: str
    rate: float | None = None  # units per second, over the last lines
    eta_s: float | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)


class ProgressTail:
    """Reads the progress file as it grows and estimates rate and remaining time."""

    def __init__(self, path: Path, window: int = 64) -> None:
        self._path = path
        self._offset = 0
        self._points: deque[tuple[float, float]] = deque(maxlen=window)

    def poll(self) -> Progress | None:
        """The newest complete line since the last call, or None."""
        try:
            with self._path.open("rb") as lines:
                lines.seek(self._offset)
                new = lines.read()
        except FileNotFoundError:
            return None
        whole = new[: new.rfind(b"\n") + 1]  # a line may be half written
        self._offset += len(whole)
        newest: dict[str, Any] = {}
        for text in whole.splitlines():
            newest = json.loads(text)
            if self._points and newest["done"] < self._points[-1][1]:
                self._points.clear()  # a new phase counts from zero
            self._points.append((newest.pop("monotonic_s"), newest["done"]))
        return self._estimate(newest) if newest else None

    def _estimate(self, line: dict[str, Any]) -> Progress:
        done, total, unit = line.pop("done"), line.pop("total"), line.pop("unit")
        (first_s, first_done), (last_s, _) = self._points[0], self._points[-1]
        rate = (done - first_done) / (last_s - first_s) if last_s > first_s and done > first_done else None
        eta_s = (total - done) / rate if rate else None
        return Progress(done=done, total=total, unit=unit, rate=rate, eta_s=eta_s, metrics=line)


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What the launcher heeds while a stage runs."""

    cancel: threading.Event = field(default_factory=threading.Event)
    kill: threading.Event = field(default_factory=threading.Event)  # the grace is over
    deadline_s: float | None = None
    grace_s: float = GRACE_S
    on_progress: Callable[[Progress], None] = lambda progress: None
    progress_every_s: float = 1.0
    on_line: Callable[[Said], None] = lambda said: None


def launch(job: Job, folder: Path, log: Path, watch: Watch) -> dict[str, Any]:
    """Run `job` in `folder` (which may hold restored `checkpoints/`) and return its report; its output is `folder/out`.

    Raises:
        StageFailed: with the stage's own message, or the last lines of its log when it left none.
        Interrupted: `watch.cancel` was set.
    """
    out, scratch, checkpoints = (folder / name for name in ("out", "scratch", "checkpoints"))
    for each in (out, scratch, checkpoints, log.parent):
        each.mkdir(parents=True, exist_ok=True)
    job_path, progress_path = folder / "JOB.json", folder / "progress.jsonl"
    runtime = runtime_to_json(
        Runtime(
            scratch=scratch, checkpoints=checkpoints, device=job.device, workers=job.workers, progress=progress_path
        )
    )
    inputs = {role: str(path) for role, path in job.inputs.items()}
    content = {"config": job.config, "inputs": inputs, "out": str(out), "seed": job.seed, "runtime": runtime}
    job_path.write_text(json.dumps(content), encoding="utf-8")
    ranks = folder / "ranks" if job.device.count > 1 else None
    output = Output(log, ranks)
    with log.open("ab") as sink:
        process = subprocess.Popen(
            command(job, job_path, ranks),
            cwd=job.source_root,
            env=environment(job, scratch),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        ended_by = _wait(process, ProgressTail(progress_path), output, watch)
    finally:
        _end(process)  # whatever happened here, nothing of the group stays
        _show(output, watch, ended=True)
    if ended_by == "cancel":
        raise Interrupted(f"{job.stage} was stopped")
    report_path = folder / "report.json"
    if process.returncode == 0 and report_path.is_file():
        return json.loads(report_path.read_text(encoding="utf-8"))
    raise _failure(job, folder, process.returncode, log, watch, ended_by)


def command(job: Job, job_path: Path, ranks: Path | None = None) -> list[str]:
    """The stage's command line; several ranks start through torchrun, and write to files below `ranks`."""
    module = f"stages.{job.stage}"
    if job.device.count == 1:
        return [sys.executable, "-m", module, str(job_path)]
    start = ["--standalone", "--nproc-per-node", str(job.device.count)]
    start += ["--redirects", "3", "--log-dir", str(ranks)] if ranks is not None else []
    return [sys.executable, "-c", _RANKS, *start, "-m", module, str(job_path)]


def environment(job: Job, scratch: Path) -> dict[str, str]:
    """The allow-listed environment of a stage's process."""
    prefixes = INHERITED_PREFIXES + (NETWORK_PREFIXES if job.stage in NETWORK_STAGES else ())
    kept = {name: value for name, value in os.environ.items() if name in INHERITED or name.upper().startswith(prefixes)}
    fixed = {
        "PYTHONPATH": str(job.source_root),
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",  # nothing is written outside the job's folders
        "OMP_NUM_THREADS": str(job.device.threads),
        "MKL_NUM_THREADS": str(job.device.threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that wait by spinning starve each other wherever cores are shared
        "TMPDIR": str(scratch),
        PARENT: str(os.getpid()),
    }
    if job.stage in NETWORK_STAGES:
        fixed["HF_HUB_DISABLE_TELEMETRY"] = "1"
    return {**kept, **fixed, **job.environment}


def _show(output: Output, watch: Watch, ended: bool = False) -> None:
    for said in output.poll(ended):
        watch.on_line(said)


def _wait(process: subprocess.Popen[bytes], tail: ProgressTail, output: Output, watch: Watch) -> str:
    """Poll until the process ends: "exit", or what made us end it, "cancel" or "deadline"."""
    started = time.monotonic()
    told = shown = -watch.progress_every_s
    while True:
        ended = process.poll() is not None
        now = time.monotonic()
        if now - shown >= OUTPUT_EVERY_S:
            shown = now
            _show(output, watch)
        if (ended or now - told >= watch.progress_every_s) and (progress := tail.poll()) is not None:
            told = now
            watch.on_progress(progress)
        if ended:
            return "exit"
        if watch.cancel.is_set():
            _ask(process, watch)
            return "cancel"
        if watch.deadline_s is not None and now - started > watch.deadline_s:
            _ask(process, watch)
            return "deadline"
        try:
            process.wait(POLL_S)
        except subprocess.TimeoutExpired:
            continue


def _ask(process: subprocess.Popen[bytes], watch: Watch) -> None:
    """SIGTERM, and time to write a checkpoint. torchrun passes the signal on to its ranks."""
    _signal_group(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + watch.grace_s
    while process.poll() is None and time.monotonic() < deadline and not watch.kill.is_set():
        time.sleep(POLL_S)


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to what is left. The leader may be gone and its helpers still there: the group outlives it."""
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return  # everyone in the group has gone


def _killed_rank(log: str) -> str:
    """The rank that a signal ended, from torchrun's list of failed ranks; "" if none. SIGTERM is torchrun's own."""
    for rank, code in re.findall(r"rank +: (\d+) .*\n +exitcode +: -(\d+) ", log):
        if int(code) != signal.SIGTERM:
            name = signal.Signals(int(code)).name
            return f"its rank {rank} was ended by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"
    return ""


def _failure(job: Job, folder: Path, code: int, log: Path, watch: Watch, ended_by: str) -> StageFailed:
    if ended_by == "deadline":
        text = f"{job.stage} ran longer than its limit of {watch.deadline_s:.0f} s and was stopped; raise the limit"
        return StageFailed(job.stage, "crash", text, log)
    said = log.read_text(encoding="utf-8", errors="replace")
    killed = _killed_rank(said) if job.device.count > 1 else ""
    error = _error(folder)
    if error.get("kind") != "user" and (full := _full(folder, log)):
        return StageFailed(job.stage, "machine", f"{job.stage} failed: {full}", log)
    if error:
        if "SIGKILL" in killed:  # a rank that loses its peer fails of that, and gloo may abort; only this is a cause
            error["message"] += f"; {killed}"
        return StageFailed(job.stage, error["kind"], error["message"], log)
    if killed:
        reason = killed
    elif code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        reason = f"its process was ended by {name}{hint}"
    else:
        reason = f"its process ended with code {code} and left no report"
    kind = "user" if code == EXIT_USER_ERROR else "crash"
    last = "\n".join(f"  {line}" for line in said.splitlines()[-LOG_TAIL_LINES:])
    return StageFailed(job.stage, kind, f"{job.stage} failed: {reason}\n{last}".rstrip(), log)


def _error(folder: Path) -> dict[str, str]:
    """What the stage left about its failure; {} if nothing, or half of it, as on a full disk."""
    try:
        return json.loads((folder / "error.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def _full(folder: Path, log: Path) -> str:
    """What to say if the stage ended because its disk was full; "" if it was not."""
    said = [path.read_bytes()[-4096:] for path in (folder / "error.json", log) if path.is_file()]
    told = any(b"No space left on device" in each or b"Disk quota exceeded" in each for each in said)
    if not told and shutil.disk_usage(folder).free > _ROOM_FOR_A_WORD_BYTES:
        return ""
    used = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return (
        f"a stage writes to this machine's disk, and {folder} has no room left for it: it took {used:,} bytes there"
        f"{room(folder)}; make room, or run where there is more; what was done before it stays"
    )
