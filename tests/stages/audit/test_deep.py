"""The processes of a deep audit."""

from __future__ import annotations

import subprocess
import sys

from stages.audit.deep import exit_codes


def test_the_peers_of_a_rank_that_failed_are_not_waited_for():
    """A rank whose peer is gone before they met listens for it for ten minutes."""
    waits = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    fails = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    try:
        assert exit_codes([waits, fails]) == [None, 3]
        assert waits.poll() is None
    finally:
        waits.kill()
        waits.wait()


def test_ranks_that_succeed_are_all_waited_for():
    running = [subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({s})"]) for s in (0, 0.3)]
    assert exit_codes(running) == [0, 0]
