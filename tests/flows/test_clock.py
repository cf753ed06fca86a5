"""The difference between this machine's clock and the server's, from the date of any answer of the server."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import urlsplit

import pytest

from flows.clock import ahead_s, server_now, words


@contextmanager
def serving(ahead: float, port: int = 0) -> Iterator[str]:
    """A server whose clock is ahead, and which lets nobody in; its API's address."""

    class Late(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(401)
            self.send_header("Date", formatdate(time.time() + ahead, usegmt=True))
            self.end_headers()

        def log_message(self, format: str, *given: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", port), Late)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/api"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def api(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server whose clock is ahead by the parameter."""
    with serving(request.param) as api:
        yield api


@pytest.mark.parametrize("api", [7200.0, -7200.0], indirect=True)
def test_the_date_of_a_refusal_says_how_far_the_server_is_ahead(api: str):
    difference_s = ahead_s(api)
    assert abs(abs(difference_s) - 7200) < 5
    assert abs(server_now(api).timestamp() - time.time() - difference_s) < 1


@pytest.mark.parametrize("api", [3.0], indirect=True)
def test_clocks_that_differ_by_seconds_are_equal(api: str):
    assert ahead_s(api) == 0


def test_a_server_that_does_not_answer_says_nothing_of_its_clock_and_is_asked_again():
    """It restarts while a run begins; a difference of hours that nobody adds makes automations take it for dead."""
    with serving(7200.0) as api:
        pass
    assert ahead_s(api) == 0
    with serving(7200.0, int(urlsplit(api).port or 0)):
        assert abs(ahead_s(api) - 7200) < 60
    assert abs(ahead_s(api) - 7200) < 60  # known by now


def test_a_clock_that_is_set_while_a_run_goes_on_does_not_move_the_servers(monkeypatch: pytest.MonkeyPatch):
    real = time.time
    with serving(0.0) as api:
        assert abs(server_now(api).timestamp() - real()) < 60
    monkeypatch.setattr("flows.clock.time.time", lambda: real() + 7200)
    assert abs(ahead_s(api) + 7200) < 60


def test_the_difference_is_said_of_this_machine():
    assert words(7200) == "7200 s behind the server's"
    assert words(-7200) == "7200 s ahead of the server's"
