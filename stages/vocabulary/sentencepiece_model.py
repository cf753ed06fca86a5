"""SentencePiece models: training one with the challenge's options, importing one that exists."""

from __future__ import annotations

import io
from collections.abc import Iterator

import sentencepiece

from stages.contract import StageError


def train(sentences: Iterator[str], size: int, character_coverage: float) -> bytes:
    """A BPE model of exactly `size` pieces; the same sentences give the same bytes. Raises StageError."""
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences,  # not files: the model records the names of its input files
            model_writer=model,
            model_type="bpe",
            vocab_size=size,
            character_coverage=character_coverage,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="nmt_nfkc",
            add_dummy_prefix=False,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            hard_vocab_limit=False,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise StageError(
            f"a vocabulary of {size} pieces needs enough text; training says: {error}; use more documents, or a "
            f"vocabulary.size that fits"
        ) from error
    raw = model.getvalue()
    got = load(raw, "the trained model").vocab_size()
    if got != size:
        raise StageError(
            f"a vocabulary of {size} pieces needs enough text; this corpus gives {got}; use more documents, or set "
            f"vocabulary.size to {got} or less"
        )
    return raw


def load(raw: bytes, name: str) -> sentencepiece.SentencePieceProcessor:
    """The model in `raw`. Raises StageError that calls it `name`."""
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=raw)
    except RuntimeError as error:
        raise StageError(f"a tokenizer is a SentencePiece .model file; {name} does not load: {error}") from error


def verify_import(raw: bytes, name: str, size: int) -> None:
    """Refuse a model of another size, or one without the BOS that starts every document. Raises StageError."""
    pieces = load(raw, name)
    if pieces.vocab_size() != size:
        raise StageError(
            f"vocabulary.size is the imported model's number of pieces; {name} has {pieces.vocab_size()}, the recipe "
            f"says {size}; set vocabulary.size to {pieces.vocab_size()} or import another model"
        )
    if pieces.bos_id() < 0:
        raise StageError(f"every document starts with BOS; {name} has no BOS piece; import another model")
