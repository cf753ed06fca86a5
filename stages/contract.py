"""The one shape of every stage: (config, input folders, empty output folder, runtime) -> small report.

A stage is a folder of `stages/` with `config.py` (its knobs and its SPEC), `stage.py` (`run`) and `__main__.py`, so
that `python -m stages.<name> JOB.json` runs it anywhere, without Prefect and without the store; `torchrun` starts ranks
in the same way. This module imports the standard library only.

JOB.json:  {"config": {...}, "inputs": {role: folder}, "out": folder, "seed": int | null, "runtime": {...}}
Beside JOB.json the stage's process leaves report.json (a finished run) or error.json ({"kind", "message"}).
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

EXIT_USER_ERROR = 3  # the input or the configuration is wrong: running again cannot help
EXIT_CRASH = 1
PARENT = "FAIRWAY_PARENT"  # the process id that a launcher tells its child, so that an orphan knows itself


class StageError(ValueError):
    """What a user can cause and mend. The text has three parts: the rule, what came, what to do."""


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """What the wiring must know of a stage before it runs, without importing the code that does the work."""

    name: str
    inputs: tuple[str, ...]  # roles that it may read; `StageConfig.reads()` narrows them for one configuration
    outputs: tuple[str, ...]  # roles that it writes: sub-folders of `out`, each with a digest of its own
    libraries: tuple[str, ...] = ()  # distributions, or "python", whose version is part of the identity
    seeded: bool = False  # takes `seed`
    accelerated: bool = False  # the requested device is part of the identity
    mapped: bool = False  # runs once per part (a document shard, a protocol), one record each


@dataclass(frozen=True, kw_only=True)
class Device:
    """What the recipe asks for. Part of the identity of accelerated stages, because results depend on it."""

    kind: str = "cpu"  # "cpu" | "cuda"
    count: int = 1  # ranks, one per device
    threads: int = 2  # CPU threads per rank: float sums depend on it, so it is stated and not taken from the machine
    model: str = ""  # substring of the device name that must be there, such as "H100"; empty = any


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Where and how a stage runs. Never part of the identity, never read from globals."""

    scratch: Path  # private to this attempt, deleted afterwards
    checkpoints: Path  # mirrored to the store's attempts/<key>/ and restored before a retry
    device: Device = field(default_factory=Device)
    workers: int = 1  # processes or threads that a CPU stage may use for its own parallel work
    rank: int = 0
    world: int = 1
    local_rank: int = 0
    progress: Path | None = None  # JSON lines that the flow tails; only rank 0 writes
    checkpoint_every_s: float = 30.0  # how much work an interruption may cost

    def report_progress(self, done: float, total: float, unit: str, **metrics: float | str) -> None:
        """Append one progress line: `done` of `total` `unit`s, and any metrics worth showing live."""
        if self.progress is None or self.rank != 0:
            return
        line = {"monotonic_s": time.monotonic(), "done": done, "total": total, "unit": unit, **metrics}
        with self.progress.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")


def fresh_role(out: Path, role: str) -> Path:
    """Create and return the folder of an output role; refuses a folder that is there already."""
    folder = out / role
    folder.mkdir(parents=True)
    return folder


def refuse_dirty(out: Path) -> None:
    """Stages publish from an empty folder only: leftovers of another attempt must never be taken for output."""
    if not out.is_dir() or any(out.iterdir()):
        raise StageError(f"a stage writes into an empty folder; {out} is missing or not empty; give a new one")


def _runtime_from_json(raw: Mapping[str, Any]) -> Runtime:
    environment = {name: int(os.environ.get(name.upper(), "0")) for name in ("rank", "local_rank")}
    return Runtime(
        scratch=Path(raw["scratch"]),
        checkpoints=Path(raw["checkpoints"]),
        device=Device(**raw.get("device", {})),
        workers=int(raw.get("workers", 1)),
        progress=Path(raw["progress"]) if raw.get("progress") else None,
        checkpoint_every_s=float(raw.get("checkpoint_every_s", Runtime.checkpoint_every_s)),
        world=int(os.environ.get("WORLD_SIZE", "1")),
        **environment,
    )


