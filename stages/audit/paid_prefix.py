"""T13: does the archive, or the code, hold text of the validation set?

Every layer is looked through: the file, what its sections decode to step by step, the tensors; of the code its long
literals, decoded. Val is looked for as text and as tokens of two bytes, low or high byte first. Both sides are cut into
runs of 32 bytes and compared by hash; of a long val a share of the runs is drawn by their hash, so that what is found
certainly is a stretch of a few times that share. Runs of few different bytes, which occur everywhere, don't count.

What it cannot see: text that was enciphered, or spread over the bits of weights. That val never reaches what makes the
archive is shown by lineage; this is the second lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import sentencepiece

from stages.audit.finding import Finding
from stages.audit.layers import Layer
from stages.shingles import Shingles, chosen

RUN_BYTES = 32
MAX_RUNS = 1 << 20  # of each form that are looked for
LEAST_DIFFERENT = 8  # bytes in a run, or it is filling
LEAST_BYTES = 256  # found in one layer, before it is more than an accident
_BLOCK = 1 << 20
_NOTHING = np.empty(0, dtype=np.uint64)


@dataclass(frozen=True)
class Needles:
    """Runs of val in one form: sorted hashes, one in `one_in` of all there are."""

    form: str
    hashes: np.ndarray
    one_in: int

    def count_in(self, hashes: np.ndarray) -> int:
        """About how many bytes lie in runs of val, of data whose runs have these hashes."""
        if not len(self.hashes):
            return 0
        wanted = chosen(hashes, self.one_in)
        at = np.minimum(np.searchsorted(self.hashes, wanted), len(self.hashes) - 1)
        return int((self.hashes[at] == wanted).sum()) * self.one_in


def val_needles(tokenizer: sentencepiece.SentencePieceProcessor, tokens: np.ndarray) -> list[Needles]:
    """Val as text and as tokens of two bytes."""
    pieces = [_piece_bytes(tokenizer, i) for i in range(tokenizer.vocab_size())]
    lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
    starts, joined = np.cumsum(lengths) - lengths, np.frombuffer(b"".join(pieces), dtype=np.uint8)

    def text() -> Iterator[np.ndarray]:
        for block in _blocks(tokens):
            ids = block.astype(np.int64)
            counts = lengths[ids]
            offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            yield joined[np.repeat(starts[ids], counts) + offsets]

    low_first = (block.astype("<u2").view(np.uint8) for block in _blocks(tokens))
    high_first = (block.astype(">u2").view(np.uint8) for block in _blocks(tokens))
    forms = {"text": text(), "tokens, low byte first": low_first, "tokens, high byte first": high_first}
    return [_needles(form, blocks) for form, blocks in forms.items()]


def _piece_bytes(tokenizer: sentencepiece.SentencePieceProcessor, i: int) -> bytes:
    if tokenizer.is_byte(i):
        return bytes([int(tokenizer.id_to_piece(i)[3:-1], 16)])
    if tokenizer.is_control(i) or tokenizer.is_unknown(i) or tokenizer.is_unused(i):
        return b""
    return tokenizer.id_to_piece(i).replace("▁", " ").encode()


def _needles(form: str, blocks: Iterable[np.ndarray]) -> Needles:
    """Drawn so that at most `MAX_RUNS` remain."""
    kept, one_in = _NOTHING, 1
    for block in blocks:
        for begin in range(0, len(block), _BLOCK):
            # A run over a border of blocks is missed, which is one of many.
            piece = block[begin : begin + _BLOCK]
            hashes = next(_runs(piece), _NOTHING)
            kept = np.concatenate([kept, chosen(hashes[_varied(piece)[: len(hashes)]], one_in)])
        while len(kept) > MAX_RUNS:
            one_in *= 2
            kept = chosen(kept, one_in)
    return Needles(form, np.unique(kept), one_in)


def _varied(data: np.ndarray) -> np.ndarray:
    """Which runs of `data` (uint8 [N]) have enough different bytes: judged by the changes from byte to byte."""
    if len(data) < RUN_BYTES:
        return np.zeros(0, dtype=bool)
    # A byte counts where it differs from those one, two and four places before: periods of filling don't count.
    new = np.ones(len(data), dtype=np.int32)
    for distance in (1, 2, 4):
        new[distance:] &= data[distance:] != data[:-distance]
    sums = np.concatenate([[0], np.cumsum(new)])
    return sums[RUN_BYTES:] - sums[:-RUN_BYTES] >= LEAST_DIFFERENT


def _runs(data: np.ndarray) -> Iterator[np.ndarray]:
    """Hashes of all runs of `data`, block by block."""
    shingles = Shingles(RUN_BYTES, -1, _BLOCK)
    for begin in range(0, len(data), _BLOCK):
        yield shingles.feed(data[begin : begin + _BLOCK].astype(np.uint16))


def _blocks(tokens: np.ndarray) -> Iterator[np.ndarray]:
    for begin in range(0, len(tokens), _BLOCK // 4):
        yield tokens[begin : begin + _BLOCK // 4]


def check_layers(needles: list[Needles], layers: Iterable[Layer]) -> Finding:
    """Look for val in every layer of what is submitted."""
    looked: dict[str, int] = {}
    found: list[dict[str, object]] = []
    for name, data in layers:
        looked[name] = len(data)
        counts = {needle.form: 0 for needle in needles}
        for hashes in _runs(np.frombuffer(data, dtype=np.uint8)):
            for needle in needles:
                counts[needle.form] += needle.count_in(hashes)
        found += [
            {"layer": name, "form": form, "bytes": count} for form, count in counts.items() if count >= LEAST_BYTES
        ]
    evidence = {
        "layers": len(looked),
        "bytes": sum(looked.values()),
        "forms": [needle.form for needle in needles],
        "one_in": {needle.form: needle.one_in for needle in needles},
        "found": found[:20],
    }
    if found:
        worst = max(found, key=lambda each: int(str(each["bytes"])))
        says = f"about {worst['bytes']:,} bytes of {worst['layer']} are validation {worst['form']}"
        return Finding(rule="E4", detector="T13", verdict="fail", says=says, evidence=evidence)
    says = f"no run of validation text or tokens in {len(looked)} layers, {sum(looked.values()):,} bytes"
    return Finding(rule="E4", detector="T13", verdict="pass", says=says, evidence=evidence)
