"""Races and rare cases of transfer, attempts, gc and verify; on a folder, since the place makes no difference."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import time
from pathlib import Path

import pytest

from artifacts import attempts as attempts_module
from artifacts import objects as objects_module
from artifacts.backend import Entry
from artifacts.documents import dump_document
from artifacts.errors import BadArchive, BadName, DamagedArtifact, NotFound
from artifacts.objects import object_path
from artifacts.record import record_to_json
from artifacts.records import record_path
from artifacts.store import Store


def key_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# Files that travel


@pytest.fixture
def exported(local_place, publish, tmp_path):
    """(record, members of its exported file)"""
    record = publish(local_place.open(), "a", {"raw/w.bin": b"weights" * 300, "raw/v.bin": b""}).record
    local_place.open().export(record.key, tmp_path / "deep" / "whole.tar")
    with tarfile.open(tmp_path / "deep" / "whole.tar") as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    return record, members


def pack(path: Path, members: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.type = len(data), kind
            tar.addfile(member, io.BytesIO(data))
    return path


def test_no_altered_export_is_imported(exported, tmp_path):
    record, members = exported
    name_of_record, name_of_object = record_path("train", record.key), object_path(record.files[1].sha256)
    head = dump_document({"format": 1, "records": [name_of_record]})[0]
    altered = {
        "another object": {**members, name_of_object: b"weightS" * 300},
        "no object": {n: d for n, d in members.items() if n != name_of_object},
        "no record": {n: d for n, d in members.items() if n != name_of_record},
        "no head": {n: d for n, d in members.items() if n != "fairway-artifact.json"},
        "flipped record": {**members, name_of_record: members[name_of_record].replace(b"1.25", b"0.25")},
        "flipped head": {**members, "fairway-artifact.json": members["fairway-artifact.json"][:-1] + b" "},
        "a way out": {**members, "../../escaped": b"x"},
        "an absolute path": {**members, "/tmp/escaped": b"x"},
        "another file": {**members, "objects/aa/" + "b" * 64: b"x"},
        "a head without records": {**members, "fairway-artifact.json": dump_document({"format": 1})[0]},
        "a record that escapes": {
            "fairway-artifact.json": head,
            name_of_record: dump_document(
                {**record_to_json(record), "files": [{"path": "../x", "sha256": "a" * 64, "bytes": 1}]}
            )[0],
        },
    }
    for what, content in altered.items():
        store = Store.open(tmp_path / "stores" / what.replace(" ", "-"))
        with pytest.raises(BadArchive):
            store.import_(pack(tmp_path / "altered.tar", content))
        assert list(store.records()) == [], what
        assert store.verify() == [], what
    assert not (tmp_path / "escaped").exists()


def test_no_cut_or_foreign_file_is_imported(exported, tmp_path):
    whole = (tmp_path / "deep" / "whole.tar").read_bytes()
    store = Store.open(tmp_path / "other")
    for size_bytes in (0, 100, 512, 1500, 3000, len(whole) // 2):
        (tmp_path / "cut.tar").write_bytes(whole[:size_bytes])
        with pytest.raises(BadArchive):
            store.import_(tmp_path / "cut.tar")
    for path in (Path(__file__), tmp_path / "nowhere.tar", pack(tmp_path / "link.tar", {"x": b""}, tarfile.SYMTYPE)):
        with pytest.raises(BadArchive):
            store.import_(path)
    assert list(store.records()) == []


def test_an_export_of_a_damaged_artifact_leaves_no_file(local_place, exported, tmp_path):
    record, _ = exported
    local_place.flip(object_path(record.files[1].sha256))
    with pytest.raises(DamagedArtifact):
        local_place.open().export(record.key, tmp_path / "new" / "whole.tar")
    assert not (tmp_path / "new").exists()


def test_an_import_that_meets_another_result_reports_the_conflict(exported, publish, tmp_path):
    record, _ = exported
    other = Store.open(tmp_path / "other")
    first = publish(other, "a", {"raw/w.bin": b"another result"}).record
    (published,) = other.import_(tmp_path / "deep" / "whole.tar").published
    assert published.outcome == "conflict"
    assert published.record == first
    assert published.ours.id == record.id
    assert other.verify() == []


def test_an_interrupted_push_goes_on_where_it_stopped(local_place, publish, tmp_path):
    store, other = local_place.open(), Store.open(tmp_path / "other")
    record = publish(store, "a", {f"raw/{n}.bin": b"%d" % n * 100 for n in range(6)}).record

    class Stop(Exception):
        pass

    def stop(file):
        if len(list((tmp_path / "other" / "objects").rglob("??/*"))) >= 3:
            raise Stop

    with pytest.raises(Stop):
        store.push(other, [record.key], on_object=stop)
    assert list(other.records()) == []
    copied = len(list((tmp_path / "other" / "objects").rglob("??/*")))
    assert copied >= 3
    assert store.push(other, [record.key], closure=False).objects == 6 - copied
    assert other.get("train", record.key) == record


def test_a_push_of_a_damaged_artifact_makes_no_record(local_place, publish, tmp_path):
    record = publish(local_place.open(), "a").record
    local_place.flip(object_path(record.files[0].sha256))
    other = Store.open(tmp_path / "other")
    with pytest.raises(DamagedArtifact):
        local_place.open().push(other, [record.key])
    assert list(other.records()) == []


def test_a_file_that_changes_while_it_is_copied_is_not_stored_under_its_old_name(local_place, tmp_path):
    store = local_place.open()
    with pytest.raises(DamagedArtifact, match=r"w\.bin"):
        store._objects.put_stream(io.BytesIO(b"new"), hashlib.sha256(b"old").hexdigest(), "w.bin")
    assert [path for path in local_place.paths() if path.startswith(("objects", "tmp"))] == []


def test_a_copy_is_hashed_while_it_is_made(local_place, publish, tmp_path, monkeypatch):
    record = publish(local_place.open(), "a", {"raw/w.bin": b"weights"}).record
    store = local_place.open()
    monkeypatch.setattr(store._objects, "verify", lambda files, verify, meter: None)
    local_place.flip(object_path(record.files[0].sha256))
    with pytest.raises(DamagedArtifact):
        store.fetch(record.files, tmp_path / "in", link=False)
    assert not (tmp_path / "in" / "raw" / "w.bin").exists()


def test_files_of_one_path_cannot_be_laid_out_together(local_place, publish, tmp_path):
    record = publish(local_place.open(), "a").record
    with pytest.raises(BadName, match="came twice"):
        local_place.open().fetch([*record.files, *record.files], tmp_path / "in")


# Writers who meet


def test_a_writer_whose_answer_got_lost_still_owns_its_record(local_place, publish, monkeypatch):
    store = local_place.open()
    create = store._backend.create

    def created_but_says_no(path, data):
        return create(path, data) and not path.startswith("records/")

    monkeypatch.setattr(store._backend, "create", created_but_says_no)
    assert publish(store, "a").outcome == "created"


def test_a_record_that_is_set_aside_while_another_is_published_leaves_its_place(local_place, publish, monkeypatch):
    first = publish(local_place.open(), "a", {"raw/w.bin": b"one"})
    store = local_place.open()
    create = store._backend.create

    def create_late(path, data):
        made = create(path, data)
        if path.startswith("records/"):
            store._records.remove(first.record)
        return made

    monkeypatch.setattr(store._backend, "create", create_late)
    second = publish(store, "a", {"raw/w.bin": b"two"})
    assert second.outcome == "created"


def test_removing_a_record_leaves_the_one_that_took_its_place(local_place, publish):
    store = local_place.open()
    first = publish(store, "a", {"raw/w.bin": b"one"}).record
    store._records.remove(first)
    second = publish(store, "a", {"raw/w.bin": b"two"}).record
    store._records.remove(first)
    assert store.get("train", key_of("a")) == second
    local_place.flip(record_path("train", second.key), 100)
    store._records.remove(second)
    store._records.remove(second)
    assert store.get("train", key_of("a")) is None


# Rejections


def test_a_second_rejection_finishes_what_a_crash_left(local_place, publish, monkeypatch):
    store = local_place.open()
    train = publish(store, "train")
    average = publish(store, "average", stage="average", made_from={"raw": train})
    quantize = publish(store, "quantize", stage="quantize", made_from={"weights": average})
    store.assign_name("r", "s", 1, "train", "", train.record.key)
    set_aside, done = store._rejections.set_aside, []

    def stop_after_one(record, because, who=""):
        if done:
            raise KeyboardInterrupt
        done.append(record)
        set_aside(record, because, who)

    monkeypatch.setattr(store._rejections, "set_aside", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        store.reject("r/s/1/train", "bad")
    store = local_place.open()
    assert store.get("average", average.record.key) is not None
    for left in (average, quantize):
        assert "bad" in store.rejection(left.record)
    store.reject("r/s/1/train", "bad")
    assert list(store.records()) == []
    assert store.verify() == []


def test_one_producer_may_be_read_under_many_roles(local_place, publish):
    store = local_place.open()
    train = publish(store, "train")
    both = publish(store, "average", stage="average", made_from={"raw": train, "ema": train})
    other = publish(store, "other")
    store.reject(other.record.key, "bad")
    assert store.rejection(both.record) is None
    assert len(store.reject(train.record.key, "worse")) == 2


def test_a_rejection_says_why(local_place, publish):
    store = local_place.open()
    publish(store, "a")
    with pytest.raises(BadName, match="says why"):
        store.reject(key_of("a"), " ")
    assert store.get("train", key_of("a")) is not None


def test_a_rejected_artifact_is_still_found_by_its_key(local_place, publish):
    store = local_place.open()
    for turn in ("one", "two"):
        last = publish(store, "a", {"raw/w.bin": turn.encode()}).record
        store.reject(last.key, turn)
    assert store.resolve(key_of("a")[:8]) == store.resolve(f"train/{key_of('a')}") == last
    assert store.rejection(store.resolve(key_of("a"))) == "two"
    with pytest.raises(NotFound):
        store.resolve(f"average/{key_of('a')}")
    again = publish(store, "a", {"raw/w.bin": b"three"}).record
    assert store.resolve(key_of("a")) == again


# Checkpoints


def test_a_folder_that_keeps_changing_is_not_mirrored_half(local_place, tmp_path, monkeypatch):
    store, folder = local_place.open(), tmp_path / "state"
    folder.mkdir()
    (folder / "a.bin").write_bytes(b"1")
    (folder / "b.bin").write_bytes(b"1")
    assert store.mirror_attempt(key_of("a"), folder)
    mirror_file, turn = store._attempts._mirror_file, iter(range(2, 100))

    def while_training(key, folder, path, state):
        (folder / "a.bin").write_bytes(b"%d" % next(turn) * 9)
        return mirror_file(key, folder, path, state)

    monkeypatch.setattr(store._attempts, "_mirror_file", while_training)
    (folder / "b.bin").write_bytes(b"22")
    assert store.mirror_attempt(key_of("a"), folder) is False
    assert local_place.open().restore_attempt(key_of("a"), tmp_path / "back")
    assert [(tmp_path / "back" / name).read_bytes() for name in ("a.bin", "b.bin")] == [b"1", b"1"]


def test_a_checkpoint_that_vanishes_while_it_is_copied_is_looked_for_again(local_place, tmp_path, monkeypatch):
    store, folder = local_place.open(), tmp_path / "state"
    folder.mkdir()
    (folder / "1.bin").write_bytes(b"1")
    mirror_file, turns = store._attempts._mirror_file, []

    def while_training(key, folder, path, state):
        if not turns:
            (folder / "1.bin").rename(folder / "2.bin")
        turns.append(path)
        return mirror_file(key, folder, path, state)

    monkeypatch.setattr(store._attempts, "_mirror_file", while_training)
    assert store.mirror_attempt(key_of("a"), folder)
    assert local_place.open().restore_attempt(key_of("a"), tmp_path / "back")
    assert turns == ["1.bin", "2.bin"]
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["2.bin"]


def test_only_changed_checkpoints_are_copied(local_place, tmp_path):
    store, folder = local_place.open(), tmp_path / "state"
    folder.mkdir()
    (folder / "1.bin").write_bytes(b"1")
    store.mirror_attempt(key_of("a"), folder)
    content = next(Path(local_place.url, "attempts").rglob("6b86*"))
    before = content.stat().st_mtime_ns
    (folder / "2.bin").write_bytes(b"2")
    store.mirror_attempt(key_of("a"), folder)
    assert content.stat().st_mtime_ns == before
    assert len(local_place.paths(f"attempts/{key_of('a')}")) == 3


def test_a_restore_that_meets_a_mirror_takes_the_newer_state(local_place, tmp_path, monkeypatch):
    store, folder = local_place.open(), tmp_path / "state"
    folder.mkdir()
    (folder / "1.bin").write_bytes(b"1")
    store.mirror_attempt(key_of("a"), folder)
    reader = local_place.open()
    manifest, turns = reader._attempts._manifest, []

    def then_mirror(key):
        found = manifest(key)
        if not turns:
            (folder / "1.bin").write_bytes(b"newer")
            store.mirror_attempt(key, folder)
        turns.append(found)
        return found

    monkeypatch.setattr(reader._attempts, "_manifest", then_mirror)
    assert reader.restore_attempt(key_of("a"), tmp_path / "back")
    assert (tmp_path / "back" / "1.bin").read_bytes() == b"newer"
    assert len(turns) == 2


def test_an_attempt_whose_contents_are_gone_is_none(local_place, tmp_path):
    store, folder = local_place.open(), tmp_path / "state"
    folder.mkdir()
    (folder / "1.bin").write_bytes(b"1")
    store.mirror_attempt(key_of("a"), folder)
    next(Path(local_place.url, "attempts").rglob("6b86*")).unlink()
    assert local_place.open().restore_attempt(key_of("a"), tmp_path / "back") is False
    assert not (tmp_path / "back").exists()


def test_a_file_that_vanishes_from_a_snapshot_is_left_out(tmp_path, monkeypatch):
    (tmp_path / "1.bin").write_bytes(b"1")

    def gone(path):
        raise FileNotFoundError

    monkeypatch.setattr(attempts_module, "signature", gone)
    assert attempts_module._snapshot(tmp_path) == {}


# Verify and gc beside other work


def test_one_damaged_document_does_not_hide_the_others(local_place, publish, caplog):
    store = local_place.open()
    one, two, three = publish(store, "one"), publish(store, "two"), publish(store, "three", made_from={})
    for made in (one, two):
        store.assign_name("r", "s", 1, "train", "", made.record.key)
        store.pin(made.record.key)
        store.write_run({"id": made.record.key})
    store.accept("train", {"m": "1"}, {"m": "2"}, "same")
    store.reject(three.record.key, "bad")
    for path in local_place.paths():
        if two.record.key in path or path.startswith(("accepted", "rejected")) or path.endswith("train/2.json"):
            local_place.flip(path, 90)
    store = local_place.open()
    assert [run["id"] for run in store.list_runs()] == [pin["key"] for pin in store.pins()] == [one.record.key]
    assert store.latest("r", "s", 1, "train") == one.record
    assert store.acceptances() == store.rejected() == []
    assert store.assign_name("r", "s", 1, "train", "", one.record.key) == "r/s/1/train@1"
    assert caplog.text.count("left out") >= 5
    # What says that something is bad is believed even when it is damaged itself.
    assert "damaged" in store.rejection(three.record)
    assert len(store.verify()) == 6
    local_place.flip(record_path("train", two.record.key), 90)
    local_place.flip("names/r/s/1/train/2.json", 90)
    local_place.flip(record_path("train", two.record.key), 91)
    assert store.latest("r", "s", 1, "train") == one.record
    assert [record.key for record in store.reject(one.record.key, "bad too")] == [one.record.key]


def test_stray_files_disturb_nothing(local_place, publish):
    store = local_place.open()
    record = publish(store, "a").record
    store.assign_name("r", "s", 1, "train", "", record.key)
    with store.lease(record.key):
        for folder in (
            "records/train",
            "records",
            "names/r/s/1/train",
            "names",
            "rejected",
            "leases",
            "attempts",
            "pins",
        ):
            Path(local_place.url, folder).mkdir(exist_ok=True)
            Path(local_place.url, folder, ".DS_Store").write_bytes(b"stray")
            Path(local_place.url, folder, f"{record.key}.json~").write_bytes(b"stray")
        store.gc(grace_s=-1, delete=True, keep_last=1)
    assert list(store.records()) == [("train", record.key)]
    assert list(store.names()) == ["r/s/1/train@1"]
    assert store.resolve(record.key[:8]) == store.resolve("r/s/1/train") == record
    assert store.rejected() == []
    assert store.du()["stages"]["train"]["records"] >= 1


def test_a_rejection_that_a_crash_left_half_is_finished_by_the_next_publish(local_place, publish, monkeypatch):
    store = local_place.open()
    train = publish(store, "train")
    monkeypatch.setattr(store._records, "remove", lambda record: None)
    store.reject(train.record.key, "bad")
    store = local_place.open()
    assert store.get("train", train.record.key) is not None
    again = publish(store, "train")
    assert again.outcome == "created"
    assert store.rejection(again.record) is None


def test_gc_removes_the_halves_of_killed_downloads_from_this_host(publish, tmp_path):
    store = Store.open("memory://halves", cache=tmp_path / "cache")
    store.write_run({"id": "1", "key": publish(store, "a").record.key})
    half = tmp_path / "cache" / "tmp" / "1-half"
    half.write_bytes(b"half")
    assert store.gc(delete=True).removed == ()
    assert [entry.path for entry in store.gc(grace_s=-1).removed] == [str(half)]
    assert half.exists()
    assert store.gc(grace_s=-1, delete=True).bytes == 4
    assert not half.exists()


def test_records_and_files_that_go_during_a_check_are_no_findings(local_place, publish, tmp_path, monkeypatch):
    store = local_place.open()
    record = publish(store, "a").record
    store.write_run({"id": "1"})
    monkeypatch.setattr(store._records, "index", lambda: [("train", record.key), ("train", key_of("gone"))])
    walk = store._backend.walk

    def with_ghosts(folder, prefix=""):
        from artifacts.backend import Entry

        yield from walk(folder, prefix)
        if folder in ("runs", "objects"):
            yield Entry(f"{folder}/zz/ghost{'.json' if folder == 'runs' else ''}", 1, 0.0)

    monkeypatch.setattr(store._backend, "walk", with_ghosts)
    assert store.verify() == []


def test_remote_files_that_go_during_a_check_are_no_findings(publish, tmp_path):
    store = Store.open("memory://ghosts", cache=tmp_path / "cache")
    publish(store, "a")
    assert store._checker._hash("objects/aa/ghost") is None
    assert list((tmp_path / "cache" / "tmp").iterdir()) == []


def test_a_flipped_byte_of_a_checkpoint_or_a_loose_object_is_found(local_place, tmp_path):
    store = local_place.open()
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "1.bin").write_bytes(b"1")
    store.mirror_attempt(key_of("a"), tmp_path / "state")
    store.put_file(tmp_path / "state" / "1.bin")
    for path in local_place.paths():
        if path.startswith(("objects", "attempts")) and not path.endswith(".json"):
            local_place.flip(path)
    assert [finding.kind for finding in store.verify()] == ["wrong digest", "wrong digest"]
    assert store.verify(full=False) == []


def test_gc_survives_a_damaged_run_and_keeps_what_it_mentions(local_place, publish):
    store = local_place.open()
    record = publish(store, "a").record
    store.write_run({"id": "1", "key": record.key})
    local_place.flip("runs/1.json", 80)
    assert store.gc(grace_s=-1, delete=True).removed == ()
    assert store.get("train", record.key) == record


def test_gc_leaves_what_was_written_again_since_it_looked(local_place, publish, monkeypatch):
    store = local_place.open()
    record = publish(store, "a").record
    delete = store._backend.delete

    def then_publish(path):
        if path.startswith("records/"):
            publish(local_place.open(), "b", {"raw/weights.bin": b"a" * 100})
        return delete(path)

    monkeypatch.setattr(store._backend, "delete", then_publish)
    store.gc(grace_s=-1, delete=True)
    assert store.get("train", record.key) is None
    assert store.get("train", key_of("b")) is not None
    assert store.verify() == []


def test_gc_ignores_what_goes_while_it_looks(local_place, publish, monkeypatch):
    from artifacts.collect import _mentions

    ghost = Entry("runs/ghost.json", 1, 0.0)
    assert _mentions(local_place.open()._backend, [ghost]) == set()


def test_gc_sweeps_what_crashes_left_and_stamps_of_what_is_gone(local_place, publish, tmp_path):
    store = Store.open(local_place.url)
    record = publish(store, "a").record
    store.fetch(record.files, tmp_path / "in")
    assert len(list(Path(local_place.url, "cache").rglob(record.files[0].sha256))) == 1
    leftover = Path(local_place.url, "tmp", "123-abc")
    leftover.write_bytes(b"half")
    assert store.gc(delete=True).removed == ()
    removed = {entry.path.split("/")[0] for entry in store.gc(grace_s=-1, delete=True).removed}
    assert removed == {"records", "objects", "tmp", "cache"}
    assert not list(Path(local_place.url).rglob(f"*{record.files[0].sha256}*"))


def test_gc_keeps_the_evidence_of_what_was_set_aside_but_not_its_bytes(local_place, publish):
    store = local_place.open()
    rejected, conflict = publish(store, "a"), publish(store, "b")
    publish(store, "b", {"raw/w.bin": b"another"})
    store.reject(rejected.record.key, "bad")
    local_place.flip(object_path(conflict.record.files[0].sha256))
    store.quarantine("train", conflict.record.key)
    store.gc(grace_s=-1, delete=True)
    folders = {path.split("/")[0] for path in local_place.paths()}
    assert folders == {"rejected", "conflicts", "quarantined", "store.json"}
    assert store.verify() == []


def test_verify_can_look_at_one_stage_or_artifact(local_place, publish):
    store = local_place.open()
    good, bad = publish(store, "a"), publish(store, "b", stage="average")
    local_place.flip(object_path(bad.record.files[0].sha256))
    assert store.verify(["train"]) == store.verify([good.record.key]) == []
    assert [finding.stage for finding in store.verify(["average", bad.record.key])] == ["average"]


# Stamps


def test_a_verified_object_is_not_hashed_again_until_it_changes(local_place, publish, tmp_path, monkeypatch):
    monkeypatch.setattr(objects_module, "_WORTH_A_STAMP_BYTES", 0)
    record = publish(local_place.open("a"), "a").record
    hashed, hash_file = [], objects_module.hash_file
    monkeypatch.setattr(objects_module, "hash_file", lambda path: (hashed.append(path), hash_file(path))[1])
    local_place.open("a").fetch(record.files, tmp_path / "in")
    assert hashed == []  # hashed while it was written, on this host
    for _ in range(2):
        local_place.open("b").fetch(record.files, tmp_path / "in")
        assert len(hashed) == 1  # once on another host
    local_place.open("b").fetch(record.files, tmp_path / "in", verify="full")
    assert len(hashed) == 2
    held = Path(local_place.url, object_path(record.files[0].sha256))
    held.chmod(0o644)
    local_place.open("b").fetch(record.files, tmp_path / "in")
    assert len(hashed) == 3
    local_place.open("b").fetch(record.files, tmp_path / "in")
    assert len(hashed) == 3


def test_a_flip_right_after_the_publish_is_found_in_spite_of_the_stamp(local_place, publish, tmp_path, monkeypatch):
    monkeypatch.setattr(objects_module, "_WORTH_A_STAMP_BYTES", 0)
    store = local_place.open("a")
    for turn in range(10):
        record = publish(store, f"{turn}").record
        held = Path(local_place.url, object_path(record.files[0].sha256))
        times = held.stat()
        local_place.flip(object_path(record.files[0].sha256))
        os.utime(held, ns=(times.st_atime_ns, times.st_mtime_ns))  # as careful tools do
        with pytest.raises(DamagedArtifact):
            store.fetch(record.files, tmp_path / "in")


def test_no_stamp_is_written_within_the_clock_tick_of_a_files_last_change(local_place, publish, monkeypatch):
    monkeypatch.setattr(objects_module, "_WORTH_A_STAMP_BYTES", 0)
    # Where file times move in ticks, a later write in the same tick would leave no trace.
    store = local_place.open()
    record = publish(store, "a").record
    assert time.time() - Path(local_place.url, object_path(record.files[0].sha256)).stat().st_ctime >= 0.012
    assert list(Path(local_place.folder, "hosts").rglob(record.files[0].sha256))


def test_an_object_that_changes_while_it_is_stamped_gets_no_stamp(local_place, publish, tmp_path):
    record = publish(local_place.open("a"), "a").record
    sha256 = record.files[0].sha256
    stamps = local_place.open("b")._stamps
    held = Path(local_place.url, object_path(sha256))
    stamps.write([(sha256, held, "1 2 3 4\n")])
    assert not stamps.holds(sha256, held)
    local_place.open("b").fetch(record.files, tmp_path / "in")
    assert stamps.holds(sha256, held)
    next(Path(local_place.folder, "hosts", "b").rglob(sha256)).write_bytes(b"\xff not a stamp")
    assert not stamps.holds(sha256, held)
    stamps.write([])
    stamps.write([(sha256, Path("/nowhere"), "1 2 3 4\n")])
