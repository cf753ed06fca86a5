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

from model.ledger import Ledger
from model.load import load_bytes, load_network, open_stream
from model.passes import ScoringPass
from model.protocol import from_dict
from stages.contract import Device, Runtime, die_with_parent, leave
from stages.device import process_group, torch_device


def rescore(folder: Path, job: Mapping[str, Any], runtime: Runtime) -> Ledger:
    """Score the folder's stream under one protocol, as evaluate does."""
    device = torch_device(runtime)
    protocol = from_dict(job["protocol"])
    if job["targets"]:
        protocol = replace(protocol, max_targets=job["targets"])
    network, table = load_network(folder / "archive.fwy"), load_bytes(folder)
    bos = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).bos_id()
    stream = open_stream(folder / "val", min(network.config.vocab, table.vocab))
    scoring = ScoringPass(protocol, network, stream, table, bos, device, runtime.rank, runtime.world)
    with process_group(runtime, device):
        scoring.run()
    return scoring.referee.ledger


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
