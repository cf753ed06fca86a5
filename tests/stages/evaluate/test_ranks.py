from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from stages.contract import Device, Runtime
from stages.evaluate.config import Config
from stages.evaluate.stage import run

ROOT = Path(__file__).resolve().parents[3]
PROTOCOLS = {
    "sliding": {"protocol": "sliding", "drop_partial_row": True, "tail_rescore": True, "batch_windows": 1},
    "mixed": {
        "protocol": "sliding",
        "batch_windows": 1,
        "max_targets": 1800,
        "mixer": {"kind": "ngram", "max_order": 4, "weight": 0.3, "chunk_tokens": 500, "active_after_tokens": 400},
    },
    "ttt": {
        "protocol": "ttt",
        "batch_windows": 1,
        "max_targets": 1800,
        "ttt": {"chunk_tokens": 512, "epochs": 2, "batch_sequences": 3, "lr": 0.05, "freeze": ("blocks.0.*",)},
    },
    "adapters": {
        "protocol": "ttt",
        "batch_windows": 1,
        "max_targets": 1800,
        "ttt": {
            "chunk_tokens": 512,
            "epochs": 2,
            "batch_sequences": 3,
            "lr": 0.01,
            "optimizer": "adamw",
            "byte_weighted": True,
            "polyak_decay": 0.5,
            "lora": {"rank": 2},
        },
    },
    "pre_eval": {
        "protocol": "pre_eval",
        "batch_windows": 1,
        "max_targets": 1800,
        "pre_eval": {
            "first": {"epochs": 2, "lr": 0.05, "batch_sequences": 6, "lanes": 2, "microbatch_sequences": 2},
            "second": {"epochs": 1, "lr": 0.01, "batch_sequences": 7, "order": "permutation", "optimizer": "adamw"},
        },
    },
}
STEPS = {"ttt": 3 * 2 * 3, "adapters": 3 * 2 * 3, "pre_eval": 2 * 5 + 4}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_two_ranks_score_as_one(tmp_path, inputs, runtime, protocol):
    fields = {"context_tokens": 64, "stride_tokens": 16, "of": "archive", **PROTOCOLS[protocol]}
    (tmp_path / "one").mkdir()
    one_report = run(Config(**fields), inputs, tmp_path / "one", runtime)
    two_report = two_ranks(tmp_path, fields, inputs, runtime)
    one, two = (json.loads((tmp_path / n / "score" / "score.json").read_text()) for n in ("one", "two"))
    for name in ("tokens", "bytes", "windows", "marks", "rules_broken"):
        assert two[name] == one[name]
    assert two["nats"] == pytest.approx(one["nats"], rel=1e-5)
    assert two_report["mixed_positions"] == one_report["mixed_positions"]
    assert (one_report["mixed_positions"] > 0) == (protocol == "mixed")
    if protocol not in STEPS:  # one window at a time: not even the shapes of matrix products differ
        assert two["ledger_sha256"] == one["ledger_sha256"]
    else:
        assert two["adaptation"]["steps"] == one["adaptation"]["steps"] == STEPS[protocol]
    assert two_report["forward_tokens"] == one_report["forward_tokens"]
    for name in ("ledger.json", "rows.npy", "positions.json", "documents.json"):
        assert (tmp_path / "two" / "ledger" / name).is_file()


def two_ranks(tmp_path: Path, fields: dict, inputs: dict[str, Path], runtime: Runtime) -> dict:
    """The report of a run under torchrun, as the launcher starts it."""
    out = tmp_path / "two"
    out.mkdir()
    job = {
        "config": fields,
        "inputs": {role: str(folder) for role, folder in inputs.items()},
        "out": str(out),
        "seed": None,
        "runtime": {
            "scratch": str(runtime.scratch),
            "checkpoints": str(runtime.checkpoints),
            "device": asdict(Device(count=2, threads=1)),
        },
    }
    (tmp_path / "job").mkdir()
    job_path = tmp_path / "job" / "JOB.json"
    job_path.write_text(json.dumps(job))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "stages.evaluate", str(job_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((tmp_path / "job" / "report.json").read_text())
