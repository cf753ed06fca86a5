"""A small disk of its own: a tmpfs, mounted here where that is permitted, else in a name space of a helper process."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_HELPER = 'mount -t tmpfs -o size="$1" tmpfs "$2" && echo mounted && exec cat'


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[Path]:
    """A path below which `size_bytes` fit. Skips, with the reason, where neither way is open."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)]
    made = subprocess.run(mount, capture_output=True, text=True, check=False)
    if made.returncode == 0:
        try:
            yield folder
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        return
    # A user's own name space needs no root. Whoever made it sees into it by way of the helper's root.
    command = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        _HELPER,
        "sh",
        str(size_bytes),
        str(folder),
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as helper:
        assert helper.stdin is not None
        assert helper.stdout is not None
        assert helper.stderr is not None
        if helper.stdout.readline().strip() != "mounted":
            why = f"{made.stderr.strip()}; {helper.stderr.read().strip()}"
            pytest.skip(f"NO FULL DISK TESTED: a small tmpfs can be mounted neither here nor in a name space: {why}")
        try:
            yield Path(f"/proc/{helper.pid}/root{folder}")
        finally:
            helper.stdin.close()


def fill(folder: Path, but_bytes: int = 0) -> Path:
    """Take all that is left on the disk of `folder`, but so much; the file that takes it."""
    import os

    left = os.statvfs(folder)
    filler = folder / "filler"
    with filler.open("wb") as file:
        chunk = bytes(1 << 16)
        for _ in range(max(0, left.f_bavail * left.f_bsize - but_bytes) // len(chunk)):
            file.write(chunk)
    return filler
