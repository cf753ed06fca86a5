"""Score one network under one protocol, in a process that knows nothing of how it was trained."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sentencepiece
import torch

from model.descent import Diverged
from model.load import load_bytes, load_network, open_stream
from model.passes import ScoringPass, windows_of
from model.referee import RuleBroken
from stages.contract import Runtime, StageError, fresh_role
from stages.device import device_name, process_group, torch_device
from stages.evaluate.config import Config
from stages.evaluate.excerpts import choose_excerpts
from stages.evaluate.outputs import score_table, write_ledger, write_score
from stages.evaluate.progress import Progress
from stages.refusing import refusing


def run(config: Config, inputs: Mapping[str, Path], out: Path, runtime: Runtime) -> dict[str, Any]:
    """Read archive or weights, byte table and val shards; write `score` and `ledger`."""
    device = torch_device(runtime)
    protocol = config.to_protocol()
    of_archive = config.of == "archive"
    source = inputs["archive"] / "archive.fwy" if of_archive else inputs["weights"] / "weights.safetensors"
    with refusing():
        network = load_network(source)
        table = load_bytes(inputs["tokenizer"])
        stream = open_stream(inputs["val"], min(network.config.vocab, table.vocab))
        tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(inputs["tokenizer"] / "tokenizer.model"))
        excerpts = choose_excerpts(stream, tokenizer.bos_id(), windows_of(protocol, len(stream)).targets)
        bos, rank, world = tokenizer.bos_id(), runtime.rank, runtime.world
        scoring = ScoringPass(protocol, network, stream, table, bos, device, rank, world, excerpts)
    referee, progress = scoring.referee, Progress(runtime, scoring.referee)
    with process_group(runtime, device):
        began_s = time.monotonic()
        try:
            phases = scoring.run(progress.scored, progress.adapted)
        except (RuleBroken, Diverged) as error:
            raise StageError(f"the score was stopped; {error}") from error
        seconds = time.monotonic() - began_s
    adaptation: dict[str, Any] = {}
    if scoring.adapter:
        adaptation = {"steps": scoring.adapter.steps, "parameters": scoring.adapter.adapting}
    elif scoring.pre_adapter:
        adaptation = {"steps": scoring.pre_adapter.steps, "phases": phases}
    learner = scoring.adapter or scoring.pre_adapter
    mixed_positions = scoring.mixer.mixed_positions if scoring.mixer else 0
    scored = score_table(config, referee, len(stream), adaptation, mixed_positions)
    if runtime.rank == 0:
        write_score(fresh_role(out, "score"), scored)
        write_ledger(fresh_role(out, "ledger"), referee.ledger, tokenizer)
    return {
        **{name: scored[name] for name in ("bpb", "nats_per_token", "tokens", "bytes", "windows", "marks")},
        "rules_broken": [broken["rule"] for broken in referee.broken],
        "forward_tokens": referee.forward_tokens,
        "trained_tokens": learner.trained_tokens if learner else 0,
        "ttt_updates": adaptation.get("steps", 0),
        "mixed_positions": mixed_positions,
        "seconds": seconds,
        "tokens_per_s": referee.forward_tokens / max(seconds, 1e-9),
        "peak_memory_bytes": peak_memory_bytes(device),
        "attention": scoring.attention,
        "device": device_name(device),
    }


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that this process has held on its device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
