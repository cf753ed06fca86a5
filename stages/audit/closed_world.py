"""T5: which files a process and all its children opened, and whom they called, as the kernel saw it.

A hook inside the interpreter misses what compiled code opens; `strace` does not. Where it is not installed, or the
system forbids tracing, nothing is known, and that is what the finding says.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# io_uring opens files without system calls of its own: whoever sets it up is not being watched.
_CALLS = "open,openat,openat2,creat,execve,execveat,connect,bind,sendto,open_by_handle_at,io_uring_setup"
_OPENED = re.compile(r"\b(?:open|openat|openat2|creat)\(.*\) = \d+<(?P<path>[^>]*)>")
_RAN = re.compile(r'\bexecve(?:at)?\(.*?"(?P<path>[^"]*)".*\) = 0')
_CALLED = re.compile(r"\b(?:connect|bind|sendto)\(.*(?P<family>AF_INET6?)\b")
_EVADED = re.compile(r"\b(?P<call>open_by_handle_at|io_uring_setup)\(.*\) = \d+")
_SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc", "/proc", "/sys", "/dev", "/run", "/opt")
_PROGRAM = (".py", ".pyc", ".so")
_LARGE_BYTES = 1 << 20  # packages carry small files that describe them; a megabyte could be knowledge


class CannotTrace(RuntimeError):
    """This system does not show what a process opens."""


@dataclass
class Seen:
    """What was opened, sorted by where it lies."""

    shipped: set[str] = field(default_factory=set)  # in the folder, relative to it
    outside: set[str] = field(default_factory=set)  # neither there, nor a program or a part of the system
    data_of_programs: set[str] = field(default_factory=set)  # large files beside programs that are none
    called: list[str] = field(default_factory=list)  # internet addresses
    evaded: list[str] = field(default_factory=list)  # ways to open files that cannot be followed


def traced(command: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path, code: Path) -> Seen:
    """Run `command` in `folder` and say what it opened. `code` is the tree that our own modules come from.

    Raises CannotTrace, or CalledProcessError when the command itself fails.
    """
    strace = shutil.which("strace")
    if strace is None:
        raise CannotTrace("strace is not installed")
    probe = subprocess.run([strace, "-f", "-o", os.devnull, "true"], capture_output=True, check=False)
    if probe.returncode:
        raise CannotTrace(f"strace may not trace here: {probe.stderr.decode(errors='replace').strip()[-200:]}")
    prefix = [strace, "-f", "-qq", "-y", "-s", "4096", "-e", f"trace={_CALLS}", "-o", str(log)]
    subprocess.run([*alone(), *prefix, *command], cwd=folder, env=dict(environment), check=True, capture_output=True)
    with log.open(encoding="utf-8", errors="replace") as lines:
        return sort_out(lines, folder.resolve(), code.resolve())


def alone() -> list[str]:
    """What starts a program without any network, where the system lets us."""
    unshare = shutil.which("unshare")
    for options in (["--net"], ["--net", "--map-root-user"]):
        if unshare and not subprocess.run([unshare, *options, "true"], capture_output=True, check=False).returncode:
            return [unshare, *options]
    return []


def sort_out(lines: Iterable[str], folder: Path, code: Path) -> Seen:
    """Read a trace."""
    seen = Seen()
    # Of our own tree only the rooms that hold code: a checkout may have a store of tokens beside them.
    ours = [str(code / room) for room in ("stages", "model")]
    programs = (*(str(Path(path).resolve()) for path in (sys.prefix, sys.base_prefix, *_site())), *ours)
    for line in lines:
        if found := _OPENED.search(line) or _RAN.search(line):
            _enter(seen, found["path"], folder, programs)
        elif found := _CALLED.search(line):
            seen.called.append(line.strip().split(" ", 1)[-1][:200])
        elif found := _EVADED.search(line):
            seen.evaded.append(found["call"])
    return seen


def _enter(seen: Seen, path: str, folder: Path, programs: tuple[str, ...]) -> None:
    if not path.startswith("/"):  # a pipe, a socket, anonymous memory
        return
    if os.path.isdir(path):
        return
    if _within(path, (str(folder),)):
        seen.shipped.add(os.path.relpath(path, folder))
    elif _within(path, programs):
        is_program = path.endswith(_PROGRAM) or ".so." in path or os.access(path, os.X_OK)
        if not is_program and os.path.exists(path) and os.path.getsize(path) > _LARGE_BYTES:
            seen.data_of_programs.add(path)
    elif not _within(path, _SYSTEM):
        seen.outside.add(path)


def _within(path: str, folders: Sequence[str]) -> bool:
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)


def _site() -> list[str]:
    return [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
