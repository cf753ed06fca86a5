"""What an audit may cost, by arithmetic, for every recipe at every scale: nothing is scored here."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from configs.introduced import resolved
from configs.load import load_recipe, names
from model.passes import windows_of
from model.protocol import chunk_targets, from_dict
from model.stream import TokenStream
from model.windows import Windows
from stages.audit.config import Config
from stages.audit.cost import Meter, budgets, handed_out, least, update_cost
from stages.audit.protocols import QUICK_STATES
from stages.audit.records import LedgerFile
from stages.audit.scored import audit_scorer
from stages.audit.settings import Settings
from stages.audit.subject import Scorer

FULL_TOKENS = 62_021_846  # the published validation set, tokenised by sp1024
SMALL_TOKENS = 120_000  # the embedded one holds more


def protocols(recipe: str, scale: str, tokens: int):
    loaded = load_recipe(recipe, scale).recipe.evaluate
    read = {name: from_dict(resolved(each)) for name, each in loaded.items()}
    audited = {name for name, each in loaded.items() if each.of == "archive"}
    return {name: (protocol, windows_of(protocol, tokens)) for name, protocol in read.items()}, audited


@pytest.mark.parametrize("recipe", names("recipe"))
@pytest.mark.parametrize(("scale", "tokens"), [("smoke", SMALL_TOKENS), ("full", FULL_TOKENS)])
def test_a_quick_audit_stays_under_fifteen_percent_and_sees_every_state(recipe, scale, tokens):
    of, audited = protocols(recipe, scale, SMALL_TOKENS if recipe == "quickstart" else tokens)
    share = Config().share
    given = budgets(of, audited, share)
    assert set(given) == audited
    assert sum(given.values()) <= 0.15 * sum(handed_out(windows) for _, windows in of.values())
    for name in audited:
        assert given[name] >= least(*of[name]), f"{name} of {recipe} at {scale} is not looked at in every state"


def test_little_to_spend_is_shared():
    of, audited = protocols("pr714", "smoke", SMALL_TOKENS)
    given = budgets(of, audited, 0.01)
    assert 0 < sum(given.values()) <= 0.01 * sum(handed_out(windows) for _, windows in of.values())


class Uniform(Scorer):
    """Knows nothing, and counts what training on a chunk would send forward."""

    vocab = 4

    def __init__(self, update_tokens: int) -> None:
        self._update_tokens = update_tokens

    def reset(self):
        pass

    def score(self, inputs_BT, scored):
        return torch.zeros(len(inputs_BT), scored, self.vocab)

    def update(self, tokens, index):
        self.trained_tokens += self._update_tokens


def kept(windows: Windows) -> LedgerFile:
    """The ledger of a pass that knew nothing."""
    head_N2 = np.full((min(65_536, windows.targets), 2), np.log(4), dtype=np.float32)
    rows = np.arange(0, windows.targets, windows.targets // 256)
    rows_NV = np.zeros((len(rows), 4), dtype=np.float32)
    return LedgerFile(sha256="", targets=windows.targets, events=(), head_N2=head_N2, row_targets=rows, rows_NV=rows_NV)


@pytest.mark.parametrize(
    ("recipe", "scale", "tokens"),
    [
        ("pr714", "smoke", SMALL_TOKENS),
        ("quickstart", "full", SMALL_TOKENS),
        ("pr714", "full", FULL_TOKENS),
    ],
)
def test_what_is_really_asked_costs_less_than_fifteen_percent_learning_included(recipe, scale, tokens):
    of, audited = protocols(recipe, scale, tokens)
    config, stream, meter = Config(), TokenStream([np.zeros(tokens, dtype=np.uint16)]), Meter()
    given = budgets(of, audited, config.share)
    for name in sorted(audited):
        protocol, windows = of[name]
        update = update_cost(protocol, chunk_targets(protocol))
        settings = Settings(
            lot=name, budget_tokens=given[name], chunks=QUICK_STATES, cuts=config.cuts, update_tokens=update,
            batch_windows=protocol.batch_windows,
        )  # fmt: skip
        of_one = Meter()
        findings = audit_scorer(
            partial(Uniform, update), stream, windows, chunk_targets(protocol), settings, kept(windows), of_one
        )
        assert {finding.verdict for finding in findings} == {"pass"}
        assert of_one.total <= given[name]
        meter.forward_tokens += of_one.forward_tokens
        meter.trained_tokens += of_one.trained_tokens
    assert 0 < meter.total < 0.15 * sum(handed_out(windows) for _, windows in of.values())
    assert meter.trained_tokens > 0
