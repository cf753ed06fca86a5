"""The byte count of a target: every case of the reference rule, and its sum against decoded text."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from model.bytes import ByteTable
from model.shards import open_shard

BOS = 1


def load(path: Path) -> tuple[sentencepiece.SentencePieceProcessor, ByteTable]:
    return sentencepiece.SentencePieceProcessor(model_file=str(path)), ByteTable.from_sentencepiece(path)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tokenizer with the challenge's options, plus a control and a user-defined piece."""
    sentence = "Hello world, ello world. The quick brown fox jumps over 12 lazy dogs; H ell o w orld"
    lines = [sentence[i:] + " " + sentence[:i] for i in range(len(sentence))]
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=buffer,
        model_type="bpe",
        vocab_size=340,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="nmt_nfkc",
        add_dummy_prefix=False,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        control_symbols=["<tool>"],
        user_defined_symbols=["▁user"],
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("model") / "tokenizer.model"
    path.write_bytes(buffer.getvalue())
    return path


def count(table: ByteTable, ids: list[int]) -> int:
    stream = np.array(ids, dtype=np.uint16)
    return int(table.target_bytes(stream[:-1], stream[1:]).sum())


def test_each_kind_of_piece_counts_as_the_rule_says(model: Path):
    pieces, table = load(model)
    for name in ("<pad>", "<s>", "</s>", "<unk>", "<tool>"):
        i = pieces.piece_to_id(name)
        assert (table.base[i], table.leading_space[i], table.boundary[i]) == (0, False, True), name
    for value in range(256):
        i = pieces.piece_to_id(f"<0x{value:02X}>")
        assert pieces.is_byte(i)
        assert (table.base[i], table.leading_space[i], table.boundary[i]) == (1, False, False)
    for name, base, space in (("▁", 0, True), ("▁world", 5, True), ("ell", 3, False), ("▁user", 4, True)):
        i = pieces.piece_to_id(name)
        assert pieces.id_to_piece(i) == name
        assert (table.base[i], table.leading_space[i], table.boundary[i]) == (base, space, False), name


def test_unused_pieces_count_nothing(model: Path, tmp_path: Path):
    """A piece's type is field 3 of its message; 5 is UNUSED, and the piece "ell" is NORMAL, which is left out."""
    raw = model.read_bytes()
    at = raw.index(b"\x0a\x03ell\x15")  # field 1 (the piece), then field 2 (its score, 4 bytes)
    assert raw[at - 2] == 0x0A  # the enclosing message: field 1 of the model
    grown = bytes([raw[at - 1] + 2])
    unused = raw[: at - 1] + grown + raw[at : at + 10] + b"\x18\x05" + raw[at + 10 :]
    path = tmp_path / "unused.model"
    path.write_bytes(unused)
    pieces, table = load(path)
    i = pieces.piece_to_id("ell")
    assert pieces.is_unused(i)
    assert (table.base[i], table.leading_space[i], table.boundary[i]) == (0, False, True)


def test_rows_beyond_the_tokenizer_count_nothing(model: Path):
    plain = ByteTable.from_sentencepiece(model)
    padded = ByteTable.from_sentencepiece(model, vocab=plain.vocab + 5)
    assert padded.vocab == plain.vocab + 5
    assert not padded.base[-5:].any()
    assert not padded.leading_space[-5:].any()
    assert padded.boundary[-5:].all()
    assert np.array_equal(padded.base[:-5], plain.base)
    assert ByteTable.from_sentencepiece(model, vocab=10).vocab == plain.vocab


def test_a_space_costs_a_byte_unless_it_follows_a_boundary(model: Path):
    pieces, table = load(model)
    space, world, unknown = pieces.piece_to_id("▁"), pieces.piece_to_id("▁world"), pieces.unk_id()
    hello = pieces.piece_to_id("ell")
    assert count(table, [hello, space]) == 1
    assert count(table, [BOS, space]) == 0
    assert count(table, [unknown, world]) == 5
    assert count(table, [space, world]) == 6
    assert count(table, [hello, BOS]) == 0


