"""Checks an installation and says what to do. Each check is one function; none of them changes anything."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata, util  # noqa: TID251 - looks for modules, imports nothing of a stage
from pathlib import Path
from typing import Literal

from artifacts.errors import StoreError
from artifacts.store import Store
from flows.slots import usable_cores
from flows.tables import bytes_text

State = Literal["ok", "warn", "fail"]
LEAST_FREE_BYTES = 5_000_000_000
SQLALCHEMY_LIMIT = (2, 1)  # and its server fails to insert what a schedule makes due with 2.1
FASTAPI_LIMIT = (0, 151)  # prefect 3.8 allows fastapi below 1.0 and cannot be imported with 0.151 and newer


@dataclass(frozen=True)
class Finding:
    """The outcome of one check; `advice` says what to do about it."""

    name: str
    state: State
    text: str
    advice: str = ""


def examine(store_url: str, start_server: bool = True) -> list[Finding]:
    """Every check, in the order in which things depend on one another."""
    checks: list[Callable[[], list[Finding]]] = [
        python,
        packages,
        devices,
        lambda: disk(Path(store_url) if "://" not in store_url else Path()),
        prefect_versions,
        prefect_settings,
        lambda: prefect_server() if start_server else [],
        lambda: store_health(store_url),
    ]
    findings: list[Finding] = []
    for check in checks:
        findings += check()
    return findings


def python() -> list[Finding]:
    """Version, and what `make run` needs to make an environment."""
    version = ".".join(map(str, sys.version_info[:3]))
    supported = (3, 11) <= sys.version_info[:2] <= (3, 13)
    found = [
        Finding("python", "ok" if supported else "fail", f"{version} at {sys.executable}",
                "" if supported else "use Python 3.11, 3.12 or 3.13")
    ]  # fmt: skip
    missing = [name for name in ("venv", "ensurepip") if util.find_spec(name) is None]
    advice = f"on Debian: apt-get install python3-venv; missing: {', '.join(missing)}" if missing else ""
    found.append(Finding("venv", "warn" if missing else "ok", "missing" if missing else "venv and ensurepip", advice))
    inside = sys.prefix != sys.base_prefix
    advice = "" if inside else "run `make run` once and use .venv/bin/fairway"
    found.append(Finding("environment", "ok" if inside else "warn", sys.prefix, advice))
    return found


def packages() -> list[Finding]:
    """Whether what is installed is what the lock says."""
    lock = Path(__file__).resolve().parents[1] / "requirements.lock"
    if not lock.is_file():
        return [Finding("lock", "warn", "requirements.lock is not beside the code", "install from a clone")]
    wrong, absent = [], 0
    for line in lock.read_text(encoding="utf-8").splitlines():
        name, separator, version = line.partition("==")
        found = _installed(name)
        if separator and not found and name.lower() not in _needed():  # an image lacks what only development needs
            absent += 1
        elif separator and found != version.strip():
            wrong.append(f"{name} {found or 'missing'} (locked {version.strip()})")
    if not wrong:
        without = f", {absent} of the lock's are not" if absent else ""
        return [Finding("lock", "ok", f"every package that is installed has its locked version{without}")]
    shown = ", ".join(wrong[:6]) + (f" and {len(wrong) - 6} more" if len(wrong) > 6 else "")
    return [Finding("lock", "warn", shown, "run `make install`; other versions may give other bytes")]


def _needed() -> set[str]:
    """What pyproject.toml says that running needs."""
    asked = (metadata.requires("fairway") or ()) if _installed("fairway") else ()
    return {re.split(r"[^\w.-]", text)[0].lower() for text in asked if "extra ==" not in text}


def _installed(name: str) -> str:
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return ""


def devices() -> list[Finding]:
    """Cores, and GPUs as torch sees them, asked in another process: a broken driver must not end the doctor."""
    found = [Finding("cpu", "ok", f"{usable_cores()} cores may be used")]
    question = (
        "import torch; print(torch.__version__); n = torch.cuda.device_count(); print(n); "
        "print(*(torch.cuda.get_device_name(i) for i in range(n)), sep=', ')"
    )
    try:
        done = subprocess.run([sys.executable, "-c", question], capture_output=True, text=True, timeout=120, check=True)
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        return [*found, Finding("torch", "fail", f"cannot be imported: {last}", "run `make install`")]
    except subprocess.TimeoutExpired:
        return [*found, Finding("torch", "fail", "did not answer in 120 s", "check the GPU driver with nvidia-smi")]
    version, count, names = [*done.stdout.splitlines(), "", "", ""][:3]
    found.append(Finding("torch", "ok", version))
    if int(count):
        found.append(Finding("gpu", "ok", names))
    elif shutil.which("nvidia-smi"):
        advice = "install a torch build for this driver's CUDA (plain PyPI has the CUDA build; check nvidia-smi)"
        found.append(Finding("gpu", "warn", "a driver is there, but torch sees no GPU", advice))
    else:
        found.append(Finding("gpu", "ok", "none: recipes run on the CPU; scales that ask for cuda are refused"))
    return found


def disk(folder: Path) -> list[Finding]:
    """Room where the store is, and whether it can be written."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    usage = shutil.disk_usage(there)
    free = f"{bytes_text(usage.free)} free at {there}"
    enough = usage.free >= LEAST_FREE_BYTES
    advice = "" if enough else "free some space, see `fairway artifacts gc`, or put the store elsewhere with --store"
    found = [Finding("disk", "ok" if enough else "warn", free, advice)]
    if not os.access(there, os.W_OK):
        found.append(Finding("disk", "fail", f"{there} cannot be written", "choose another place with --store"))
    try:
        with tempfile.TemporaryFile():
            pass
    except OSError as error:
        found.append(Finding("temporary files", "fail", str(error), "set TMPDIR to a folder that can be written"))
    return found


