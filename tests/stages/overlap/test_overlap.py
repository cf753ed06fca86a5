"""What of val stands in train: whole documents exactly, shingles as a rate, whatever the cuts of shards and blocks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

import stages.overlap.measure as measure_module
from model.shards import write_shard
from stages.contract import Runtime, StageError
from stages.overlap.config import Config
from stages.overlap.documents import Documents
from stages.overlap.measure import measure, read_val
from stages.overlap.stage import run
from stages.shingles import Shingles

BOS = 1


def stream(*documents: np.ndarray) -> np.ndarray:
    return np.concatenate([np.concatenate([[BOS], document]) for document in documents]).astype(np.uint16)


def texts(seed: int, count: int, tokens: int = 200) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(2, 1000, generator.integers(tokens // 2, tokens)) for _ in range(count)]


def compare(train: list[np.ndarray], val: list[np.ndarray], width: int = 64, max_samples: int = 1 << 20) -> dict:
    return measure(read_val(val, BOS, width, max_samples), train, BOS, width)


def test_disjoint_splits_have_nothing_in_common():
    found = compare([stream(*texts(0, 40))], [stream(*texts(1, 10))])
    assert found["documents"]["found"] == 0
    assert found["shingles"]["found"] == 0
    assert found["documents"]["val"] == 10
    assert found["train"]["documents"] == 40


def test_a_val_document_in_train_is_found_exactly_and_named():
    val = texts(1, 10)
    found = compare([stream(*texts(0, 5), val[3], *texts(2, 5), val[3])], [stream(*val)])
    assert found["documents"]["found"] == 1
    assert found["documents"]["examples"] == [{"document": 3, "tokens": len(val[3]), "times_in_train": 2}]
    assert found["documents"]["found_tokens"] == len(val[3])


def test_a_document_that_differs_in_one_token_is_no_whole_document_but_most_of_its_shingles():
    val = texts(1, 1, tokens=2000)
    changed = val[0].copy()
    changed[len(changed) // 2] ^= 1
    found = compare([stream(changed)], [stream(*val)])
    assert found["documents"]["found"] == 0
    missed = found["shingles"]["val"] - found["shingles"]["found"]
    assert missed == 64  # every window that holds the changed token


def test_windows_do_not_reach_over_a_border_of_documents():
    a, b = texts(3, 2)
    together = compare([stream(a, b)], [stream(np.concatenate([a[-32:], b[:32]]))])
    assert together["shingles"]["val"] == 1
    assert together["shingles"]["found"] == 0


def test_cuts_of_shards_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    val = texts(1, 12)
    train = stream(*texts(0, 20), val[2], *texts(4, 9), val[7][:90])
    whole = compare([train], [stream(*val)])
    assert whole["documents"]["found"] == 1
    assert whole["shingles"]["found"] > 0
    for block in (100, 333, 4096):
        monkeypatch.setattr(measure_module, "BLOCK_TOKENS", block)
        cut = [train[:777], train[777:778], train[778:3000], train[3000:]]
        assert compare(cut, [stream(*val)[:500], stream(*val)[500:]]) == whole


def test_a_sample_of_the_shingles_estimates_the_rate_of_all():
    val = texts(1, 200, tokens=800)
    train = [stream(*texts(0, 50), *val[:60])]
    every, some = compare(train, [stream(*val)]), compare(train, [stream(*val)], max_samples=4096)
    assert some["shingles"]["one_in"] >= 16
    assert some["shingles"]["sampled"] <= 4096
    assert some["shingles"]["val"] == every["shingles"]["val"]
    assert abs(some["shingles"]["rate"] - every["shingles"]["rate"]) < 0.05
    assert some["documents"] == every["documents"]


def test_a_shingle_that_val_repeats_counts_at_each_of_its_places():
    boilerplate = texts(5, 1, tokens=300)[0][:64]
    val = [boilerplate, boilerplate, *texts(6, 1)]
    found = compare([stream(np.concatenate([[7], boilerplate, [8]]))], [stream(*val)])
    assert found["shingles"]["found"] == 2


@given(st.lists(st.integers(0, 4), max_size=60), st.integers(1, 9), st.integers(2, 6))
def test_equal_hashes_are_equal_windows(tokens: list[int], block: int, width: int):
    data = np.array(tokens, dtype=np.uint16)
    shingles = Shingles(width, BOS, block)
    hashes = [h for i in range(0, len(data), block) for h in shingles.feed(data[i : i + block]).tolist()]
    windows = [tuple(tokens[i : i + width]) for i in range(len(tokens) - width + 1)]
    windows = [window for window in windows if BOS not in window]
    assert len(hashes) == len(windows)
    assert len(set(zip(windows, hashes, strict=True))) == len(set(windows)) == len(set(hashes))


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 9))
def test_documents_are_what_stands_between_two_bos(tokens: list[int], block: int):
    documents = Documents(BOS)
    data = np.array(tokens, dtype=np.uint16)
    found = [d.tokens for i in range(0, len(data), block) for d in documents.feed(data[i : i + block])]
    found += [d.tokens for d in documents.end()]
    text = "".join("|" if token == BOS else "x" for token in tokens)
    assert found == [len(part) for part in text.split("|") if part]


def test_the_stage_writes_one_table_and_repeats_its_bytes(tmp_path: Path, runtime: Runtime):
    inputs = folders(tmp_path)
    tables = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        report = run(Config(), inputs, tmp_path / name, runtime)
        tables.append((tmp_path / name / "overlap" / "overlap.json").read_bytes())
    assert tables[0] == tables[1]
    assert json.loads(tables[0])["documents"]["found"] == report["documents_found"] == 1


def test_no_shards_are_refused(tmp_path: Path, runtime: Runtime):
    inputs = folders(tmp_path)
    (inputs["val"] / "val.bin").unlink()
    with pytest.raises(StageError, match="val has none"):
        run(Config(), inputs, tmp_path, runtime)


def folders(tmp_path: Path) -> dict[str, Path]:
    """A tokenizer, and shards in which one val document is trained on."""
    inputs = {name: tmp_path / name for name in ("train", "val", "tokenizer")}
    for folder in inputs.values():
        folder.mkdir()
    val = texts(1, 3)
    write_shard(inputs["train"] / "train.bin", stream(*texts(0, 5), val[1]))
    write_shard(inputs["val"] / "val.bin", stream(*val))
    with (inputs["tokenizer"] / "tokenizer.model").open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["some text to train on"] * 9),
            model_writer=model,
            vocab_size=300,
            byte_fallback=True,
            hard_vocab_limit=False,
            bos_id=BOS,
            unk_id=0,
            model_type="bpe",
            minloglevel=2,
        )
    return inputs
