"""Our own Prefect server as a process: what it writes. Its API is tested with the pipeline."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from flows.server import OwnServer, ServerFailed

NOISY = """
    import http.server, sys
    for _ in range(2000):
        sys.stderr.write("database is locked, with a traceback of some length " * 10 + "\\n")
    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
        def log_message(self, *_):
            pass
    http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Health).serve_forever()
"""


def standing_in(program: str, folder: Path) -> OwnServer:
    """A server whose program is another one; it gets the port as its argument."""
    path = folder / "server.py"
    path.write_text(textwrap.dedent(program), encoding="utf-8")
    server = OwnServer({})
    server._arguments = [sys.executable, str(path), server.url.removesuffix("/api").rpartition(":")[2]]
    return server


def test_a_server_that_complains_a_lot_goes_on_answering(tmp_path: Path) -> None:
    """A megabyte of complaints is more than a pipe that nobody reads can hold: its writer would stand still."""
    server = standing_in(NOISY, tmp_path)
    server.start()
    try:
        server.wait_until_ready(limit_s=60)
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
