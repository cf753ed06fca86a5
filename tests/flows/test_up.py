"""What `up` remembers of its processes, and that it never signals somebody else's."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.up import Running, _free, address, down, start, start_time, up, worker_command, worker_environment
from stages.contract import StageError

SLEEP = [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(60)"]


def test_a_process_is_found_again_and_ended(tmp_path: Path):
    running = Running("http://127.0.0.1:1/api")
    start(running, "server", SLEEP, {}, tmp_path)
    running.write(tmp_path)
    again = Running.read(tmp_path)
    assert again == running
    assert again.alive("server")
    assert down(tmp_path) == ["server"]
    assert not again.alive("server")
    assert down(tmp_path) == []


LEAVES = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
left = subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE)
left.stdout.readline()
print(left.pid, flush=True)
time.sleep(600)
"""


def test_what_a_process_leaves_in_its_group_is_ended_with_it(tmp_path: Path):
    running = Running("")
    start(running, "worker-cpu", [sys.executable, "-c", LEAVES], {}, tmp_path)
    running.write(tmp_path)
    deadline_s = time.monotonic() + 120
    while not (said := (tmp_path / "worker-cpu.log").read_text()).endswith("\n") and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert start_time(int(said))
    assert down(tmp_path) == ["worker-cpu"]
    while start_time(int(said)) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    left = start_time(int(said))
    if left:
        os.kill(int(said), signal.SIGKILL)
    assert not left


def test_an_id_that_belongs_to_somebody_else_now_is_not_signalled(tmp_path: Path):
    with subprocess.Popen(SLEEP, stdout=subprocess.DEVNULL) as other:
        Running("", {"server": (other.pid, "1")}).write(tmp_path)
        assert down(tmp_path) == []
        assert other.poll() is None
        other.kill()


def test_a_zombie_does_not_live(tmp_path: Path):
    child = os.fork() if sys.platform == "linux" else 0
    if child == 0:
        os._exit(0)
    deadline_s = time.monotonic() + 60
    while start_time(child) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert start_time(child) == ""
    os.waitpid(child, 0)
    assert Running.read(tmp_path) == Running()


def test_a_port_that_is_taken_is_named(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StageError, match=str(port)):
            up(tmp_path, "127.0.0.1", port, {}, tmp_path)
    assert not (tmp_path / "up.json").exists()


def test_a_server_may_listen_on_the_loopback_of_ipv6(tmp_path: Path):
    with socket.socket(socket.AF_INET6) as taken:
        try:
            taken.bind(("::1", 0))
        except OSError as error:
            pytest.skip(f"NO IPV6 TESTED: this machine has none: {error}")
        port = taken.getsockname()[1]
        with pytest.raises(StageError, match="in use"):
            _free("::1", port)
    _free("::1", port)
    assert address("::1", port) == f"http://[::1]:{port}/api"
    assert address("0.0.0.0", port) == f"http://127.0.0.1:{port}/api"


def test_how_often_a_worker_asks_is_the_environments_choice_and_its_log_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PREFECT_WORKER_QUERY_SECONDS", "15")
    monkeypatch.setenv("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")  # as the commands set for themselves
    environment = worker_environment("http://127.0.0.1:1/api", tmp_path)
    assert environment["PREFECT_WORKER_QUERY_SECONDS"] == "15"
    assert environment["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] == "INFO"


def test_a_worker_runs_this_checkout_quietly_and_with_short_waits(tmp_path: Path):
    environment = worker_environment("http://127.0.0.1:1/api", tmp_path)
    assert Path(environment["PYTHONPATH"], "flows", "worker.py").is_file()
    assert environment["FAIRWAY_HOME"] == str(tmp_path)
    assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert float(environment["PREFECT_WORKER_QUERY_SECONDS"]) <= 0.5
    assert "--limit" not in worker_command("cpu", 0, "")
    assert worker_command("gpu", 1, "here")[-4:] == ["--name", "here", "--limit", "1"]
