"""How much training does the death of a machine cost? Once a second: what it would cost now; and one real death.

    python benchmarks/lost_training.py [--minutes 4] [--json]

A Prefect server, two workers and an S3 server (moto) on this machine, with the periods of production: train writes a
checkpoint every 30 s, the mirror looks every 5 s. Lost is the training between the step of the checkpoint in the store
and the last step that was made, in seconds of the training's own clock. Then everything of the stage's worker is killed
at once, and the training goes on elsewhere: from which step, how long after the death. Needs the extras `s3`, `dev`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from bench_remote import server

from artifacts.backend import open_backend
from flows.mirror import EVERY_S
from flows.remote_dispatch import SILENCE_S
from flows.up import Running
from stages.contract import Runtime

BUCKET = "s3://lost-training/store"
FOREVER = 10_000_000  # steps; the run is cancelled in the end


def fairway(folder: Path, *arguments: str) -> str:
    """Run a command in `folder`; its output."""
    command = [sys.executable, "-m", "flows.cli", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


@dataclass
class Training:
    """What can be seen of the training from outside: its progress file and its checkpoint in the store."""

    folder: Path
    steps: list[tuple[float, float]] = field(default_factory=list)  # monotonic seconds, step; of all attempts

    def look(self) -> None:
        """Read every attempt's progress."""
        found: set[tuple[float, float]] = set(self.steps)
        for path in (self.folder / ".fairway" / "scratch").glob("stage-*/**/progress.jsonl"):
            for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
                said = json.loads(line)
                found.add((said["monotonic_s"], said["done"]))
        self.steps = sorted(found)

    def lost_s(self, kept: int, since_s: float = 0.0) -> float:
        """Seconds of training since step `kept`, of the attempt that began at `since_s`."""
        own = [(at, step) for at, step in self.steps if at >= since_s]
        reached = [at for at, step in own if step <= kept]
        return own[-1][0] - (reached[-1] if reached else own[0][0]) if own else 0.0


def kept_step(key: str) -> int:
    """The step of the newest checkpoint in the store."""
    try:
        manifest = json.loads(open_backend(BUCKET).read(f"attempts/{key}/manifest.json"))
    except FileNotFoundError:
        return 0
    document = manifest.get("document", manifest)
    names = [each["path"] for each in document["files"] if each["path"].startswith("step-")]
    return max((int(name[5:14]) for name in names), default=0)


def descendants(parent: int) -> list[int]:
    """Processes below one."""
    lines = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    below: dict[int, list[int]] = {}
    for line in lines.splitlines():
        pid, above = map(int, line.split())
        below.setdefault(above, []).append(pid)
    found = list(below.get(parent, []))
    for pid in found:
        found += below.get(pid, [])
    return found


def measure(folder: Path, minutes: float, port: int) -> dict[str, Any]:
    """The experiment; everything is stopped afterwards."""
    up = ["up", "--store", BUCKET, "--port", str(port)]
    fairway(folder, *up)
    api = httpx.Client(base_url=Running.read(folder / ".fairway" / "up").api + "/", timeout=60)
    try:
        score = api.get("deployments/name/score/score").json()["id"]
        asked = {"recipe": "quickstart", "scale": "smoke", "overrides": [f"train.steps={FOREVER}"], "pool": "gpu"}
        run = api.post(f"deployments/{score}/create_flow_run", json={"parameters": asked}).json()["id"]

        def trainings() -> list[dict[str, Any]]:
            named = {"flows": {"name": {"any_": ["stage"]}}, "sort": "START_TIME_ASC"}
            return api.post("flow_runs/filter", json=named).json()

        training = Training(folder)
        while not training.steps:
            time.sleep(1)
            training.look()
        key = trainings()[0]["parameters"]["key"]
        print(f"training {key[:12]} runs", file=sys.stderr, flush=True)
        samples: list[float] = []
        first_s = training.steps[0][0]
        while time.monotonic() - first_s < 60 * minutes:
            time.sleep(1)
            training.look()
            samples.append(training.lost_s(kept_step(key), first_s))
            if len(samples) % 10 == 0:
                print(f"{len(samples)} samples, most {max(samples):.1f} s", file=sys.stderr, flush=True)

        worker = Running.read(folder / ".fairway" / "up").processes["worker-gpu"][0]
        for pid in [worker, *descendants(worker)]:
            os.kill(pid, signal.SIGKILL)
        died_s = time.monotonic()
        training.look()
        kept, reached = kept_step(key), training.steps[-1][1]
        lost_s = training.lost_s(kept, first_s)
        fairway(folder, *up)  # starts the worker again
        while not [at for at, _ in training.steps if at > died_s]:
            time.sleep(0.5)
            training.look()
        resumed_s, resumed = next((at, step) for at, step in training.steps if at > died_s)
        states = [each["state"]["type"] for each in trainings()]
        api.post(f"flow_runs/{run}/set_state", json={"state": {"type": "CANCELLING"}})
        samples.sort()
        return {
            "checkpoint_every_s": Runtime.checkpoint_every_s,
            "mirror_every_s": EVERY_S,
            "silence_s": SILENCE_S,
            "samples": len(samples),
            "would_lose_s": {"median": samples[len(samples) // 2], "most": samples[-1]},
            "death": {
                "step_reached": reached,
                "step_in_store": kept,
                "lost_s": lost_s,
                "first_step_shown_afterwards": resumed,
                "training_again_after_s": resumed_s - died_s,
                "attempts": states,
            },
            "steps_per_s": reached / (died_s - first_s),
        }
    finally:
        api.close()
        fairway(folder, "down")


def main() -> None:
    """Measure and say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--port", type=int, default=4287)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with server(), tempfile.TemporaryDirectory() as folder:
        import s3fs

        s3fs.S3FileSystem().mkdir(BUCKET.removeprefix("s3://").partition("/")[0])
        found = measure(Path(folder), asked.minutes, asked.port)
    print(json.dumps(found, indent=None if asked.json else 1))


if __name__ == "__main__":
    main()
