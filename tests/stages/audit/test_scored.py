"""Scorers that cheat, each in its way, and honest ones: what the interview says of them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from model.stream import TokenStream
from model.windows import Windows
from stages.audit.cost import Meter
from stages.audit.scored import audit_scorer
from stages.audit.settings import Settings
from stages.audit.subject import Scorer

VOCAB, CHUNK = 24, 32
WINDOWS = Windows(targets=160, context=16, stride=4)
SETTINGS = Settings(lot="ledger", cuts=16, batch_windows=4, budget_tokens=4000)
MEMORY: list[Tensor] = []  # a global that cheats write to: no walk over their attributes finds it


@pytest.fixture(autouse=True)
def forget() -> None:
    MEMORY.clear()


def stream() -> TokenStream:
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, VOCAB, size=401)
    tokens[::25] = 1  # documents
    return TokenStream([tokens.astype(np.uint16)])


class Honest(Scorer):
    """A bigram table that counts every revealed chunk."""

    vocab = VOCAB

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.table = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(0))

    def score(self, inputs_BT: Tensor, scored: int) -> Tensor:
        return self.table[inputs_BT[:, -scored:]]

    def update(self, tokens: Tensor, index: int) -> None:
        self.table.index_put_((tokens[:-1], tokens[1:]), torch.tensor(0.25), accumulate=True)


class Normalised(Honest):
    """Returns log-probabilities and says so."""

    log_probabilities = True

    def score(self, inputs_BT, scored):
        return super().score(inputs_BT, scored).log_softmax(-1)


class Temperature(Honest):
    """A fixed temperature."""

    def score(self, inputs_BT, scored):
        return super().score(inputs_BT, scored) / 1.3


class Epochs(Honest):
    """Several passes over a chunk that is scored."""

    def update(self, tokens, index):
        for _ in range(3):
            super().update(tokens, index)


class Peeks(Honest):
    """The logit of the token that comes is raised: it is the next input."""

    def score(self, inputs_BT, scored):
        logits = super().score(inputs_BT, scored).clone()
        following = inputs_BT[:, -scored:].roll(-1, dims=1)
        logits[:, :-1] += torch.nn.functional.one_hot(following, VOCAB)[:, :-1] * 3.0
        return logits


class FitsTheWindow(Honest):
    """SLOT: a bias fitted to the window's own targets, forgotten afterwards."""

    def score(self, inputs_BT, scored):
        bias = torch.nn.functional.one_hot(inputs_BT, VOCAB).float().mean((0, 1))
        return super().score(inputs_BT, scored) + bias


class LooksAtOtherRows(Honest):
    """Rows overlap: a later row's inputs are an earlier row's future."""

    def score(self, inputs_BT, scored):
        return super().score(inputs_BT, scored) + inputs_BT[-1].float().mean() * torch.arange(VOCAB) / VOCAB


class LearnsWhileScoring(Honest):
    """Counts the inputs of what it is about to score, in its own table."""

    def score(self, inputs_BT, scored):
        for row in inputs_BT:
            self.table[row[:-1], row[1:]] += 0.1
        return super().score(inputs_BT, scored)


class LearnsAndHidesIt(LearnsWhileScoring):
    """The same, and swears that it has no state."""

    def state(self):
        return []


class TrainsAndThrowsAway(Honest):
    """Takes a gradient while it scores, and restores everything."""

    def score(self, inputs_BT, scored):
        weight = torch.zeros(VOCAB, requires_grad=True)
        (super().score(inputs_BT, scored) + weight).log_softmax(-1)[..., 0].sum().backward()
        return super().score(inputs_BT, scored)


class HoardsInputs(Honest):
    """Keeps what it was handed out where nobody looks, and learns from that in place of the chunk."""

    def score(self, inputs_BT, scored):
        MEMORY.append(inputs_BT.clone())
        return super().score(inputs_BT, scored)

    def update(self, tokens, index):
        for inputs_BT in MEMORY:
            for row in inputs_BT:
                self.table[row[:-1], row[1:]] += 0.01


class Unnormalised(Honest):
    """A count of the target over a count of the context, from shared buckets."""

    normalised = False

    def price(self, inputs_BT, scored, targets_KM):
        context_K = inputs_BT[:, -scored:].reshape(-1)
        counts = Counter((context_K % 4).tolist())
        share_KM = torch.tensor([[counts[int(c) % 4]] for c in context_K]) * torch.ones(targets_KM.shape) + 1
        return -(0.5 * share_KM / share_KM.amax()).log()


class AHashOfTheTarget(Honest):
    """Causal, and no distribution: what it charges for a token depends on a bucket of that token alone."""

    normalised = False

    def price(self, inputs_BT, scored, targets_KM):
        return -(0.2 + 0.5 * (targets_KM % 3 == 0)).log()


class SaysItSumsToOne(Honest):
    """Log-probabilities, all of them a bit too good."""

    log_probabilities = True

    def score(self, inputs_BT, scored):
        return super().score(inputs_BT, scored).log_softmax(-1) + 0.01


