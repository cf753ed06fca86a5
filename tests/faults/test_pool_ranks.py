"""A training with two gloo ranks in a pool: whatever ends it ends both, frees the device, and is told as what it is."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from heldstages import HeldStages, claimed, devices, toy_recipe
from lab import LIMIT_S, Lab, variables, wait_for

from flows.up import start_time

pytestmark = pytest.mark.slow

DEVICES = ["devices.train.kind=cuda", "devices.train.count=2"]


@pytest.fixture(autouse=True)
def gates(held: HeldStages) -> Iterator[None]:
    """Open again afterwards."""
    yield
    for what in ("hold", "raise"):
        held.clear(what, "train")


def start(lab: Lab, held: HeldStages, seed: int) -> tuple[str, list[int], dict[str, int]]:
    """A run whose training stands at step 10; the processes below its worker, and the ranks among them."""
    held.set("hold", "train")
    run = lab.score(toml=toy_recipe(lab), scale="smoke", seed=seed, overrides=DEVICES)
    held.wait_in("train")
    below = lab.gpu.descendants()
    ranks = {found["RANK"]: pid for pid in below if "RANK" in (found := variables(pid))}
    assert sorted(ranks) == ["0", "1"]
    assert variables(ranks["0"])["CUDA_VISIBLE_DEVICES"].split(",") == devices(lab)  # all that was asked for
    assert claimed(lab) == devices(lab)
    return run, below, ranks


def all_gone(below: list[int], limit_s: float) -> None:
    """Wait until none of these processes lives."""
    wait_for(lambda: not [pid for pid in below if start_time(pid)], "no process of the stage is left", limit_s)


def test_cancelling_ends_both_ranks_and_frees_the_device_within_15_s(lab: Lab, held: HeldStages):
    run, below, _ = start(lab, held, 401)
    lab.cancel(run)
    all_gone(below, 15)
    assert claimed(lab) == []
    assert lab.ended(run)["type"] == "CANCELLED"


def test_a_killed_rank_takes_the_other_with_it_and_the_next_run_ends_well(lab: Lab, held: HeldStages):
    run, below, ranks = start(lab, held, 402)
    os.kill(ranks["1"], signal.SIGKILL)
    all_gone(below, LIMIT_S)
    assert claimed(lab) == []
    ended = lab.ended(run)
    assert ended["type"] == "FAILED"
    assert "its rank 1 was ended by SIGKILL" in ended["message"]
    held.clear("hold", "train")
    again = lab.score(toml=toy_recipe(lab), scale="smoke", seed=402, overrides=DEVICES)
    wait_for(lambda: len(lab.stages(stage="train", seed=402)) == 2, "the training was sent once more")
    lab.completed(lab.stages(stage="train", seed=402)[1]["id"])
    lab.stop(again)


def test_the_exception_of_a_rank_is_the_failure_of_the_run(lab: Lab, held: HeldStages):
    held.set("raise", "train")
    run = lab.score(toml=toy_recipe(lab), scale="smoke", seed=403, overrides=DEVICES)
    ended = lab.ended(run)
    assert ended["type"] == "FAILED"
    assert ended["message"] == "rank 1: RuntimeError: the second rank has a fault of its own"
    wait_for(lambda: not claimed(lab), "the devices are free")
