"""Prefect's server and workers on this machine, as processes that outlive the command: `fairway up` and `down`.

Everything lies in one folder: the server's database, logs, and `up.json` with each process's id and start time, so that
an id that the kernel gave to somebody else is never signalled. Nothing here imports Prefect.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flows.closure import ROOT
from flows.server import QUIET, ServerFailed
from stages.contract import StageError

START_LIMIT_S = 180.0
STOP_LIMIT_S = 32.0  # a worker waits for the checkpoints of its stages, which have 24 s
LOOPBACK = ("127.0.0.1", "localhost", "::1")

SERVER = {
    **QUIET,
    "PREFECT_SERVER_UI_V2_ENABLED": "false",  # the v2 page asks an analytics host whatever the settings say
    "PREFECT_SERVER_DATABASE_TIMEOUT": "60",  # SQLite lets one write at a time; others wait instead of failing
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO",
}
ASKING = "PREFECT_WORKER_QUERY_SECONDS"
WORKER = {
    **QUIET,
    ASKING: "0.5",  # give or take a third; a query takes the server 10 ms
    "PREFECT_WORKER_PREFETCH_SECONDS": "10",
    "PREFECT_WORKER_HEARTBEAT_SECONDS": "10",
    "PREFECT_WORKER_CANCELLATION_POLL_SECONDS": "5",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO",
    "PREFECT_CLIENT_MAX_RETRIES": "10",  # a server may restart under a run
}


@dataclass
class Running:
    """What `up` started."""

    api: str = ""
    processes: dict[str, tuple[int, str]] = field(default_factory=dict)  # name -> (id, start time)

    @classmethod
    def read(cls, folder: Path) -> Running:
        """As written last; empty if there is none."""
        try:
            raw = json.loads((folder / "up.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return cls()
        return cls(raw["api"], {name: (pid, started) for name, (pid, started) in raw["processes"].items()})

    def write(self, folder: Path) -> None:
        """Replace the file."""
        part = folder / "up.json.part"
        part.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        part.replace(folder / "up.json")

    def alive(self, name: str) -> bool:
        """Whether the process is still the one that was started."""
        pid, started = self.processes.get(name, (0, ""))
        return bool(pid) and start_time(pid) == started


def start_time(pid: int) -> str:
    """When a process started, in the kernel's ticks; "" if it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]