class Gives(Honest):
    """Numbers of the wrong kind."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.answer = answer

    def score(self, inputs_BT, scored):
        return self.answer(super().score(inputs_BT, scored))


class WantsItAll(Honest):
    """Learns the whole stream, then scores it."""

    exposed = True

    def expose(self, tokens_N1):
        super().update(tokens_N1, 0)


def failing(scorer: Scorer, chunk: int = CHUNK, settings: Settings = SETTINGS) -> set[tuple[str, str]]:
    findings = audit_scorer(lambda: scorer, stream(), WINDOWS, chunk, settings)
    assert findings
    return {(finding.rule, finding.detector) for finding in findings if finding.verdict == "fail"}


@pytest.mark.parametrize("scorer", [Honest, Normalised, Temperature, Epochs])
@pytest.mark.parametrize("chunk", [0, CHUNK])
def test_an_honest_scorer_passes_everything(scorer, chunk):
    findings = audit_scorer(scorer, stream(), WINDOWS, chunk, SETTINGS)
    assert {finding.verdict for finding in findings} == {"pass"}
    assert {finding.rule for finding in findings} == {"C1", "C2", "C3"}


@pytest.mark.parametrize("scorer", [Peeks, FitsTheWindow, LooksAtOtherRows])
def test_who_looks_at_what_comes_later_breaks_c1_and_only_that(scorer):
    assert {rule for rule, _ in failing(scorer())} == {"C1"}


def test_a_peek_at_the_token_to_be_predicted_shows_in_the_target_swap():
    assert ("C1", "T2") in failing(Peeks())


@pytest.mark.parametrize("scorer", [LearnsWhileScoring, LearnsAndHidesIt, TrainsAndThrowsAway, HoardsInputs])
def test_who_learns_from_what_is_not_scored_yet_breaks_c3(scorer):
    assert "C3" in {rule for rule, _ in failing(scorer())}


def test_the_state_s_hash_sees_what_changed():
    findings = audit_scorer(LearnsWhileScoring, stream(), WINDOWS, CHUNK, SETTINGS)
    (state,) = [finding for finding in findings if finding.detector == "T3" and "changed" in finding.evidence]
    assert state.evidence["changed"][0]["parts"] == ["table"]


def test_training_that_only_the_scorer_s_own_process_sees_counts():
    class Elsewhere(Honest):
        def score(self, inputs_BT, scored):
            self.__class__.trained_while_scoring += 1  # as a remote scorer hears of it
            return super().score(inputs_BT, scored)

    assert failing(Elsewhere()) == {("C3", "T3")}


def test_who_denies_having_a_state_is_caught_by_asking_twice():
    assert ("C3", "T17") in failing(LearnsAndHidesIt())


def test_inputs_hoarded_in_a_global_show_after_the_update():
    assert failing(HoardsInputs()) == {("C3", "T3")}


@pytest.mark.parametrize("scorer", [AHashOfTheTarget, SaysItSumsToOne])
def test_what_does_not_sum_to_one_breaks_c2_and_only_that(scorer):
    assert failing(scorer()) == {("C2", "T2b")}


def test_prices_that_depend_on_the_windows_own_counts_break_c1_and_c2():
    assert {rule for rule, _ in failing(Unnormalised())} == {"C1", "C2"}


@pytest.mark.parametrize(
    "answer", [lambda x: x[:, :, :-1], lambda x: x * float("nan"), lambda x: x.numpy(), lambda x: x[0]]
)
def test_an_answer_that_is_no_block_of_finite_logits_breaks_c2(answer):
    assert failing(Gives(answer)) == {("C2", "T2b")}


def test_who_asks_for_the_whole_stream_breaks_c1_and_c3():
    assert {rule for rule, _ in failing(WantsItAll())} == {"C1", "C3"}


def test_who_has_no_distribution_to_begin_with_is_not_said_to_be_normalised_by_the_referee():
    by_hand = audit_scorer(AHashOfTheTarget, stream(), WINDOWS, 0, SETTINGS)
    (mass,) = [finding for finding in by_hand if finding.rule == "C2"]
    assert "by" not in mass.evidence
    assert mass.evidence["positions"] > 0


def test_nothing_is_claimed_of_a_scorer_that_there_is_no_budget_to_ask():
    findings = audit_scorer(Peeks, stream(), WINDOWS, CHUNK, Settings(lot="x", budget_tokens=40))
    assert {finding.verdict for finding in findings} == {"unknown"}


def test_a_scorer_that_there_is_no_budget_to_teach_is_not_called_legal():
    settings = Settings(lot="x", budget_tokens=4000, update_tokens=4000, batch_windows=4)
    findings = audit_scorer(Honest, stream(), WINDOWS, CHUNK, settings)
    assert {(f.rule, f.detector) for f in findings if f.verdict == "unknown"} == {("C3", "T3")}
    assert {f.verdict for f in audit_scorer(Honest, stream(), WINDOWS, 0, settings)} == {"pass"}


@pytest.mark.parametrize("budget", [64, 100, 400, 1500, 4000])
def test_an_interview_keeps_to_its_budget(budget):
    meter = Meter()
    settings = Settings(lot="x", budget_tokens=budget, batch_windows=4)
    audit_scorer(Honest, stream(), WINDOWS, 0, settings, meter=meter)
    assert 0 < meter.total <= budget


def test_the_same_lot_asks_the_same_questions_and_another_lot_others():
    def asked(lot: str) -> list[int]:
        seen: list[int] = []

        class Listens(Honest):
            def score(self, inputs_BT, scored):
                seen.append(int(inputs_BT.sum()))
                return super().score(inputs_BT, scored)

        audit_scorer(Listens, stream(), WINDOWS, CHUNK, Settings(lot=lot, budget_tokens=4000))
        return seen

    assert asked("a") == asked("a")
    assert asked("a") != asked("b")
