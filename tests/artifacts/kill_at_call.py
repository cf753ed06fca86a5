"""SIGKILL a piece of work just before its n-th file operation below a folder, for every n until it finishes.

`kill_at_every_call(work, folder, check)` forks a child per n. The child runs `work()` and an audit hook of the
interpreter counts every open, link, rename, remove, mkdir, chmod and listing that touches `folder`, whoever makes it;
at the n-th the child kills itself. The kernel keeps what was done before and nothing after, as in a real crash;
`check(n)` then looks at what is left. Nothing in the product knows of it: no hook, no environment variable.

Run as a script: `python kill_at_call.py FOLDER` does this to a whole publish, with its name and its run, and prints the
number of crash points. Forking needs a process without threads, which is why it is a script.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

EVENTS = {"open", "os.link", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.scandir", "os.listdir"}
EVENTS |= {"os.truncate", "os.symlink", "shutil.rmtree"}


def arm(folder: Path, at: int) -> Callable[[], int]:
    """Kill this process at its `at`-th operation below `folder`; returns a counter of those made so far."""
    count = 0
    root = os.fsencode(folder)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event not in EVENTS or not arguments:
            return
        touched = arguments[0]
        if isinstance(touched, int):  # fchmod: the descriptor's file
            touched = os.readlink(f"/proc/self/fd/{touched}")
        if not isinstance(touched, str | bytes | os.PathLike) or not os.fsencode(touched).startswith(root):
            return
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return lambda: count


def kill_at_every_call(work: Callable[[], None], folder: Path, check: Callable[[int], None]) -> int:
    """The number of crash points of `work`; `check(n)` is called after each, with the store as the crash left it."""
    at = 0
    while True:
        at += 1
        child = os.fork()
        if child == 0:
            try:
                arm(folder, at)
                work()
                os._exit(0)
            except BaseException:  # noqa: BLE001 - a child of fork must never return
                import traceback

                traceback.print_exc()
                os._exit(1)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0, f"the work failed by itself at {at}"
            return at - 1
        assert os.WTERMSIG(status) == signal.SIGKILL
        check(at)


def main(base: Path) -> None:
    """Publish, name and note in a run, killed everywhere; each crash is checked and the work then done in full."""
    from artifacts.store import Store

    output = base / "output"
    for path, data in {"raw/w.bin": b"w" * 300000, "raw/v.bin": b"v", "ema/w.bin": b"e"}.items():
        (output / path).parent.mkdir(parents=True, exist_ok=True)
        (output / path).write_bytes(data)
    key = hashlib.sha256(b"key").hexdigest()
    crash = 0

    def store_of(n: int) -> Path:
        return base / "stores" / str(n)

    def work(store_folder: Path | None = None) -> None:
        folder = store_folder or store_of(crash + 1)
        store = Store.open(folder)
        store.write_run({"id": "run", "state": "running"})
        with store.lease(key):
            store.mirror_attempt(key, output)
            store.publish(stage="train", key=key, folder=output, components={}, report={}, inputs={})
            store.assign_name("r", "s", 1, "train", "", key)
            store.remove_attempt(key)
        store.write_run({"id": "run", "state": "done", "key": key})

    def check(n: int) -> None:
        nonlocal crash
        folder = store_of(n)
        store = Store.open(folder)
        record = store.get("train", key)
        assert store.verify() == [], (n, store.verify())
        if record is not None:
            store.fetch(record.files, base / "in" / str(n), verify="full")
        restored = store.restore_attempt(key, base / "restored" / str(n))
        whole = {"raw/w.bin": 300000, "raw/v.bin": 1, "ema/w.bin": 1}
        if restored:
            found = (p for p in (base / "restored" / str(n)).rglob("*") if p.is_file())
            assert {p.relative_to(base / "restored" / str(n)).as_posix(): p.stat().st_size for p in found} == whole
        work(folder)
        after = store.get("train", key)
        assert after is not None
        assert record in (None, after), "a record that existed was replaced"
        assert store.verify() == []
        assert list(store.names()) == ["r/s/1/train@1"]
        store.gc(grace_s=-1, delete=True)
        assert store.verify() == []
        assert not list((folder / "tmp").iterdir())
        assert len(list((folder / "objects").rglob("??/*"))) == 3
        crash = n

    points = kill_at_every_call(work, base / "stores", check)
    sys.stdout.write(f"crash points: {points}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
