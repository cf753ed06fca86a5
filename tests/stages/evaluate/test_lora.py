"""Adapters on a network that has learned something: they pay, where the published ones received no gradient."""

from __future__ import annotations

import json
import pydoc_data.topics
from dataclasses import replace

import numpy as np
import pytest
import sentencepiece
import torch
from torch.nn import functional

from model.config import from_dict, to_dict
from model.gpt import GPT
from model.init import initialise
from model.shards import write_shard
from model.weights import load_weights, save_weights
from stages.evaluate.config import Config
from stages.evaluate.stage import run

pytestmark = pytest.mark.slow
CONTEXT, TRAINED, STEPS = 64, 40_000, 200


@pytest.fixture(scope="module")
def trained(tmp_path_factory, inputs):
    """A network of 3 layers trained for 200 steps on documentation; what is scored are the topics that follow."""
    root = tmp_path_factory.mktemp("trained")
    for role in ("val", "weights"):
        (root / role).mkdir()
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(inputs["tokenizer"] / "tokenizer.model"))
    texts = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    ids = [token for text in texts for token in [pieces.bos_id(), *pieces.encode(text)]]
    write_shard(root / "val" / "val-00000.bin", np.array(ids[TRAINED : TRAINED + 8_193], dtype=np.uint16))
    _, metadata = load_weights(inputs["weights"] / "weights.safetensors")
    config = replace(from_dict(json.loads(metadata["network"])), dim=64, heads=4, kv_heads=2, mlp_hidden=128)
    model = GPT(config)
    initialise(model, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
    stream, rng = torch.tensor(ids[:TRAINED]), np.random.default_rng(0)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1.0, 2 * (STEPS - step) / STEPS)
        starts = rng.integers(0, TRAINED - CONTEXT - 1, 32)
        rows = torch.stack([stream[s : s + CONTEXT + 1] for s in starts])
        optimizer.zero_grad()
        functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()).backward()
        optimizer.step()
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    save_weights(root / "weights" / "weights.safetensors", state, {"network": json.dumps(to_dict(config))})
    return {**inputs, "val": root / "val", "weights": root / "weights"}


@pytest.mark.parametrize(("reset", "rate", "epochs"), [("never", 0.01, 3), ("chunk", 0.03, 6)])
def test_adapters_of_a_trained_network_beat_the_same_run_at_rate_zero(tmp_path, trained, runtime, reset, rate, epochs):
    scores = {}
    for lr in (0.0, rate):
        lora = {"rank": 8, "reset": reset}
        ttt = {
            "chunk_tokens": 512,
            "optimizer": "adamw",
            "epochs": epochs,
            "batch_sequences": 8,
            "lr": lr,
            "lora": lora,
        }
        config = Config(of="raw", protocol="ttt", context_tokens=CONTEXT, stride_tokens=32, ttt=ttt)
        out = tmp_path / str(lr)
        out.mkdir()
        run(config, trained, out, runtime)
        scores[lr] = json.loads((out / "score" / "score.json").read_text())["bpb"]
    assert scores[rate] < scores[0.0] - 0.005
