"""No analytics leave the machine. Prefect's SDK emits from interactive terminals only, so the test gives it one."""

from __future__ import annotations

import json
import os
import pty
import sys
import time
from pathlib import Path

import pytest
from toyriver import make_tree
from toyrun import write_recipe

# Loaded by every Python process that starts with this folder on its path: names asked for are written down and refused.
HOOK = """
import os
import socket
import sys

_real = socket.getaddrinfo


def getaddrinfo(host, *rest, **more):
    name = host.decode() if isinstance(host, bytes) else str(host)
    if name in ("localhost", "127.0.0.1", "::1", "None", ""):
        return _real(host, *rest, **more)
    with open(os.environ["ASKED_NAMES"], "a") as names:
        names.write(f"{name} by {' '.join(sys.argv)[:80]}\\n")
    raise socket.gaierror(f"no network in this test: {name}")


socket.getaddrinfo = getaddrinfo
"""


class Watched:
    """Runs a command in a terminal and tells which names it, and every process under it, looked up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "hook").mkdir()
        (folder / "hook" / "sitecustomize.py").write_text(HOOK, encoding="utf-8")
        self.names = folder / "names.txt"

    def __call__(self, command: list[str], path: str = "", more: dict[str, str] | None = None) -> tuple[int, list[str]]:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PYTHONPATH": f"{self.folder / 'hook'}:{path}",
            "ASKED_NAMES": str(self.names),
            "TERM": "xterm",
            **(more or {}),
        }
        self.names.write_text("", encoding="utf-8")
        pid, master = pty.fork()
        if pid == 0:
            os.chdir(self.folder)
            os.execvpe(command[0], command, environment)
        while True:
            try:
                if not os.read(master, 65536):
                    break
            except OSError:
                break
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(master)
        return code, self.names.read_text(encoding="utf-8").splitlines()


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    """In an empty home, as on a new machine."""
    return Watched(tmp_path)


def test_a_run_in_a_terminal_asks_for_no_name_outside(watched: Watched):
    tree = make_tree(watched.folder / "tree")
    write_recipe(watched.folder)
    # Prefect's telemetry waits a moment before it speaks: stay alive for it.
    stay = (
        "import sys, time\nfrom flows.cli import main\ncode = main(['run', 'toy.toml'])\ntime.sleep(6)\nsys.exit(code)"
    )
    code, names = watched([sys.executable, "-c", stay], str(tree))
    assert code == 0
    assert names == []


def test_the_watch_would_see_it(watched: Watched):
    """The control: the same watch on Prefect as it comes."""
    code, names = watched([sys.executable, "-c", "import prefect, time; time.sleep(3)"])
    assert code == 0
    assert any("amplitude" in name for name in names), names


@pytest.mark.slow
def test_the_watch_would_see_the_server_too(watched: Watched):
    program = watched.folder / "server.py"
    program.write_text(
        "import os, time\nfrom flows.server import OwnServer\n"
        "for attempt in range(8):\n"  # it calls at its start or ten minutes later, as likely the one as the other
        "    server = OwnServer({'DO_NOT_TRACK': '1', 'PREFECT_HOME': f'{os.environ[\"HOME\"]}/{attempt}'})\n"
        "    server.start()\n    server.wait_until_ready()\n    time.sleep(3)\n    server.stop()\n"
        "    if 'prefect.io' in open(os.environ['ASKED_NAMES']).read():\n"
        "        break\n",
        encoding="utf-8",
    )
    started = time.monotonic()
    code, names = watched([sys.executable, str(program)], str(Path(__file__).resolve().parents[2]))
    assert code == 0, json.dumps([names, time.monotonic() - started])
    assert any("prefect.io" in name for name in names), names
