"""What a stage's processes write: one log of all ranks, and the lines that people are shown while it runs.

Of rank 0 that is everything; of the others only what they warn of or fail with, since eight ranks say the same. With
several ranks torchrun puts each one's output into files of its own, which are gathered here line by line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SHOWN_LIMIT = 100  # lines of one of the other ranks; the whole log has all of them
_WARNS = re.compile(
    r"\b(warn(ing)?|error|exception|critical|fatal|abort(ed)?|nan|out of memory)\b|\w+(Warning|Error)\b", re.IGNORECASE
)
_TRACEBACK = "Traceback (most recent call last):"


@dataclass(frozen=True)
class Said:
    """One line of a stage's output."""

    rank: int
    text: str
    warns: bool = False


class Tail:
    """Whole lines of a file that grows; it may not be there yet."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self._path, self._offset = path, offset

    def lines(self, ended: bool = False) -> list[str]:
        """The new ones; a line that is half written waits, unless nobody writes any more."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                new = file.read()
        except FileNotFoundError:
            return []
        whole = new if ended else new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.decode("utf-8", "replace").splitlines()


class Output:
    """Follows the output of one launch. `ranks` is torchrun's folder; without it the process writes to the log."""

    def __init__(self, log: Path, ranks: Path | None = None) -> None:
        self._log, self._ranks = log, ranks
        self._own = Tail(log, log.stat().st_size if log.is_file() else 0)  # an earlier attempt may have written there
        self._files: dict[Path, tuple[int, Tail]] = {}
        self._others: dict[int, _Other] = {}

    def poll(self, ended: bool = False) -> list[Said]:
        """What there is to show since the last call; with several ranks the log gets all of it, too."""
        if self._ranks is None:
            return [Said(0, text) for text in self._own.lines(ended)]
        for path in sorted(self._ranks.glob("*/attempt_*/*/std*.log")):
            if path not in self._files:
                self._files[path] = (int(path.parent.name), Tail(path))
        told: list[Said] = []
        for rank, tail in sorted(self._files.values(), key=lambda each: each[0]):
            lines = tail.lines(ended)
            self._gather(rank, lines)
            told += self._shown(rank, lines)
        return told

    def _gather(self, rank: int, lines: list[str]) -> None:
        if lines:
            with self._log.open("a", encoding="utf-8") as log:
                log.writelines(f"rank {rank}: {text}\n" for text in lines)

    def _shown(self, rank: int, lines: list[str]) -> Iterator[Said]:
        if rank == 0:
            yield from (Said(0, text) for text in lines)
        else:
            yield from self._others.setdefault(rank, _Other(rank)).shown(lines)


class _Other:
    """Sifts the lines of one of the other ranks."""

    def __init__(self, rank: int) -> None:
        self._rank, self._shown, self._in_traceback = rank, 0, False

    def shown(self, lines: list[str]) -> Iterator[Said]:
        for text in lines:
            if not self._warns(text):
                continue
            self._shown += 1
            if self._shown <= SHOWN_LIMIT:
                yield Said(self._rank, text, warns=True)
            elif self._shown == SHOWN_LIMIT + 1:
                yield Said(self._rank, "and more, which is in the whole log", warns=True)

    def _warns(self, text: str) -> bool:
        """Warnings, errors, and tracebacks to the line that names the exception."""
        if self._in_traceback:
            self._in_traceback = not text or text[0].isspace()
            return True
        self._in_traceback = text.startswith(_TRACEBACK)
        # An indented line belongs to the one before: Python shows the source of each warning so.
        return self._in_traceback or (text == text.lstrip() and _WARNS.search(text) is not None)
