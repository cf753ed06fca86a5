"""Who made a record: captured once per launch, kept beside the record, never part of a key."""

from __future__ import annotations

import getpass
import os
import platform
import socket
import subprocess
import sys
from importlib import metadata  # noqa: TID251 - reads versions, imports nothing
from pathlib import Path
from typing import Any

from artifacts.safety import redact_argv


def capture(project: Path, argv: list[str] | None = None) -> dict[str, Any]:
    """Host, user, command, commit and library versions of this launch."""
    return {
        "argv": redact_argv(sys.argv if argv is None else argv),
        "host": socket.gethostname(),
        "user": user(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_model(),
        "python": platform.python_version(),
        "git": git_state(project),
        "packages": installed_packages(),
    }


def installed_packages() -> dict[str, str]:
    """Every installed distribution and its version."""
    described = [distribution.metadata for distribution in metadata.distributions()]  # each access parses a file
    found = {each["Name"]: each["Version"] for each in described if each["Name"]}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def git_state(project: Path) -> dict[str, Any]:
    """Commit, branch and whether the tree differs from it; empty outside a repository or without git."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(project), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
        return done.stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "branch": git("rev-parse", "--abbrev-ref", "HEAD"),
            "dirty": bool(git("status", "--porcelain")),
        }
    except (OSError, subprocess.SubprocessError):
        return {}


def user() -> str:
    """Who runs this process: a name, or the number of a user whom a container has given none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a name
        return str(os.getuid()) if hasattr(os, "getuid") else ""


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
