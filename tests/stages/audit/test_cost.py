"""What an audit may cost, by arithmetic, for every recipe at every scale: nothing is scored here."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from configs.introduced import resolved
from configs.load import load_recipe, names
from model.protocol import Protocol, windows_of
from model.stream import TokenStream
from stages.audit.config import Config
from stages.audit.cost import Meter, budgets, handed_out, least, update_cost
from stages.audit.records import LedgerFile
from stages.audit.scored import audit_scorer
from stages.audit.settings import Settings
from stages.audit.subject import Scorer

FULL_TOKENS = 62_021_846  # the published validation set, tokenised by sp1024
SMALL_TOKENS = 120_000  # the embedded one holds more


def protocols(recipe: str, scale: str, tokens: int):
    loaded = load_recipe(recipe, scale).recipe.evaluate
    read = {name: Protocol.from_dict(resolved(each)) for name, each in loaded.items()}
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
    """Knows nothing, costs nothing."""

    vocab = 4

    def reset(self):
        pass

    def score(self, inputs_BT, scored):
        return torch.zeros(len(inputs_BT), scored, self.vocab)

    def update(self, tokens, index):
        pass


@pytest.mark.parametrize("part", ["roundtrip", "sliding", "ttt"])
def test_at_full_scale_the_same_questions_cost_less_than_a_hundredth(part):
    of, audited = protocols("pr714", "full", FULL_TOKENS)
    protocol, windows = of[part]
    given = budgets(of, audited, Config().share)
    stream = TokenStream([np.zeros(FULL_TOKENS, dtype=np.uint16)])
    cost = update_cost(protocol, protocol.chunk_tokens)
    settings = Settings(lot="x", budget_tokens=given[part], update_tokens=cost, batch_windows=protocol.batch_windows)
    head_N2 = np.full((65_536, 2), np.float32(np.log(4)))
    rows = np.arange(0, windows.targets, windows.targets // 256)
    ledger = LedgerFile(
        sha256="", targets=windows.targets, events=(), head_N2=head_N2, row_targets=rows,
        rows_NV=np.zeros((len(rows), 4), dtype=np.float32),
    )  # fmt: skip
    meter = Meter()
    findings = audit_scorer(Uniform, stream, windows, protocol.chunk_tokens, settings, ledger, meter)
    assert {finding.verdict for finding in findings} == {"pass"}
    (future,) = [finding for finding in findings if finding.detector == "T1"]
    assert future.evidence["cuts"] >= 32
    assert 0 < meter.total + cost < 0.01 * handed_out(windows) * (1 if windows.stride < windows.context else 20)