def prefect_versions() -> list[Finding]:
    """The pairs of versions that resolve and do not run."""
    prefect, fastapi = _installed("prefect"), _installed("fastapi")
    if not prefect:
        return [Finding("prefect", "fail", "not installed", "run `make install`")]
    text = f"{prefect} with fastapi {fastapi}"
    if _numbers(prefect) < (3, 9) and _numbers(fastapi) >= FASTAPI_LIMIT:
        advice = 'pip install "fastapi<0.151", or run `make install`'
        return [Finding("prefect", "fail", f"{text}: this pair cannot be imported", advice)]
    alchemy = _installed("SQLAlchemy")
    if _numbers(prefect) < (3, 9) and _numbers(alchemy) >= SQLALCHEMY_LIMIT:
        advice = 'pip install "SQLAlchemy<2.1", or run `make install`'
        return [Finding("prefect", "fail", f"{prefect} with SQLAlchemy {alchemy}: schedules never start a run", advice)]
    return [Finding("prefect", "ok", text)]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def prefect_settings() -> list[Finding]:
    """Known traps among Prefect's settings, as this environment sets them."""
    found = []
    url = os.environ.get("PREFECT_API_URL", "")
    if url:
        found.append(Finding("prefect server", *_answers(url)))
    else:
        found.append(
            Finding("prefect server", "ok", "none configured: each run starts its own for as long as it lasts")
        )
    off = os.environ.get("PREFECT_SERVER_ANALYTICS_ENABLED", "").lower() in ("false", "0")
    text = "off" if off else "off in `fairway`, which sets PREFECT_SERVER_ANALYTICS_ENABLED=false for itself"
    advice = (
        "" if off else "set it for your own `prefect server start` too; DO_NOT_TRACK=1 alone does not silence a server"
    )
    found.append(Finding("prefect analytics", "ok", text, advice))
    port = re.search(r":(\d+)/", f"{url}/")
    if port and port[1] != "4200" and not os.environ.get("PREFECT_SERVER_UI_API_URL"):
        advice = f"start the server with PREFECT_SERVER_UI_API_URL={url}, or its page stays empty"
        found.append(Finding("prefect page", "warn", f"the server's port is {port[1]} and not 4200", advice))
    return found


def _answers(url: str) -> tuple[State, str, str]:
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=5) as answer:
            if answer.status == 200:
                return "ok", f"{url} answers", ""
    except (OSError, ValueError, urllib.error.URLError) as error:
        return "fail", f"{url} does not answer: {error}", "start it, or unset PREFECT_API_URL"
    return "fail", f"{url} is not healthy", "look at the server's log"


def prefect_server() -> list[Finding]:
    """Start the server that a run without a configured one uses; the first start on a machine makes its database."""
    if os.environ.get("PREFECT_API_URL"):
        return []
    from flows.server import OwnServer, ServerFailed, quiet

    quiet()
    server = OwnServer({})
    server.start()
    try:
        server.wait_until_ready()
    except ServerFailed as error:
        home = os.environ.get("PREFECT_HOME", "~/.prefect")
        return [Finding("prefect start", "fail", str(error), f"check that {home} can be written, then `make install`")]
    finally:
        server.stop()
    return [Finding("prefect start", "ok", "its own server starts and answers")]


def store_health(url: str) -> list[Finding]:
    """Whether the store opens, and whether what it has is there in full length. `artifacts verify` reads every byte."""
    try:
        store = Store.open(url)
        findings = store.verify(full=False)
        count = sum(1 for _ in store.records())
    except StoreError as error:
        return [Finding("store", "fail", str(error), "choose another with --store, or mend this one")]
    damaged = [finding for finding in findings if finding.kind != "dangling name"]
    if damaged:
        advice = "run the recipe again, which sets it aside; `fairway artifacts verify` lists everything"
        return [Finding("store", "warn", f"{len(damaged)} damaged: {damaged[0].path} ...", advice)]
    return [Finding("store", "ok", f"{store.url}: {count} artifacts" if count else f"{store.url}: empty still")]
