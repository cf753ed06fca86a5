"""T10 tells a sound byte table from each known way of counting wrong, by name."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from model.bytes import ByteTable
from stages.audit.byte_table import check_byte_table, check_counted_bytes, check_documents, check_pieces

TEXT = [
    "the quick brown fox jumps over the lazy dog and then sleeps",
    "a second sentence about foxes and other animals of the wood",
    "numbers such as 1 2 3 and words with capitals, Of Course",
] * 20


def train(**options: object) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT),
        model_writer=model,
        **{
            "model_type": "bpe",
            "vocab_size": 340,
            "byte_fallback": True,
            "add_dummy_prefix": False,
            "hard_vocab_limit": False,
            "pad_id": 0,
            "bos_id": 1,
            "eos_id": 2,
            "unk_id": 3,
            "minloglevel": 2,
            "normalization_rule_name": "nmt_nfkc",
            **options,
        },
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.fixture(scope="module")
def tokenizer() -> sentencepiece.SentencePieceProcessor:
    return train()


def table_of(tokenizer: sentencepiece.SentencePieceProcessor, folder: Path) -> ByteTable:
    (folder / "t.model").write_bytes(tokenizer.serialized_model_proto())
    return ByteTable.from_sentencepiece(folder / "t.model")


def cheat(
    tokenizer: sentencepiece.SentencePieceProcessor, sound: ByteTable, wrong: Callable[[int], int | None]
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A table that counts what `wrong` says for an id, and what is right where it says nothing."""

    def count(previous: np.ndarray, targets: np.ndarray) -> np.ndarray:
        bytes_ = sound.target_bytes(previous, targets)
        for i, target in enumerate(targets.tolist()):
            if (other := wrong(target)) is not None:
                bytes_[i] = other
        return bytes_

    return count


def test_the_reference_table_passes(tokenizer, tmp_path):
    findings = check_byte_table(tokenizer, table_of(tokenizer, tmp_path).target_bytes)
    assert {f.verdict for f in findings} == {"pass"}
    assert {(f.rule, f.detector) for f in findings} == {("E2", "T10")}


@pytest.mark.parametrize(
    ("wrong", "called"),
    [
        (
            lambda t, i: len(t.id_to_piece(i).encode()) - 1 if t.id_to_piece(i).startswith("▁") else None,
            "space counted",
        ),
        (lambda t, i: 3 if t.is_byte(i) else None, "U+FFFD"),
        (lambda t, i: 6 if t.is_byte(i) else None, "name of their piece"),
        (lambda t, i: 3 if t.is_control(i) else None, "control pieces"),
        (lambda t, i: 5 if t.id_to_piece(i) == "fox" or t.id_to_piece(i) == "▁fox" else None, "pieces counted wrongly"),
    ],
)
def test_each_known_mistake_is_named(tokenizer, tmp_path, wrong, called):
    sound = table_of(tokenizer, tmp_path)
    finding = check_pieces(tokenizer, cheat(tokenizer, sound, lambda i: wrong(tokenizer, i)))
    assert finding.verdict == "fail"
    assert called in finding.says


def test_a_space_counted_twice_is_caught_in_pieces_probes_and_documents(tokenizer, tmp_path):
    sound = table_of(tokenizer, tmp_path)

    def double(previous: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return sound.target_bytes(previous, targets) + sound.leading_space[targets]

    failed = [f for f in check_byte_table(tokenizer, double) if f.verdict == "fail"]
    assert len(failed) == 2
    assert "space counted twice" in failed[0].says
    documents = [tokenizer.encode(line) for line in TEXT[:3]]
    assert check_documents(tokenizer, documents, double).verdict == "fail"
    assert check_documents(tokenizer, documents, sound.target_bytes).verdict == "pass"


def without_space_piece() -> sentencepiece.SentencePieceProcessor:
    """The same pieces, but ▁ renamed to something that no text has."""
    raw = train().serialized_model_proto()
    # A piece is stored as field 1, length 3, its three bytes; U+2603 is a snowman, as long as ▁.
    standalone = b"\x0a\x03" + "▁".encode()
    assert raw.count(standalone) == 1
    return sentencepiece.SentencePieceProcessor(model_proto=raw.replace(standalone, b"\x0a\x03" + "☃".encode()))


def test_a_tokenizer_without_a_piece_for_the_space_fails(tmp_path):
    tokenizer = without_space_piece()
    findings = check_byte_table(tokenizer, table_of(tokenizer, tmp_path).target_bytes)
    assert any(f.verdict == "fail" and "a lone space becomes 3 bytes" in f.says for f in findings)


def test_a_tokenizer_that_drops_case_is_an_open_question(tmp_path):
    tokenizer = train(normalization_rule_name="nmt_nfkc_cf")
    findings = check_byte_table(tokenizer, table_of(tokenizer, tmp_path).target_bytes)
    assert [f.evidence["ruling"] for f in findings if f.verdict == "unknown"] == ["casefold"]


def test_the_bytes_of_a_score_are_counted_again(tokenizer, tmp_path):
    sound = table_of(tokenizer, tmp_path)
    tokens = np.array([i for line in TEXT for i in [1, *tokenizer.encode(line)]])
    targets = len(tokens) - 5
    right = int(sound.target_bytes(tokens[:targets], tokens[1 : targets + 1]).sum())
    assert check_counted_bytes(tokenizer, tokens, targets, right).verdict == "pass"
    finding = check_counted_bytes(tokenizer, tokens, targets, right + 100)
    assert finding.verdict == "fail"
    assert finding.evidence["bytes"] == right


def test_the_published_tokenizer_passes(shared_data: Path):
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(shared_data / "tokenizers/fineweb_1024_bpe.model"))
    table = ByteTable.from_sentencepiece(shared_data / "tokenizers/fineweb_1024_bpe.model")
    assert {f.verdict for f in check_byte_table(tokenizer, table.target_bytes)} == {"pass"}
