"""Which run is meant by what a person types."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts.errors import BadName, NotFound
from artifacts.store import Store
from flows.rundoc import find_run
from stages.contract import StageError

IDS = ("20260714-093012-417-4f2a", "20260714-093013-002-9c4f", "20260715-101112-131-4f2b")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store.open(tmp_path / "store")
    for run_id in IDS:
        made.write_run({"id": run_id, "state": "completed", "steps": []})
    return made


@pytest.mark.parametrize(("text", "meant"), [(IDS[1], 1), ("9c4f", 1), ("-4f2b", 2), ("20260715", 2)])
def test_a_part_that_no_other_run_has_is_enough(store: Store, text: str, meant: int):
    assert find_run(store, text)["id"] == IDS[meant]


def test_a_part_that_several_have_names_them(store: Store):
    with pytest.raises(StageError, match=f"{IDS[0]}, {IDS[1]}"):
        find_run(store, "20260714")


@pytest.mark.parametrize("text", ["4f2", "ffff", "a name with spaces"])
def test_what_is_short_or_of_no_run_is_not_found(store: Store, text: str):
    with pytest.raises((NotFound, BadName), match=text):
        find_run(store, text)
