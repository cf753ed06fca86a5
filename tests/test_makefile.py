"""`make` on a machine that lacks something says what, and what is installed is not installed again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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
    assert dockerfile.count("RUN .ci/install .venv\n") == 2
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


@pytest.fixture
def asked(clone: Path) -> Callable[..., list[str]]:
    """What `.ci/install` asks of pip, line by line, and what it gives pip to read."""
    python, told = clone / ".venv" / "bin" / "python", clone / "told"
    python.parent.mkdir(parents=True)
    python.write_text(
        f"""#!/bin/sh
if [ "$1 $2" != "-m pip" ]; then exec {sys.executable} "$@"; fi
echo "$*" >>{told}
case "$*" in *"-r /dev/stdin") cat >>{told};; esac
""",
        encoding="utf-8",
    )
    python.chmod(0o755)

    def install(**environment: str) -> list[str]:
        told.write_text("", encoding="utf-8")
        words = [str(clone / ".ci" / "install"), str(clone / ".venv"), sys.executable]
        subprocess.run(words, env={"PATH": os.environ["PATH"], **environment}, check=True, timeout=60)
        return [line.partition("--disable-pip-version-check ")[2] or line for line in told.read_text().splitlines()]

    return install


def test_an_image_has_what_running_needs_at_the_locks_versions_and_nothing_of_development(clone, asked):
    lock = clone / "requirements.lock"
    assert asked() == [f"-r {lock}"]
    first, *needed = asked(EXTRAS="s3 hf")
    assert first == f"-c {lock} -r /dev/stdin"
    assert {"torch>=2.11", "fsspec[http]>=2025.2", "setuptools>=77", "s3fs>=2025.2", "huggingface_hub>=0.30"} <= {
        *needed
    }
    assert not [each for each in needed if each.startswith(("pytest", "moto", "ruff", "gcsfs"))]
    assert not [each for each in asked(EXTRAS="") if each.startswith("s3fs")]


def test_an_extra_that_there_is_not_ends_the_installation(asked):
    with pytest.raises(subprocess.CalledProcessError):
        asked(EXTRAS="s4")


def test_another_build_of_torch_comes_alone_at_the_locks_version(clone, asked):
    first, _ = asked(TORCH_INDEX="https://index.example/cpu")
    pin = next(line for line in (clone / "requirements.lock").read_text().splitlines() if line.startswith("torch=="))
    assert first == f"--no-deps {pin} --index-url https://index.example/cpu"


def test_all_that_running_needs_is_locked():
    """An image takes the lock as a constraint: what it does not name would come in whatever version is newest."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [each for name, each in project["optional-dependencies"].items() if name not in ("gpu", "dev")]
    waiting = [Requirement(text) for text in sum(extras, project["dependencies"])]
    needed: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in needed:
            continue
        needed.add(name)
        for text in metadata.requires(name) or ():
            below = Requirement(text)
            if below.marker is None or any(
                below.marker.evaluate({"extra": each}) for each in ["", *requirement.extras]
            ):
                waiting.append(below)
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pinned = {canonicalize_name(line.partition("==")[0]) for line in lines if not line.startswith("#")}
    of_cuda = {name for name in needed if name.startswith(("nvidia-", "cuda-")) or name == "triton"}  # pinned by torch
    assert needed - of_cuda <= pinned
    assert len(needed) > 60


def test_the_lock_pins_everything_and_names_no_place():
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(line.count("==") == 1 and "/" not in line and "+" not in line for line in pins)
    pinned = {line.partition("==")[0].lower() for line in pins}
    assert {"torch", "prefect", "fastapi", "pytest", "ruff", "pyright", "setuptools"} <= pinned
