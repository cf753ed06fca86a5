"""This machine's clock against the server's. Nothing may depend on their being equal, and Prefect does in four places:

a worker asks for runs that are due by *its* clock, who creates a run says by *his* when it is due, heartbeats carry the
sender's time, and automations weigh them by the server's. So whoever of ours does one of these adds the difference.
Nothing here imports Prefect.
"""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

EQUAL_S = 10.0  # clocks that differ by less are called equal: an answer's date has whole seconds, and travels


_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # nobody sets it, and it counts while we sleep
_zero: dict[str, float] = {}  # a server's time when our steady clock was zero


def ahead_s(api: str) -> float:
    """By how much the server's clock is ahead of ours, in seconds; 0 if they are equal or nobody can say."""
    if api not in _zero and (said := _date(api)) is not None:  # a server is asked until it has answered once
        _zero[api] = said.timestamp() - time.clock_gettime(_STEADY)
    if api not in _zero:
        return 0.0
    difference_s = _zero[api] + time.clock_gettime(_STEADY) - time.time()
    return difference_s if abs(difference_s) > EQUAL_S else 0.0


def _date(api: str) -> datetime | None:
    """What the server says that it is now."""
    try:
        try:
            answer = urllib.request.urlopen(f"{api}/health", timeout=10)
        except urllib.error.HTTPError as refusal:  # it has a date too
            answer = refusal
        with answer:
            return parsedate_to_datetime(answer.headers["Date"])
    except (OSError, ValueError, TypeError):
        return None


def server_now(api: str) -> datetime:
    """This moment by the clock of the server at `api`."""
    return datetime.now(UTC) + timedelta(seconds=ahead_s(api))


def words(difference_s: float) -> str:
    """`7200 s behind`: this machine's clock, when the server's is `difference_s` ahead."""
    return f"{abs(difference_s):.0f} s {'behind' if difference_s > 0 else 'ahead of'} the server's"