def test_the_hand_example_has_13_bytes_over_7_targets(shared_data: Path):
    pieces, table = load(shared_data / "tokenizers" / "other" / "ciprian_fineweb_8192_bpe.model")
    names = ["<s>", "H", "ello", "▁world", "<s>", "▁", "<0xC3>", "<0xA9>"]
    stream = np.array([pieces.piece_to_id(name) for name in names], dtype=np.uint16)
    assert [pieces.id_to_piece(int(i)) for i in stream] == names
    assert table.target_bytes(stream[:-1], stream[1:]).tolist() == [1, 4, 6, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        ("Hello world", 11),
        ("Hello  world", 11),
        (" Hello world", 11),
        ("Hello world ", 11),
        ("a\nb", 3),
        ("a\tb", 3),
        ("a\n\nb", 3),
        ("½", 5),
        ("ﬁ", 2),
        ("\uff21", 1),
        ("e\u0301", 2),
        ("…", 3),
        ("é", 2),
        ("🙂", 4),
        ("中文", 6),
        ("a\u00a0b", 3),
        ("a\u200bb", 3),
        ("a\u2581b", 3),
        ("\u2581", 0),
        ("a\x00b", 3),
        ("x² + y²", 7),
        ("", 0),
    ],
)
def test_what_is_counted_is_normalised_text(shared_data: Path, text: str, counted: int):
    pieces, table = load(shared_data / "tokenizers" / "other" / "ciprian_fineweb_8192_bpe.model")
    assert count(table, [BOS, *pieces.encode(text)]) == counted


@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=st.text(max_size=60))
def test_the_sum_is_the_length_of_the_decoded_text(model: Path, text: str):
    pieces, table = load(model)
    ids = pieces.encode(text)
    assert count(table, [BOS, *ids]) == len(pieces.decode(ids).encode())


def test_the_published_validation_head_counts_its_bytes(shared_data: Path):
    table = ByteTable.from_sentencepiece(shared_data / "tokenizers" / "fineweb_1024_bpe.model")
    tokens = open_shard(shared_data / "fineweb_val_prefix_sp1024.bin", table.vocab)
    assert int(table.target_bytes(tokens[:-1], tokens[1:]).sum()) == 2_504_867


def test_a_saved_table_comes_back_and_equal_tables_are_equal_files(model: Path, tmp_path: Path):
    table = ByteTable.from_sentencepiece(model)
    for name in ("a.npy", "b.npy"):
        table.save(tmp_path / name)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    back = ByteTable.load(tmp_path / "a.npy")
    for name in ("base", "leading_space", "boundary"):
        assert np.array_equal(getattr(back, name), getattr(table, name))
        assert getattr(back, name).dtype == getattr(table, name).dtype


def test_a_file_that_is_no_table_or_no_model_is_refused(tmp_path: Path):
    np.save(tmp_path / "other.npy", np.zeros(3))
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01")
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "bad.model").write_bytes(b"not a model")
    for name in ("other.npy", "cut.npy", "empty.npy"):
        with pytest.raises(ValueError, match="byte table"):
            ByteTable.load(tmp_path / name)
    for name in ("bad.model", "missing.model"):
        with pytest.raises(ValueError, match="SentencePiece"):
            ByteTable.from_sentencepiece(tmp_path / name)


def test_ids_outside_the_table_are_refused(model: Path):
    table = ByteTable.from_sentencepiece(model)
    fine = np.array([5])
    for bad in (np.array([table.vocab]), np.array([-1])):
        with pytest.raises(ValueError, match=r"ids 0 \.\."):
            table.target_bytes(fine, bad)
        with pytest.raises(ValueError, match=r"ids 0 \.\."):
            table.target_bytes(bad, fine)
    with pytest.raises(ValueError, match="previous token"):
        table.target_bytes(np.array([5, 5]), fine)
