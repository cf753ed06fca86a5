"""A lab: a Prefect server, one store on S3, and workers with folders, homes and checkouts of their own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx

from flows.up import Running, start_time

LIMIT_S = 240.0  # a busy machine is no failure
PAGE = 200  # runs that a server tells at once
CANARY = "canary-5b1f0c9e7d24"  # the store's secret: whatever shows it has leaked it


class Machine:
    """What a worker's machine would have of its own: a checkout, a home, a cache."""

    def __init__(self, name: str, folder: Path, tree: Path, environment: Mapping[str, str]) -> None:
        self.name, self.folder, self.tree = name, folder, tree
        (folder / "work").mkdir(parents=True, exist_ok=True)
        self.environment = {
            **environment,
            "HOME": str(folder),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "PREFECT_HOME": str(folder / "prefect"),
            "PYTHONPATH": str(tree),
        }
        self.worker: subprocess.Popen[bytes] | None = None

    def fairway(self, *arguments: str) -> dict[str, Any]:
        """Run a command here; its JSON object."""
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", *arguments, "--json"],
            cwd=self.folder / "work",
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def start_worker(self, pool: str, limit: int) -> None:
        """A worker as a user would start it."""
        options = ["--pool", pool, "--limit", str(limit), "--name", self.name]
        with (self.folder / "worker.log").open("ab") as log:
            self.worker = subprocess.Popen(
                [sys.executable, "-m", "flows.cli", "worker", *options],
                cwd=self.folder / "work",
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def descendants(self) -> list[int]:
        """Every process below the worker that lives."""
        return [] if self.worker is None else children_of(self.worker.pid)

    def kill(self, everything: bool = False) -> None:
        """SIGKILL to the worker; with `everything`, to all that it started in the same moment: the machine is gone."""
        assert self.worker is not None
        for pid in self._stand_still() if everything else [self.worker.pid]:
            signal_to(pid, signal.SIGKILL)
        self.worker.wait()
        self.worker = None

    def _stand_still(self) -> list[int]:
        """The worker and all below it, stopped: what starts while its parents are looked up would outlive them."""
        assert self.worker is not None
        still: list[int] = []
        while new := [pid for pid in [self.worker.pid, *self.descendants()] if pid not in still]:
            for pid in new:
                signal_to(pid, signal.SIGSTOP)
            still += new
        return still

    def stop(self) -> None:
        """The end, for everything that is left."""
        if self.worker is not None:
            left = self.descendants()
            self.kill(everything=True)
            wait_for(lambda: not [pid for pid in left if start_time(pid)], "processes are gone")


def signal_to(pid: int, number: signal.Signals) -> None:
    """Send it, unless the process is gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def children_of(parent: int) -> list[int]:
    """Living processes below `parent`, whatever session they are in."""
    below: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            below.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found: list[int] = []
    waiting = [parent]
    while waiting:
        here = below.get(waiting.pop(), [])
        found += here
        waiting += here
    return found


def command_line(pid: int) -> str:
    """How a process was started; "" if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def variables(pid: int) -> dict[str, str]:
    """What a process was started with; {} if it is gone."""
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    except OSError:
        return {}
    return {name: value for name, _, value in (word.partition("=") for word in words if word)}


def wait_for(true: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
    """Poll until it is true; what it said."""
    deadline_s = time.monotonic() + limit_s
    while time.monotonic() < deadline_s:
        if found := true():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {limit_s:.0f} s: {what}")


def free_port() -> int:
    """A port of this machine that nobody has just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Lab:
    """The server's API, as a person or a program would use it."""

    def __init__(self, port: int, folder: Path, submitter: Machine, gpu: Machine, store: str) -> None:
        self.api, self.submitter, self.gpu, self.store = f"http://127.0.0.1:{port}/api", submitter, gpu, store
        self.http = httpx.Client(base_url=f"{self.api}/", timeout=LIMIT_S)
        self.server = folder
        where = ["--port", str(port), "--folder", str(folder), "--store", store]
        self.up = [sys.executable, "-m", "flows.cli", "up", "--no-workers", *where]

    def restart_server(self) -> None:
        """SIGKILL, five seconds of nobody, and a new one with the same database."""
        pid, _ = Running.read(self.server).processes["server"]
        os.killpg(pid, signal.SIGKILL)
        time.sleep(5)
        self.start_server()

    def start_server(self) -> None:
        """`fairway up`, on the submitter's machine and without workers."""
        done = subprocess.run(self.up, env=self.submitter.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def close(self) -> None:
        """No connection stays open."""
        self.http.close()

    def post(self, path: str, **body: Any) -> Any:
        """One call; SQLite lets one write at a time, so a busy server says 503, which Prefect's own client repeats."""
        deadline_s = time.monotonic() + LIMIT_S
        while (answer := self.http.post(path, json=body)).status_code == 503 and time.monotonic() < deadline_s:
            time.sleep(1)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def start(self, flow: str, **parameters: Any) -> str:
        """Start a deployment of one of our flows; the run's id."""
        deployment = self.http.get(f"deployments/name/{flow}/{flow}").json()["id"]
        return self.post(f"deployments/{deployment}/create_flow_run", parameters=parameters)["id"]

    def score(self, **parameters: Any) -> str:
        """Start `score`; the run's id."""
        return self.start("score", **parameters)

    def run(self, run_id: str) -> dict[str, Any]:
        """A flow run as it is now."""
        answer = self.http.get(f"flow_runs/{UUID(run_id)}")
        answer.raise_for_status()
        return answer.json()

    def state(self, run_id: str) -> str:
        """The type of its state."""
        return self.run(run_id)["state"]["type"]

    def ended(self, run_id: str, limit_s: float = LIMIT_S) -> dict[str, Any]:
        """The state that a run ends in."""
        over = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        wait_for(lambda: self.state(run_id) in over, f"run {run_id} ends", limit_s)
        return self.run(run_id)["state"]

    def completed(self, run_id: str, limit_s: float = LIMIT_S) -> None:
        """It ends well; otherwise its message is what the test says."""
        ended = self.ended(run_id, limit_s)
        assert ended["type"] == "COMPLETED", f"{ended['name']}: {ended['message']}"

    def stop(self, run_id: str) -> None:
        """Cancel a run whose remaining stages prove nothing."""
        self.cancel(run_id)
        assert self.ended(run_id)["type"] == "CANCELLED"

    def stages(self, **having: Any) -> list[dict[str, Any]]:
        """Runs of the flow `stage`, oldest first; `having` are parameters."""
        found: list[dict[str, Any]] = []
        while len(page := self._page_of_stages(len(found))) == PAGE:  # all tests of a session share one server
            found += page
        found = sorted({run["id"]: run for run in [*found, *page]}.values(), key=lambda run: run["created"])
        return [run for run in found if all(run["parameters"].get(name) == value for name, value in having.items())]

    def _page_of_stages(self, offset: int) -> list[dict[str, Any]]:
        of_stages = {"name": {"any_": ["stage"]}}
        return self.post("flow_runs/filter", flows=of_stages, sort="ID_DESC", limit=PAGE, offset=offset)

    def running_stage(self, stage: str, **having: Any) -> dict[str, Any]:
        """The run of a stage, once it runs."""

        def look() -> dict[str, Any] | None:
            return next((r for r in self.stages(stage=stage, **having) if r["state"]["type"] == "RUNNING"), None)

        return wait_for(look, f"{stage} runs")

    def engines(self, run_id: str, machine: Machine | None = None) -> list[int]:
        """Processes of one run on a machine (default: the submitter's); those of other runs may still be ending."""
        below = (machine or self.submitter).descendants()
        engines = [pid for pid in below if "prefect.engine" in command_line(pid)]
        return [pid for pid in engines if variables(pid).get("PREFECT__FLOW_RUN_ID") == run_id]

    def cancel(self, run_id: str) -> None:
        """As the button on the page does."""
        self.post(f"flow_runs/{run_id}/set_state", state={"type": "CANCELLING", "name": "Cancelling"}, force=False)

    def runs(self, flow: str) -> set[str]:
        """Ids of the newest runs of a flow."""
        found = self.post("flow_runs/filter", flows={"name": {"any_": [flow]}}, sort="ID_DESC", limit=PAGE)
        return {run["id"] for run in found}

    def document_of(self, run_id: str) -> dict[str, Any]:
        """The document in the store of a flow run that has ended."""
        from artifacts.store import Store

        return next(run for run in Store.open(self.store).list_runs() if run.get("flow_run") == run_id)

    def document(self, before: set[str] = frozenset()) -> dict[str, Any]:
        """The newest run's document in the store, of those that were not there before."""
        from artifacts.store import Store

        return next(run for run in reversed(Store.open(self.store).list_runs()) if run["id"] not in before)


@contextmanager
def open_lab(port: int, folder: Path, submitter: Machine, gpu: Machine, store: str) -> Iterator[Lab]:
    """A lab whose server runs; afterwards nothing of it and its machines does."""
    with closing(Lab(port, folder, submitter, gpu, store)) as lab, ExitStack() as ends:
        down = [sys.executable, "-m", "flows.cli", "down", "--folder", str(folder)]
        ends.callback(subprocess.run, down, env=submitter.environment, check=True)
        ends.callback(gpu.stop)
        ends.callback(submitter.stop)
        lab.start_server()
        yield lab
