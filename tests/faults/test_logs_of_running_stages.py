"""`fairway runs logs` of a run whose training stands still in a pool, on a machine that has none of its files."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from heldstages import HeldStages, toy_recipe
from lab import Lab, wait_for

pytestmark = pytest.mark.slow


def test_what_a_stage_has_said_so_far_is_printed_and_followed_to_its_end(lab: Lab, held: HeldStages):
    held.set("hold", "train")
    run = lab.score(toml=toy_recipe(lab), scale="smoke", seed=601, overrides=["devices.train.kind=cuda"])
    held.wait_in("train")
    document = lab.document()
    assert document["flow_run"] == run
    asked = ["runs", "logs", document["id"], "train", "--store", lab.store]

    def said() -> str:
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", *asked], env=here(lab), capture_output=True, text=True, timeout=120
        )
        return done.stdout if done.returncode == 0 else ""

    assert wait_for(said, "the server has what the training has said") == "== train\nfrom step 0 with ranks 1\n"
    follow = [sys.executable, "-m", "flows.cli", *asked, "--follow"]
    with subprocess.Popen(follow, env=here(lab), stdout=subprocess.PIPE, text=True) as following:
        try:
            assert [following.stdout.readline() for _ in range(2)] == ["== train\n", "from step 0 with ranks 1\n"]
            held.clear("hold", "train")
            wait_for(lambda: step(lab).get("state") == "ran", "the run knows that the training has ended")
            lab.stop(run)
            assert following.communicate(timeout=120)[0] == ""  # nothing more was said
            assert following.returncode == 0
        finally:
            following.kill()
    assert said() == "== train\nfrom step 0 with ranks 1\n"  # now from the store


def step(lab: Lab) -> dict[str, Any]:
    """The training as the run's document has it."""
    return next(each for each in lab.document()["steps"] if each["stage"] == "train")


def here(lab: Lab) -> dict[str, str]:
    """A terminal of the submitter's machine."""
    return {**lab.submitter.environment, "PATH": os.environ["PATH"]}