def up(folder: Path, host: str, port: int, workers: Mapping[str, int], home: Path) -> Running:
    """Start what does not run yet; `workers` is pool -> how many runs at once. Pools must be deployed afterwards.

    Raises:
        StageError: the port is taken by something else.
        ServerFailed: the server does not come up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    running = Running.read(folder)
    if not running.alive("server"):
        running = Running()
        _free(host, port)
        running.api = address(host, port)
        own = {
            "PREFECT_HOME": str(folder.absolute() / "prefect"),
            "PREFECT_SERVER_UI_API_URL": running.api,
            "PREFECT_UI_URL": running.api.removesuffix("/api"),
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", "flows.patient_server", "--host", host, "--port", str(port)]
        start(running, "server", command, {**SERVER, **own}, folder)
        running.write(folder)
    wait_until_ready(running, folder)
    for pool, limit in workers.items():
        name = f"worker-{pool}"
        if not running.alive(name):
            start(running, name, worker_command(pool, limit, ""), worker_environment(running.api, home), folder)
            running.write(folder)
    return running


def address(host: str, port: int) -> str:
    """Where this machine finds the API of a server that listens there."""
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/api"


def worker_command(pool: str, limit: int, name: str) -> list[str]:
    """A process worker for a pool, of this checkout; at most `limit` runs at once (0: any number)."""
    name = name or f"{socket.gethostname()}-{pool}"
    command = [sys.executable, "-m", "flows.pool_worker", "--pool", pool, "--name", name]
    return [*command, *(["--limit", str(limit)] if limit else [])]


def worker_environment(api: str, home: Path) -> dict[str, str]:
    """What a worker's runs need beside the environment: this checkout, this interpreter, a folder, short waits.

    How often a worker asks for work stays as the environment says: a lab of many workers may want it seldom.
    """
    return {
        **WORKER,
        ASKING: os.environ.get(ASKING, WORKER[ASKING]),
        "PREFECT_API_URL": api,
        "FAIRWAY_HOME": str(home.absolute()),
        "PYTHONPATH": str(ROOT),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }


def start(running: Running, name: str, command: list[str], environment: Mapping[str, str], folder: Path) -> None:
    """Start a process in a session of its own, its output in `<name>.log`."""
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    running.processes[name] = (process.pid, start_time(process.pid))
    process.returncode = 0  # it outlives us on purpose, which Popen would complain about


def wait_until_ready(running: Running, folder: Path) -> None:
    """Return when the server answers. ServerFailed with the last lines of its log when it does not."""
    deadline_s = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline_s and running.alive("server"):
        if answers(running.api):
            return
        time.sleep(0.2)
    log = folder / "server.log"
    last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:] if log.is_file() else []
    raise ServerFailed(f"the server did not come up at {running.api}:\n" + "\n".join(last) + f"\n  log: {log}")


def answers(api: str) -> bool:
    """Whether a Prefect server is there."""
    try:
        with urllib.request.urlopen(f"{api}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError, ValueError):
        return False


def admits(api: str) -> bool:
    """Whether the server lets us in: by what the environment says, or by what a profile of Prefect's does."""
    secret = os.environ.get("PREFECT_API_AUTH_STRING", "")
    header = {"Authorization": f"Basic {base64.b64encode(secret.encode()).decode()}"} if secret else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{api}/version", headers=header), timeout=10):
            return True
    except urllib.error.HTTPError as refusal:
        return refusal.code not in (401, 403) or _admits_client()
    except (urllib.error.URLError, OSError):
        return True  # it answered a moment ago; what is wrong now is no password


def _admits_client() -> bool:
    from prefect.client.orchestration import get_client  # only to ask what it is configured with
    from prefect.exceptions import PrefectHTTPStatusError

    try:
        with get_client(sync_client=True) as client:
            client.api_version()
    except PrefectHTTPStatusError as refusal:
        return refusal.response.status_code not in (401, 403)
    return True


def down(folder: Path) -> list[str]:
    """Stop workers, then the server; the names of what was running. Running stages write a checkpoint first."""
    running = Running.read(folder)
    stopped = [name for name in sorted(running.processes, key=lambda name: name == "server") if running.alive(name)]
    for name in stopped:
        _stop(*running.processes[name])
    (folder / "up.json").unlink(missing_ok=True)
    return stopped


def erase(folder: Path) -> None:
    """Forget the server's database and logs too."""
    shutil.rmtree(folder / "prefect", ignore_errors=True)
    for log in folder.glob("*.log"):
        log.unlink()


def _stop(pid: int, started: str) -> None:
    """SIGTERM to the leader, then SIGKILL to what is left of its group, which outlives it."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        _wait_for_end(pid, started, STOP_LIMIT_S)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
        _wait_for_end(pid, started, 5.0)


def _wait_for_end(pid: int, started: str, limit_s: float) -> None:
    deadline_s = time.monotonic() + limit_s
    while start_time(pid) == started and time.monotonic() < deadline_s:
        _reap(pid)
        time.sleep(0.1)


def _reap(pid: int) -> None:
    """A child of this very process stays a zombie until it is asked about."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def _free(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StageError(
                f"the server needs a free port; {host}:{port} is taken ({error.strerror}); give another with --port, "
                "or stop what is there"
            ) from error


def api_address(folder: Path) -> dict[str, Any]:
    """PREFECT_API_URL for this process: the environment's, else that of the server that `up` started here."""
    if os.environ.get("PREFECT_API_URL"):
        return {}
    running = Running.read(folder)
    return {"PREFECT_API_URL": running.api} if running.api and running.alive("server") else {}
