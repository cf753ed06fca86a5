"""What a model refuses is a user's to mend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from stages.contract import StageError


@contextmanager
def refusing() -> Iterator[None]:
    """Turn the body's ValueError or OSError, whose text has the three parts, into a StageError."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise StageError(str(error)) from error
