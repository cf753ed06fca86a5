"""What a score is made of: the network from an archive or from float weights, the stream, the bytes."""

from __future__ import annotations

import json
from pathlib import Path

from model.archive import read_archive
from model.bytes import ByteTable
from model.config import from_dict
from model.gpt import GPT
from model.shards import open_shard
from model.stream import TokenStream
from model.weights import load_weights


def load_network(path: Path) -> GPT:
    """The network of an archive (`.fwy`, dequantised) or of a weights file that carries its configuration."""
    if path.suffix == ".fwy":
        tensors, network, _ = read_archive(path)
    else:
        tensors, metadata = load_weights(path)
        if "network" not in metadata:
            raise ValueError(f"a weights file says what network it is for; {path.name} does not; get it from `train`")
        network = from_dict(json.loads(metadata["network"]))
    model = GPT(network)
    wanted = model.state_dict()
    for name in sorted(wanted.keys() | tensors.keys()):
        found, shape = tensors.get(name), wanted[name].shape if name in wanted else None
        if found is None or found.shape != shape:
            came = "nothing" if found is None else list(found.shape)
            raise ValueError(
                f"weights and configuration agree; {path.name} has {came} for {name!r}, the network "
                f"{'nothing' if shape is None else list(shape)}; rebuild it"
            )
    model.load_state_dict(tensors)
    return model


def open_stream(folder: Path, vocab: int) -> TokenStream:
    """All shards of a folder, end to end in the order of their names, every id verified."""
    paths = sorted(folder.glob("*.bin"))
    if not paths:
        raise ValueError("validation tokens are *.bin shards; there are none; run `tokenize` on val documents")
    return TokenStream([open_shard(path, vocab) for path in paths])


def load_bytes(folder: Path) -> ByteTable:
    """The byte table beside the tokenizer."""
    return ByteTable.load(folder / "bytes.npy")
