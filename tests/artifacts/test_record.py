"""Records: their digests, and what they refuse to hold."""

from __future__ import annotations

import hashlib
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts.documents import dump_document, load_document
from artifacts.errors import BadName
from artifacts.record import File, Record, check_word, digest_files, record_from_json, record_to_json
from artifacts.records import read_record

KEY = hashlib.sha256(b"key").hexdigest()
FILES = st.lists(
    st.builds(File, st.text(min_size=1), st.sampled_from(["a" * 64, "b" * 64]), st.integers(0, 9)),
    max_size=5,
    unique_by=lambda file: file.path,
)


def record(**fields) -> Record:
    blank = {"stage": "train", "part": "", "key": KEY, "files": (), "components": {}, "report": {}, "inputs": {}}
    return Record(**{**blank, **fields})


@settings(deadline=None, derandomize=True)
@given(FILES, FILES, st.randoms())
def test_sets_of_files_have_equal_digests_only_if_they_are_equal(one, other, random):
    shuffled = list(one)
    random.shuffle(shuffled)
    assert digest_files(shuffled) == digest_files(one)
    assert (digest_files(one) == digest_files(other)) == (set(one) == set(other))


def test_a_role_is_the_files_below_its_folder():
    files = (File("raw/a", "a" * 64, 1), File("raw/b/c", "b" * 64, 2), File("rawer/d", "c" * 64, 4))
    made = record(files=files, part="sliding")
    assert made.role("raw") == (File("a", "a" * 64, 1), File("b/c", "b" * 64, 2))
    assert made.role_digest("raw") == digest_files(made.role("raw"))
    assert made.bytes == 7
    assert (made.label, record().label) == ("train[sliding]", "train")


@pytest.mark.parametrize("path", ["/etc/x", "../x", "raw/../../x", "raw//x", "", "raw/./x", "raw\\x", "raw/\0", "raw/"])
def test_a_path_that_leaves_its_folder_is_refused(path):
    raw, digest = dump_document(record_to_json(record(files=(File(path, "a" * 64, 1),))))
    with pytest.raises(BadName, match="stays in its folder"):
        record_from_json(load_document(raw, "x")[0], digest)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"key": "A" * 64}, "64 small hexadecimal"),
        ({"key": "a" * 63}, "64 small hexadecimal"),
        ({"stage": "Train"}, "stage's name"),
        ({"stage": "../x"}, "stage's name"),
        ({"part": "../x"}, "a part is"),
        ({"part": "x" * 201}, "a part is"),
        ({"files": (File("raw/x", "a" * 64, 1),) * 2}, "'raw/x' came twice"),
        ({"files": (File("raw/x", "xyz", 1),)}, "64 small hexadecimal"),
        ({"inputs": {"raw": "text"}}, "producers"),
        ({"inputs": {"raw": [{"stage": "train", "key": KEY, "record": KEY}]}}, "producers"),
        ({"inputs": {"raw": {"from": [["train", "", "raw"]]}}}, "producers"),
        ({"inputs": {"raw": {"from": [{"stage": "train", "key": KEY}]}}}, "producers"),
        ({"inputs": {"raw": {"from": [{"stage": "train", "key": "x", "record": KEY}]}}}, "64 small hexadecimal"),
    ],
)
def test_a_record_that_breaks_a_rule_is_refused(fields, message):
    with pytest.raises(BadName, match=message):
        record_from_json(record_to_json(record(**fields)), KEY)


def test_a_record_reads_back_with_its_producers():
    made = record(id=KEY)
    consumer = record(inputs={"a": {"digest": "x", "from": [made.producer("raw")]}, "b": {"digest": "y", "from": []}})
    raw, digest = dump_document(record_to_json(consumer))
    back = record_from_json(load_document(raw, "x")[0], digest)
    assert list(back.producers()) == [{"stage": "train", "part": "", "key": KEY, "record": KEY, "role": "raw"}]


def test_a_record_of_another_format_is_not_guessed_at(local_place, publish):
    store = local_place.open()
    path = "records/train/x.json"
    store._backend.write(path, dump_document({"format": 2})[0])
    with pytest.raises(BadName, match="update Fairway"):
        read_record(store._backend, path)


def test_a_record_in_another_ones_place_is_not_taken_for_it(local_place, publish):
    from artifacts.errors import DamagedArtifact

    made = publish(local_place.open(), "a").record
    other = hashlib.sha256(b"b").hexdigest()
    local_place.open()._backend.write(f"records/train/{other}.json", local_place.read(f"records/train/{made.key}.json"))
    with pytest.raises(DamagedArtifact, match="that of train"):
        local_place.open().get("train", other)


def test_links_pipes_and_loose_files_are_no_output(local_place, tmp_path):
    def publish(folder):
        return local_place.open().publish(stage="train", key=KEY, folder=folder, components={}, report={}, inputs={})

    for name in ("link", "folder-link", "pipe", "loose"):
        (tmp_path / name / "raw").mkdir(parents=True)
    (tmp_path / "link" / "raw" / "x").symlink_to("/etc/hostname")
    (tmp_path / "folder-link" / "raw" / "x").symlink_to("/etc")
    os.mkfifo(tmp_path / "pipe" / "raw" / "x")
    (tmp_path / "loose" / "x").write_bytes(b"")
    for name in ("link", "folder-link", "pipe"):
        with pytest.raises(BadName, match="plain files and folders only; 'raw/x'"):
            publish(tmp_path / name)
    with pytest.raises(BadName, match="role's folder; 'x'"):
        publish(tmp_path / "loose")
    assert [path for path in local_place.paths() if path != "store.json"] == []


def test_words_are_file_names_everywhere():
    assert check_word("pr714-full_2.1", "recipe name") == "pr714-full_2.1"
    for word in ("", ".hidden", "a/b", "a b", "-x", "ä"):
        with pytest.raises(BadName, match="recipe name"):
            check_word(word, "recipe name")
