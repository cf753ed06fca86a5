"""A store that runs have filled is listed in a few calls by whoever comes first, and no index can make that wrong."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from artifacts import index, remembered
from artifacts.backend import Entry, open_backend
from artifacts.documents import dump_document
from artifacts.errors import StoreReadOnly, StoreUnavailable
from artifacts.index import Index
from artifacts.keyring import Credentials, hang
from artifacts.remembered import Remembered
from artifacts.remote import FsspecBackend
from artifacts.store import Store


class Fuse(BaseException):
    """The machine stops. Not an Exception: nothing may catch it and go on."""


class Place(FsspecBackend):
    """A store in memory that lists MD5 tags as an object store does, counts its calls and can fail or stop at one."""

    CALLS = frozenset({"read", "read_many", "write", "create", "walk", "delete", "entry"})

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.asked: Counter[str] = Counter()  # {"read_many index": 2, ...}: files, or listings
        self.left: int | None = None  # calls before the machine stops
        self.refused = ("", StoreUnavailable(""))  # a call and what comes of it below index/

    def remember(self, folder: Path) -> None:
        self._remembered = Remembered(self, folder)

    def walk(self, folder: str, prefix: str = "") -> Iterator[Entry]:
        for entry in super().walk(folder, prefix):
            yield replace(entry, tag=md5(self._fs.cat_file(self._at(entry.path))))

    def __getattribute__(self, name: str):
        found = super().__getattribute__(name)
        return partial(self._called, name, found) if name in Place.CALLS else found

    def _called(self, name: str, work, what, *more):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Fuse
        for path in [what] if isinstance(what, str) else what:
            self.asked[f"{name} {path.split('/')[0]}"] += 1
            if path.startswith("index") and self.refused[0] == name:
                raise self.refused[1]
        return work(what, *more)


class Lab:
    """A store that hosts of their own open and runs of their own fill."""

    def __init__(self, url: str, folder: Path, publish, opened=Store.open) -> None:
        self.url, self._folder, self._publish, self._opened = url, folder, publish, opened

    def host(self, name: str) -> Store:
        return self._opened(self.url, cache=self._folder / name)

    def run(self, run_id: str, words: str, end: bool = True, store: Store | None = None) -> Store:
        """A run that publishes and names a record for each word."""
        store = store or self.host(f"of run {run_id}")
        store.write_run({"id": run_id, "state": "running"})
        keys = []
        for word in words:
            keys.append(self._publish(store, word).record.key)
            store.assign_name("r", "s", 1, "train", word, keys[-1])
        store.write_run({"id": run_id, "state": "completed", "keys": keys})
        if end:
            store.leave_index()
        return store

    def files(self) -> list[str]:
        return [entry.path for entry in open_backend(self.url).walk("index")]


@pytest.fixture
def lab(tmp_path, publish, monkeypatch) -> Lab:
    """A lab in memory, whose smallest listing is worth an index."""
    monkeypatch.setattr(remembered, "_WORTH_AN_INDEX", 2)
    # One thread, so that what is the n-th call is the same each time.
    monkeypatch.setattr(index, "in_parallel", lambda work, items, streams: [work(item) for item in items])

    def opened(url: str, cache: Path) -> Store:
        backend = Place(url)
        backend.remember(cache)
        return Store(backend, cache)

    return Lab(f"memory://{uuid4().hex}", tmp_path / "hosts", publish, opened)


@pytest.fixture
def wire(monkeypatch) -> Counter[str]:
    """How often each kind of request has gone to S3: {"GET index": 2, "LIST names": 1, ...}."""
    sessions = pytest.importorskip("aiobotocore.httpsession", reason="NO S3 TESTS: s3fs is not installed")
    counted: Counter[str] = Counter()
    send = sessions.AIOHTTPSession.send

    async def count(session, request):
        url = urlsplit(request.url)
        asks = parse_qs(url.query)
        lists = "list-type" in asks
        path = (asks["prefix"][0] if lists else url.path.split("/", 2)[2]).partition("/")[2]
        counted[f"{'LIST' if lists else request.method} {path.split('/')[0]}"] += 1
        return await send(session, request)

    monkeypatch.setattr(sessions.AIOHTTPSession, "send", count)
    return counted


def everything(store: Store) -> tuple[object, ...]:
    return store.all_records(), store.list_runs()


def one_by_one(store: Store) -> tuple[object, ...]:
    """The same, read past every index and memory."""
    store._backend.read_listed = lambda entries: store._backend.read_many([entry.path for entry in entries])
    return everything(store)


def read_singly(store: Store) -> int:
    """How many documents a store has read one by one."""
    return sum(store._backend.asked[f"read_many {kind}"] for kind in ("names", "records", "runs"))


@pytest.mark.parametrize("words", ["abc", "abcdefghijkl"])
def test_a_host_that_never_saw_the_store_asks_for_as_many_files_as_runs_have_ended(
    s3_bucket, tmp_path, publish, wire, monkeypatch, words
):
    monkeypatch.setattr(remembered, "_WORTH_AN_INDEX", 2)
    lab = Lab(f"s3://{s3_bucket}/{uuid4().hex}", tmp_path / "hosts", publish)
    lab.run("1", words[::2])
    ending = lab.run("2", words[1::2], end=False)
    wire.clear()
    ending.leave_index()
    assert wire == {"PUT index": 1, "LIST index": 1}
    wire.clear()
    found = everything(lab.host("new"))
    listings = {"GET store.json": 1, "LIST names": 1, "LIST records": 1, "LIST runs": 1}
    assert wire == {**listings, "LIST index": 3, "GET index": 2}
    assert len(found[0]) == len(words)
    wire.clear()
    assert everything(lab.host("new")) == found
    assert wire == listings
    assert one_by_one(lab.host("another")) == found


def test_a_run_that_made_nothing_leaves_nothing(lab):
    store = lab.run("1", "ab")
    assert len(lab.files()) == 1
    store._backend.asked.clear()
    store.leave_index()
    assert not store._backend.asked
    cached = lab.run("2", "ab", end=False)
    cached._backend.asked.clear()
    cached.leave_index()
    assert not cached._backend.asked


def test_a_record_that_another_process_made_is_in_the_index_of_the_run_that_waited_for_it(lab, publish):
    made = publish(lab.host("worker"), "a").record  # by a process that ends here
    parent = lab.host("parent")
    parent.note(parent.get("train", made.key))
    parent.assign_name("r", "s", 1, "train", "", made.key)
    parent.leave_index()
    publish(lab.host("worker"), "b")
    new = lab.host("new")
    assert len(new.all_records()) == 2
    assert read_singly(new) == 1 + 1  # the other record; a lone name is not worth an index


def test_what_is_pushed_and_imported_is_in_an_index(lab, tmp_path, publish):
    local = Store.open(tmp_path / "local")
    keys = [publish(local, word).record.key for word in "abc"]
    local.push(lab.host("pushes"), keys)
    for word in "de":
        local.export(publish(local, word).record.key, tmp_path / word)
        lab.host("imports").import_(tmp_path / word)
    new = lab.host("new")
    assert len(new.all_records()) == 5
    assert read_singly(new) == 2  # imported one by one, and no file is for one


def test_runs_that_end_at_once_leave_an_index_of_all(lab, monkeypatch):
    monkeypatch.setattr(index, "_MANY", 2)
    stores = [lab.run(str(number), word, end=False) for number, word in enumerate("abcdefgh")]
    together = threading.Barrier(len(stores))

    def end(store: Store) -> None:
        together.wait()
        store.leave_index()

    threads = [threading.Thread(target=end, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    new = lab.host("new")
    assert everything(new) == one_by_one(lab.host("another"))
    assert read_singly(new) == 0


def test_many_files_are_made_one_by_the_next_run_that_ends(lab, monkeypatch):
    monkeypatch.setattr(index, "_MANY", 3)
    for number, word in enumerate("abc"):
        lab.run(str(number), word)
    assert len(lab.files()) == 3
    lab.run("3", "d")
    assert len(lab.files()) == 1
    new = lab.host("new")
    assert len(everything(new)[0]) == 4
    assert new._backend.asked["read_many index"] == 1
    assert read_singly(new) == 0


def test_a_reader_whose_files_are_made_one_under_it_reads_the_one(lab):
    for number, word in enumerate("abc"):
        lab.run(str(number), word)
    reader = lab.host("new")
    listed, other = lab.files(), Index(lab.host("other")._backend)
    read_listed = reader._backend.read_many

    def too_late(paths):
        if list(paths) == listed:
            other.read(listed)
            other.merge()
        return read_listed(paths)

    reader._backend.read_many = too_late
    assert len(reader.all_records()) == 3
    assert lab.files() != listed
    assert read_singly(reader) == 0


def test_gc_leaves_one_file_without_what_it_removed(lab):
    for number, word in enumerate("abc"):
        lab.run(str(number), word)
    store, before = lab.host("keeper"), lab.files()
    store.remove_run("0")
    store._backend.delete("names/r/s/1/train/a/1.json")
    assert store.gc(grace_s=-1).stages == {"train": 1}
    assert lab.files() == before  # it was a dry run
    assert store.gc(grace_s=-1, delete=True).stages == {"train": 1}
    (left,) = lab.files()
    held = Index(store._backend)
    held.read([left])
    kept = [entry.path for kind in ("names", "records", "runs") for entry in store._backend.walk(kind)]
    assert sorted(path for path, _ in held._texts) == kept
    new = lab.host("new")
    assert len(new.all_records()) == 2
    assert read_singly(new) == 0
    store.gc(grace_s=-1, delete=True, keep_last=0)
    assert lab.files() == []


@pytest.mark.parametrize("error", [StoreReadOnly("no"), StoreUnavailable("away")])
@pytest.mark.parametrize(
    ("call", "said"), [("write", "written"), ("walk", "listed"), ("read_many", "read"), ("delete", "cleared up")]
)
def test_an_index_that_cannot_be_kept_is_a_line_for_debugging(lab, monkeypatch, caplog, call, said, error):
    caplog.set_level(logging.DEBUG, "artifacts.index")
    monkeypatch.setattr(index, "_MANY", 1)
    lab.run("0", "ab")
    truth = one_by_one(lab.host("judge"))
    run = lab.run("1", "cd", end=False)
    run._backend.refused = (call, error)
    run.leave_index()
    assert f"is not {said}: {error}" in caplog.text
    reader = lab.host("reader")
    reader._backend.refused = (call, error)
    assert len(everything(reader)[0]) == 4
    reader.gc(delete=True)
    for name in ("reader", "new"):
        assert everything(lab.host(name)) == one_by_one(lab.host("judge")) != truth


def test_who_is_killed_at_any_call_while_leaving_merging_or_pruning_loses_no_text(lab, monkeypatch):
    monkeypatch.setattr(index, "_MANY", 2)
    noted = [lab.run(n, word, end=False)._backend._remembered._noted for n, word in zip("012", "abc", strict=True)]
    truth, outside = one_by_one(lab.host("judge")), open_backend(lab.url)

    def run(number: int, name: str) -> Store:
        store = lab.host(name)
        store._backend._remembered._noted = dict(noted[number])
        return store

    for point in range(1000):
        for path in lab.files():
            outside.delete(path)
        for number in (0, 1):
            run(number, f"{point} {number}").leave_index()
        before = lab.files()
        last = run(2, f"{point} 2")
        last._backend.left = point
        try:
            last.leave_index()  # a third file: they are made one
            merged = lab.files()
            last.gc(delete=True)
        except Fuse:
            pass
        else:
            break
        new = lab.host(f"after {point}")
        assert everything(new) == truth
        assert read_singly(new) == (3 if point == 0 else 0)  # only what nobody has left yet
    assert 8 < point < 999
    assert len(before) == 2
    assert len(merged) == 1
    assert lab.files() == merged


def test_sixty_four_small_files_are_asked_for_at_once():
    pytest.importorskip("s3fs", reason="NO S3 TESTS: s3fs is not installed")
    together = threading.Barrier(64)

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            together.wait(timeout=30)  # nobody is answered before all have asked
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *said: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128

    server = Server(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"s3://bucket/{uuid4().hex}"
        address = f"http://127.0.0.1:{server.server_address[1]}"
        hang(url, Credentials("ours", {"endpoint_url": address, "key": "a key", "secret": "a secret"}))
        assert open_backend(url).read_many([str(n) for n in range(64)]) == [b"{}"] * 64
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize("bucket", ["gs_bucket", "az_container"])
def test_every_object_stores_listing_has_the_tag_that_a_writer_foresaw(request, bucket, tmp_path, publish, monkeypatch):
    monkeypatch.setattr(remembered, "_WORTH_AN_INDEX", 2)
    scheme = {"gs_bucket": "gs", "az_container": "az"}[bucket]
    url = f"{scheme}://{request.getfixturevalue(bucket)}/{uuid4().hex}"
    writer = Store.open(url, cache=tmp_path / "writer")
    for word in "abc":
        publish(writer, word)
    writer.leave_index()
    reader = Store.open(url, cache=tmp_path / "reader")
    paths, read_many = [], reader._backend.read_many
    monkeypatch.setattr(reader._backend, "read_many", lambda wanted: paths.extend(wanted) or read_many(wanted))
    assert len(reader.all_records()) == 3
    assert [path.split("/")[0] for path in paths] == ["index"]


class Shelf:
    """A place for files in memory, whose listings have MD5 tags."""

    url = "shelf://"

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def walk(self, folder: str) -> Iterator[Entry]:
        for path, data in sorted(self.files.items()):
            if path.startswith(f"{folder}/"):
                yield Entry(path, len(data), 0.0, md5(data))

    def read_many(self, paths):
        return [self.files.get(path) for path in paths]

    def write(self, path: str, data: bytes) -> None:
        self.files[path] = data

    def delete(self, path: str) -> bool:
        return self.files.pop(path, None) is not None


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


class Hosts(RuleBasedStateMachine):
    """Hosts whose views of the index are of different times write documents, leave files and make them one."""

    hosts = st.integers(0, 2)
    documents = st.sampled_from(["records/a", "records/b", "runs/1"])

    def __init__(self) -> None:
        super().__init__()
        self.shelf = Shelf()
        self.hosts_ = [Index(self.shelf) for _ in range(3)]  # type: ignore[arg-type]
        self.indexed: set[tuple[str, str]] = set()  # states that somebody left and nobody pruned or damaged

    @rule(host=hosts, path=documents, n=st.integers(0, 2))
    def write_and_leave(self, host, path, n):
        text = dump_document({"n": n})[0]
        self.shelf.write(path, text)
        self.hosts_[host].add({(path, md5(text)): text})
        self.indexed.add((path, md5(text)))

    @rule(path=documents, n=st.integers(0, 5))
    def write_and_be_killed(self, path, n):
        self.shelf.write(path, dump_document({"n": n})[0])

    @rule(host=hosts)
    def look(self, host):
        self.hosts_[host].look_up([])

    @rule(host=hosts)
    def make_one_of_what_it_saw(self, host):
        self.hosts_[host].merge()

    @rule()
    def prune(self):
        pruning = Index(self.shelf)  # type: ignore[arg-type]
        pruning.read([entry.path for entry in self.shelf.walk("index")])
        current = {(entry.path, entry.tag) for folder in ("records", "runs") for entry in self.shelf.walk(folder)}
        pruning.merge(current)
        self.indexed &= current
        assert len(self.shelf.files) <= 3 + 1

    @rule(host=hosts)
    def restart(self, host):
        self.hosts_[host] = Index(self.shelf)  # type: ignore[arg-type]

    @invariant()
    def a_new_host_finds_what_was_left_and_every_host_only_what_is_there(self):
        for number, host in enumerate([Index(self.shelf), *self.hosts_]):  # type: ignore[list-item]
            if number:  # these have not looked again
                texts = host._texts
            listed = [entry for folder in ("records", "runs") for entry in self.shelf.walk(folder)]
            if not number:
                found = host.look_up(listed)
                assert {entry.path for entry in listed if (entry.path, entry.tag) in self.indexed} <= set(found)
                texts = {(entry.path, entry.tag): found[entry.path] for entry in listed if entry.path in found}
            assert all(md5(text) == tag for (_, tag), text in texts.items())


TestHosts = Hosts.TestCase
TestHosts.settings = settings(deadline=None, derandomize=True, max_examples=60, stateful_step_count=20)
