"""How long does a fully cached `fairway run` take? Whole processes, with a warm Prefect server, and without one.

    python benchmarks/bench_cached_run.py [--runs 100] [--recipe quickstart] [--scale smoke] [--json]

The recipe runs once into a store of its own; what is timed is every run after it. The goal with a warm server is a p50
under 1.5 s and a p95 under 3 s.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from flows.server import QUIET, OwnServer


def timed(command: list[str], folder: Path, environment: dict[str, str]) -> float:
    """Seconds of one process that must find everything in the store."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    states = {stage["state"] for stage in json.loads(done.stdout)["stages"]}
    if states != {"cached"}:
        raise RuntimeError(f"a timed run is fully cached; this one had {states}")
    return seconds


def quantiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
    return {"p50_s": round(statistics.median(ordered), 3), "p95_s": round(p95, 3), "max_s": round(ordered[-1], 3)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--scale", default="smoke")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
        environment = {**clean, **QUIET, "PREFECT_HOME": str(folder / "prefect")}
        server = OwnServer(environment)
        server.start()
        server.wait_until_ready()
        warm = {**environment, "PREFECT_API_URL": server.url}
        command = [sys.executable, "-m", "flows.cli", "run", arguments.recipe, "--scale", arguments.scale, "--json"]
        subprocess.run(command, cwd=folder, env=warm, check=True, capture_output=True)
        timed(command, folder, warm)
        found = {"warm server": quantiles([timed(command, folder, warm) for _ in range(arguments.runs)])}
        server.stop()
        few = max(3, arguments.runs // 20)
        found["its own server"] = quantiles([timed(command, folder, environment) for _ in range(few)])
        found["interpreter and Prefect"] = quantiles(
            [_bare([sys.executable, "-c", "from prefect import flow, task"], environment) for _ in range(few)]
        )
    if arguments.json:
        print(json.dumps({"runs": arguments.runs, "cores": os.cpu_count(), **found}))
    else:
        for what, numbers in found.items():
            print(f"{what:<24} " + "  ".join(f"{key[:-2]} {value:.2f} s" for key, value in numbers.items()))
    return 0


def _bare(command: list[str], environment: dict[str, str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, env=environment, check=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
