"""What the kernel saw: files in the folder, files that belong there, and files that do not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stages.audit.closed_world import CannotTrace, Seen, sort_out, traced

CODE = Path(__file__).resolve().parents[3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "closed"
    place.mkdir()
    (place / "archive.fwy").write_bytes(b"weights")
    return place


def look(folder: Path, program: str) -> Seen:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed here")
    try:
        command = [sys.executable, "-I", "-c", program]
        return traced(command, folder, {"PATH": "/usr/bin:/bin"}, folder.parent / "log", CODE)
    except CannotTrace as error:
        pytest.skip(str(error))


def test_what_lies_in_the_folder_is_what_was_shipped(folder):
    seen = look(folder, "open('archive.fwy').read()")
    assert (seen.shipped, seen.outside, seen.called, seen.evaded) == ({"archive.fwy"}, set(), [], [])


def test_a_file_outside_is_seen_even_when_a_child_opens_it_through_a_link(folder):
    paid = folder.parent / "paid"
    paid.write_text("val")
    (folder / "innocent").symlink_to(paid)
    seen = look(folder, "import subprocess; subprocess.run(['cat', 'innocent'], check=True)")
    assert seen.outside == {str(paid)}


def test_a_store_beside_the_code_is_no_code(folder):
    seen = look(folder, f"open({str(CODE / 'pyproject.toml')!r}).read(); open({str(CODE / 'model/grid.py')!r}).read()")
    assert seen.outside == {str(CODE / "pyproject.toml")}


def test_a_file_that_is_not_there_was_not_opened(folder):
    assert (
        look(folder, "import os; os.path.exists('/nowhere')\ntry: open('/nowhere')\nexcept OSError: pass").outside
        == set()
    )


def test_who_calls_somebody_is_heard(folder):
    program = "import socket\ntry: socket.create_connection(('127.0.0.1', 9), 1)\nexcept OSError: pass"
    assert look(folder, program).called


def test_a_program_that_fails_is_no_evidence(folder):
    with pytest.raises(subprocess.CalledProcessError):
        look(folder, "raise SystemExit(3)")


def test_ways_around_the_tracer_are_told():
    seen = sort_out(["12 io_uring_setup(8, {flags=0}) = 3<anon_inode:[io_uring]>"], Path("/closed"), CODE)
    assert seen.evaded == ["io_uring_setup"]


def test_without_a_tracer_nothing_is_known(folder, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(CannotTrace, match="not installed"):
        traced(["true"], folder, {}, folder.parent / "log", CODE)
