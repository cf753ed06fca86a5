"""What goes wrong with a place: full, read-only, unreachable, without what a store needs. Nothing half is left."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from creators import creators_at_once

from artifacts import remote
from artifacts.backend import open_backend
from artifacts.dialects import modified_s
from artifacts.errors import DamagedArtifact, StoreFormat, StoreFull, StoreReadOnly, StoreUnavailable
from artifacts.local import LocalBackend
from artifacts.objects import object_path
from artifacts.store import Store

KEY = hashlib.sha256(b"key").hexdigest()


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_full_disk_is_named_and_nothing_half_is_left(small_disk, publish):
    store = Store.open(small_disk / "store")
    small = publish(store, "small", {"raw/w.bin": b"w" * 1000})
    before = files_below(small_disk)
    with pytest.raises(StoreFull, match="make room"):
        publish(store, "big", {"raw/a.bin": b"a", "raw/w.bin": os.urandom(2_000_000)})
    assert store.get("train", hashlib.sha256(b"big").hexdigest()) is None
    left = files_below(small_disk) - before
    # An object that came before the disk was full is whole and harmless; gc takes it.
    assert all(path.startswith("store/objects/") or "/stamps/" in path for path in left)
    assert store.verify() == []
    (small_disk / "filler").write_bytes(b"\0" * (os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize))
    for write in (
        lambda: store.write_run({"id": "1"}),
        lambda: store.pin(small.record.key),
        lambda: store.assign_name("r", "s", 1, "train", "", small.record.key),
        lambda: publish(store, "none", {}),
    ):
        with pytest.raises(StoreFull):
            write()
    assert store.verify() == []
    assert store.get("train", small.record.key) == small.record
    assert not list((small_disk / "store" / "tmp").iterdir())


def test_a_read_only_store_can_be_read_and_says_that_it_cannot_be_written(small_disk, publish, tmp_path):
    store = Store.open(small_disk / "store")
    record = publish(store, "a").record
    made = subprocess.run(["mount", "-o", "remount,ro", small_disk], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"cannot mount a disk read-only here: {made.stderr.strip()}")
    store = Store.open(small_disk / "store")
    assert store.get("train", record.key) == record
    for verify in ("stamp", "full"):
        store.fetch(record.files, tmp_path / "in", verify=verify)
    assert store.verify() == []
    for write in (
        lambda: publish(store, "b"),
        lambda: store.write_run({"id": "1"}),
        lambda: store.lease(KEY).__enter__(),
        lambda: store.mirror_attempt(KEY, tmp_path),
    ):
        with pytest.raises(StoreReadOnly, match="make it writable"):
            write()


def test_a_file_system_without_hard_links_is_refused(local_place, monkeypatch):
    def link(source, target):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(StoreUnavailable, match="another file system"):
        local_place.open().write_run({"id": "1"})
    assert local_place.paths() == []


def test_a_disk_error_is_told_as_it_is(local_place, monkeypatch):
    def link(source, target):
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(StoreUnavailable, match="the disk is broken"):
        local_place.open().write_run({"id": "1"})


def test_a_store_of_a_newer_format_is_not_touched(local_place, publish):
    from artifacts.documents import dump_document

    publish(local_place.open(), "a")
    local_place.open()._backend.write("store.json", dump_document({"format": 2})[0])
    with pytest.raises(StoreFormat, match="has format 2"):
        local_place.open()


def test_a_place_that_makes_a_file_twice_is_no_place_for_a_store(tmp_path, monkeypatch):
    monkeypatch.setattr(LocalBackend, "create", lambda self, path, data: True)
    with pytest.raises(StoreUnavailable, match="made one twice"):
        Store.open(tmp_path).write_run({"id": "1"})


def test_a_folder_is_a_path_or_a_file_address(tmp_path, publish, monkeypatch):
    record = publish(Store.open(tmp_path / "store"), "a").record
    monkeypatch.chdir(tmp_path)
    for url in ("store", tmp_path / "store", f"file://{tmp_path}/store", f"local://{tmp_path}/store"):
        assert Store.open(url).get("train", record.key) == record
        assert Store.open(url).url == str(tmp_path / "store")


def test_files_that_vanish_while_they_are_listed_are_left_out(tmp_path, monkeypatch):
    backend = LocalBackend(tmp_path)
    for name in "abc":
        backend.write(f"folder/{name}", b"x")
    walk = backend.walk("folder")
    assert next(walk).path == "folder/a"
    assert backend.delete("folder/b") is True
    assert backend.delete("folder/b") is False
    # scandir may have looked already; the entry must then not be an error
    assert {entry.path for entry in walk} <= {"folder/b", "folder/c"}
    assert list(backend.walk("nowhere")) == list(backend.walk("folder/a")) == []


def test_an_entry_whose_file_is_gone_is_skipped(tmp_path, monkeypatch):
    class Gone:
        name = "gone"

        def is_dir(self, follow_symlinks):
            return False

        def stat(self, follow_symlinks):
            raise FileNotFoundError

    monkeypatch.setattr(os, "scandir", lambda folder: [Gone()])
    assert list(LocalBackend(tmp_path).walk("")) == []


def test_a_local_file_is_uploaded_whole_and_downloaded(tmp_path):
    backend = LocalBackend(tmp_path / "store")
    (tmp_path / "source").write_bytes(b"data" * 1000)
    backend.upload(tmp_path / "source", "a/b/c")
    backend.download("a/b/c", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == backend.read("a/b/c") == b"data" * 1000
    entry = backend.entry("a/b/c")
    assert entry is not None
    assert entry.bytes == 4000
    assert backend.entry("a/b/d") is backend.entry("a/b/c/d") is None


@pytest.mark.parametrize("scheme", ["http", "ftp", "zip", "nonsense"])
def test_a_scheme_without_create_if_absent_is_refused(scheme, tmp_path):
    with pytest.raises(StoreUnavailable, match="only if there is none"):
        Store.open(f"{scheme}://host/store", cache=tmp_path)


@pytest.mark.parametrize(
    ("url", "extra"), [("gs://bucket/x", "gcs"), ("az://box/x", "azure"), ("abfs://box/x", "azure")]
)
def test_a_missing_driver_is_named_with_how_to_install_it(url, extra, tmp_path, monkeypatch):
    def no_driver(*arguments, **options):
        raise ImportError("No module named 'driver'")

    monkeypatch.setattr(remote, "url_to_fs", no_driver)
    with pytest.raises(StoreUnavailable, match=rf"fairway\[{extra}\]"):
        Store.open(url, cache=tmp_path)


def test_a_missing_bucket_is_named_at_the_first_write(s3_bucket, tmp_path):
    store = Store.open("s3://no-such-bucket/store", cache=tmp_path)
    assert store.get("train", KEY) is None
    with pytest.raises(StoreUnavailable, match="must exist"):
        store.write_run({"id": "1"})


def test_an_unreachable_server_is_named(tmp_path, s3_bucket, monkeypatch):
    backend = open_backend(f"s3://{s3_bucket}/x")

    def fail(*arguments, **options):
        raise ConnectionError("nobody listens")

    monkeypatch.setattr(backend._fs, "cat_file", fail)
    with pytest.raises(StoreUnavailable, match="nobody listens"):
        backend.read("x")

    def odd(*arguments, **options):
        raise RuntimeError("a driver's own kind")

    monkeypatch.setattr(backend._fs, "cat_file", odd)
    with pytest.raises(StoreUnavailable, match="a driver's own kind"):
        backend.read("x")


class Refusing:
    """An object store that answers a creation with error codes, in turn."""

    def __init__(self, *codes: str | None) -> None:
        self.codes = list(codes)

    def pipe_file(self, path, data, mode):
        assert mode == "create"
        code = self.codes.pop(0)
        if code is not None:
            answer = Exception()
            answer.response = {"Error": {"Code": code}}  # type: ignore[attr-defined]
            raise OSError(errno.EIO, code) from answer


@pytest.fixture
def refusing(s3_bucket, monkeypatch):
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(remote, "_ANSWERED", set())  # by others that had the same address

    def make(*codes: str | None):
        backend = open_backend(f"s3://{s3_bucket}/x")
        backend._fs = Refusing(*codes)
        return backend

    return make


def test_servers_that_do_not_name_the_condition_are_understood(refusing):
    assert refusing("PreconditionFailed").create("a", b"") is False
    assert refusing("412").create("a", b"") is False


def test_a_creation_that_met_another_is_tried_again(refusing):
    assert refusing("ConditionalRequestConflict", "409", None).create("a", b"") is True
    assert refusing("ConditionalRequestConflict", "PreconditionFailed").create("a", b"") is False
    with pytest.raises(StoreUnavailable, match="kept each other out"):
        refusing(*["409"] * 20).create("a", b"")


def test_any_other_refusal_is_an_error(refusing):
    with pytest.raises(StoreUnavailable, match="SlowDown"):
        refusing("SlowDown").create("a", b"")


def test_creating_threads_on_s3_and_in_memory_have_one_winner(s3_bucket):
    for url in (f"s3://{s3_bucket}/race", "memory://race"):
        backend = open_backend(url)
        for turn in "01234":
            won = creators_at_once(backend, turn)
            assert won == [backend.read(turn)]


def test_times_of_every_driver_become_seconds():
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    for info in ({"LastModified": moment}, {"updated": "2026-01-02T03:04:05+00:00"}, {"mtime": moment.timestamp()}):
        assert modified_s(info) == moment.timestamp()
    assert modified_s({}) == 0.0


def test_a_damaged_copy_in_the_hosts_cache_is_fetched_again(publish, tmp_path):
    store = Store.open("memory://cached", cache=tmp_path / "cache")
    record = publish(store, "a", {"raw/w.bin": b"weights"}).record
    held = tmp_path / "cache" / object_path(record.files[0].sha256)
    held.chmod(0o644)
    held.write_bytes(b"wEights")
    store.fetch(record.files, tmp_path / "in")
    assert (tmp_path / "in" / "raw" / "w.bin").read_bytes() == b"weights"
    assert held.read_bytes() == b"weights"


def test_young_objects_are_not_uploaded_twice_and_old_ones_are_refreshed(publish, tmp_path, monkeypatch):
    store = Store.open("memory://fresh", cache=tmp_path / "cache")
    uploads, upload = [], store._backend.upload
    monkeypatch.setattr(
        store._backend, "upload", lambda local, path, *more: (uploads.append(path), upload(local, path, *more))
    )
    record = publish(store, "a", {"raw/w.bin": b"weights"}).record
    publish(store, "b", {"raw/w.bin": b"weights"})
    assert uploads == [object_path(record.files[0].sha256)]
    later = time.time() + 2 * 3600
    monkeypatch.setattr(time, "time", lambda: later)
    publish(store, "c", {"raw/w.bin": b"weights"})
    assert uploads == [object_path(record.files[0].sha256)] * 2


def test_what_a_gc_removes_during_a_publish_is_put_again(local_place, publish, monkeypatch):
    store = local_place.open()
    put, rounds = store._objects.put, []

    def put_and_lose(paths, *meter):
        stored = put(paths, *meter)
        for sha256, _ in stored[: max(0, 1 - len(rounds))]:
            store._backend.delete(object_path(sha256))
        rounds.append(stored)
        return stored

    monkeypatch.setattr(store._objects, "put", put_and_lose)
    publish(store, "a")
    assert len(rounds) == 2
    assert store.verify() == []


def test_a_place_that_loses_what_it_is_given_gets_no_record(local_place, publish, monkeypatch):
    store = local_place.open()
    put = store._objects.put

    def put_and_lose(paths, *meter):
        stored = put(paths, *meter)
        for sha256, _ in stored:
            store._backend.delete(object_path(sha256))
        return stored

    monkeypatch.setattr(store._objects, "put", put_and_lose)
    with pytest.raises(StoreUnavailable, match="must keep what it is given"):
        publish(store, "a")
    assert list(store.records()) == []


def test_a_remote_stores_cache_is_in_the_users_cache_folder(monkeypatch, tmp_path, publish):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    publish(Store.open("memory://somewhere"), "a")
    assert {path.split("/")[0] for path in files_below(tmp_path / "xdg")} == {"fairway"}
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    publish(Store.open("memory://elsewhere"), "a")
    assert {path.split("/")[0] for path in files_below(tmp_path / "home")} == {".cache"}


def test_a_damaged_remote_object_never_reaches_a_stage(publish, tmp_path):
    record = publish(Store.open("memory://damaged", cache=tmp_path / "a"), "a", {"raw/w.bin": b"weights"}).record
    open_backend("memory://damaged").write(object_path(record.files[0].sha256), b"wEights")
    reader = Store.open("memory://damaged", cache=tmp_path / "b")
    with pytest.raises(DamagedArtifact):
        reader.fetch(record.files, tmp_path / "in")
    assert files_below(tmp_path / "in") == files_below(tmp_path / "b") == set()


def test_many_small_files_are_read_in_order_and_missing_ones_are_none(place):
    backend = open_backend(place.url)
    assert backend.read_many([]) == []
    for index in range(150):  # more than are asked for at once
        backend.write(f"runs/{index}.json", b"%d" % index)
    paths = [f"runs/{index}.json" for index in reversed(range(-1, 151))]
    expected = [None, *(b"%d" % index for index in reversed(range(150))), None]
    assert backend.read_many(paths) == expected
    assert backend.read_many(["runs/7.json"]) == [b"7"]
    assert backend.read_many(["runs/none.json"]) == [None]


def test_a_listing_of_every_record_has_its_names_and_leaves_damage_out(place, publish):
    store = place.open()
    made = [publish(store, text).record for text in "abc"]
    name = store.assign_name("quickstart", "full", 1, "train", "", made[1].key)
    other = publish(store, "x", stage="average").record
    place.flip(f"records/train/{made[2].key}.json", position=200)
    listed = store.all_records()
    assert {record.id for record, _ in listed} == {made[0].id, made[1].id, other.id}
    assert {record.id: names for record, names in listed}[made[1].id] == [name]
    assert [record.id for record, _ in store.all_records("average")] == [other.id]


class TestPatience:
    """A store that has answered before is waited for."""

    class Flaky:
        """Fails in this way until it has been asked so often."""

        def __init__(self, error: Exception, times: int) -> None:
            self.error, self.times, self.asked = error, times, 0

        def __call__(self) -> bytes:
            self.asked += 1
            if self.asked <= self.times:
                raise self.error
            return b"at last"

    @pytest.fixture
    def backend(self, tmp_path, monkeypatch):
        monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
        return remote.FsspecBackend(f"memory://{tmp_path.name}-patience")

    @staticmethod
    def failing(name: str, code: str = "") -> Exception:
        inner = type(name, (Exception,), {"response": {"Error": {"Code": code}}} if code else {})()
        outer = OSError("wrapped")
        outer.__cause__ = inner
        return outer

    @pytest.mark.parametrize(
        ("name", "code"),
        [
            ("EndpointConnectionError", ""),
            ("ReadTimeoutError", ""),
            ("ClientError", "SlowDown"),
            ("ClientError", "503"),
        ],
    )
    def test_a_server_that_went_away_is_asked_again(self, backend, name, code):
        backend.write("here", b"")
        work = self.Flaky(self.failing(name, code), 5)
        assert backend._patiently("read", "x", work) == b"at last"
        assert work.asked == 6

    def test_one_that_never_answered_has_a_wrong_address(self, backend):
        work = self.Flaky(self.failing("EndpointConnectionError"), 1)
        with pytest.raises(StoreUnavailable, match="reachable"):
            backend._patiently("read", "x", work)
        assert work.asked == 1

    @pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId", "NoSuchBucket"])
    def test_a_refusal_is_not_asked_again(self, backend, code):
        backend.write("here", b"")
        work = self.Flaky(self.failing("ClientError", code), 1)
        with pytest.raises(StoreUnavailable):
            backend._patiently("read", "x", work)
        assert work.asked == 1

    def test_patience_ends(self, backend, monkeypatch):
        backend.write("here", b"")
        monkeypatch.setattr(remote, "PATIENCE_S", 0.3)
        work = self.Flaky(self.failing("ConnectionError"), 10**9)
        with pytest.raises(StoreUnavailable):
            backend._patiently("read", "x", work)
        assert work.asked == 2

    def test_an_outage_between_two_calls_costs_time_only(self, s3_bucket, tmp_path, monkeypatch):
        backend = open_backend(f"s3://{s3_bucket}/{tmp_path.name}")
        backend.write("runs/1.json", b"one")
        real, left = backend._fs._call_s3, [3]

        async def away(*args, **kwargs):
            if left[0]:
                left[0] -= 1
                raise ConnectionError("away")
            return await real(*args, **kwargs)

        monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
        monkeypatch.setattr(backend._fs, "_call_s3", away)
        assert backend.read_many(["runs/1.json", "runs/2.json"]) == [b"one", None]
        left[0] = 2
        assert backend.create("runs/2.json", b"two")
        left[0] = 2
        assert not backend.create("runs/2.json", b"other")
        assert left == [0]


class TestCacheLimit:
    """What this host keeps of a remote store's objects."""

    @pytest.fixture
    def shared(self, tmp_path, publish):
        url = f"memory://{tmp_path.name}-cache"
        store = Store.open(url, cache=tmp_path / "writer")
        records = [publish(store, text, {"raw/w.bin": text.encode() * 1000}).record for text in "abcd"]
        return Store.open(url, cache=tmp_path / "reader"), records, tmp_path

    def cached(self, folder: Path) -> set[str]:
        return {path.name for path in (folder / "reader" / "objects").rglob("*") if path.is_file()}

    def test_copies_that_were_not_used_for_longest_make_room(self, shared, monkeypatch):
        reader, records, folder = shared
        monkeypatch.setenv("FAIRWAY_CACHE_BYTES", "2500")
        two_days_ago = time.time() - 2 * 86_400
        for index, record in enumerate(records[:3]):
            reader.fetch(record.files, folder / f"in{index}")
            for stamp in (folder / "reader" / "stamps").rglob("*"):
                if stamp.name == record.files[0].sha256:
                    os.utime(stamp, (two_days_ago + index, two_days_ago + index))
        reader.fetch(records[0].files, folder / "again")  # used again: the oldest now is the second
        reader.fetch(records[3].files, folder / "in3")
        assert self.cached(folder) == {records[0].files[0].sha256, records[3].files[0].sha256}
        assert (folder / "again" / "raw" / "w.bin").read_bytes() == b"a" * 1000

    def test_what_was_used_today_stays_even_over_the_limit(self, shared, monkeypatch):
        reader, records, folder = shared
        monkeypatch.setenv("FAIRWAY_CACHE_BYTES", "1")
        for index, record in enumerate(records):
            reader.fetch(record.files, folder / f"in{index}")
        assert len(self.cached(folder)) == 4
        assert (folder / "in0" / "raw" / "w.bin").read_bytes() == b"a" * 1000

    def test_a_limit_that_is_no_number_is_refused(self, shared, monkeypatch):
        reader, records, folder = shared
        monkeypatch.setenv("FAIRWAY_CACHE_BYTES", "50 GB")
        with pytest.raises(StoreUnavailable, match="number of bytes"):
            reader.fetch(records[0].files, folder / "in")
