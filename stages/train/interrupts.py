"""SIGTERM and SIGINT become a flag, so that training stops between two micro-steps and leaves a checkpoint."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class Interrupted(BaseException):
    """The process was asked to stop. Not an Exception: nothing on the way may swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number


class Interrupts:
    """In the `with` block a signal raises Interrupted: at once or, once `patient` is set, at the next `check`."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.number = 0  # of the first signal that came; 0: none
        self.patient = False  # there is a state that must not be torn

    def __enter__(self) -> Interrupts:
        self._previous = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere Python refuses handlers
            self._previous = {number: signal.signal(number, self._remember) for number in self.SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
        if not self.patient:
            raise Interrupted(self.number)

    def check(self) -> None:
        """Raise Interrupted if a signal came."""
        if self.number:
            raise Interrupted(self.number)
