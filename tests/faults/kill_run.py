"""SIGKILL a whole run just before its n-th call to the store's backend, for every n; then run it again and look.

    python kill_run.py FOLDER [SHARD SHARDS]

A child per n runs the toy river until it kills itself. What it left is looked at, then a second child runs the river to
its end: every record, object and name must be as in a run that nobody disturbed. Prints the number of crash points.
Forking needs a process without threads, which is why this is a script.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import toyrun
from toyriver import make_tree

import flows.step
from artifacts.local import LocalBackend
from artifacts.record import Record
from artifacts.store import Store

CALLS = (
    "read",
    "read_many",
    "write",
    "create",
    "walk",
    "delete",
    "entry",
    "move",
    "upload",
    "download",
    "temporary",
    "place",
)

Content = dict[str, Any]


def arm(at: int) -> Callable[[], int]:
    """Kill this process before its `at`-th backend call (0: never); returns a counter."""
    count = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*given, **named)

        return call

    for name in CALLS:
        setattr(LocalBackend, name, counted(getattr(LocalBackend, name)))
    return lambda: count


def in_a_child(work: Callable[[], None]) -> int:
    """The exit code of `work` in a child of its own; negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - a child of fork must never return
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def content(store_folder: Path) -> Content:
    """What a store holds, without what differs from run to run."""
    store = Store.open(store_folder)
    records = [record for record, _ in store.all_records()]
    return {
        "records": {_identity(record): (_files(record), record.report, _components(record)) for record in records},
        "names": sorted(store.names()),
    }


# The audit judges the seconds that each stage took, and they differ from run to run.


def _components(record: Record) -> dict[str, Any]:
    return {**record.components, "inputs": {**record.components["inputs"], "records": ""}}


def _files(record: Record) -> list[Any]:
    return [file.path if record.stage == "audit" else file for file in record.files]


def _identity(record: Record) -> tuple[str, str]:
    return (record.stage, "" if record.stage == "audit" else record.key)


def main(base: Path, shard: int, shards: int) -> None:
    """Every crash point of this shard."""
    flows.step.launch = toyrun.launch_here
    toyrun.write_recipe(base)
    tree = make_tree(base / "tree")

    def run(folder: Path) -> None:
        toyrun.run_in_one_thread(toyrun.request(base, tree, store=str(folder)))

    whole = base / "whole"
    counter = base / "count.txt"

    def undisturbed() -> None:
        calls = arm(0)
        run(whole)
        counter.write_text(str(calls()), encoding="ascii")

    assert in_a_child(undisturbed) == 0
    expected, points = content(whole), int(counter.read_text(encoding="ascii"))
    # What was learnt about source and text saves time and is no part of the store.
    for at in range(1 + shard, points + 1, shards):
        folder = base / f"at-{at}"
        shutil.copytree(whole / "cache", folder / "cache", ignore=shutil.ignore_patterns("stamps"))

        def killed(folder: Path = folder, at: int = at) -> None:
            arm(at)
            run(folder)

        assert in_a_child(killed) == -signal.SIGKILL, at
        left = content(folder)
        assert Store.open(folder).verify() == [], at
        assert left["records"].items() <= expected["records"].items(), at
        before = {path: path.read_bytes() for path in (folder / "records").rglob("*.json")}
        assert in_a_child(lambda folder=folder: run(folder)) == 0, at
        assert content(folder) == expected, at
        assert Store.open(folder).verify() == [], at
        assert {path: path.read_bytes() for path in before} == before, at
        states = [document["state"] for document in Store.open(folder).list_runs()]
        assert states in (["completed"], ["crashed", "completed"]), (at, states)
        assert not list((folder / "scratch").iterdir()), at
        assert not list((folder / "attempts").rglob("*.json")), at
        shutil.rmtree(folder)
    sys.stdout.write(f"crash points: {points}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), *(int(word) for word in sys.argv[2:4] or ("0", "1")))
