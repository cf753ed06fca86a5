"""What every store does, wherever it lies. Each test here runs on a folder, in memory and on an S3 server."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from artifacts.backend import open_backend
from artifacts.digest import digest_json
from artifacts.errors import AmbiguousKey, BadName, DamagedArtifact, LeaseTimeout, NotFound
from artifacts.objects import object_path
from artifacts.record import File
from artifacts.records import record_path


def key_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_opening_and_reading_an_empty_store_makes_nothing(place):
    store = place.open()
    assert store.get("train", key_of("a")) is None
    assert list(store.records()) == list(store.names()) == store.list_runs() == store.pins() == store.verify() == []
    assert place.paths() == []


def test_what_is_published_is_found_by_its_key(place, publish):
    files = {"raw/weights.bin": b"weights", "ema/weights.bin": b"averages", "ema/deep/er.bin": b""}
    published = publish(place.open(), "a", files, provenance={"host": "here"}, components={"seed": 1})
    record = place.open("b").get("train", key_of("a"))
    assert published.outcome == "created"
    assert record == published.record
    assert {f.path: f.bytes for f in record.files} == {path: len(data) for path, data in files.items()}
    assert record.report == {"bpb": 1.25}
    assert record.provenance["host"] == "here"
    assert record.components == {"seed": 1}


def test_an_output_without_files_is_complete_too(place, publish):
    assert publish(place.open(), "a", {}).record.files == ()
    assert place.open().get("train", key_of("a")) is not None


def test_fetched_files_are_the_published_bytes(place, publish, tmp_path):
    files = {"raw/weights.bin": bytes(range(256)) * 9000, "raw/sub/empty.bin": b""}
    record = publish(place.open(), "a", files).record
    store = place.open("b")
    for verify in ("stamp", "full", "stamp"):
        store.fetch(record.role("raw"), tmp_path / "in", verify=verify)
        assert (tmp_path / "in" / "weights.bin").read_bytes() == files["raw/weights.bin"]
        assert (tmp_path / "in" / "sub" / "empty.bin").read_bytes() == b""


def test_copied_files_are_ones_own_and_linked_ones_are_read_only(place, publish, tmp_path):
    record = publish(place.open(), "a", {"raw/w.bin": b"weights"}).record
    place.open().fetch(record.role("raw"), tmp_path / "linked")
    assert (tmp_path / "linked" / "w.bin").stat().st_mode & 0o222 == 0
    place.open().fetch(record.role("raw"), tmp_path / "copied", link=False)
    (tmp_path / "copied" / "w.bin").write_bytes(b"changed")
    assert place.open().verify() == []


def test_the_first_of_two_different_results_wins_and_the_other_is_kept(place, publish):
    first = publish(place.open("a"), "a", {"raw/w.bin": b"one"})
    second = publish(place.open("b"), "a", {"raw/w.bin": b"two"})
    assert (first.outcome, second.outcome) == ("created", "conflict")
    assert second.record == first.record == place.open().get("train", key_of("a"))
    assert place.paths("conflicts") == [f"conflicts/train/{key_of('a')}/{second.ours.id}.json"]
    assert place.open().verify() == []


def test_publishing_the_same_bytes_again_adopts_the_first_record(place, publish):
    first = publish(place.open("a"), "a")
    again = publish(place.open("b"), "a")
    assert again.outcome == "same"
    assert again.record == first.record
    assert place.paths("conflicts") == []


def test_sixteen_writers_of_one_key_leave_one_record(place, publish):
    store = place.open()
    barrier = threading.Barrier(16)
    results = []

    def write(index: int) -> None:
        barrier.wait()
        results.append(publish(store, "a", {"raw/w.bin": b"%d" % index}))

    threads = [threading.Thread(target=write, args=(index,)) for index in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [r.outcome for r in results].count("created") == 1
    assert len({r.record.id for r in results}) == 1
    assert len(place.paths("conflicts")) == 15
    assert len(place.paths("records")) == 1


@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_flipped_byte_of_an_object_is_found_at_its_next_use(place, publish, tmp_path, where):
    data = bytes(range(256)) * 20
    record = publish(place.open("writer"), "a", {"raw/w.bin": data}).record
    file = record.files[0]
    place.flip(object_path(file.sha256), {"first": 0, "middle": len(data) // 2, "last": -1}[where])
    reader = place.open("writer" if place.local else "reader")  # the writer's host has the good bytes in its cache
    with pytest.raises(DamagedArtifact, match=r"raw/w\.bin") as caught:
        reader.fetch(record.files, tmp_path / "in")
    assert file.sha256 in str(caught.value)
    assert "found sha256" in str(caught.value)
    assert caught.value.sha256 == file.sha256
    assert [(found.kind, found.key) for found in place.open().verify()] == [("wrong digest", key_of("a"))]
    assert [finding.key for finding in place.open().verify(["train"])] == [key_of("a")]


def test_any_flipped_byte_of_a_record_is_found(place, publish):
    publish(place.open(), "a")
    path = record_path("train", key_of("a"))
    whole = place.read(path)
    for position in range(0, len(whole), 5 if place.local else 67):
        place.flip(path, position, bit=1 << position % 8)
        with pytest.raises(DamagedArtifact):
            place.open().get("train", key_of("a"))
        place.overwrite(path, whole)
    place.flip(path, len(whole) // 2)
    assert [finding.kind for finding in place.open().verify()] == ["damaged document"]


def test_a_damaged_artifact_is_set_aside_and_its_stage_can_run_again(place, publish, tmp_path):
    record = publish(place.open(), "a", {"raw/w.bin": b"weights", "raw/v.bin": b"others"}).record
    bad = record.files[1]
    place.flip(object_path(bad.sha256))
    damages = place.open("b").quarantine("train", key_of("a"))
    assert [damage.path for damage in damages] == [bad.path]
    assert place.open().get("train", key_of("a")) is None
    assert f"quarantined/train/{key_of('a')}/{record.id}.json" in place.paths()
    assert f"quarantined/objects/{bad.sha256}" in place.paths()
    again = publish(place.open("c"), "a", {"raw/w.bin": b"weights", "raw/v.bin": b"others"})
    assert again.outcome == "created"
    place.open("d").fetch(again.record.files, tmp_path / "in", verify="full")
    assert place.open().verify() == []


def test_a_whole_artifact_is_not_set_aside(place, publish):
    publish(place.open(), "a")
    assert place.open().quarantine("train", key_of("a")) == []
    assert place.open().get("train", key_of("a")) is not None
    assert [damage.found for damage in place.open().quarantine("train", key_of("b"))] == [None]


def test_a_damaged_record_is_set_aside_and_published_over(place, publish):
    publish(place.open(), "a")
    place.flip(record_path("train", key_of("a")), 100)
    assert publish(place.open(), "a").outcome == "created"
    assert place.paths("quarantined") == [f"quarantined/train/{key_of('a')}/damaged.json"]
    assert place.open().verify() == []


def test_a_missing_object_is_reported_by_name(place, publish, tmp_path):
    record = publish(place.open(), "a", {"raw/w.bin": b"weights"}).record
    place.open()._backend.delete(object_path(record.files[0].sha256))
    with pytest.raises(DamagedArtifact, match=r"raw/w\.bin .*is not there"):
        place.open("b").fetch(record.files, tmp_path / "in")
    with pytest.raises(DamagedArtifact, match="is not there"):
        place.open("b").read_object(record.files[0].sha256)
    assert [finding.kind for finding in place.open("b").verify(full=False)] == ["missing object"]


def test_a_cut_object_is_found_without_reading_it(place, publish):
    record = publish(place.open(), "a", {"raw/w.bin": b"weights"}).record
    place.overwrite(object_path(record.files[0].sha256), b"weigh")
    assert [finding.kind for finding in place.open().verify(full=False)] == ["wrong size"]


def test_a_single_file_is_stored_and_read_back(place, tmp_path):
    (tmp_path / "source.tar").write_bytes(b"code")
    file = place.open().put_file(tmp_path / "source.tar")
    assert file == File("source.tar", hashlib.sha256(b"code").hexdigest(), 4)
    assert place.open("b").read_object(file.sha256) == b"code"
    place.flip(object_path(file.sha256))
    with pytest.raises(DamagedArtifact):
        place.open("b").read_object(file.sha256)


def test_runs_are_replaced_listed_and_removed(place):
    store = place.open()
    store.write_run({"id": "2", "state": "running"})
    store.write_run({"id": "1", "state": "running", "argv": ["--store", "https://me:secret@host/x"]})
    store.write_run({"id": "2", "state": "done"})
    assert [run["id"] for run in place.open().list_runs()] == ["1", "2"]
    assert store.read_run("2") == {"id": "2", "state": "done"}
    assert b"secret" not in place.read("runs/1.json")
    store.remove_run("2")
    for call in (store.read_run, store.remove_run):
        with pytest.raises(NotFound, match="no run '2'"):
            call("2")


def test_sets_are_documents_of_their_own(place):
    store = place.open()
    store.write_set({"id": "1", "state": "declared"})
    store.write_set({"id": "1", "state": "completed"})
    assert place.open().list_sets() == [{"id": "1", "state": "completed"}] == [store.read_set("1")]
    assert place.open().list_runs() == []
    assert "sets/1.json" in place.paths()
    with pytest.raises(NotFound, match="no set '2'"):
        store.read_set("2")


def test_gc_keeps_what_a_set_declared_even_if_only_the_last_runs_stay(place, publish):
    store = place.open()
    for text in ("a", "b", "c", "d"):
        publish(store, text)
        run = {"id": f"run-{text}", "recipe": "r", "scale": "full", "started": text, "key": key_of(text)}
        store.write_run(run)
    store.write_set({"id": "s", "attempts": [{"run": "run-a"}], "keys": [key_of("b")]})
    store.gc(grace_s=-1, delete=True, keep_last=1)
    assert [run["id"] for run in store.list_runs()] == ["run-a", "run-d"]
    assert {key for _, key in store.records()} == {key_of("a"), key_of("b"), key_of("d")}


def test_a_name_gets_a_new_number_only_for_a_new_record(place, publish):
    store = place.open()
    for text in ("a", "b", "c"):
        publish(store, text)
    names = [store.assign_name("pr714", "full", 42, "train", "", key_of(text)) for text in "aabbabc"]
    assert [name.split("@")[1] for name in names] == list("1122123")
    assert names[0] == "pr714/full/42/train@1"
    assert store.resolve("pr714/full/42/train@2").key == key_of("b")
    assert store.resolve("pr714/full/42/train").key == key_of("c")
    assert store.latest("pr714", "full", 42, "train").key == key_of("c")
    assert store.latest("pr714", "full", 43, "train") is None
    assert list(store.names()) == [f"pr714/full/42/train@{n}" for n in (1, 2, 3)]


def test_parts_have_names_of_their_own(place, publish):
    store = place.open()
    publish(store, "all", stage="evaluate")
    publish(store, "one", stage="evaluate", part="sliding")
    name = store.assign_name("quickstart", "full", 1337, "evaluate", "sliding", key_of("one"))
    assert name == "quickstart/full/1337/evaluate[sliding]@1"
    assert store.assign_name("quickstart", "full", 1337, "evaluate", "", key_of("all")).endswith("evaluate@1")
    assert store.resolve(name).part == "sliding"
    assert store.resolve("quickstart/full/1337/evaluate").part == ""
    assert sorted(store.names()) == ["quickstart/full/1337/evaluate@1", name]


def test_writers_of_one_name_never_share_a_number(place, publish):
    store = place.open()
    texts = [f"text {index}" for index in range(8)]
    for text in texts:
        publish(store, text)
    found = []
    threads = [
        threading.Thread(target=lambda t=t: found.append(store.assign_name("r", "s", 1, "train", "", key_of(t))))
        for t in texts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [f"r/s/1/train@{n}" for n in range(1, 9)]


def test_a_key_is_found_by_its_first_digits(place, publish):
    store = place.open()
    key = publish(store, "a").record.key
    assert store.resolve(key[:6]).key == store.resolve(f"train/{key[:9]}").key == store.resolve(key).key == key
    with pytest.raises(NotFound):
        store.resolve("evaluate/" + key)
    with pytest.raises(NotFound):
        store.resolve("0" * 6 if key[0] != "0" else "1" * 6)
    with pytest.raises(BadName, match="first 6 or more digits"):
        store.resolve(key[:5])


def test_an_ambiguous_beginning_lists_what_it_could_mean(place, publish):
    store = place.open()
    publish(store, "a", stage="train")
    publish(store, "a", stage="average")
    key = key_of("a")
    with pytest.raises(AmbiguousKey, match=rf"average/{key[:16]}, train/{key[:16]}"):
        store.resolve(key[:8])
    assert store.resolve(f"average/{key[:8]}").stage == "average"


def test_a_rejection_takes_all_that_came_from_it_and_frees_the_keys(place, publish):
    store = place.open()
    corpus = publish(store, "corpus", stage="corpus")
    train = publish(store, "train", made_from={"shards": corpus})
    average = publish(store, "average", stage="average", made_from={"raw": train})
    other = publish(store, "other", made_from={"shards": corpus})
    store.assign_name("r", "s", 1, "train", "", train.record.key)
    tainted = store.reject("r/s/1/train", "a broken GPU", who="me")
    assert [record.stage for record in tainted] == ["train", "average"]
    assert store.get("train", train.record.key) is store.get("average", average.record.key) is None
    assert store.get("corpus", corpus.record.key) is not None
    assert store.rejection(train.record) == "a broken GPU"
    assert "a broken GPU" in store.rejection(average.record)
    assert store.rejection(corpus.record) is store.rejection(other.record) is None
    assert {record.stage: reason for record, reason in place.open().rejected()}["train"] == "a broken GPU"
    # The name still says what it named, and the next result gets the next number.
    assert store.resolve("r/s/1/train@1") == train.record
    assert store.latest("r", "s", 1, "train") is None
    again = publish(store, "train", made_from={"shards": corpus})
    assert again.outcome == "created"
    assert store.rejection(again.record) is None
    assert store.assign_name("r", "s", 1, "train", "", again.record.key) == "r/s/1/train@2"
    assert store.verify() == []


def test_what_is_published_from_a_rejected_input_is_no_hit_for_later_runs(place, publish):
    store = place.open()
    train = publish(store, "train")
    assert store.rejection(train.record) is None
    place.open().reject(train.record.key, "a broken GPU")
    late = publish(store, "average", stage="average", made_from={"raw": train})
    assert late.outcome == "created"
    assert "a broken GPU" in place.open().rejection(late.record)
    assert store.get("average", late.record.key) is None
    assert store.assign_name("r", "s", 1, "average", "", late.record.key) == "r/s/1/average@1"
    assert store.latest("r", "s", 1, "average") is None
    sound = publish(store, "train")
    again = publish(place.open(), "average", stage="average", made_from={"raw": sound})
    assert again.outcome == "created"
    assert place.open().rejection(again.record) is None


def test_acceptances_link_states_of_the_code_in_chains_and_both_ways(place):
    store = place.open()
    a, b, c, d = ({"stages.train.stage": name} for name in "abcd")
    store.accept("train", a, b, "only renamed", who="me", evidence={"bytes": "equal"})
    store.accept("train", c, b, "only moved")
    again = store.accept("train", a, b, "said twice")
    assert again.reason == "only renamed"
    assert [accepted.reason for accepted in place.open().acceptances("train")].count("only renamed") == 1
    assert len(store.acceptances()) == 2
    assert sorted(state["stages.train.stage"] for state in store.equivalents("train", a)) == ["b", "c"]
    assert store.equivalents("train", d) == store.equivalents("average", a) == []
    with pytest.raises(BadName, match="says why"):
        store.accept("train", a, d, " ")


def test_a_lease_keeps_others_out_until_it_is_released(place):
    key = key_of("a")
    told = []
    with place.open().lease(key, time_limit_s=30):
        with pytest.raises(LeaseTimeout, match="process"), place.open().lease(key, timeout_s=0.2, on_wait=told.append):
            pass
        with place.open().lease(key_of("b"), timeout_s=60):
            pass
    assert len(told) == 1
    with place.open().lease(key, timeout_s=60) as lease:
        assert lease.key == key
        assert not lease.lost


def test_checkpoints_travel_to_another_host(place, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "sub").mkdir(parents=True)
    store, key = place.open(), key_of("a")
    assert store.restore_attempt(key, there) is False
    for step, data in enumerate((b"old", b"new" * 1000)):
        (here / "last.bin").write_bytes(data)
        (here / "sub" / f"{step}.bin").write_bytes(b"step %d" % step)
        assert store.mirror_attempt(key, here) is True
    (here / "sub" / "0.bin").unlink()
    (here / "half.tmp").write_bytes(b"unfinished")
    assert store.mirror_attempt(key, here) is True
    there.mkdir()
    (there / "stale.bin").write_bytes(b"from another attempt")
    assert place.open("b").restore_attempt(key, there) is True
    assert {p.relative_to(there).as_posix(): p.read_bytes() for p in there.rglob("*.bin")} == {
        "last.bin": b"new" * 1000,
        "sub/1.bin": b"step 1",
    }
    assert len(place.paths(f"attempts/{key}")) == 3
    store.remove_attempt(key)
    assert place.paths("attempts") == []
    assert place.open("b").restore_attempt(key, tmp_path / "nowhere") is False


def test_a_damaged_checkpoint_is_not_restored(place, tmp_path, caplog):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "last.bin").write_bytes(b"state")
    place.open().mirror_attempt(key_of("a"), tmp_path / "here")
    content = next(path for path in place.paths("attempts") if not path.endswith(".json"))
    place.flip(content)
    assert place.open("b").restore_attempt(key_of("a"), tmp_path / "there") is False
    assert "starts from its beginning" in caplog.text
    caplog.clear()
    place.flip(content)
    place.flip(f"attempts/{key_of('a')}/manifest.json", 90)
    assert place.open("b").restore_attempt(key_of("a"), tmp_path / "there") is False
    assert "manifest.json is damaged" in caplog.text
    assert not (tmp_path / "there").exists()


def test_gc_keeps_what_runs_names_pins_and_leases_lead_to_and_removes_the_rest(place, publish, tmp_path):
    store = place.open()
    corpus = publish(store, "corpus", stage="corpus")
    named = publish(store, "named", made_from={"shards": corpus})
    pinned = publish(store, "pinned")
    ran = publish(store, "ran")
    leased = publish(store, "leased")
    loose = publish(store, "loose", made_from={"shards": corpus})
    store.assign_name("r", "s", 1, "train", "", named.record.key)
    store.pin(pinned.record.key[:10], "for later")
    (tmp_path / "source.tar").write_bytes(b"code")
    source = store.put_file(tmp_path / "source.tar")
    store.write_run({"id": "1", "recipe": "r", "source": source.sha256, "steps": [{"key": ran.record.key}]})
    with store.lease(leased.record.key, time_limit_s=60):
        assert store.gc(delete=True).removed == ()  # all of it is young
        would = store.gc(grace_s=-1)
        assert would.dry_run
        assert store.get("train", loose.record.key) is not None
        went = store.gc(grace_s=-1, delete=True)
    gone = {record_path("train", loose.record.key), object_path(loose.record.files[0].sha256)}
    assert {e.path for e in went.removed if "stamps" not in e.path} == gone
    assert {e.path for e in would.removed} == {e.path for e in went.removed}
    assert went.stages == {"train": 1}
    assert went.bytes >= loose.record.bytes
    assert store.get("train", loose.record.key) is None
    kept = {corpus.record.key, named.record.key, pinned.record.key, ran.record.key, leased.record.key}
    assert {key for _, key in store.records()} == kept
    assert store.read_object(source.sha256) == b"code"
    assert store.verify() == []


def test_gc_can_keep_the_last_few_only(place, publish):
    store = place.open()
    for index, text in enumerate(("a", "b", "c")):
        publish(store, text)
        store.assign_name("r", "s", 1, "train", "", key_of(text))
        steps = [{"key": key_of(text)}]
        store.write_run(
            {"id": f"{9 - index}", "started": f"2026-0{index + 1}", "recipe": "r", "scale": "s", "steps": steps}
        )
    store.write_run({"id": "other", "recipe": "q", "scale": "s"})
    store.gc(grace_s=-1, delete=True, keep_last=1)
    assert {key for _, key in store.records()} == {key_of("c")}
    assert [run["id"] for run in store.list_runs()] == ["7", "other"]
    assert list(store.names()) == ["r/s/1/train@3"]
    publish(store, "d")
    assert store.assign_name("r", "s", 1, "train", "", key_of("d")) == "r/s/1/train@4"


def test_gc_removes_the_checkpoints_of_what_is_finished(place, publish, tmp_path):
    store = place.open()
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "last.bin").write_bytes(b"state")
    for text in ("finished", "interrupted"):
        store.mirror_attempt(key_of(text), tmp_path / "state")
    store.pin(publish(store, "finished").record.key)
    store.gc(grace_s=-1, delete=True)
    assert {path.split("/")[1] for path in place.paths("attempts")} == {key_of("interrupted")}
    store.write_run({"id": "1", "steps": [{"key": key_of("interrupted")}]})
    store.gc(grace_s=-1, delete=True, keep_last=1)
    assert len(place.paths("attempts")) == 2
    store.remove_run("1")
    store.gc(grace_s=-1, delete=True, keep_last=1)
    assert place.paths("attempts") == []


def test_a_file_that_somebody_else_removes_first_is_gone_and_no_error(place, monkeypatch):
    """As when two workers clear one finished attempt away."""
    backend, other = (open_backend(place.url) for _ in range(2))
    backend.write("attempts/a", b"1")
    look = backend.entry

    def look_and_be_late(path: str):
        found = look(path)
        other.delete(path)
        return found

    monkeypatch.setattr(backend, "entry", look_and_be_late)
    backend.delete("attempts/a")  # true or false: not every place says whether there was anything
    assert other.entry("attempts/a") is None


def test_pins_are_listed_and_taken_away(place, publish):
    store = place.open()
    key = publish(store, "a").record.key
    store.pin(key, "best so far", who="me")
    assert [(pin["key"], pin["reason"], pin["who"]) for pin in store.pins()] == [(key, "best so far", "me")]
    store.unpin(key[:8])
    assert store.pins() == []
    with pytest.raises(NotFound, match="has none"):
        store.unpin(key)


def test_du_tells_shared_bytes_from_own_ones(place, publish):
    store = place.open()
    publish(store, "a", {"raw/own.bin": b"1" * 100, "raw/both.bin": b"2" * 1000})
    publish(store, "b", {"raw/both.bin": b"2" * 1000}, stage="average")
    weight = store.du()
    assert weight["stages"]["train"] == {"records": 1, "bytes": 1100, "own_bytes": 100}
    assert weight["stages"]["average"] == {"records": 1, "bytes": 1000, "own_bytes": 0}
    assert weight["kinds"]["objects"] == {"files": 2, "bytes": 1100}
    assert weight["bytes"] == sum(kind["bytes"] for kind in weight["kinds"].values()) > 1100


def test_verify_knows_a_key_that_is_not_its_components(place, publish):
    store = place.open()
    components = {"stage": "train", "config": {"lr": 1.0, "steps": [1, 2.5]}}
    right = publish(store, "a", components={}).record
    assert store.verify() == []
    folder = Path(place.folder / "out")
    folder.mkdir()
    key = digest_json(components)
    assert key == digest_json({"config": {"steps": [1.0, 2.5], "lr": 1}, "stage": "train"})
    store.publish(stage="train", key=key, folder=folder, components=components, report={}, inputs={})
    assert store.verify() == []
    wrong = publish(store, "wrong", components=components).record
    assert [(f.kind, f.key) for f in store.verify()] == [("wrong key", wrong.key)]
    assert store.verify([right.key, f"train/{key[:8]}"]) == []


def test_verify_finds_names_that_lead_nowhere_and_flipped_documents(place, publish):
    store = place.open()
    record = publish(store, "a").record
    store.assign_name("r", "s", 1, "train", "", record.key)
    store._records.remove(record)
    assert [finding.kind for finding in store.verify()] == ["dangling name"]
    with pytest.raises(NotFound, match="record is gone"):
        store.resolve("r/s/1/train@1")
    store.write_run({"id": "1"})
    place.flip("runs/1.json", -3)
    place.flip("names/r/s/1/train/1.json", 80)
    assert sorted((f.kind, f.path) for f in store.verify(full=False)) == [
        ("damaged document", "names/r/s/1/train/1.json"),
        ("damaged document", "runs/1.json"),
    ]


def test_an_artifact_travels_as_a_file(place, publish, tmp_path):
    store = place.open()
    corpus = publish(store, "corpus", stage="corpus")
    train = publish(store, "train", made_from={"shards": corpus})
    store.export(train.record.key, tmp_path / "alone.tar")
    store.export(train.record.key, tmp_path / "whole.tar", closure=True)
    store.export(train.record.key, tmp_path / "again.tar", closure=True)
    assert (tmp_path / "whole.tar").read_bytes() == (tmp_path / "again.tar").read_bytes()
    from artifacts.store import Store

    alone, whole = Store.open(tmp_path / "alone"), Store.open(tmp_path / "whole")
    assert [p.record.id for p in alone.import_(tmp_path / "alone.tar").published] == [train.record.id]
    imported = whole.import_(tmp_path / "whole.tar")
    assert [p.record.stage for p in imported.published] == ["train", "corpus"]
    assert whole.get("train", train.record.key) == train.record
    assert whole.verify() == alone.verify() == []
    assert [p.outcome for p in place.open().import_(tmp_path / "whole.tar").published] == ["same", "same"]


def test_a_closure_is_pushed_once_and_pulled_back(place, publish, tmp_path):
    from artifacts.store import Store

    store, other = place.open(), Store.open(tmp_path / "other")
    corpus = publish(store, "corpus", stage="corpus")
    train = publish(store, "train", made_from={"shards": corpus})
    store.assign_name("r", "s", 1, "train", "", train.record.key)
    seen = []
    first = store.push(other, ["r/s/1/train"], on_object=lambda file: seen.append(file.path))
    assert len(seen) == first.objects == 2
    assert first.bytes == corpus.record.bytes + train.record.bytes
    assert other.resolve("r/s/1/train@1") == train.record
    assert other.verify() == []
    assert store.push(other, ["r/s/1/train"]).objects == 0
    back = place.open("c")
    publish(back, "unrelated")
    publish(other, "new", made_from={"shards": corpus})
    pulled = back.pull(other, [key_of("new")])
    assert [p.outcome for p in pulled.published] == ["created", "same"]
    assert pulled.objects == 1
    assert place.open("d").verify() == []
