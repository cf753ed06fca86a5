"""Bytes on the way: parts side by side, how far they are, and a host's copies under stress."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import time
from pathlib import Path
from uuid import uuid4

import pytest

from artifacts import meter as meter_module
from artifacts import ranges
from artifacts.errors import DamagedArtifact, StoreUnavailable
from artifacts.local import LocalBackend
from artifacts.meter import Meter, Moved
from artifacts.objects import object_path
from artifacts.ranges import read_in_parts
from artifacts.store import Store


@pytest.mark.parametrize("size_bytes", [1, 63, 64, 65, 1000])
def test_parts_that_come_in_any_order_make_the_file_and_its_digest(tmp_path, monkeypatch, size_bytes):
    monkeypatch.setattr(ranges, "PART_BYTES", 64)
    content, delays = os.urandom(size_bytes), [0.02, 0.0, 0.01]

    def read(start: int, end: int) -> bytes:
        time.sleep(delays[start // 64 % 3])
        return content[start:end]

    found = read_in_parts(read, tmp_path / "file", size_bytes, 4)
    assert found == (hashlib.sha256(content).hexdigest(), size_bytes)
    assert (tmp_path / "file").read_bytes() == content


def test_a_part_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(ranges, "PART_BYTES", 64)

    def read(start: int, end: int) -> bytes:
        if start == 128:
            raise StoreUnavailable("gone")
        return bytes(end - start)

    with pytest.raises(StoreUnavailable, match="gone"):
        read_in_parts(read, tmp_path / "file", 640, 4)


@pytest.mark.parametrize("bucket", ["s3_bucket", "gs_bucket", "az_container"])
def test_a_large_object_damaged_cut_or_lost_in_the_store_never_arrives(request, tmp_path, publish, monkeypatch, bucket):
    scheme = {"s3_bucket": "s3", "gs_bucket": "gs", "az_container": "az"}[bucket]
    url = f"{scheme}://{request.getfixturevalue(bucket)}/{uuid4().hex}"
    monkeypatch.setattr("artifacts.remote.PART_BYTES", 100_000)
    monkeypatch.setattr(ranges, "PART_BYTES", 100_000)
    content = os.urandom(650_000)
    store = Store.open(url, cache=tmp_path / "writer")
    record = publish(store, "x", {"raw/w.bin": content}).record
    at = object_path(record.files[0].sha256)
    Store.open(url, cache=tmp_path / "reader").fetch(record.files, tmp_path / "in")
    assert (tmp_path / "in" / "raw" / "w.bin").read_bytes() == content
    for host, wrong in (("flipped", content[:-1] + b"\0"), ("cut", content[:300_000]), ("empty", b"")):
        store._backend.write(at, wrong)
        with pytest.raises(DamagedArtifact, match="is damaged"):
            Store.open(url, cache=tmp_path / host).fetch(record.files, tmp_path / f"in-{host}")
        assert not [path for path in (tmp_path / host).rglob("*") if path.is_file()]
    store._backend.delete(at)
    with pytest.raises(DamagedArtifact, match="not there"):
        Store.open(url, cache=tmp_path / "lost").fetch(record.files, tmp_path / "in-lost")


class TestMeter:
    @pytest.fixture
    def clock(self, monkeypatch):
        now = [100.0]
        monkeypatch.setattr(meter_module.time, "monotonic", lambda: now[0])
        return now

    def test_a_short_transfer_says_nothing(self, clock):
        said: list[Moved] = []
        meter = Meter("fetching inputs", said.append)
        meter.expect(10**9)
        for _ in range(9):
            clock[0] += 0.1
            meter.add(10**8)
        assert said == []

    def test_a_long_one_says_bytes_and_rate_twice_a_second(self, clock):
        said: list[Moved] = []
        meter = Meter("fetching inputs", said.append)
        meter.expect(800_000_000)
        for _ in range(40):
            clock[0] += 0.1
            meter.add(10_000_000)
        assert 4 <= len(said) <= 8
        assert all(str(moved).endswith(" of 800 MB, 100 MB/s") for moved in said)
        assert str(Moved("fetching inputs", 312_000_000, 800_000_000, 95e6)) == "fetching inputs 312 of 800 MB, 95 MB/s"
        assert str(Moved("copying", 1_250_000, 2_000_000_000, 2e6)) == "copying 0.0 of 2.0 GB, 2.0 MB/s"

    def test_the_rate_is_that_of_late_and_the_total_never_less_than_what_came(self, clock):
        said: list[Moved] = []
        meter = Meter("copying", said.append)
        for step in range(60):
            clock[0] += 1.0
            meter.add(2_000_000 if step < 30 else 500_000)
        assert said[-1].rate == pytest.approx(500_000)
        assert said[-1].total == said[-1].done == 75_000_000

    def test_every_byte_of_a_slow_transfer_is_counted_once(self, s3_bucket, tmp_path, publish, monkeypatch):
        monkeypatch.setattr(meter_module, "_QUIET_S", -1.0)
        monkeypatch.setattr(meter_module, "_EVERY_S", -1.0)
        monkeypatch.setattr("artifacts.remote.PART_BYTES", 10_000)
        monkeypatch.setattr(ranges, "PART_BYTES", 10_000)
        url, said = f"s3://{s3_bucket}/{uuid4().hex}", []
        files = {f"raw/{n}.bin": os.urandom(35_000) for n in range(3)}
        record = publish(Store.open(url, cache=tmp_path / "a"), "x", files, tell=said.append).record
        assert (said[-1].doing, said[-1].done, said[-1].total) == ("storing results", 105_000, 105_000)
        reader = Store.open(url, cache=tmp_path / "b")
        said.clear()
        reader.fetch(record.files, tmp_path / "in", tell=said.append)
        assert (said[-1].doing, said[-1].done, said[-1].total) == ("fetching inputs", 105_000, 105_000)
        assert [moved.done for moved in said] == sorted(moved.done for moved in said)
        said.clear()
        reader.fetch(record.files, tmp_path / "again", tell=said.append)
        assert said == []


def _fetch_in_turns(url: str, cache: str, folder: str, files, barrier) -> None:
    os.environ["FAIRWAY_CACHE_BYTES"] = "120000"  # two of six objects
    store = Store.open(url, cache=Path(cache))
    for turn in range(TURNS):
        barrier.wait(60)
        order = random.Random(f"{turn} {folder}").sample(files, len(files))
        for index, each in enumerate(order):
            store.fetch(each, Path(folder) / f"{turn}-{index}", verify="full" if turn % 5 == 4 else "stamp")
        for index, each in enumerate(order):  # all of them were used within a day
            data = (Path(folder) / f"{turn}-{index}" / each[0].path).read_bytes()
            assert hashlib.sha256(data).hexdigest() == each[0].sha256
        barrier.wait(60)


TURNS = 12


@pytest.mark.slow
def test_processes_that_share_a_small_cache_each_read_the_right_bytes(s3_bucket, tmp_path, publish):
    """Both fetch, make room and read at once, again and again, when all that is there was last used long ago."""
    url = f"s3://{s3_bucket}/{uuid4().hex}"
    store = Store.open(url, cache=tmp_path / "writer")
    files = [publish(store, text, {"raw/w.bin": text.encode() * 50_000}).record.files for text in "abcdef"]
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    arguments = [(url, str(tmp_path / "shared"), str(tmp_path / f"in{n}"), files, barrier) for n in range(2)]
    processes = [context.Process(target=_fetch_in_turns, args=each) for each in arguments]
    for process in processes:
        process.start()
    for _ in range(TURNS):
        for path in (tmp_path / "shared").rglob("*"):
            if "stamps" in path.parts and path.is_file():
                os.utime(path, (1.0, 1.0))
        barrier.wait(60)
        barrier.wait(60)
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]


def test_a_copy_that_goes_between_look_and_link_is_fetched_again(tmp_path, publish, monkeypatch):
    url = f"memory://{uuid4().hex}"
    files = publish(Store.open(url, cache=tmp_path / "writer"), "a").record.files
    store = Store.open(url, cache=tmp_path / "reader")
    link, lost = store._objects._link, []

    def lose_once(file, target):
        if not lost:
            lost.append(file)
            store._objects.held(file.sha256).unlink()
        link(file, target)

    monkeypatch.setattr(store._objects, "_link", lose_once)
    store.fetch(files, tmp_path / "in")
    assert lost
    assert (tmp_path / "in" / files[0].path).read_bytes() == b"a" * 100


def test_copies_that_something_keeps_removing_are_told_of(tmp_path, publish, monkeypatch):
    url = f"memory://{uuid4().hex}"
    files = publish(Store.open(url, cache=tmp_path / "writer"), "a").record.files
    store = Store.open(url, cache=tmp_path / "reader")
    monkeypatch.setattr(store._objects, "trim", lambda limit: store._objects.held(files[0].sha256).unlink())
    with pytest.raises(StoreUnavailable, match="FAIRWAY_CACHE_BYTES"):
        store.fetch(files, tmp_path / "in")


@pytest.mark.parametrize("verify", ["stamp", "full"])
def test_a_cached_copy_that_rotted_is_fetched_again(tmp_path, publish, verify):
    url = f"memory://{uuid4().hex}"
    files = publish(Store.open(url, cache=tmp_path / "writer"), "a").record.files
    store = Store.open(url, cache=tmp_path / "reader")
    store.fetch(files, tmp_path / "in")
    held = store._objects.held(files[0].sha256)
    before = held.stat()
    held.chmod(0o644)
    held.write_bytes(b"b" * 100)
    os.utime(held, ns=(before.st_atime_ns, before.st_mtime_ns))
    held.chmod(0o444)
    store.fetch(files, tmp_path / "in", verify=verify)
    assert (tmp_path / "in" / files[0].path).read_bytes() == b"a" * 100


def test_inputs_that_the_cache_has_no_room_for_are_fetched_past_it(small_disk, tmp_path, publish, caplog):
    url = f"memory://{uuid4().hex}"
    content = {"raw/large.bin": os.urandom(3_000_000), "raw/small.bin": b"small" * 100}
    files = publish(Store.open(url, cache=tmp_path / "writer"), "a", content).record.files
    store = Store.open(url, cache=small_disk / "cache")
    store.fetch(files, tmp_path / "in")
    assert {path: (tmp_path / "in" / path).read_bytes() for path in content} == content
    assert "no room" in caplog.text
    assert not list((small_disk / "cache" / "tmp").iterdir())
    LocalBackend(small_disk / "cache").write("still", b"usable")


def test_what_is_fetched_past_a_full_cache_is_verified_too(small_disk, tmp_path, publish):
    url = f"memory://{uuid4().hex}"
    store = Store.open(url, cache=tmp_path / "writer")
    files = publish(store, "a", {"raw/large.bin": os.urandom(3_000_000)}).record.files
    store._backend.write(object_path(files[0].sha256), os.urandom(3_000_000))
    with pytest.raises(DamagedArtifact):
        Store.open(url, cache=small_disk / "cache").fetch(files, tmp_path / "in")
    assert not (tmp_path / "in" / "raw" / "large.bin").exists()
