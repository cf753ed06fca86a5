"""What the bundle's tests share: packed recipes, data in the challenge's layout, and the stages as the reference."""

from __future__ import annotations

import io
import json
import os
import pydoc_data.topics
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece

import stages.average.stage
import stages.compress.stage
import stages.evaluate.stage
import stages.quantize.stage
import stages.train.stage
from configs.load import load_recipe
from configs.recipe import Recipe
from flows.closure import ROOT
from flows.river import bundled
from flows.source import bundle_source
from model.bytes import ByteTable
from model.shards import write_shard
from stages.bundle.config import Config
from stages.bundle.stage import run
from stages.contract import Device, Runtime

SEED = 5


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The modules that are packed, as the flow lays them out."""
    folder = tmp_path_factory.mktemp("source")
    for file in bundle_source(ROOT).files:
        (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file.path, folder / file.path)
    return folder


@pytest.fixture(scope="session")
def packed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A recipe's name, scale and overrides -> its train_gpt.py."""

    def pack(name: str, scale: str, *overrides: str) -> Path:
        recipe = load_recipe(name, scale, overrides).recipe
        out = tmp_path_factory.mktemp("packed")
        runtime = Runtime(scratch=out, checkpoints=out)
        run(Config(recipe=json.loads(json.dumps(bundled(recipe)))), {"source": source}, out / "out", runtime)
        return out / "out" / "bundle" / "train_gpt.py"

    return pack


@dataclass(frozen=True)
class Data:
    """The same tokens and tokenizer as folders by role, and as the challenge lays them out."""

    roles: dict[str, Path]
    data_path: Path
    tokenizer_path: Path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """English prose of the installation in 512 pieces: two train shards and one val shard."""
    root = tmp_path_factory.mktemp("data")
    roles = {role: root / role for role in ("tokenizer", "shards", "val")}
    for folder in roles.values():
        folder.mkdir()
    texts = [text[:3000] for _, text in sorted(pydoc_data.topics.topics.items())][:60]
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(" ".join(texts).split("\n")), model_writer=written, vocab_size=512, model_type="bpe",
        byte_fallback=True, pad_id=0, bos_id=1, eos_id=2, unk_id=3, normalization_rule_name="nmt_nfkc",
        add_dummy_prefix=False, minloglevel=2, num_threads=1, max_sentence_length=100_000,
    )  # fmt: skip
    path = roles["tokenizer"] / "tokenizer.model"
    path.write_bytes(written.getvalue())
    ByteTable.from_sentencepiece(path).save(roles["tokenizer"] / "bytes.npy")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ids = [token for text in texts for token in [pieces.bos_id(), *pieces.encode(text)]]
    cut = len(ids) // 4
    parts = {"val/fineweb_val_000000": ids[:cut], "shards/fineweb_train_000000": ids[cut : 2 * cut]}
    parts["shards/fineweb_train_000001"] = ids[2 * cut :]
    challenge = root / "challenge"
    challenge.mkdir()
    for name, tokens in parts.items():
        write_shard(root / f"{name}.bin", np.array(tokens, dtype=np.uint16))
        shutil.copy(root / f"{name}.bin", challenge)
    return Data(roles, challenge, path)


@dataclass(frozen=True)
class Reference:
    """What the stages made."""

    archive: bytes
    scores: dict[str, dict[str, Any]]  # score.json by protocol


@pytest.fixture(scope="session")
def staged(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Recipe], Reference]:
    """A recipe through the stages from `train` to `evaluate`, each in a folder of its own."""

    def go(recipe: Recipe) -> Reference:
        root = tmp_path_factory.mktemp("staged")

        def runtime(stage: str) -> Runtime:
            for name in ("scratch", "checkpoints"):
                (root / stage / name).mkdir(parents=True)
            wanted = getattr(recipe.devices, stage, None)
            device = Device(**wanted.model_dump()) if wanted else Device()
            base = Runtime(scratch=root / stage / "scratch", checkpoints=root / stage / "checkpoints")
            return replace(base, device=device)

        def out(stage: str) -> Path:
            (root / stage / "out").mkdir(parents=True, exist_ok=True)
            return root / stage / "out"

        r = recipe
        inputs = {"shards": data.roles["shards"], "tokenizer": data.roles["tokenizer"]}
        stages.train.stage.run(r.train, inputs, out("train"), runtime("train"), seed=SEED)
        trained = {role: out("train") / role for role in ("raw", "ema", "snapshots")}
        stages.average.stage.run(r.average, trained, out("average"), runtime("average"))
        weights = {"weights": out("average") / "weights"}
        stages.quantize.stage.run(r.quantize, weights, out("quantize"), runtime("quantize"))
        quantized = {"quantized": out("quantize") / "quantized"}
        stages.compress.stage.run(r.compress, quantized, out("compress"), runtime("compress"))
        scores: dict[str, dict[str, Any]] = {}
        for name, protocol in r.evaluate.items():
            if protocol.of == "archive":
                read = {**data.roles, "archive": out("compress") / "archive"}
                target = root / "evaluate" / name
                target.mkdir(parents=True)
                wanted = Device(**r.devices.evaluate.model_dump())
                alone = Runtime(scratch=root, checkpoints=root, device=wanted)
                stages.evaluate.stage.run(protocol, read, target, alone)
                scores[name] = json.loads((target / "score" / "score.json").read_text())
        return Reference((out("compress") / "archive" / "archive.fwy").read_bytes(), scores)

    return go


@pytest.fixture(scope="session")
def alone(data: Data) -> Callable[..., str]:
    """Runs a packed file in a folder as someone who has nothing else of ours: (file, folder, words, variables)."""

    def go(file: Path, folder: Path, *words: str, fails: bool = False, **variables: str) -> str:
        folder.mkdir(exist_ok=True)
        shutil.copy(file, folder)
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "OMP_NUM_THREADS") if name in os.environ}
        where = {"DATA_PATH": str(data.data_path), "TOKENIZER_PATH": str(data.tokenizer_path), "SEED": str(SEED)}
        done = subprocess.run(
            [sys.executable, "-I", "-c", NOTHING_OF_OURS, *words], cwd=folder, env={**kept, **where, **variables},
            capture_output=True, text=True, check=False, timeout=500,
        )  # fmt: skip
        assert (done.returncode != 0) == fails, done.stderr
        return done.stderr if fails else done.stdout

    return go


# An editable install would be found from an empty folder too: whoever asks for our rooms is told that there are none.
NOTHING_OF_OURS = """
import runpy, sys, traceback
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('flows', 'configs', 'stages', 'model', 'artifacts', 'pydantic', 'pyarrow', 'prefect'):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Nothing())
sys.argv[0] = 'train_gpt.py'
try:
    runpy.run_path('train_gpt.py', run_name='__main__')
except Exception:
    traceback.print_exc()
    sys.exit(1)
"""
