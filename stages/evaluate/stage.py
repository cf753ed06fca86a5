"""Score one network under one protocol, in a process that knows nothing of how it was trained."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sentencepiece
import torch

from model.attention import choose_attention
from model.descent import Diverged
from model.load import load_bytes, load_network, open_stream
from model.protocol import (
    Protocol,
    compute_dtype,
    make_adapter,
    make_compute,
    make_mixer,
    make_pre_adapter,
    make_scorer,
    windows_of,
)
from model.referee import RuleBroken
from model.score import score
from stages.contract import Runtime, StageError, fresh_role
from stages.device import device_name, process_group, torch_device
from stages.evaluate.config import Config
from stages.evaluate.excerpts import choose_excerpts
from stages.evaluate.outputs import score_table, write_ledger, write_score
from stages.evaluate.passes import Progress, adapt_first, make_referee
from stages.refusing import refusing


def run(config: Config, inputs: Mapping[str, Path], out: Path, runtime: Runtime) -> dict[str, Any]:
    """Read archive or weights, byte table and val shards; write `score` and `ledger`."""
    device = torch_device(runtime)
    protocol = Protocol.from_dict(config.model_dump())
    of_archive = config.of == "archive"
    source = inputs["archive"] / "archive.fwy" if of_archive else inputs["weights"] / "weights.safetensors"
    with refusing():
        network = load_network(source).to(device)
        attention = choose_attention(network.config, device, compute_dtype(protocol, device))
        network.attend = attention.attend
        table = load_bytes(inputs["tokenizer"])
        stream = open_stream(inputs["val"], min(network.config.vocab, table.vocab))
        tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(inputs["tokenizer"] / "tokenizer.model"))
        excerpts = choose_excerpts(stream, tokenizer.bos_id(), windows_of(protocol, len(stream)).targets)
        referee = make_referee(protocol, stream, table, network.config.vocab, excerpts, runtime)
        scorer, call = make_scorer(protocol, network, device)
        compute = make_compute(protocol, call, device, runtime.rank, runtime.world)
        adapter = make_adapter(protocol, network, compute, table, tokenizer.bos_id())
        pre_adapter = make_pre_adapter(protocol, network, compute, referee.windows.targets)
        mixer = make_mixer(protocol, referee, network.config.vocab, device, runtime.world)
    with process_group(runtime, device):
        began_s = time.monotonic()
        progress = Progress(runtime, referee)
        try:
            phases = adapt_first(referee, pre_adapter, progress) if pre_adapter else []
            score(referee, scorer, adapter, progress, mixer, protocol.temperature)
        except (RuleBroken, Diverged) as error:
            raise StageError(f"the score was stopped; {error}") from error
        seconds = time.monotonic() - began_s
    adaptation: dict[str, Any] = {"steps": adapter.steps, "parameters": adapter.adapting} if adapter else {}
    if pre_adapter:
        adaptation = {"steps": pre_adapter.steps, "phases": phases}
    mixed_positions = mixer.mixed_positions if mixer else 0
    scored = score_table(config, referee, len(stream), adaptation, mixed_positions)
    if runtime.rank == 0:
        write_score(fresh_role(out, "score"), scored)
        write_ledger(fresh_role(out, "ledger"), referee.ledger, tokenizer)
    return {
        **{name: scored[name] for name in ("bpb", "nats_per_token", "tokens", "bytes", "windows", "marks")},
        "rules_broken": [broken["rule"] for broken in referee.broken],
        "forward_tokens": referee.forward_tokens,
        "trained_tokens": learner.trained_tokens if (learner := adapter or pre_adapter) else 0,
        "ttt_updates": adaptation.get("steps", 0),
        "mixed_positions": mixed_positions,
        "seconds": seconds,
        "tokens_per_s": referee.forward_tokens / max(seconds, 1e-9),
        "peak_memory_bytes": peak_memory_bytes(device),
        "attention": attention.name,
        "device": device_name(device),
    }


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that this process has held on its device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
