"""Exact n-gram counts of the tokens scored so far, and the distribution over the next token that they give.

No hashing: a k-gram is a node, named exactly by the node of its first k - 1 tokens and its last token. So one rule
serves every vocabulary and order, what follows a context is one stretch of a sorted array, and no two n-grams share a
count.

Contexts of every length are interpolated. With T the count of a context, U its distinct successors, c(w) the count of
successor w, and q the distribution after the context without its oldest token:

    p(w) = (max(c(w) - discount, 0) + (discount + escape) * U * q(w)) / (T + escape * U)

which sums to 1 for every discount and escape. discount = 0, escape = 1 is PPM's method C (Moffat 1990) without
exclusion, that is Witten-Bell; escape = 0 is absolute discounting (Ney, Essen, Kneser 1994).

Letters: B windows, T inputs of a window, S scored positions, K positions, N new tokens, M entries, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_MERGE_BELOW = 4  # a run joins the one before it unless that is this many times longer: few runs, few copies
_BLOCK_ROWS = 2048  # distributions built at a time: what bounds the memory of successors laid side by side


@dataclass(frozen=True)
class Run:
    """Distinct k-grams, sorted by key = parent node * V + last token."""

    keys_M: Tensor  # int64
    nodes_M: Tensor  # int32
    counts_M: Tensor  # int32, raised in place

    def at(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Where each key is, and whether it is there at all."""
        index = torch.searchsorted(self.keys_M, keys).clamp_(max=len(self.keys_M) - 1)
        return index, self.keys_M[index] == keys


