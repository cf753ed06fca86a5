"""The referee owns the validation tokens; a scorer sees of them only what the rules let it see, when they let it.

The rules are the challenge's: C1 causal, C2 normalised, C3 score before update, C4 one pass, E1 the whole split.
What holds here by construction, span by span (a span is the unit of adaptation; a stateless scorer has no use for it):

    open_span()     the next span, in stream order; refused while the one before is open
    take()          the inputs of the next windows, as fresh copies: a scorer cannot change what it is judged on
    commit(...)     logits of consecutive targets, in blocks of any size; checked, normalised and priced here (C2)
    close_span()    refused until every target of the span is priced once (E1, C4); then, and never before, it reveals
                    the chunk's tokens for training (C3)

Causality inside a span cannot hold by construction, since teacher forcing needs the inputs; it is tested elsewhere.
Under torch.distributed each rank has a referee for its share of a span's windows, and close_span waits for all of them.
This stops mistakes at full speed; it does not stop a scorer that goes looking for the tokens inside this process.

Letters: B windows, T inputs of a window, K targets of a block, V vocabulary, N targets of a span.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from model.ledger import Account, Event, Ledger
from model.stream import TokenStream
from model.windows import Batch, Span, Windows, share

# Without adaptation spans only bound the memory of bookkeeping; nothing that is scored depends on their length.
STATELESS_SPAN_TARGETS = 1 << 20
_BLOCK_ELEMENTS = 1 << 21  # logits normalised at a time: 8 MiB of fp32 stay in a CPU's cache
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class RuleBroken(ValueError):
    """A scorer asked for, or did, what a rule forbids. The text names the rule, what came, and what to do."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule


@dataclass(frozen=True)
class Handout:
    """Inputs of one batch of windows; the last `scored` positions of every row are to be scored.

    In row order these are the consecutive targets `lo` .. `hi` - 1: logits_BSV.flatten(0, 1) is what commit expects.
    """

    inputs_BT: Tensor
    scored: int
    lo: int
    hi: int


@dataclass(frozen=True)
class Revealed:
    """The tokens of a scored chunk: input i is tokens[i] and its target tokens[i + 1]."""

    index: int
    tokens: Tensor  # int64 [chunk targets + 1]


