"""Cheats that act late, or between the windows of a batch, are found as well. How often: benchmarks/audit_power.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.stream import TokenStream
from model.windows import Windows
from stages.audit.detect import audit_scorer
from stages.audit.fixtures import ground as grounds
from stages.audit.fixtures import tokenizers
from stages.audit.fixtures.ground import CHUNK, CONTEXT, STRIDE, Ground
from stages.audit.fixtures.scorers import Sliding
from stages.audit.scored import _states
from stages.audit.settings import Settings

pytestmark = pytest.mark.usefixtures("one_thread")
TARGETS, BATCH = 2048, 4
WINDOWS = Windows(TARGETS, CONTEXT, STRIDE)


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Ground:
    return grounds.build(tmp_path_factory.mktemp("ground") / "plain", tokenizers.small(), steps=0)


class BatchMates(Sliding):
    """In batches of evaluation's size, the last position of a window reads its target in the next window."""

    def score(self, inputs_BT: Tensor, scored: int) -> Tensor:
        logits_BSV = super().score(inputs_BT, scored).clone()
        if len(inputs_BT) == BATCH:
            for row in range(BATCH - 1):
                logits_BSV[row, -1, inputs_BT[row + 1, -STRIDE]] += 3.0
        return logits_BSV


class Late(Sliding):
    """After some chunks, every position but the last reads its target."""

    after = 5

    def reset(self) -> None:
        super().reset()
        self.learned = 0

    def update(self, tokens: Tensor, index: int) -> None:
        self.learned += 1

    def score(self, inputs_BT: Tensor, scored: int) -> Tensor:
        logits_BSV = super().score(inputs_BT, scored).clone()
        if self.learned >= self.after:
            targets_BS1 = inputs_BT[:, 1:][:, -scored + 1 :, None]
            logits_BSV[:, : targets_BS1.shape[1]].scatter_add_(2, targets_BS1, torch.full(targets_BS1.shape, 3.0))
        return logits_BSV


def broken(ground: Ground, scorer: type[Sliding], chunk: int, **settings: object) -> list[set[str]]:
    """The rules that fail, for each of several lots."""
    stream = TokenStream([ground.train_tokens[: TARGETS + 1]])
    return [
        {
            finding.rule
            for finding in audit_scorer(
                lambda: scorer(ground.folder), stream, WINDOWS, chunk,
                Settings(lot=f"lot {lot}", batch_windows=BATCH, **settings),  # type: ignore[arg-type]
            )
            if finding.verdict == "fail"
        }
        for lot in range(6)
    ]  # fmt: skip


def test_what_the_windows_of_a_batch_know_of_each_other_is_looked_at(ground):
    found = broken(ground, BatchMates, 0, budget_tokens=300 * CONTEXT)
    assert {"C1"} in found
    assert set().union(*found) == {"C1"}
    assert set().union(*broken(ground, Sliding, 0, budget_tokens=300 * CONTEXT)) == set()


def test_a_cheat_that_begins_late_is_found_where_later_states_are_drawn(ground):
    budget = 300 * CONTEXT
    assert set().union(*broken(ground, Late, CHUNK, budget_tokens=budget, chunks=1)) == set()
    later = broken(ground, Late, CHUNK, budget_tokens=budget, chunks=3)
    assert sum("C1" in rules for rules in later) >= 5


@pytest.mark.parametrize("update", [0, CHUNK, 10 * CHUNK, 1000 * CHUNK])
@pytest.mark.parametrize("budget", [4, 40, 400])
@pytest.mark.parametrize("chunks", [1, 3, 100])
def test_the_states_that_are_examined_can_be_paid_for(update, budget, chunks):
    spans = list(WINDOWS.spans(CHUNK))
    settings = Settings(lot="x", budget_tokens=budget * CONTEXT, update_tokens=update, chunks=chunks)
    states = _states(spans, settings, WINDOWS)
    assert states[0] == 0
    assert states == sorted(set(states))
    assert states[-1] < len(spans)
    assert len(states) <= chunks + 1
    assert len(states) == 1 or settings.budget_tokens >= states[-1] * update + 4 * CONTEXT * len(states)