class Column:
    """An int32 per node that grows by doubling; new entries are 0."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._data, self._size = torch.zeros(size, dtype=torch.int32, device=device), size

    @property
    def values(self) -> Tensor:
        """A view of the entries in use."""
        return self._data[: self._size]

    def grow(self, size: int) -> None:
        """Make room for `size` entries."""
        if size > len(self._data):
            larger = torch.zeros(max(size, 2 * len(self._data)), dtype=torch.int32, device=self._data.device)
            larger[: self._size] = self.values
            self._data = larger
        self._size = size

    def add(self, index: Tensor, amount: Tensor) -> None:
        """Add to entries; integers, so in any order."""
        self.values.index_add_(0, index, amount.to(torch.int32))


class Level:
    """The distinct k-grams of one k, in runs without common keys, and the sums over each context's successors."""

    def __init__(self, vocab: int, parents: int, device: torch.device) -> None:
        self.nodes = 0
        self.runs: list[Run] = []
        self.totals, self.successors = Column(parents, device), Column(parents, device)
        self._vocab = vocab

    def find(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """The nodes of these k-grams; -1 for one that was never counted, or whose parent is -1."""
        keys = parents * self._vocab + tokens  # a parent of -1 makes a key below 0, and there is none
        found = torch.full_like(keys, -1)
        for run in self.runs:
            index, there = run.at(keys)
            found = torch.where(there, run.nodes_M[index].long(), found)
        return found

    def add(self, parents_N: Tensor, tokens_N: Tensor, parents: int) -> Tensor:
        """Count N k-grams whose contexts are nodes below `parents`; returns their nodes."""
        keys, inverse_N, counts = torch.unique(
            parents_N * self._vocab + tokens_N, return_inverse=True, return_counts=True
        )
        self.totals.grow(parents)
        self.successors.grow(parents)
        self.totals.add(parents_N, torch.ones_like(parents_N))
        nodes = torch.full_like(keys, -1)
        for run in self.runs:
            index, there = run.at(keys)
            run.counts_M[index[there]] += counts[there].to(torch.int32)
            nodes = torch.where(there, run.nodes_M[index].long(), nodes)
        new = nodes < 0
        nodes[new] = self.nodes + torch.arange(int(new.sum()), device=keys.device)
        self._append(Run(keys[new], nodes[new].to(torch.int32), counts[new].to(torch.int32)))
        return nodes[inverse_N]

    def _append(self, run: Run) -> None:
        if not len(run.keys_M):
            return
        self.nodes += len(run.keys_M)
        parents = run.keys_M // self._vocab
        self.successors.add(parents, torch.ones_like(parents))
        self.runs.append(run)
        while len(self.runs) > 1 and _MERGE_BELOW * len(self.runs[-1].keys_M) > len(self.runs[-2].keys_M):
            short, long = self.runs.pop(), self.runs.pop()
            self.runs.append(_merged(long, short))

    def spread(self, into_KV: Tensor, node_K: Tensor, weight_K: Tensor, discount: float) -> None:
        """Add weight * (count - discount) of every successor of each row's context to that row."""
        for run in self.runs:
            begin_K = torch.searchsorted(run.keys_M, node_K * self._vocab)
            length_K = torch.searchsorted(run.keys_M, (node_K + 1) * self._vocab) - begin_K
            row_M = torch.repeat_interleave(length_K)
            if not len(row_M):
                continue
            skipped_K = begin_K - (length_K.cumsum(0) - length_K)
            entry_M = torch.arange(len(row_M), device=row_M.device) + skipped_K[row_M]
            cell_M = run.keys_M[entry_M] + (row_M - node_K[row_M]) * self._vocab
            amount_M = (run.counts_M[entry_M].float() - discount) * weight_K[row_M]
            # No cell comes twice, so the sum does not depend on the order in which a GPU adds.
            into_KV.view(-1).index_add_(0, cell_M, amount_M)


def _merged(left: Run, right: Run) -> Run:
    """Both runs as one; they have no key in common."""
    keys, order = torch.cat((left.keys_M, right.keys_M)).sort()
    nodes, counts = (
        torch.cat(pair)[order] for pair in ((left.nodes_M, right.nodes_M), (left.counts_M, right.counts_M))
    )
    return Run(keys, nodes, counts)


class NGrams:
    """Counts of all n-grams up to `max_order` tokens, across chunk borders, and their interpolated distribution."""

    def __init__(
        self, vocab: int, max_order: int, device: torch.device, *, discount: float = 0.75, escape: float = 0.0
    ) -> None:
        if max_order < 2:
            raise ValueError(f"an n-gram has a context, so its order is 2 or more; got {max_order}; raise max_order")
        if not (0 <= discount < 1 and escape >= 0 and discount + escape > 0):
            raise ValueError(f"some mass is left to shorter contexts; got discount {discount}, escape {escape}")
        self.tokens = 0  # counted
        self._vocab, self._device = vocab, device
        self._discount, self._escape = discount, escape
        self._unigrams_V = torch.zeros(vocab, dtype=torch.int64, device=device)
        self._levels = [Level(vocab, vocab if order == 2 else 0, device) for order in range(2, max_order + 1)]
        # Nodes of the 1-, 2-, ... (max_order - 1)-grams that end at the last counted token; empty while too short.
        self._last = [torch.zeros(0, dtype=torch.int64, device=device) for _ in self._levels]
        self._after_token_VV = torch.zeros(0, device=device)  # laid out by update, so that scoring changes nothing

    @property
    def entries(self) -> int:
        """Distinct n-grams of all orders from 2 on."""
        return sum(level.nodes for level in self._levels)

    @property
    def memory_bytes(self) -> int:
        """Bytes of the counts, room to grow left out."""
        runs = sum(16 * len(run.keys_M) for level in self._levels for run in level.runs)
        return runs + sum(8 * len(level.totals.values) for level in self._levels) + 8 * self._vocab

    def update(self, tokens_N: Tensor) -> None:
        """Count the next N tokens of the stream, each after the tokens before it."""
        tokens_N = tokens_N.to(self._device)
        if not len(tokens_N):
            return
        self.tokens += len(tokens_N)
        self._unigrams_V += torch.bincount(tokens_N, minlength=self._vocab)
        ending, parents = tokens_N, self._vocab  # a 1-gram's node is its token
        for i, level in enumerate(self._levels):
            before = torch.cat((self._last[i], ending))
            self._last[i] = before[-1:]
            # At the stream's start the first tokens have no context this long.
            ending = level.add(before[:-1], tokens_N[len(tokens_N) - len(before) + 1 :], parents)
            parents = level.nodes
        self._after_token_VV = self._after_token()

    def contexts(self, inputs_BT: Tensor, scored: int) -> list[Tensor]:
        """Nodes of the 1-, 2-, ... token contexts of the last S = `scored` positions, each [B * S]; -1 for none.

        A context ends with a position's own input, lies within its window and is no function of anything after it.
        """
        recent = inputs_BT[:, -(scored + len(self._levels) - 1) :].to(self._device)
        ending = recent
        nodes = [ending[:, -scored:].flatten()]
        for level in self._levels[:-1]:
            before = torch.cat((torch.full_like(ending[:, :1], -1), ending[:, :-1]), dim=1)
            ending = level.find(before, recent)
            nodes.append(ending[:, -scored:].flatten())
        return nodes

    def distribution(self, contexts: list[Tensor]) -> Tensor:
        """p_KV, fp32, after the contexts that `contexts` gives: every row sums to 1. Needs counted tokens."""
        blocks = zip(*(nodes.split(_BLOCK_ROWS) for nodes in contexts), strict=True)
        return torch.cat([self._interpolate(self._levels[1:], nodes[1:], nodes[0]) for nodes in blocks])

    def _interpolate(self, levels: list[Level], nodes: tuple[Tensor, ...], last_K: Tensor) -> Tensor:
        """Longer contexts than one token over the distribution after the last token."""
        weights, share_K = self._weights(levels, nodes)
        p_KV = self._after_token_VV[last_K] * share_K[:, None]
        for level, node_K, weight_K in zip(levels, nodes, weights, strict=True):
            level.spread(p_KV, node_K, weight_K, self._discount)
        return p_KV

    def _weights(self, levels: list[Level], nodes: tuple[Tensor, ...]) -> tuple[list[Tensor], Tensor]:
        """Per level the factor of its counts, and the share that is left to what is shorter."""
        share_K = torch.ones(len(nodes[0]) if nodes else 1, device=self._device)
        weights: list[Tensor] = []
        for level, node_K in zip(reversed(levels), reversed(nodes), strict=True):
            # A context that ended the counted stream is a node without successors yet.
            known_K = (node_K >= 0) & (node_K < len(level.totals.values))
            safe_K = torch.where(known_K, node_K, 0)
            empty = not len(level.totals.values)
            total_K = torch.zeros_like(share_K) if empty else level.totals.values[safe_K] * known_K
            distinct_K = torch.zeros_like(share_K) if empty else level.successors.values[safe_K] * known_K
            whole_K = total_K + self._escape * distinct_K
            seen_K = total_K > 0
            weights.append(torch.where(seen_K, share_K / whole_K.clamp(min=1e-9), 0.0))
            left_K = (self._discount + self._escape) * distinct_K / whole_K.clamp(min=1e-9)
            share_K = torch.where(seen_K, share_K * left_K, share_K)
        return weights[::-1], share_K

    def _after_token(self) -> Tensor:
        """p_VV after each single token: most of all successors, so it is laid out once per update."""
        counts_V = self._unigrams_V.double()
        total, distinct = counts_V.sum(), (counts_V > 0).sum()
        left = (self._discount + self._escape) * distinct / self._vocab
        unigram_V = ((counts_V - self._discount).clamp(min=0) + left) / (total + self._escape * distinct)
        token_V = torch.arange(self._vocab, device=self._device)
        weights, share_V = self._weights(self._levels[:1], (token_V,))
        p_VV = share_V[:, None] * unigram_V.float()
        self._levels[0].spread(p_VV, token_V, weights[0], self._discount)
        return p_VV