class Referee:
    """Judges one pass over one stream. `chunk` is the targets per unit of adaptation, 0 for a stateless scorer."""

    def __init__(
        self,
        stream: TokenStream,
        windows: Windows,
        ledger: Ledger,
        *,
        vocab: int,
        batch_windows: int = 32,
        chunk: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if windows.targets >= len(stream):
            raise ValueError(f"a stream of {len(stream)} tokens has one target less; asked for {windows.targets}")
        self.windows = windows
        self.ledger = ledger
        self.broken: list[dict[str, str]] = []  # rules that this pass breaks by request, and why
        self.forward_tokens = 0  # inputs handed out in closed spans, by all ranks
        self._stream, self._vocab, self._batch_windows = stream, vocab, batch_windows
        self._rank, self._world = rank, world
        self._spans = windows.spans(chunk or min(STATELESS_SPAN_TARGETS, windows.targets))
        self._span: Span | None = None
        self._batches: Iterator[Batch] = iter(())
        self._handed: deque[Batch] = deque()  # handed out and not yet fully priced, oldest first
        self._done = 0  # targets of the oldest one that are priced
        self._unnormalised = False  # whether prices may come from what is no distribution
        if windows.rescored_tail:
            self._break("C4", f"the last {windows.stride} targets are scored again in truncated windows, as published")

    @property
    def finished(self) -> bool:
        """Whether every span is scored and closed."""
        return self._span is None and self.ledger.account.targets == self.windows.targets

    def open_span(self) -> Span | None:
        """Begin the next span; None when the stream is done."""
        if self._span is not None:
            raise RuleBroken("C3", f"span {self._span.index} is still open; close it before the next one")
        self._span = next(self._spans, None)
        if self._span is None:
            return None
        first, stop = share(self._span.first, self._span.stop, self._rank, self._world)
        self._batches = self._in_order(first, stop, self._span.hi == self.windows.targets)
        self._prices_3N = np.zeros((3, self._span.hi - self._span.lo), dtype=np.float32)  # nll, log Z, times priced
        self._again_3 = np.zeros(3)  # nats, targets, bytes of re-scored targets
        self._inputs = 0
        return self._span

    def take(self) -> Handout | None:
        """Fresh copies of the inputs of the next windows; None when this rank has all of its share of the span."""
        if self._span is None:
            raise RuleBroken("C1", "inputs are handed out inside an open span only; open the next span first")
        batch = next(self._batches, None)
        if batch is None:
            return None
        stride = self.windows.stride
        begin = self.windows.start(batch.first)
        tokens = self._stream.read(begin, self.windows.start(batch.stop - 1) + batch.length)
        inputs = sliding_window_view(tokens, batch.length)[::stride].copy()
        self._handed.append(batch)
        self._inputs += inputs.size
        return Handout(torch.from_numpy(inputs), batch.scored, batch.lo, batch.hi)

    def commit(self, lo: int, logits_KV: Tensor) -> None:
        """Price targets lo .. lo + K - 1 with these logits: final, and each target once.

        `logits_KV` may be any block of the oldest handout that is not fully priced, in order, on any device.
        """
        batch, targets_K = self._open_block(lo, logits_KV)
        rows = max(1, _BLOCK_ELEMENTS // self._vocab)
        blocks = zip(logits_KV.split(rows), targets_K.split(rows), strict=True)
        self._price_block(batch, lo, logits_KV, torch.cat([priced(*block) for block in blocks], dim=1))

    def commit_unnormalised(self, lo: int, logits_KV: Tensor, price: Callable[[Tensor], Tensor]) -> None:
        """Price targets lo .. lo + K - 1 at what `price` asks for them: targets_K, on the logits' device -> nats [K].

        No distribution stands behind such a price, so this is refused without `permit_unnormalised`. The ledger keeps
        log Z = 0, since nothing is divided by a sum, and the rows of `logits_KV`, which do not explain the price.
        """
        if not self._unnormalised:
            raise RuleBroken("C2", "a price comes from a whole distribution; commit logits, or permit_unnormalised()")
        batch, targets_K = self._open_block(lo, logits_KV)
        nll_K = price(targets_K.clone()).float()
        if nll_K.shape != targets_K.shape:
            raise RuleBroken("C2", f"each target has one price; got {list(nll_K.shape)} for {list(targets_K.shape)}")
        self._price_block(batch, lo, logits_KV, torch.stack((nll_K, torch.zeros_like(nll_K), nll_K.isfinite().float())))

    def _open_block(self, lo: int, logits_KV: Tensor) -> tuple[Batch, Tensor]:
        self._check_block(logits_KV)
        batch = self._check_order(lo, lo + logits_KV.shape[0])
        return batch, torch.from_numpy(self._stream.read(lo + 1, lo + logits_KV.shape[0] + 1)).to(logits_KV.device)

    def _price_block(self, batch: Batch, lo: int, logits_KV: Tensor, prices_3K: Tensor) -> None:
        priced_3K = prices_3K.cpu().numpy()
        if not priced_3K[2].all():
            at = lo + int(priced_3K[2].argmin())
            raise RuleBroken("C2", f"logits are finite; those of target {at} are not; the model or its update diverged")
        if batch.first < self.windows.count:
            self._enter(lo, priced_3K, logits_KV)
        else:
            self._enter_again(lo, priced_3K[0])
        self._done += logits_KV.shape[0]
        if lo + logits_KV.shape[0] == batch.hi:
            self._handed.popleft()
            self._done = 0

    def close_span(self) -> Revealed:
        """Enter the span's prices into the ledger and reveal its chunk. All ranks call it; all fail together."""
        span = self._span
        if span is None:
            raise RuleBroken("C3", "tokens are revealed at the end of a scored span only; none is open")
        prices_3N = sum_over_ranks(self._prices_3N, self._world)
        missing_N = np.flatnonzero(prices_3N[2] != 1)
        if missing_N.size:
            raise RuleBroken(
                "C3",
                f"a span's tokens are revealed when each target of it is scored; target {span.lo + missing_N[0]} of "
                f"{span.lo} .. {span.hi - 1} is not; score all windows that take() hands out first",
            )
        again = sum_over_ranks(self._again_3, self._world)
        if span.hi == self.windows.targets and again[1] != sum(batch.scored for batch in self.windows.tail()):
            raise RuleBroken("E1", "the windows of the re-scored tail are not all scored; take() hands them out")
        tokens = self._stream.read(span.lo, span.hi + 1)
        self.ledger.add(prices_3N[0], prices_3N[1], tokens, self.windows.positions(np.arange(span.lo, span.hi)))
        self._share_rows(span)
        self.forward_tokens += int(sum_over_ranks(np.array([self._inputs]), self._world)[0])
        self.ledger.again += Account(float(again[0]), int(again[1]), int(again[2]))
        if span.hi == self.windows.targets:
            self.ledger.events += [Event("again", batch.lo, batch.hi) for batch in self.windows.tail()]
        self.ledger.events.append(Event("reveal", span.chunk.start, span.chunk.stop))
        self._span = None
        chunk = self._stream.read(span.chunk.start, span.chunk.stop + 1)
        return Revealed(span.index, torch.from_numpy(chunk))

    def exception(self, **broken: str) -> Tensor:
        """Hand over the whole stream, all tokens [N + 1]; the score carries for good the rules that this breaks.

        `broken`: each such rule with the reason, as C3="adapts on the whole validation set before it scores it".
        """
        for rule, why in broken.items():
            self._break(rule, why)
        self.ledger.events.append(Event("expose", 0, self.windows.targets))
        return torch.from_numpy(self._stream.read(0, self.windows.targets + 1))

    def permit_unnormalised(self, why: str) -> None:
        """Let prices come from what is no distribution; the score carries rule C2 for good."""
        self._unnormalised = True
        self._break("C2", why)

    def _break(self, rule: str, why: str) -> None:
        self.broken.append({"rule": rule, "why": why})

    def _in_order(self, first: int, stop: int, last_span: bool) -> Iterator[Batch]:
        yield from self.windows.batches(first, stop, self._batch_windows)
        if last_span and self._rank == self._world - 1:
            yield from self.windows.tail()

    def _check_block(self, logits_KV: Tensor) -> None:
        if type(logits_KV) is not Tensor or logits_KV.layout != torch.strided or logits_KV.requires_grad:
            raise RuleBroken(
                "C2",
                f"a block is a plain tensor without gradient; got {type(logits_KV).__name__}; score under "
                "torch.inference_mode()",
            )
        if logits_KV.ndim != 2 or logits_KV.shape[0] == 0 or logits_KV.shape[1] != self._vocab:
            raise RuleBroken(
                "C2",
                f"a block has a logit for each of the {self._vocab} tokens, [targets, {self._vocab}]; got "
                f"{list(logits_KV.shape)}",
            )
        if logits_KV.dtype not in _FLOATS:
            raise RuleBroken("C2", f"logits are floats; got {logits_KV.dtype}")

    def _check_order(self, lo: int, hi: int) -> Batch:
        if self._span is None:
            raise RuleBroken("C4", "targets are scored inside an open span only; its windows come from take()")
        if not self._handed:
            raise RuleBroken(
                "C4", f"target {lo} is not open: no inputs handed out are left to score; take() comes first"
            )
        batch = self._handed[0]
        expected = batch.lo + self._done
        if lo < expected:
            raise RuleBroken("C4", f"a target is scored once, in order; {lo} came where {expected} was next")
        if lo > expected:
            raise RuleBroken("E1", f"no target is skipped; {lo} came where {expected} was next")
        if hi > batch.hi:
            raise RuleBroken("C4", f"a block ends with its handout, at target {batch.hi}; this one goes on to {hi}")
        return batch

    def _enter(self, lo: int, priced_3K: np.ndarray, logits_KV: Tensor) -> None:
        assert self._span is not None
        here = slice(lo - self._span.lo, lo - self._span.lo + priced_3K.shape[1])
        self._prices_3N[:2, here] = priced_3K[:2]
        self._prices_3N[2, here] += 1
        for target in self._sampled(lo, lo + priced_3K.shape[1]):
            self.ledger.rows[target] = logits_KV[target - lo].float().cpu().numpy().copy()

    def _enter_again(self, lo: int, nll_K: np.ndarray) -> None:
        tokens = self._stream.read(lo, lo + nll_K.size + 1)
        text_bytes = self.ledger.table.target_bytes(tokens[:-1], tokens[1:]).sum()
        self._again_3 += nll_K.sum(dtype=np.float64), nll_K.size, text_bytes

    def _sampled(self, lo: int, hi: int) -> list[int]:
        rows = self.ledger.row_targets
        return rows[np.searchsorted(rows, lo) : np.searchsorted(rows, hi)].tolist()

    def _share_rows(self, span: Span) -> None:
        """Every rank gets the sampled rows of the span, so that all ledgers are equal."""
        targets = self._sampled(span.lo, span.hi)
        if self._world == 1 or not targets:
            return
        nothing = np.zeros(self._vocab, dtype=np.float32)
        own = np.stack([self.ledger.rows.get(target, nothing) for target in targets])
        self.ledger.rows.update(zip(targets, sum_over_ranks(own, self._world), strict=True))


def priced(logits_KV: Tensor, targets_K: Tensor) -> Tensor:
    """nll, log Z and whether all logits are finite, as fp32 [3, K].

    The maximum is subtracted before anything is summed: log Z minus the target's logit would round a common offset of
    1e8 into a free ride.
    """
    logits_KV = logits_KV.detach().float()
    logp_KV = torch.log_softmax(logits_KV, dim=-1)
    nll_K = 0.0 - logp_KV.gather(1, targets_K[:, None])[:, 0]  # a negation would make -0.0, another bit pattern
    log_z_K = logits_KV.gather(1, targets_K[:, None])[:, 0] + nll_K
    return torch.stack((nll_K, log_z_K, logits_KV.isfinite().all(dim=1).float()))


def sum_over_ranks(values: np.ndarray, world: int) -> np.ndarray:
    """Sum an array over all ranks. Each entry has one owner and zeros elsewhere, so nothing is rounded."""
    if world == 1:
        return values
    shared = torch.from_numpy(values.copy())
    dist.all_reduce(shared)
    return shared.numpy()
