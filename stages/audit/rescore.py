"""`python -m stages.audit.rescore JOB.json OUT`: one whole scoring pass, alone in a folder.

The folder that it runs in holds archive.fwy, tokenizer.model, bytes.npy and val/*.bin, and is all that it needs: that
it opens nothing else is what the audit's closed world looks at. Ranks come from the environment, as under `torchrun`.

JOB.json: {"protocol": evaluate's configuration, "targets": 0 for all, "device": {...}}
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from model.attention import choose_attention
from model.ledger import Ledger
from model.load import load_bytes, load_network, open_stream
from model.pre_eval import RULES
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
from model.referee import Referee
from model.score import score
from stages.contract import Device, Runtime, die_with_parent, leave
from stages.device import process_group, torch_device


def rescore(folder: Path, job: Mapping[str, Any], runtime: Runtime) -> Ledger:
    """Score the folder's stream under one protocol, as evaluate does."""
    device = torch_device(runtime)
    protocol = Protocol.from_dict(job["protocol"])
    if job["targets"]:
        protocol = replace(protocol, max_targets=job["targets"])
    network = load_network(folder / "archive.fwy").to(device)
    network.attend = choose_attention(network.config, device, compute_dtype(protocol, device)).attend
    table = load_bytes(folder)
    bos = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).bos_id()
    stream = open_stream(folder / "val", min(network.config.vocab, table.vocab))
    windows = windows_of(protocol, len(stream))
    referee = Referee(
        stream,
        windows,
        Ledger(table, windows.context, windows.targets),
        vocab=network.config.vocab,
        batch_windows=protocol.batch_windows,
        chunk=protocol.chunk_tokens,
        rank=runtime.rank,
        world=runtime.world,
    )
    scorer, call = make_scorer(protocol, network, device)
    compute = make_compute(protocol, call, device, runtime.rank, runtime.world)
    adapter = make_adapter(protocol, network, compute, table, bos)
    mixer = make_mixer(protocol, referee, network.config.vocab, device, runtime.world)
    with process_group(runtime, device):
        if pre_adapter := make_pre_adapter(protocol, network, compute, windows.targets):
            (first, why), *also = RULES.items()
            pre_adapter.run(referee.exception(first, why, **dict(also)), lambda _done, _total, _loss: None)
        score(referee, scorer, adapter, mixer=mixer, temperature=protocol.temperature)
    return referee.ledger


def write(ledger: Ledger, out: Path) -> None:
    """What `records.LedgerFile` reads."""
    out.mkdir()
    sampled = sorted(ledger.rows)
    said = {"sha256": ledger.sha256, "targets": ledger.account.targets, "events": ledger.events}
    (out / "ledger.json").write_text(json.dumps({**said, "sampled_targets": sampled}), encoding="utf-8")
    np.save(out / "head.npy", ledger.head_N2)
    np.save(out / "rows.npy", np.stack([ledger.rows[target] for target in sampled]))


def main() -> None:
    """Read the job, score, write."""
    die_with_parent()
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    here = Path.cwd()
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = Device(**{**job["device"], "count": world})
    runtime = Runtime(scratch=here, checkpoints=here, device=device, rank=rank, world=world, local_rank=rank)
    ledger = rescore(here, job, runtime)
    if rank == 0:
        write(ledger, Path(sys.argv[2]))
    if world > 1:
        leave(0)


if __name__ == "__main__":
    main()
