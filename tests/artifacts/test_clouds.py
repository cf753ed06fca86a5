"""Google's and Azure's object stores, each through its own driver: what a store rests on there."""

from __future__ import annotations

import os
import threading
import time
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from creators import creators_at_once

from artifacts.backend import open_backend
from artifacts.errors import StoreUnavailable
from artifacts.store import Store


@pytest.fixture(params=["gs", "az"])
def cloud(request) -> str:
    """The address of an empty store."""
    bucket = request.getfixturevalue({"gs": "gs_bucket", "az": "az_container"}[request.param])
    return f"{request.param}://{bucket}/{uuid4().hex}"


def test_of_eight_creations_at_once_one_wins_and_its_bytes_stay(cloud):
    backend = open_backend(cloud)
    for turn in "012":
        won = creators_at_once(backend, turn)
        assert won == [backend.read(turn)]


def test_of_two_results_of_one_key_the_first_is_what_both_go_on_with(cloud, tmp_path, publish):
    hosts = [Store.open(cloud, cache=tmp_path / host) for host in "ab"]
    first = publish(hosts[0], "x", {"raw/w.bin": b"one"})
    second = publish(hosts[1], "x", {"raw/w.bin": b"two"})
    assert (first.outcome, second.outcome) == ("created", "conflict")
    assert second.record == first.record == hosts[1].get("train", first.record.key)


def test_a_file_of_several_parts_arrives_whole_on_another_host(cloud, tmp_path, publish):
    content = os.urandom(9_000_001)  # above 5 MiB gcsfs uploads in parts
    record = publish(Store.open(cloud, cache=tmp_path / "a"), "x", {"raw/w.bin": content}).record
    Store.open(cloud, cache=tmp_path / "b").fetch(record.files, tmp_path / "in")
    assert (tmp_path / "in" / "raw" / "w.bin").read_bytes() == content


def test_files_are_listed_by_folder_moved_and_removed(cloud):
    backend = open_backend(cloud)
    before_s = time.time()
    for path in ("a/1", "a/2", "ab/1", "b"):
        backend.write(path, path.encode())
    assert [entry.path for entry in backend.walk("")] == ["a/1", "a/2", "ab/1", "b"]
    assert [entry.path for entry in backend.walk("a")] == ["a/1", "a/2"]
    assert [(entry.path, entry.bytes) for entry in backend.walk("a", "2")] == [("a/2", 3)]
    assert list(backend.walk("none")) == []
    assert backend.entry("a") is backend.entry("none") is None
    entry = backend.entry("a/1")
    assert entry is not None
    assert abs(entry.modified_s - before_s) < 60
    backend.move("a/1", "c")
    assert backend.read_many(["c", "a/1"]) == [b"a/1", None]
    assert (backend.delete("c"), backend.delete("c")) == (True, False)


def test_a_missing_bucket_or_container_is_named_at_the_first_write(cloud, tmp_path):
    store = Store.open(f"{cloud.split(':')[0]}://no-such-place/x", cache=tmp_path)
    assert list(store.records()) == []
    with pytest.raises(StoreUnavailable, match="must exist"):
        store.write_run({"id": "1"})


def test_a_server_that_ignores_conditions_is_no_place_for_a_store(monkeypatch, tmp_path):
    pytest.importorskip("gcp_storage_emulator", reason="NO GOOGLE STORAGE TESTS: gcp-storage-emulator is missing")
    from objectstores import google

    with google("plain", conditions=False) as environment:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", environment["STORAGE_EMULATOR_HOST"])
        from fsspec import filesystem

        filesystem("gs").clear_instance_cache()  # the driver keeps one object per address
        with pytest.raises(StoreUnavailable, match="made one twice"):
            Store.open("gs://plain/x", cache=tmp_path).write_run({"id": "1"})
    filesystem("gs").clear_instance_cache()


@pytest.mark.slow
def test_a_server_that_is_away_for_some_seconds_costs_time_only(cloud, monkeypatch):
    from fsspec import filesystem
    from link import Link

    scheme = cloud.split(":")[0]
    variable = {"gs": "STORAGE_EMULATOR_HOST", "az": "AZURE_STORAGE_CONNECTION_STRING"}[scheme]
    address = next(part for part in os.environ[variable].replace("BlobEndpoint=", ";").split(";") if "://" in part)
    near = urlsplit(address)
    assert near.hostname
    assert near.port
    with Link(near.hostname, near.port) as link:
        monkeypatch.setenv(variable, os.environ[variable].replace(f":{near.port}", f":{link.port}"))
        filesystem(scheme).clear_instance_cache()
        backend = open_backend(cloud)
        backend.write("before", b"x")
        link.cut()
        threading.Timer(4.0, link.mend).start()
        assert backend.create("after", b"y")
        assert not backend.create("after", b"z")
        assert backend.read_many(["before", "after"]) == [b"x", b"y"]
    filesystem(scheme).clear_instance_cache()
