"""How long does a person wait for a server's workers? From a request to each stage's first line, and whole cached runs.

    python benchmarks/bench_dispatch.py [--runs 10] [--cached 100] [--json]

Starts `fairway up` in a folder of its own (a server and a worker for each pool, on 127.0.0.1), runs `score` with a new
seed `--runs` times, which sends four stages to the pool one after the other, and then the last run again `--cached`
times. Needs ten seconds a run and three a cached run. Goals: 5 s to a stage's first line; a cached run in 3 s (p50) and
4.5 s (p95).

Stages, in seconds since the run began the step (its task's start, so that keying and sending count):
  sent      the server has the run           taken     the worker has it
  running   its process has Prefect          started   its program has source, key and inputs: the log says `start`
  first     the stage itself has said how far it is (train does after a second of training)
Cached runs, in seconds since the request: taken; running; completed, as a client that asks every 20 ms sees it.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

RECIPE = """
name = "dispatch"
extends = "quickstart"
without = ["evaluate.raw", "evaluate.averaged", "evaluate.sliding", "evaluate.ttt"]
"""
OVERRIDES = ["train.steps=120"]  # two seconds, so that train speaks
FIRST_SEED = 1000
LIMIT_S = 300.0
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
Sample = dict[str, float]


class Page:
    """The server's API, as a person's page would use it."""

    def __init__(self, api: str) -> None:
        self._http = httpx.Client(base_url=f"{api}/", timeout=60)
        self.refusals = 0
        self._deployment = self.get("deployments/name/score/score")["id"]

    def get(self, path: str, **query: str) -> Any:
        """One reading call."""
        return self._http.get(path, params=query).raise_for_status().json()

    def post(self, path: str, **body: Any) -> Any:
        """One writing call, once more for each time that the server is too busy, which is counted."""
        while (answer := self._http.post(path, json=body)).status_code == httpx.codes.SERVICE_UNAVAILABLE:
            self.refusals += 1
            time.sleep(0.1)
        return answer.raise_for_status().json()

    def score(self, seed: int) -> dict[str, Any]:
        """Start a run and wait for its end; the run, with `asked_s` and `ended_s` by our clock."""
        parameters = {"toml": RECIPE, "scale": "smoke", "seed": seed, "overrides": OVERRIDES}
        asked_s = time.time()
        run = self.post(f"deployments/{self._deployment}/create_flow_run", parameters=parameters)
        while run["state"]["type"] not in ENDED:
            if time.time() - asked_s > LIMIT_S:
                raise RuntimeError(f"a run ends within {LIMIT_S:.0f} s; {run['name']} is {run['state']['name']}")
            time.sleep(0.02)
            run = self.get(f"flow_runs/{run['id']}")
        if run["state"]["type"] != "COMPLETED":
            raise RuntimeError(f"a timed run completes; this one: {run['state']['name']}: {run['state']['message']}")
        return {**run, "asked_s": asked_s, "ended_s": time.time()}

    def entered(self, run: dict[str, Any]) -> Sample:
        """When a run entered each of its states."""
        return {
            each["type"]: _s(each["timestamp"])
            for each in reversed(self.get("flow_run_states/", flow_run_id=run["id"]))
        }

    def stages(self) -> list[dict[str, Any]]:
        """Every run of a stage, newest last."""
        return self.post("flow_runs/filter", flows={"name": {"any_": ["stage"]}}, sort="START_TIME_ASC", limit=200)

    def lines(self, run: dict[str, Any]) -> list[dict[str, Any]]:
        """The log lines of a run's flow."""
        chosen = {"flow_run_id": {"any_": [run["id"]]}}
        found = self.post("logs/filter", logs=chosen, sort="TIMESTAMP_ASC", limit=200)
        return [line for line in found if line["name"] == "prefect.flow_runs"]


def _s(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()


@contextmanager
def up(folder: Path) -> Iterator[Page]:
    """A server and workers for the body, in `folder`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment = {**clean, "PREFECT_HOME": str(folder / "prefect")}
    fairway = [sys.executable, "-m", "flows.cli"]
    where = ["--folder", str(folder / "up"), "--json"]
    command = [*fairway, "up", "--port", str(port), "--store", str(folder / "store"), *where]
    try:
        done = subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True)
        yield Page(json.loads(done.stdout)["api"])
    finally:
        subprocess.run([*fairway, "down", *where], cwd=folder, env=environment, check=True, capture_output=True)


def dispatch(page: Page, runs: int) -> dict[str, list[Sample]]:
    """{stage: samples} of `runs` runs after one that warms caches."""
    for number in range(runs + 1):
        page.score(FIRST_SEED + number)
    time.sleep(5)  # logs and tasks reach the server in batches
    found: dict[str, list[dict[str, Any]]] = {}
    for run in page.stages():
        found.setdefault(run["parameters"]["stage"], []).append(run)
    return {stage: [_stage_times(page, run) for run in sent[1:]] for stage, sent in found.items() if sent[1:]}


def _stage_times(page: Page, run: dict[str, Any]) -> Sample:
    began = _s(page.get(f"task_runs/{run['parent_task_run_id']}")["start_time"])
    entered = page.entered(run)
    own = [line for line in page.lines(run) if line["message"].startswith(f"{run['parameters']['stage']}")]
    times = {
        "sent": _s(run["created"]),
        "taken": entered["PENDING"],
        "running": entered["RUNNING"],
        **{name: _s(line["timestamp"]) for name, line in zip(("started", "first"), own, strict=False)},
    }
    return {name: at - began for name, at in times.items()}


def cached(page: Page, runs: int, seed: int) -> list[Sample]:
    """Times of `runs` runs in a row that find everything in the store."""
    before = len(page.stages())
    samples = []
    for _ in range(runs):
        run = page.score(seed)
        entered = page.entered(run)
        times = {"taken": entered["PENDING"], "running": entered["RUNNING"], "completed": run["ended_s"]}
        samples.append({name: at - run["asked_s"] for name, at in times.items()})
    if len(page.stages()) != before:
        raise RuntimeError("a timed run is fully cached; these sent stages")
    return samples


def quantiles(samples: list[Sample]) -> dict[str, dict[str, float]]:
    """p50, p95 and maximum of every time, seconds."""
    names = max(samples, key=len, default={})
    table = {name: sorted(sample[name] for sample in samples if name in sample) for name in names}
    return {
        name: {
            "p50": round(statistics.median(times), 2),
            "p95": round(times[min(len(times) - 1, round(0.95 * (len(times) - 1)))], 2),
            "max": round(times[-1], 2),
        }
        for name, times in table.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--cached", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, up(Path(name)) as page:
        stages = {stage: quantiles(samples) for stage, samples in dispatch(page, arguments.runs).items()}
        again = quantiles(cached(page, arguments.cached, FIRST_SEED + arguments.runs))
        refusals = page.refusals
    if arguments.json:
        print(json.dumps({"cores": os.cpu_count(), "stages": stages, "cached": again, "refusals": refusals}))
        return 0
    for what, times in {**stages, f"{arguments.cached} cached runs": again}.items():
        cells = (f"{moment} {at['p50']:.2f} / {at['p95']:.2f} / {at['max']:.2f}" for moment, at in times.items())
        print(f"{what:<16} " + "   ".join(cells))
    print(f"seconds: p50 / p95 / maximum; {refusals} requests refused by a busy server")
    return 0


if __name__ == "__main__":
    sys.exit(main())
