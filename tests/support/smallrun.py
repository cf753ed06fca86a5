"""A small network, a real tokenizer and real text on disk, as the stages above `evaluate` leave them."""

from __future__ import annotations

import io
import json
import pydoc_data.topics
from pathlib import Path

import numpy as np
import sentencepiece
import torch

from model.archive import write_archive
from model.bytes import ByteTable
from model.config import BigramConfig, GPTConfig, to_dict
from model.gpt import GPT
from model.init import initialise
from model.quantized import Coded
from model.shards import write_shard
from model.weights import save_weights

NETWORK = GPTConfig(
    vocab=512, layers=3, dim=32, heads=2, kv_heads=1, mlp_hidden=64, bigram=BigramConfig(buckets=32, dim=8),
    smear=True, unet_skips=True, residual_mix=True, ln_scale=True,
)  # fmt: skip


def make_texts() -> list[str]:
    """English prose of the installation: the openings of documentation topics."""
    return [text[:900] for _, text in sorted(pydoc_data.topics.topics.items())][:60]


def make_inputs(root: Path) -> dict[str, Path]:
    """Folders by role: `tokenizer`, `val` (two shards), `weights`, `archive`."""
    folders = {role: root / role for role in ("tokenizer", "val", "weights", "archive")}
    for folder in folders.values():
        folder.mkdir()
    texts = make_texts()
    pieces = make_tokenizer(folders["tokenizer"], texts)
    ids = [token for text in texts for token in [pieces.bos_id(), *pieces.encode(text)]][:6001]
    write_shard(folders["val"] / "val-00000.bin", np.array(ids[:3500], dtype=np.uint16))
    write_shard(folders["val"] / "val-00001.bin", np.array(ids[3500:], dtype=np.uint16))
    model = make_network()
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    network = {"network": json.dumps(to_dict(NETWORK))}
    save_weights(folders["weights"] / "weights.safetensors", state, network)
    write_archive(folders["archive"] / "archive.fwy", {n: code(t) for n, t in state.items()}, NETWORK)
    return folders


def make_tokenizer(folder: Path, texts: list[str]) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(" ".join(texts).split("\n")), model_writer=model, vocab_size=500, model_type="bpe",
        byte_fallback=True, pad_id=0, bos_id=1, eos_id=2, unk_id=3, normalization_rule_name="nmt_nfkc",
        add_dummy_prefix=False, minloglevel=2, num_threads=1, max_sentence_length=100_000,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    ByteTable.from_sentencepiece(folder / "tokenizer.model").save(folder / "bytes.npy")
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def make_network() -> GPT:
    model = GPT(NETWORK)
    initialise(model, 0)
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)) * 0.1)
    return model


def code(tensor: torch.Tensor) -> Coded | torch.Tensor:
    """int6 rows for matrices, fp16 for the rest."""
    if tensor.ndim < 2 or tensor.numel() < 1000:
        return tensor.half()
    scales = (tensor.abs().amax(-1) / 31).half()
    codes = (tensor / scales.float()[..., None]).round().clamp(-32, 31)
    return Coded(codes.to(torch.int8), scales, 6)
