"""Names as text."""

from __future__ import annotations

import pytest

from artifacts.errors import BadName, NotFound
from artifacts.names import Name, parse_name


@pytest.mark.parametrize(
    ("text", "name", "version"),
    [
        ("pr714/full/42/train@3", Name("pr714", "full", 42, "train"), 3),
        ("pr714/full/42/train", Name("pr714", "full", 42, "train"), None),
        ("q/s/0/evaluate[ttt-sgd]@12", Name("q", "s", 0, "evaluate", "ttt-sgd"), 12),
        ("q/s/0/tokenize[train-00000]", Name("q", "s", 0, "tokenize", "train-00000"), None),
    ],
)
def test_a_name_reads_back_as_it_is_written(text, name, version):
    assert parse_name(text) == (name, version)
    assert str(name) == text.split("@")[0]


@pytest.mark.parametrize(
    "text",
    [
        *("a/b/c/train", "a/b/1/train@", "a/b/1/train@x", "a/b/1/train[]", "a/b/1/train]x[", "a/b/1/Train", "a/b/1"),
        *("a/b/1/train/x", "../b/1/train", "a/b/-1/train", "a/b/1/train[../x]", "a/b/1/train[x]y@1", "a b/c/1/train"),
    ],
)
def test_what_is_no_name_is_refused(text, local_place):
    with pytest.raises(BadName):
        parse_name(text)
    with pytest.raises((BadName, NotFound)):
        local_place.open().resolve(text)


def test_only_what_is_stored_gets_a_name(local_place):
    with pytest.raises(NotFound, match="publish it first"):
        local_place.open().assign_name("r", "s", 1, "train", "", "a" * 64)
    assert local_place.paths() == []


def test_a_version_that_is_not_there_is_named_in_the_error(local_place, publish):
    store = local_place.open()
    key = publish(store, "a").record.key
    store.assign_name("r", "s", 1, "train", "", key)
    with pytest.raises(NotFound, match="r/s/1/train@2"):
        store.resolve("r/s/1/train@2")
    with pytest.raises(NotFound, match="no r/s/2/train in"):
        store.resolve("r/s/2/train")


def test_a_run_needs_an_id_that_is_a_file_name(local_place):
    for run in ({}, {"id": "../x"}, {"id": 3}):
        with pytest.raises(BadName):
            local_place.open().write_run(run)
