"""Asks a scorer about parts of a stream, in the states that a scoring pass goes through.

In each state the true windows are asked for twice, among others whose future is another one, in shuffled order: what a
scorer answers for a position must not depend on what follows it, on what else it was asked, or on how often. Answers
for true windows are compared with the ledger of the finished pass.

Letters: B windows, T inputs of a window, S scored positions of each, V vocabulary, K = B * S targets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from model.referee import priced
from model.stream import TokenStream
from model.windows import Batch, Span, Windows
from stages.audit.cost import REQUESTS, Meter
from stages.audit.perturb import KINDS, Kind, donor, other_future
from stages.audit.records import LedgerFile
from stages.audit.settings import Settings
from stages.audit.state import changed, digests
from stages.audit.subject import Scorer
from stages.audit.watch import watch_training

_SHOWN = 8


class BadAnswer(ValueError):
    """What a scorer returned is no block of logits."""


@dataclass
class Worst:
    """The largest difference of two answers that should be equal, and where."""

    compared: int = 0  # positions
    different: int = 0
    most: float = 0.0
    where: list[dict[str, Any]] = field(default_factory=list)

    def compare(self, a_KX: Tensor, b_KX: Tensor, allowed: float, **where: Any) -> None:
        """Compare two answers position by position."""
        off_K = (a_KX - b_KX).abs().flatten(1).amax(1)
        off_K = torch.where(a_KX.flatten(1).eq(b_KX.flatten(1)).all(1), 0.0, off_K)  # infinities may be equal
        off_K = off_K.nan_to_num(nan=float("inf"))
        self.compared += len(off_K)
        wrong_K = off_K > allowed
        self.most = max(self.most, float(off_K.max()))
        if wrong_K.any():
            self.different += int(wrong_K.sum())
            if len(self.where) < _SHOWN:
                self.where.append({**where, "first_position": int(wrong_K.nonzero()[0]), "most": float(off_K.max())})

    def evidence(self, **also: Any) -> dict[str, Any]:
        """For a finding."""
        return {
            "positions_compared": self.compared,
            "positions_different": self.different,
            "largest_difference": self.most,
            **({"where": self.where} if self.where else {}),
            **also,
        }


@dataclass
class Mass:
    """Sums over the vocabulary of what is said to be probabilities."""

    positions: int = 0
    worst: float = 1.0
    target: int = -1  # where the sum is farthest from 1

    def enter(self, sums_K: Tensor, lo: int) -> None:
        """Enter the sums at consecutive targets from `lo` on."""
        self.positions += len(sums_K)
        at = int((sums_K - 1).abs().argmax())
        if abs(float(sums_K[at]) - 1) > abs(self.worst - 1):
            self.worst, self.target = float(sums_K[at]), lo + at


class Interview:
    """One scorer, asked in one state after the other."""

    def __init__(
        self,
        scorer: Scorer,
        stream: TokenStream,
        windows: Windows,
        settings: Settings,
        ledger: LedgerFile | None,
        meter: Meter,
    ) -> None:
        self.scorer, self._stream, self._windows = scorer, stream, windows
        self.settings, self._ledger, self._meter = settings, ledger, meter
        self._donor_M = donor(stream)
        self.future, self.swap, self.again, self.replay, self.exact = Worst(), Worst(), Worst(), Worst(), Worst()
        self.cuts = dict.fromkeys(KINDS, 0)
        self.mass = Mass()
        self.stale: list[dict[str, Any]] = []  # parts of the state that scoring changed
        self.updates = 0  # chunks that were learned from
        self.learned: list[int] = []  # how many parts each update changed, of those that were looked at
        self.trained_while_scoring = 0

    def examine(self, span: Span, budget: int) -> None:
        """Probe and replay windows of a span in the present state, for at most `budget` forward tokens."""
        until = self._meter.total + budget
        before = digests(self.scorer.state())
        for batch in self._probes(span, budget):
            self._probe(batch)
        for batch in self._windows.batches(span.first, span.stop, self.settings.batch_windows):
            if self._meter.total + (batch.stop - batch.first) * batch.length > until or not self._in_head(batch):
                break
            self._replay(batch, self._ask(self._inputs(self._read(batch), batch), batch.scored), own=True)
        after = digests(self.scorer.state())
        if names := changed(before, after):
            self.stale.append({"chunks_learned": self.updates, "parts": names[:_SHOWN]})

    def learn(self, span: Span, look: bool = True) -> None:
        """Reveal a span's chunk; `look` at what that changes, which costs a hash of all there is."""
        before, trained = digests(self.scorer.state()) if look else {}, self.scorer.trained_tokens
        tokens = torch.from_numpy(self._stream.read(span.chunk.start, span.chunk.stop + 1))
        self.scorer.update(tokens, span.index)
        self._meter.trained_tokens += self.scorer.trained_tokens - trained
        self.updates += 1
        if look:
            self.learned.append(len(changed(before, digests(self.scorer.state()))))

    def first_answer(self, span: Span) -> Tensor:
        """The answer for the first window of a span."""
        batch = next(self._windows.batches(span.first, span.first + 1, 1))
        return self._ask(self._inputs(self._read(batch), batch), batch.scored)

    def _probes(self, span: Span, budget: int) -> Iterator[Batch]:
        """Batches to ask about: a batch as large as evaluate's, the span's first window, then some drawn by lot."""
        windows, rows = budget // self._windows.context, span.stop - span.first
        if windows < REQUESTS:
            return
        lots = self.settings.lots(f"windows {span.index}")
        whole = min(windows // (4 * REQUESTS), self.settings.batch_windows)
        if whole > 1 and rows > whole:  # what rows of one batch know of each other shows in such a batch only
            window = span.first + int(lots.integers(1, rows - whole + 1))
            yield next(self._windows.batches(window, window + whole, whole))
        left = windows // 2 - REQUESTS * whole
        probes = min(max(left // REQUESTS, 1), max(self.settings.cuts // 2, 1))
        size = max(min(left // (REQUESTS * probes), self.settings.batch_windows), 1)
        chosen = [span.first, *(span.first + lots.integers(rows, size=probes - 1))]
        if self._ledger is not None:
            chosen[2::3] = self._known_windows(span, len(chosen[2::3]), lots)
        for window in chosen:
            yield next(self._windows.batches(int(window), min(int(window) + size, span.stop), size))

    def _known_windows(self, span: Span, count: int, lots: np.random.Generator) -> list[int]:
        """Windows whose logits the ledger has kept, anywhere in the span."""
        assert self._ledger is not None
        targets = self._ledger.row_targets
        targets = targets[(targets >= span.lo) & (targets < span.hi)]
        if not len(targets):
            return [span.first] * count
        picked = lots.choice(targets, count)
        windows = self._windows
        return [0 if t < windows.context else 1 + (int(t) - windows.context) // windows.stride for t in picked]

    def _probe(self, batch: Batch) -> None:
        """Ask about one batch: itself twice, and with other futures, in an order that tells nothing."""
        lots = self.settings.lots(f"probe {self.updates} {batch.first}")
        tokens_N, first = self._read(batch), self._windows.start(batch.first)
        requests = [tokens_N, tokens_N]
        others: list[tuple[Kind, int]] = []
        future: tuple[Kind, Kind] = ("text", "noise")
        for kind in ("swap", future[int(lots.integers(2))]):
            cut = self._cut(tokens_N, first, batch, lots)
            if cut is not None:
                others.append((kind, cut))
                requests.append(other_future(tokens_N, cut - first, kind, self._donor_M, lots))
        answers: dict[int, Tensor] = {}
        for index in lots.permutation(len(requests)):
            answers[int(index)] = self._ask(self._inputs(requests[index], batch), batch.scored)
        self.again.compare(answers[0], answers[1], self.settings.tolerance, target=batch.lo)
        allowed = max(self.settings.tolerance, 2 * self.again.most if self.settings.tolerance else 0.0)
        for index, (kind, cut) in enumerate(others, start=2):
            worst = self.swap if kind == "swap" else self.future
            earlier = slice(0, cut - batch.lo)
            worst.compare(answers[index][earlier], answers[0][earlier], allowed, target=batch.lo, cut=cut, kind=kind)
            self.cuts[kind] += 1
        self._replay(batch, answers[0], own=False)
        self._weigh(batch, answers[0])

    def _cut(self, tokens_N: np.ndarray, first: int, batch: Batch, lots: np.random.Generator) -> int | None:
        """A stream position behind at least one scored position of the batch.

        Half of them start a document or, in a batch of several windows, are the last target of one, which only the
        other windows show.
        """
        lo, hi = batch.lo + 1, first + len(tokens_N)
        if lo >= hi:
            return None
        starts = first + np.flatnonzero(tokens_N == self._stream.read(0, 1)[0])
        ends = first + batch.length + self._windows.stride * np.arange(batch.stop - batch.first - 1)
        for places in (starts[starts >= lo], ends):
            if len(places) and lots.integers(2):
                return int(lots.choice(places))
        return int(lots.integers(lo, hi))

    def _ask(self, inputs_BT: Tensor, scored: int) -> Tensor:
        """What the scorer says of each target: logits_KV, or prices_KV where prices are all there is; checked."""
        scorer, rows = self.scorer, len(inputs_BT) * scored
        self._meter.forward_tokens += inputs_BT.numel()
        with watch_training() as seen:
            if scorer.normalised:
                wanted = (len(inputs_BT), scored, scorer.vocab)
                answer = scorer.score(inputs_BT.clone(), scored)
            else:
                wanted = (rows, scorer.vocab)
                answer = scorer.price(inputs_BT.clone(), scored, torch.arange(scorer.vocab).repeat(rows, 1))
        self.trained_while_scoring += seen.gradients + seen.steps
        if not isinstance(answer, Tensor) or tuple(answer.shape) != wanted:
            came = list(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise BadAnswer(f"a scorer was asked for numbers {list(wanted)} and gave {came}")
        if not answer.isfinite().all():
            raise BadAnswer("a scorer was asked for finite numbers and gave others")
        return answer.detach().float().cpu().reshape(rows, scorer.vocab)

    def _weigh(self, batch: Batch, answer_KV: Tensor) -> None:
        """The mass of what the referee does not normalise."""
        if not self.scorer.normalised:
            sums_K = answer_KV.double().neg().exp().sum(1)
        elif self.scorer.log_probabilities:
            sums_K = answer_KV.double().exp().sum(1)
        else:
            return
        self.mass.enter(sums_K, batch.lo)

    def _replay(self, batch: Batch, answer_KV: Tensor, own: bool) -> None:
        """Compare an answer with what the ledger has of it. `own`: the batch is evaluate's own, to the bit."""
        if self._ledger is None:
            return
        lo, head = batch.lo, self._ledger.head_N2
        exact = own and self.settings.exact_replay and not (self.updates and self.settings.evaluate_ranks > 1)
        if self.updates > 1 and not (self.settings.exact_replay and self.settings.evaluate_ranks == 1):
            return  # training that is not the same to the bit drifts away
        worst, allowed = (self.exact, 0.0) if exact else (self.replay, self.settings.tolerance_replay_nats)
        known = slice(lo, max(min(batch.hi, len(head)), lo))
        if known.start < known.stop:
            targets_K = torch.from_numpy(self._stream.read(known.start + 1, known.stop + 1))
            worst.compare(self._prices(answer_KV, targets_K), torch.from_numpy(head[known, :1]), allowed, target=lo)
        if not self.scorer.normalised:
            return  # the rows that are kept are the network's, and do not explain the price
        for row in np.flatnonzero((self._ledger.row_targets >= lo) & (self._ledger.row_targets < batch.hi)):
            kept_1V = torch.from_numpy(np.array(self._ledger.rows_NV[row : row + 1], dtype=np.float32))
            at = int(self._ledger.row_targets[row]) - lo
            worst.compare(answer_KV[at : at + 1], kept_1V, allowed, target=lo + at)

    def _prices(self, answer_KV: Tensor, targets_K: Tensor) -> Tensor:
        """nll [K, 1] of the first targets of an answer."""
        answer_KV = answer_KV[: len(targets_K)]
        if self.scorer.normalised:
            return priced(answer_KV, targets_K)[0][:, None]
        return answer_KV.gather(1, targets_K[:, None])

    def _in_head(self, batch: Batch) -> bool:
        return self._ledger is not None and batch.hi <= len(self._ledger.head_N2)

    def _read(self, batch: Batch) -> np.ndarray:
        """The inputs of a batch, as one stretch of the stream."""
        windows = self._windows
        return self._stream.read(windows.start(batch.first), windows.start(batch.stop - 1) + batch.length)

    def _inputs(self, tokens_N: np.ndarray, batch: Batch) -> Tensor:
        return torch.from_numpy(sliding_window_view(tokens_N, batch.length)[:: self._windows.stride].copy())