def runtime_to_json(runtime: Runtime) -> dict[str, Any]:
    """The part of a runtime that travels in JOB.json; ranks come from the launcher's environment."""
    return {
        "scratch": str(runtime.scratch),
        "checkpoints": str(runtime.checkpoints),
        "device": asdict(runtime.device),
        "workers": runtime.workers,
        "progress": str(runtime.progress) if runtime.progress else None,
        "checkpoint_every_s": runtime.checkpoint_every_s,
    }


def with_rank(runtime: Runtime, rank: int, world: int) -> Runtime:
    """The same runtime as seen by one rank; for tests and in-process launches."""
    return replace(runtime, rank=rank, world=world, local_rank=rank)


def die_with_parent() -> None:
    """Linux: end this process when its parent ends, even by SIGKILL, so that no orphan keeps a GPU busy.

    `torchrun` starts ranks in sessions of their own, out of reach of the launcher's `killpg`; so each rank asks for
    itself. The launching *thread* counts as the parent: it must wait for the process that it started.
    """
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>
        ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGKILL), 0, 0, 0)
        # The parent may have gone while this interpreter started; then nothing would ever come.
        if os.environ.get(PARENT, str(os.getppid())) != str(os.getppid()):
            os.kill(os.getpid(), signal.SIGKILL)


def main(spec: StageSpec, config_type: type[Any], run: Callable[..., dict[str, Any]]) -> int:
    """Run one job file: the body of every `stages/<name>/__main__.py`. Returns the process's exit code."""
    if len(sys.argv) != 2:
        sys.stderr.write(f"usage: python -m stages.{spec.name} JOB.json\n")
        return 2
    die_with_parent()
    job_path = Path(sys.argv[1])
    runtime: Runtime | None = None
    try:
        job = json.loads(job_path.read_text(encoding="utf-8"))
        runtime = _runtime_from_json(job["runtime"])
        config = config_type.model_validate(job["config"])
        out = Path(job["out"])
        if runtime.rank == 0:
            refuse_dirty(out)
        inputs = {role: Path(folder) for role, folder in job["inputs"].items()}
        seed = {"seed": int(job["seed"])} if spec.seeded else {}
        report = run(config, inputs, out, runtime, **seed)
        if runtime.rank == 0:
            (job_path.parent / "report.json").write_text(json.dumps(report, allow_nan=False), encoding="utf-8")
        if runtime.world > 1:
            leave(0)
    except StageError as error:
        return _fail(job_path, runtime, "user", str(error), EXIT_USER_ERROR)
    except Exception as error:  # noqa: BLE001 - the process ends here and tells its parent what happened
        traceback.print_exc()
        return _fail(job_path, runtime, "crash", f"{type(error).__name__}: {error}", EXIT_CRASH)
    return 0


def leave(code: int) -> NoReturn:
    """End a rank whose work is done, past the interpreter's teardown.

    gloo's threads may outlive their process group, and a C++ runtime that is torn down around them aborts the process:
    seen with torch 2.13 in one of three runs of four ranks, after everything was written.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _fail(job_path: Path, runtime: Runtime | None, kind: str, message: str, code: int) -> int:
    rank = runtime.rank if runtime else int(os.environ.get("RANK", "0"))
    # Ranks fail together (a lost peer), so the first cause wins and the others only print.
    with_rank_text = f"rank {rank}: {message}" if rank else message
    try:
        with (job_path.parent / "error.json").open("x", encoding="utf-8") as handle:
            json.dump({"kind": kind, "message": with_rank_text}, handle)
    except OSError:
        sys.stderr.write(with_rank_text + "\n")
    return code
