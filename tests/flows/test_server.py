"""Our own Prefect server as a process: what it writes. Its API is tested with the pipeline."""

from __future__ import annotations

import socket
import sys
import textwrap
from pathlib import Path

import pytest

from flows.server import OwnServer, ServerFailed

NOISY = """
    import http.server, socket, sys
    for _ in range(2000):
        sys.stderr.write("database is locked, with a traceback of some length " * 10 + "\\n")
    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
        def log_message(self, *_):
            pass
    server = http.server.HTTPServer(("", 0), Health, bind_and_activate=False)
    server.socket = socket.socket(fileno=int(sys.argv[1]))
    server.server_activate()
    server.serve_forever()
"""


def standing_in(program: str, folder: Path) -> OwnServer:
    """A server whose program is another one; it gets the socket's number as its argument."""
    path = folder / "server.py"
    path.write_text(textwrap.dedent(program), encoding="utf-8")
    server = OwnServer({})
    server._arguments = [sys.executable, str(path), server._arguments[-1]]
    return server


def test_a_server_that_complains_a_lot_goes_on_answering(tmp_path: Path) -> None:
    """A megabyte of complaints is more than a pipe that nobody reads can hold: its writer would stand still."""
    server = standing_in(NOISY, tmp_path)
    server.start()
    try:
        server.wait_until_ready(limit_s=60)
    finally:
        server.stop()


def test_who_waits_for_a_server_is_told_once_for_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.server.SLOW_S", -1.0)
    server, told = standing_in(NOISY, tmp_path), []
    server.start()
    try:
        server.wait_until_ready(limit_s=60, slow=lambda: told.append("slow"))
        server.wait_until_ready(limit_s=60)
    finally:
        server.stop()
    assert told == ["slow"]


def test_nobody_else_can_have_a_servers_port_from_the_moment_that_it_has_an_address(tmp_path: Path) -> None:
    """Another server that took it meanwhile would answer in its place, and end in the middle of our run."""
    server = standing_in(NOISY, tmp_path)
    address = ("127.0.0.1", int(server.url.removesuffix("/api").rpartition(":")[2]))
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind(address)
    with socket.socket() as early, pytest.raises(ConnectionRefusedError):
        early.connect(address)  # and nobody has to wait for one that does not answer yet
    server.start()
    try:
        server.wait_until_ready(limit_s=60)
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(address)
    finally:
        server.stop()


def test_a_server_that_does_not_come_up_is_told_by_its_last_words(tmp_path: Path) -> None:
    server = standing_in("import sys; sys.exit('first\\nthe database is of a newer version')", tmp_path)
    server.start()
    try:
        with pytest.raises(ServerFailed, match="the database is of a newer version"):
            server.wait_until_ready(limit_s=60)
    finally:
        server.stop()
