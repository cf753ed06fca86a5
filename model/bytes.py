"""How many bytes of text a token stands for: the denominator of bits per byte, by the challenge's reference rule.

bytes(y after x) = base[y] + (leading_space[y] and not boundary[x])

- control, unknown and unused pieces: base 0, boundary (BOS as a target costs nats and counts no bytes);
- byte pieces <0x00> .. <0xFF>: base 1;
- any other piece: one leading "▁" is stripped into `leading_space`, base is the UTF-8 length of the rest, so a space
  counts 1 byte, except right after a boundary, where it is not part of the text;
- ids from the tokenizer's size up (padding rows of a network): base 0, boundary.

So the sum over a document is the UTF-8 length of its decoded text: text as the tokenizer normalised it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece

_SPACE = "▁"  # U+2581, how SentencePiece writes a space
_ROW = np.dtype([("base", "<i4"), ("leading_space", "?"), ("boundary", "?")])


@dataclass(frozen=True, eq=False)
class ByteTable:
    """Bytes by token id; every array has one entry per id, V of them."""

    base: np.ndarray
    """int32 [V]: bytes of the piece without its leading space."""
    leading_space: np.ndarray
    """bool [V]: the piece starts with a space, worth 1 byte unless the previous token is a boundary."""
    boundary: np.ndarray
    """bool [V]: no text: control, unknown, unused, or beyond the tokenizer."""

    @classmethod
    def from_sentencepiece(cls, path: Path, vocab: int = 0) -> ByteTable:
        """The table of a `.model` file, at least `vocab` ids long. Raises ValueError for a file that is no model."""
        try:
            pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"a tokenizer is a SentencePiece .model file; {path.name} does not load: {error}"
            ) from error
        size = pieces.vocab_size()
        rows = np.zeros(max(size, vocab), dtype=_ROW)
        rows["boundary"] = True
        for i in range(size):
            if pieces.is_control(i) or pieces.is_unknown(i) or pieces.is_unused(i):
                continue
            piece = pieces.id_to_piece(i)
            text = piece.removeprefix(_SPACE)
            base = 1 if pieces.is_byte(i) else len(text.encode())
            rows[i] = (base, not pieces.is_byte(i) and text != piece, False)
        return cls._from_rows(rows)

    @classmethod
    def load(cls, path: Path) -> ByteTable:
        """Read what `save` wrote. Raises ValueError for any other file."""
        try:
            rows = np.load(path, allow_pickle=False)
        except (EOFError, ValueError) as error:
            raise ValueError(f"{path.name} is no byte table: {error}; run `vocabulary` again") from error
        if rows.dtype != _ROW or rows.ndim != 1:
            raise ValueError(
                f"a byte table holds rows of {_ROW}; {path.name} holds {rows.dtype}; run `vocabulary` again"
            )
        return cls._from_rows(rows)

    @classmethod
    def _from_rows(cls, rows: np.ndarray) -> ByteTable:
        return cls(*(np.ascontiguousarray(rows[name]) for name in ("base", "leading_space", "boundary")))

    def save(self, path: Path) -> None:
        """Write the table as a NumPy file; equal tables give equal bytes."""
        rows = np.empty(self.vocab, dtype=_ROW)
        rows["base"], rows["leading_space"], rows["boundary"] = self.base, self.leading_space, self.boundary
        with path.open("wb") as file:
            np.save(file, rows, allow_pickle=False)

    @property
    def vocab(self) -> int:
        """Number of ids, V."""
        return len(self.base)

    def target_bytes(self, previous_ids: np.ndarray, target_ids: np.ndarray) -> np.ndarray:
        """Bytes of each target, int64, shaped as `target_ids`: integer ids, each beside the id before it in the stream.

        Raises ValueError for shapes that differ and for ids outside the table.
        """
        if previous_ids.shape != target_ids.shape:
            raise ValueError(f"every target has a previous token; got {previous_ids.shape} and {target_ids.shape}")
        for ids in (previous_ids, target_ids):
            if ids.size and not 0 <= ids.min() <= ids.max() < self.vocab:
                raise ValueError(f"the byte table has ids 0 .. {self.vocab - 1}; got {ids.min()} .. {ids.max()}")
        space = self.leading_space[target_ids] & ~self.boundary[previous_ids]
        return self.base[target_ids].astype(np.int64) + space
