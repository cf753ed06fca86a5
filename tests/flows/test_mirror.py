"""Checkpoints reach the store while a stage runs, when they have changed, and once more when it is stopped."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts.errors import StoreUnavailable
from artifacts.store import Store
from flows.mirror import EVERY_S, Mirror
from stages.contract import Runtime

KEY = "a" * 64


class Counting:
    """A store that notes what it is given."""

    def __init__(self, fails: int = 0) -> None:
        self.copies: list[dict[str, str]] = []
        self.fails = fails

    def restore_attempt(self, key: str, folder: Path) -> bool:
        return False

    def mirror_attempt(self, key: str, folder: Path) -> bool:
        if self.fails:
            self.fails -= 1
            raise StoreUnavailable("away")
        self.copies.append({path.name: path.read_text() for path in folder.iterdir() if path.is_file()})
        return True


def wait_for(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def stop_after_writing(mirror: Mirror, path: Path, text: str) -> None:
    """A stage that is asked to stop and writes a checkpoint first."""
    with mirror.copying(path.parent):
        path.write_text(text)
        raise KeyboardInterrupt


def test_a_folder_is_copied_when_it_changes_and_only_then(tmp_path: Path):
    store = Counting()
    mirror = Mirror(store, KEY, every_s=0.01)
    folder = tmp_path / "checkpoints"
    mirror.restore(folder)
    with mirror.copying(folder):
        (folder / "a").write_text("1")
        wait_for(lambda: store.copies == [{"a": "1"}])
        time.sleep(0.05)
        assert len(store.copies) == 1
        (folder / "a").write_text("22")
        wait_for(lambda: store.copies[-1] == {"a": "22"})


def test_what_is_written_when_the_stage_is_stopped_is_copied_too(tmp_path: Path):
    store = Counting()
    mirror = Mirror(store, KEY, every_s=3600)
    folder = tmp_path / "checkpoints"
    mirror.restore(folder)
    with pytest.raises(KeyboardInterrupt):
        stop_after_writing(mirror, folder / "last", "here")
    assert store.copies == [{"last": "here"}]


def test_a_store_that_is_away_for_a_moment_costs_nothing(tmp_path: Path):
    store = Counting(fails=2)
    mirror = Mirror(store, KEY, every_s=0.01)
    folder = tmp_path / "checkpoints"
    mirror.restore(folder)
    with mirror.copying(folder):
        (folder / "a").write_text("1")
        wait_for(lambda: store.copies == [{"a": "1"}])


def test_a_folder_that_vanishes_while_it_is_looked_through_ends_no_copying(tmp_path: Path):
    """As an old checkpoint of several files does; the thread that copies would be gone for the rest of the training."""
    store = Counting()
    mirror = Mirror(store, KEY, every_s=0.001)
    folder = tmp_path / "checkpoints"
    mirror.restore(folder)
    with mirror.copying(folder):
        for number in range(500):
            (folder / f"step-{number}").mkdir()
            (folder / f"step-{number}" / "weights").write_text("")
            shutil.rmtree(folder / f"step-{number}")
        (folder / "last").write_text("here")
        wait_for(lambda: store.copies and store.copies[-1] == {"last": "here"})


def test_another_machine_goes_on_from_the_copy(tmp_path: Path):
    store = Store.open(tmp_path / "store")
    first = Mirror(store, KEY, every_s=3600)
    first.restore(tmp_path / "one")
    with pytest.raises(KeyboardInterrupt):
        stop_after_writing(first, tmp_path / "one" / "step.txt", "7")
    Mirror(Store.open(tmp_path / "store", cache=tmp_path / "other-host"), KEY).restore(tmp_path / "two")
    assert (tmp_path / "two" / "step.txt").read_text() == "7"


def test_whoever_lost_the_lease_does_not_write_over_the_checkpoint_of_its_successor(tmp_path: Path):
    store = Store.open(tmp_path / "store")
    silent = Mirror(store, KEY, every_s=3600, lost=lambda: True)
    silent.restore(tmp_path / "one")
    successor = Mirror(store, KEY, every_s=3600)
    successor.restore(tmp_path / "two")
    with pytest.raises(KeyboardInterrupt):
        stop_after_writing(successor, tmp_path / "two" / "step.txt", "9")
    with pytest.raises(KeyboardInterrupt):
        stop_after_writing(silent, tmp_path / "one" / "step.txt", "7")
    Mirror(store, KEY).restore(tmp_path / "three")
    assert (tmp_path / "three" / "step.txt").read_text() == "9"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_death_at_any_moment_costs_at_most_one_period_of_each(data: st.DataObject):
    """Time passes in steps here: a checkpoint every `checkpoints`, a look every `looks`, whatever their phases."""
    checkpoints, looks = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    first, first_look = data.draw(st.integers(1, checkpoints)), data.draw(st.integers(1, looks))
    death = data.draw(st.integers(1, 60))
    with tempfile.TemporaryDirectory() as base:
        store = Store.open(Path(base) / "store")
        mirror, folder = Mirror(store, KEY), Path(base) / "checkpoints"
        mirror.restore(folder)
        for step in range(1, death + 1):
            if step >= first and (step - first) % checkpoints == 0:
                (folder / "step.tmp").write_text(str(step))
                (folder / "step.tmp").replace(folder / f"step-{step}")
            if step >= first_look and (step - first_look) % looks == 0:
                mirror.copy(folder)
        Mirror(store, KEY).restore(Path(base) / "elsewhere")
        kept = max((int(path.name[5:]) for path in (Path(base) / "elsewhere").iterdir()), default=0)
    assert death - kept <= checkpoints + looks


def test_the_periods_of_production_leave_twenty_seconds_of_a_minute_for_writing_and_copying():
    assert Runtime.checkpoint_every_s + EVERY_S <= 40
