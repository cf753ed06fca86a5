"""Prefect's traps, closed: its settings for one process, and the server that serves a run when none is configured.

Prefect can start such a server itself, but in our process group and without a tie to us: Ctrl-C in a terminal would end
it before the run could be reported as cancelled, and SIGKILL would leave it behind for ever. So the same server is
started here, in a session of its own and bound to our life. Nothing here imports Prefect.
"""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping

from stages.contract import PARENT

START_LIMIT_S = 120.0  # the first start on a machine creates the database: 15-18 s on a busy one, more on a slow disk
SLOW_S = 2.0  # after which whoever waits is told for what
STOP_LIMIT_S = 5.0

QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",  # the only switch that silences the server and the SDK
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(int(START_LIMIT_S)),
    # We show errors ourselves, as one message; Prefect's own log still goes to its server.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}
_BOUND_SERVER = """
import socket, sys
from stages.contract import die_with_parent
die_with_parent()
import uvicorn
from flows.patient_server import patient_database
config = uvicorn.Config("prefect.server.api.server:create_app", factory=True, log_level="error", lifespan="on")
with patient_database():
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sys.argv[1]))])
"""


def quiet() -> None:
    """Set Prefect's environment for this process; a choice that the user made in the environment stays."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


class ServerFailed(RuntimeError):
    """Prefect's server did not come up."""


class OwnServer:
    """Prefect's API server for the life of this process; `url` is its API address."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        # The process gets this very socket: of a mere number, two servers that start at once could have the same, and
        # the first one's answers would be taken for the second's. Nobody is let in before it listens.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/api"
        self._arguments = [sys.executable, "-c", _BOUND_SERVER, str(self._socket.fileno())]
        own = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
        self._environment = {**os.environ, **own, **settings, PARENT: str(os.getpid())}
        self._process: subprocess.Popen[bytes] | None = None
        # A file and no pipe: nobody reads while a run of hours lasts, and a full pipe would stop its writer.
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the server

    def start(self) -> None:
        """Start the process. It ends with ours, after Prefect's threads have sent their last logs and events."""
        with self._socket:
            self._process = subprocess.Popen(
                self._arguments,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._complaints,
                start_new_session=True,
                pass_fds=[self._socket.fileno()],
            )
        # Prefect drains its queues when threads shut down, which is before `atexit`: stopped any earlier, the server
        # would leave them waiting for more than a minute.
        atexit.register(self.stop)

    def stop(self) -> None:
        """End the process."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def wait_until_ready(self, limit_s: float = START_LIMIT_S, slow: Callable[[], None] | None = None) -> None:
        """Return when the server answers; ServerFailed with its own words when it does not. `slow` is told once."""
        began = time.monotonic()
        deadline = began + limit_s
        while time.monotonic() < deadline:
            if slow is not None and time.monotonic() - began > SLOW_S:
                slow, tell = None, slow
                tell()
            if self._process is None or self._process.poll() is not None:
                raise ServerFailed(
                    f"Prefect's own server ended while it started; {self._words()}; see `fairway doctor`"
                )
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        raise ServerFailed(f"Prefect's own server did not answer within {limit_s:.0f} s; see `fairway doctor`")

    def _words(self) -> str:
        written = os.fstat(self._complaints.fileno()).st_size
        # Not `seek`: the server writes where this file's position is.
        lines = os.pread(self._complaints.fileno(), written, 0).decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "it left no message"
