"""`make` on a machine that lacks something says what, and what is installed is not installed again."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What `make install` looks at."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "install", tmp_path / ".ci" / "install")
    return tmp_path


def make(clone: Path, *words: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": path or os.environ["PATH"], "HOME": str(clone)}
    return subprocess.run(
        [str(shutil.which("make")), *words], cwd=clone, env=environment, capture_output=True, text=True, timeout=60
    )


def tools(clone: Path, python: str = "") -> str:
    """A PATH with a shell's tools, and `python3` as a script."""
    folder = clone / "bin"
    folder.mkdir()
    for tool in ("sh", "touch", "sed", "echo", "dirname"):
        (folder / tool).symlink_to(str(shutil.which(tool)))
    if python:
        (folder / "python3").write_text(f"#!/bin/sh\n{python}\n", encoding="utf-8")
        (folder / "python3").chmod(0o755)
    return str(folder)


def test_without_a_python_that_will_do_it_says_which_one_would(clone: Path):
    done = make(clone, "install", path=tools(clone))
    assert done.returncode != 0
    assert "needs Python 3.11, 3.12 or 3.13; none is on PATH" in done.stderr


@pytest.mark.parametrize("python", ["/nowhere/python3", "false"])
def test_a_python_that_is_named_and_will_not_do_is_refused(clone: Path, python: str):
    done = make(clone, "install", f"PYTHON={python}")
    assert done.returncode != 0
    assert f"{python} is none of them" in done.stderr
    assert not (clone / ".venv").exists()


def test_images_and_make_install_in_one_way():
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert ".ci/install" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert dockerfile.count(".ci/install .venv") == 4
    assert "pip install" not in dockerfile


def test_without_venv_it_names_the_package_to_install(clone: Path):
    done = make(clone, "install", path=tools(clone, 'case "$2" in *ensurepip*) exit 1;; esac'))
    assert done.returncode != 0
    assert "apt-get install python3-venv" in done.stderr
    assert not (clone / ".venv").exists()


def test_an_installation_that_is_there_is_left_alone(clone: Path):
    (clone / ".venv").mkdir()
    (clone / ".venv" / ".installed").touch()
    done = make(clone, "install", path=tools(clone))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_newer_lock_is_installed(clone: Path):
    (clone / ".venv").mkdir()
    (clone / ".venv" / ".installed").touch()
    later = time.time() + 5
    os.utime(clone / "requirements.lock", (later, later))
    assert "none is on PATH" in make(clone, "install", path=tools(clone)).stderr


def test_the_lock_pins_everything_and_names_no_place():
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(line.count("==") == 1 and "/" not in line and "+" not in line for line in pins)
    pinned = {line.partition("==")[0].lower() for line in pins}
    assert {"torch", "prefect", "fastapi", "pytest", "ruff", "pyright", "setuptools"} <= pinned
