"""Crashes, at every point there is, and writers who meet."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from artifacts.backend import Backend, Entry, open_backend
from artifacts.local import LocalBackend
from artifacts.record import Record
from artifacts.store import Store

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# A disk whose flush costs nothing makes the same calls in a fraction of the time.
FAST = Path("/dev/shm") if Path("/dev/shm").is_dir() else None


class Crash(BaseException):
    """The machine stops. Not an Exception: nothing may catch it and go on."""


class Fuse:
    """Burns through at the n-th backend call from now; after that every call crashes until it is renewed."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.calls = 0

    def burn(self) -> None:
        self.calls += 1
        if self.left is None:
            return
        if self.left == 0:
            raise Crash
        self.left -= 1


class CrashingBackend:
    """Any backend, with a fuse before each call, which is also after the one before."""

    def __init__(self, inner: Backend, fuse: Fuse) -> None:
        self.inner, self.fuse, self.url = inner, fuse, inner.url

    def walk(self, folder: str, prefix: str = "") -> Iterator[Entry]:
        self.fuse.burn()
        return self.inner.walk(folder, prefix)

    def __getattr__(self, name: str):
        method = getattr(self.inner, name)

        def call(*arguments):
            self.fuse.burn()
            return method(*arguments)

        return call


class CrashingLocal(LocalBackend):
    """A folder, with a fuse before each step of a write as well."""

    def __init__(self, root: Path, fuse: Fuse) -> None:
        super().__init__(root)
        self.fuse = fuse

    def __getattribute__(self, name: str):
        value = super().__getattribute__(name)
        burning = {"read", "write", "create", "walk", "delete", "entry", "move", "upload", "download"}
        burning |= {"temporary", "place", "flush", "_into_folder", "_make_folder", "_temporary_with"}
        if name in burning:
            super().__getattribute__("fuse").burn()
        return value


def key_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_publish_killed_at_every_file_operation_leaves_nothing_half(tmp_path, capsys):
    """SIGKILL, real processes: see kill_at_call.py."""
    base = FAST / f"fairway-{uuid4().hex}" if FAST else tmp_path
    base.mkdir(exist_ok=True)
    try:
        done = subprocess.run(
            [sys.executable, HERE / "kill_at_call.py", base], cwd=ROOT, capture_output=True, text=True, timeout=300
        )
    finally:
        if FAST:
            shutil.rmtree(base)
    assert done.returncode == 0, done.stderr
    with capsys.disabled():
        sys.stdout.write(f"[SIGKILL in a publish: {done.stdout.strip()}] ")
    assert int(done.stdout.split(":")[1]) > 60


def test_a_publish_that_stops_between_any_two_backend_calls_leaves_nothing_half(place, tmp_path):
    output = tmp_path / "out"
    (output / "raw").mkdir(parents=True)
    (output / "raw" / "w.bin").write_bytes(b"weights")
    fuse, key = Fuse(), key_of("a")

    def work(store: Store) -> None:
        store.write_run({"id": "1"})
        store.publish(stage="train", key=key, folder=output, components={}, report={}, inputs={})
        store.assign_name("r", "s", 1, "train", "", key)

    # The S3 server is slow and its client the same as the memory's: every third point is enough there.
    for at in range(0, 1000, 3 if place.url.startswith("s3:") else 1):
        url = f"{place.url}/{at}"
        backend = CrashingLocal(Path(url), fuse) if place.local else CrashingBackend(open_backend(url), fuse)
        store = Store(backend, tmp_path / "hosts" / str(at))
        fuse.left = at
        try:
            work(store)
        except Crash:
            pass
        else:
            break
        finally:
            fuse.left = None
        after = Store.open(url, cache=tmp_path / "hosts" / "after")
        assert after.verify(full=False) == []
        record = after.get("train", key)
        work(after)
        assert after.verify(full=place.local) == []
        assert list(after.names()) == ["r/s/1/train@1"]
        assert record in (None, after.get("train", key))
    assert 5 < at < 999


def test_processes_that_publish_one_key_at_once_leave_one_record(tmp_path):
    for index in range(4):
        (tmp_path / str(index) / "raw").mkdir(parents=True)
        (tmp_path / str(index) / "raw" / "w.bin").write_bytes(b"%d" % index * 200000)
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom artifacts.store import Store\n"
        "store, out, start = Store.open(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])\n"
        "print('ready', flush=True)\n"
        "while not start.exists(): time.sleep(0.001)\n"
        "blank = dict(components={}, report={}, inputs={})\n"
        f"made = store.publish(stage='train', key='{key_of('a')}', folder=out, **blank)\n"
        "print(made.outcome, made.record.id)\n"
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", script, tmp_path / "store", tmp_path / str(index), tmp_path / "start"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(4)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    (tmp_path / "start").touch()
    outcomes = [writer.communicate(timeout=60)[0].split() for writer in writers]
    assert sorted(outcome for outcome, _ in outcomes) == ["conflict", "conflict", "conflict", "created"]
    assert len({record for _, record in outcomes}) == 1
    store = Store.open(tmp_path / "store")
    assert len(list(store.records())) == 1
    assert store.verify() == []


