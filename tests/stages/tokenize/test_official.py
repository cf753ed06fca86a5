"""Our shards against the challenge: its published tokens, and its own loader and byte table.

CHALLENGE_TRAIN_GPT names a copy of the challenge's train_gpt.py; the comparison with its code needs it.
"""

from __future__ import annotations

import ast
import hashlib
import math
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import sentencepiece
import torch

from model.bytes import ByteTable
from model.shards import open_shard
from stages.contract import Runtime
from stages.corpus.config import Config as CorpusConfig
from stages.corpus.stage import run as run_corpus
from stages.tokenize.config import Config as TokenizeConfig
from stages.tokenize.stage import run as run_tokenize
from stages.vocabulary.config import Config as VocabularyConfig
from stages.vocabulary.stage import run as run_vocabulary

DOCUMENTS = 901
TOKENS = 1_040_060


@pytest.fixture
def shards(tmp_path: Path, runtime: Runtime, shared_data: Path) -> Path:
    """The official validation head through corpus, vocabulary and tokenize."""
    for name in ("corpus", "vocabulary", "tokenize"):
        (tmp_path / name).mkdir()
    source = CorpusConfig(
        source=str(shared_data / "val.jsonl.zst"), val_source=str(shared_data / "val_fineweb_official.jsonl.zst")
    )
    report = run_corpus(source, {}, tmp_path / "corpus", runtime)
    assert report["val"] == {"documents": DOCUMENTS, "bytes": 2_504_310, "duplicates": 0, "empty": 0, "shards": 1}
    model = VocabularyConfig(model=str(shared_data / "tokenizers" / "fineweb_1024_bpe.model"))
    run_vocabulary(model, {}, tmp_path / "vocabulary", runtime)
    inputs = {"documents": tmp_path / "corpus" / "val", "tokenizer": tmp_path / "vocabulary" / "tokenizer"}
    run_tokenize(TokenizeConfig(), inputs, tmp_path / "tokenize", runtime)
    return tmp_path / "tokenize" / "shards"


def test_the_official_validation_head_comes_out_token_for_token(shards: Path, shared_data: Path):
    ours = open_shard(shards / "00000.bin", 1024)
    published = open_shard(shared_data / "fineweb_val_prefix_sp1024.bin", 1024)
    assert len(ours) == TOKENS
    assert np.array_equal(ours, published[:TOKENS])
    rows = pq.read_table(shards / "00000.index.parquet")
    assert rows.num_rows == DOCUMENTS
    assert sum(rows.column("bytes").to_pylist()) == 2_504_310


def _challenge() -> tuple[SimpleNamespace, str]:
    """The challenge's loader and byte table, taken from its script without running the rest of it."""
    name = os.environ.get("CHALLENGE_TRAIN_GPT", "")
    if not name:
        pytest.skip("CHALLENGE_TRAIN_GPT does not name a copy of the challenge's train_gpt.py")
    source = Path(name).read_bytes()
    wanted = {"load_data_shard", "build_sentencepiece_luts", "load_validation_tokens"}
    kept = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name in wanted]
    assert {n.name for n in kept} == wanted
    import glob

    names = {"np": np, "torch": torch, "Tensor": torch.Tensor, "Path": Path, "spm": sentencepiece, "glob": glob}
    exec(compile(ast.Module(kept, []), name, "exec"), names)
    return SimpleNamespace(**{n: names[n] for n in wanted}), hashlib.sha256(source).hexdigest()


def test_the_challenges_own_code_accepts_our_shards_and_agrees_on_every_byte(
    shards: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]
):
    theirs, digest = _challenge()
    path = shared_data / "tokenizers" / "fineweb_1024_bpe.model"
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
    table = ByteTable.from_sentencepiece(path)
    base, space, boundary = theirs.build_sentencepiece_luts(pieces, 1024, torch.device("cpu"))
    assert np.array_equal(base.numpy(), table.base)
    assert np.array_equal(space.numpy(), table.leading_space)
    assert np.array_equal(boundary.numpy(), table.boundary)

    tokens = theirs.load_data_shard(shards / "00000.bin")
    ours = open_shard(shards / "00000.bin", 1024)
    assert np.array_equal(tokens.numpy(), ours)
    for context in (1024, 2048):
        scored = theirs.load_validation_tokens(str(shards / "0*.bin"), context).to(torch.int64)
        x, y = scored[:-1], scored[1:]
        counted = base[y].to(torch.int16) + (space[y] & ~boundary[x]).to(torch.int16)
        expected = math.floor((TOKENS - 1) / context) * context
        got = table.target_bytes(ours[:expected], ours[1 : expected + 1])
        assert len(y) == expected == len(got)
        assert np.array_equal(counted.numpy(), got)
        with capsys.disabled():
            print(f"\n{digest[:12]} context {context}: {expected:,} targets, {int(got.sum()):,} bytes on both sides")
