"""Documents that were read before are not read again, and are never taken for what lies in the store now."""

from __future__ import annotations

import json
import sqlite3
import zlib
from uuid import uuid4

import pytest

from artifacts import remembered
from artifacts.backend import Entry, open_backend
from artifacts.documents import dump_document
from artifacts.errors import StoreReadOnly
from artifacts.store import Store


@pytest.fixture
def shared(s3_bucket, tmp_path, publish):
    """(a store with four named records and a run, the same store as another host would open it)"""
    url = f"s3://{s3_bucket}/{uuid4().hex}"
    store = Store.open(url, cache=tmp_path / "writer")
    for text in "abcd":
        record = publish(store, text).record
        store.assign_name("r", "s", 1, "train", "", record.key)
    store.write_run({"id": "1", "stages": [record.key]})
    return store, lambda host: Store.open(url, cache=tmp_path / host)


def index_of(store) -> list[str]:
    return [entry.path for entry in store._backend.walk("index")]


def asked(store, monkeypatch) -> list[str]:
    """The paths that a store asks for from now on."""
    paths, read_many = [], store._backend.read_many

    def note(wanted):
        paths.extend(wanted)
        return read_many(wanted)

    monkeypatch.setattr(store._backend, "read_many", note)
    return paths


def test_a_second_look_reads_only_what_is_new_or_was_replaced(shared, publish, monkeypatch):
    store, host = shared
    first = host("reader").all_records()
    again = host("reader")
    paths = asked(again, monkeypatch)
    assert again.all_records() == first
    assert again.list_runs() == host("third").list_runs()
    assert paths == ["runs/1.json"]
    paths.clear()
    new = publish(store, "g").record
    store.write_run({"id": "1", "stages": ["another"]})
    assert len(again.all_records()) == 5
    assert again.list_runs()[0]["stages"] == ["another"]
    assert paths == [f"records/train/{new.key}.json", "runs/1.json"]


def test_a_record_that_took_anothers_place_is_read_anew(shared, publish):
    store, host = shared
    reader = host("reader")
    before = {record.key: record for record, _ in reader.all_records()}
    key = next(iter(before))
    store.reject(key, "bad")
    text = next(text for text in "abcd" if publish(store, text).record.key == key)
    after = {record.key: record for record, _ in host("reader").all_records()}
    assert text
    assert after[key] == store.get("train", key) != before[key]


def test_gc_keeps_what_a_run_mentions_now_whatever_it_mentioned_when_it_was_read(shared):
    store, host = shared
    keys = [key for _, key in store.records()]
    for version in range(1, 5):
        store._backend.delete(f"names/r/s/1/train/{version}.json")
    store.write_run({"id": "1", "stages": [keys[0]]})
    reader = host("reader")
    reader.gc(grace_s=-1)
    store.write_run({"id": "1", "stages": [keys[1]]})
    reader.gc(grace_s=-1, delete=True)
    assert [key for _, key in store.records()] == [keys[1]]
    assert store.verify() == []


def test_another_host_reads_the_index_instead_of_every_document(shared, monkeypatch):
    monkeypatch.setattr(remembered, "_WORTH_AN_INDEX", 3)
    _, host = shared
    first = host("a").all_records()
    other = host("b")
    paths = asked(other, monkeypatch)
    assert other.all_records() == first
    assert [path.split("/")[0] for path in paths] == ["index"] * 2  # names, then records
    paths.clear()
    assert other.all_records() == first  # and remembers it
    assert paths == []
    assert host("c").gc().removed == ()
    assert host("c").verify() == []


def test_an_index_that_is_not_right_is_not_used(shared, monkeypatch):
    monkeypatch.setattr(remembered, "_WORTH_AN_INDEX", 3)
    store, host = shared
    expected = host("a").all_records()
    rows = [row for path in index_of(store) for row in json.loads(zlib.decompress(store._backend.read(path)))]
    foreign = dump_document({"format": 1})[0].decode()
    lies = {
        "nothing": None,
        "another shape": {path: [tag, text] for path, tag, text in rows},
        "no text": [[path] for path, _, _ in rows],
        "no words": [[path, tag, "\ud800"] for path, tag, _ in rows],
        "another's tag": [[path, "0" * 32, foreign] for path, _, _ in rows],
        "another's text": [[path, tag, foreign] for path, tag, _ in rows],
        "a flipped text": [[path, tag, text.replace("1.25", "0.25")] for path, tag, text in rows],
    }
    assert len(rows) == 8
    for lie, content in lies.items():
        wrong = b"" if content is None else zlib.compress(json.dumps(content).encode())
        for path in index_of(store):
            store._backend.delete(path)
        store._backend.write("index/1", wrong)
        assert host(lie).all_records() == expected, lie


def test_who_may_only_read_reads_without_an_index(shared, monkeypatch):
    monkeypatch.setattr(remembered, "_WORTH_AN_INDEX", 3)
    store, host = shared
    reader = host("a")

    def refuse(path, data):
        raise StoreReadOnly("no")

    monkeypatch.setattr(reader._backend, "write", refuse)
    assert len(reader.all_records()) == 4
    assert index_of(store) == []


def test_a_damaged_memory_is_forgotten_and_a_damaged_text_in_it_is_read_again(shared, tmp_path, caplog):
    _, host = shared
    expected = host("a").all_records()
    path = tmp_path / "a" / "documents.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("UPDATE documents SET text = replace(text, '1.25', '0.25')")
    database.close()
    assert host("a").all_records() == expected
    path.write_bytes(b"no database at all, but long enough to look like a file of one " * 20)
    assert host("a").all_records() == expected
    assert "forgotten" in caplog.text
    assert host("a").all_records() == expected


def test_a_host_without_room_for_a_memory_reads_everything(shared, tmp_path, monkeypatch):
    _, host = shared
    expected = host("a").all_records()

    def full(*arguments, **options):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(remembered.sqlite3, "connect", full)
    assert host("a").all_records() == host("b").all_records() == expected


def test_a_text_that_was_replaced_between_listing_and_reading_is_not_kept(s3_bucket, tmp_path):
    backend = open_backend(f"s3://{s3_bucket}/{uuid4().hex}")
    backend.remember(tmp_path)
    one, two = (dump_document({"n": n})[0] for n in (1, 2))
    backend.write("runs/1.json", one)
    (listed,) = backend.walk("runs")
    backend.write("runs/1.json", two)
    assert backend.read_listed([listed]) == [two]
    backend.write("runs/1.json", one)
    assert backend.read_listed(list(backend.walk("runs"))) == [one]


@pytest.mark.parametrize("bucket", ["s3_bucket", "gs_bucket", "az_container"])
def test_every_object_store_tells_one_state_of_a_file_from_another(request, bucket):
    scheme = {"s3_bucket": "s3", "gs_bucket": "gs", "az_container": "az"}[bucket]
    backend = open_backend(f"{scheme}://{request.getfixturevalue(bucket)}/{uuid4().hex}")
    tags = []
    for text in (b"one", b"two"):
        backend.write("runs/1.json", text)
        tags.append(next(iter(backend.walk("runs"))).tag)
        assert next(iter(backend.walk("runs"))).tag == tags[-1]
    assert all(tags)
    assert tags[0] != tags[1]
    assert Entry("a", 1, 2.0).tag == ""