KEYS = [key_of(text) for text in "abc"]
CRASH = st.none() | st.integers(0, 30)


class StoreMachine(RuleBasedStateMachine):
    """Anything may happen in any order, and stop anywhere; what the store says must stay true."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = (FAST or Path("/tmp")) / f"fairway-{uuid4().hex}"
        self.folder.mkdir()
        self.fuse = Fuse()
        self.outputs = 0
        self.published: dict[str, set[bytes]] = {key: set() for key in KEYS}
        self.known: dict[str, Record] = {}
        self.freed: set[str] = set()  # keys whose record may go: rejected, damaged or collected

    def backend(self) -> Backend:
        return CrashingLocal(self.folder / "store", self.fuse)

    def store(self) -> Store:
        return Store(self.backend(), self.folder / "cache")

    def run(self, crash: int | None, work) -> None:
        store = self.store()
        self.fuse.left = crash
        try:
            work(store)
        except Crash:
            pass
        finally:
            self.fuse.left = None

    @rule(key=st.sampled_from(KEYS), data=st.binary(max_size=3), crash=CRASH, parent=st.sampled_from([None, *KEYS]))
    def publish(self, key, data, crash, parent):
        self.outputs += 1
        output = self.folder / str(self.outputs)
        (output / "raw").mkdir(parents=True)
        (output / "raw" / "w.bin").write_bytes(data)
        made_from = self.store().get("train", parent) if parent and parent < key else None
        inputs = {"shards": {"digest": "", "from": [made_from.producer("raw")]}} if made_from else {}
        self.published[key].add(data)

        def work(store):
            store.publish(stage="train", key=key, folder=output, components={}, report={}, inputs=inputs)
            store.assign_name("r", "s", 1, "train", "", key)

        before = self.store().get("train", key)
        if before is not None and self.store().rejection(before) is not None:
            self.freed.add(key)
        self.run(crash, work)
        if crash is None:
            assert self.store().get("train", key) is not None

    @precondition(lambda self: self.known)
    @rule(data=st.data(), crash=CRASH)
    def reject(self, data, crash):
        root = data.draw(st.sampled_from(sorted(self.known)))
        self.freed |= set(KEYS)
        record = self.known[root]
        self.run(crash, lambda store: store.reject(f"train/{root}", "bad"))
        if crash is None:
            assert self.store().get("train", root) is None
            assert self.store().rejection(record) == "bad"

    @precondition(lambda self: self.known)
    @rule(data=st.data(), crash=CRASH)
    def damage(self, data, crash):
        root = data.draw(st.sampled_from(sorted(self.known)))
        for file in self.known[root].files:
            target = self.folder / "store" / "objects" / file.sha256[:2] / file.sha256
            target.chmod(0o644)
            target.write_bytes(b"damaged")
        self.freed |= set(KEYS)
        # Objects are shared: every record is looked at, as a run that meets the damage would in the end.
        for key in KEYS:
            self.run(crash, lambda store, key=key: store.quarantine("train", key))
        for key in KEYS:
            self.store().quarantine("train", key)
        assert root not in dict(self.store().records()).values()

    @rule(crash=CRASH, keep_last=st.sampled_from([None, 1]))
    def collect(self, crash, keep_last):
        self.freed |= set(KEYS)
        self.run(crash, lambda store: store.gc(delete=True, grace_s=-1, keep_last=keep_last))

    @invariant()
    def every_record_is_whole_and_true(self):
        store = self.store()
        assert store.verify() == []
        records = {key: store.get("train", key) for _, key in store.records()}
        for key, record in records.items():
            (file,) = record.files
            assert store.read_object(file.sha256) in self.published[key]
        for key, record in self.known.items():
            assert key in self.freed or records.get(key) == record, "a finished stage's record changed by itself"
        self.known, self.freed = records, set()

    def teardown(self):
        shutil.rmtree(self.folder)


class MemoryMachine(StoreMachine):
    """The same behind fsspec, with a cache on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.url = f"memory://{uuid4().hex}"

    def backend(self) -> Backend:
        return CrashingBackend(open_backend(self.url), self.fuse)

    @precondition(lambda self: self.known)
    @rule(data=st.data(), crash=CRASH)
    def damage(self, data, crash):
        root = data.draw(st.sampled_from(sorted(self.known)))
        shutil.rmtree(self.folder / "cache", ignore_errors=True)
        for file in self.known[root].files:
            open_backend(self.url).write(f"objects/{file.sha256[:2]}/{file.sha256}", b"damaged")
        self.freed |= set(KEYS)
        for key in KEYS:
            self.run(crash, lambda store, key=key: store.quarantine("train", key))
        for key in KEYS:
            self.store().quarantine("train", key)
        assert root not in dict(self.store().records()).values()


MODEST = settings(deadline=None, derandomize=True, max_examples=25, stateful_step_count=12)
TestLocalMachine = pytest.mark.timeout(120)(StoreMachine.TestCase)
TestLocalMachine.settings = MODEST
TestMemoryMachine = pytest.mark.timeout(120)(MemoryMachine.TestCase)
TestMemoryMachine.settings = MODEST
