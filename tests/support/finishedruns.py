"""Finished runs in a store without running anything: records with the reports and files that real stages leave."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from artifacts.store import Store
from configs.load import Loaded, load_recipe
from flows.sets import SeedSet

TARGETS, TEXT_BYTES, LN2 = 62_021_632, 151_080_363, 0.6931471805599453
LOSSES = {1: 1.90001234, 2: 1.90112345, 3: 1.90223456}
CODE = "print('a script')\n"
PROTOCOLS = ("roundtrip", "sliding", "ttt")


@cache
def loaded() -> Loaded:
    """#714 at full size: for GPUs, with three protocols of the archive."""
    return load_recipe("pr714")


class Runs:
    """A store and what makes runs in it; what a test changes is given by stage, or by `evaluate`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, Store.open(folder / "store")
        self._made = 0

    def add(self, seed: int, state: str = "completed", recipe: Loaded | None = None, **changes: Any) -> str:
        """A run of a seed; its id. `changes`: report or provenance fields by stage, `score`, `code`, `model_bytes`."""
        chosen, code = recipe or loaded(), changes.get("code", CODE)
        model = b"%d" % seed * changes.get("model_bytes", 15_000)
        size = changes.get("counted_bytes", len(model))
        weigh = {"code_bytes": len(code), "model_bytes": size, "total_bytes": len(code) + size, "cap_bytes": 16_000_000}
        train = {
            "params": 99, "device": "NVIDIA H100 80GB HBM3", "ended_by": "budget", "seconds": 598.0 + seed / 10,
            "steps": 6990 + seed, "expected_steps": 6990, "peak_memory_bytes": 1 << 30, **changes.get("train", {}),
        }  # fmt: skip
        curve = [{"step": s, "train_loss": 7.0 - s / 4000} for s in range(0, 6990, 5)]
        curve.append({"step": 6990, "train_loss": 1.9, "val_loss": 1.95, "val_bpb": 1.14})
        shards = {"digest": "5" * 64, "from": [_producer(n) for n in range(80)]}
        steps = [
            self._publish("train", {"curve/curve.jsonl": "\n".join(map(json.dumps, curve))}, train, seed,
                          inputs={"shards": shards}, **changes.get("clock", {})),
            self._publish("average", {"weights/w": f"{seed}"}, {}, seed),
            self._publish("quantize", {"quantized/q": f"{seed}"}, {}, seed),
            self._publish("compress", {"archive/archive.fwy": model}, {}, seed),
            self._publish("bundle", {"bundle/train_gpt.py": code}, {}, code),
            self._publish("weigh", {"sizes/sizes.json": "{}"}, {**weigh, **changes.get("weigh", {})}, seed, size),
        ]  # fmt: skip
        for number, name in enumerate(PROTOCOLS):
            score = score_of(LOSSES[seed] + (2 - number) / 100) | changes.get("score", {})
            report = {"seconds": 90.0}
            steps.append(self._publish("evaluate", {"score/score.json": json.dumps(score)}, report, seed, part=name))
        if "verdict" in changes:
            verdict = json.dumps(changes["verdict"])
            steps.append(self._publish("audit", {"verdict/verdict.json": verdict}, {}, seed))
        self._made += 1
        run = {
            "id": f"20260714-09301{self._made}-000-aaaa", "recipe": chosen.recipe.name, "asked": "pr714",
            "scale": chosen.scale, "seed": seed, "overrides": [], "argv": [], "state": state,
            "resolved": chosen.recipe.model_dump(mode="json"), "origins": {}, "started": "2026-07-14T09:30:00+00:00",
            "finished": "2026-07-14T10:30:00+00:00", "steps": steps,
            "scores": {name: {"bpb": score_of(LOSSES[seed])["bpb"]} for name in PROTOCOLS},
            "bytes": {"code": len(code), "model": size, "total": len(code) + size, "cap": 16_000_000},
        }  # fmt: skip
        self.store.write_run(run)
        return run["id"]

    def declare(self, *seeds: int, protocol: str = "ttt") -> SeedSet:
        """A set of seeds without a run yet."""
        return SeedSet.declare(self.store, loaded(), seeds, protocol, {"recipe": "pr714", "overrides": [], "argv": []})

    def run_set(self, *seeds: int, **changes: Any) -> SeedSet:
        """A set whose seeds have all run; changes by seed, as `seed2={...}`."""
        declared = self.declare(*seeds)
        for seed in seeds:
            run = self.store.read_run(self.add(seed, **changes.get(f"seed{seed}", changes.get("each", {}))))
            declared.begin(seed, run["id"])
            declared.end(run, "completed", scores=run["scores"], bytes=run["bytes"])
        declared.close()
        return declared

    def _publish(
        self, stage: str, files: Mapping[str, str | bytes], report: Mapping[str, Any], *what: Any, part: str = "",
        inputs: Mapping[str, Any] | None = None, seconds: float = 1.0,
    ) -> dict[str, Any]:  # fmt: skip
        told = json.dumps([stage, part, dict(report), [str(f) for f in files.values()], [str(w) for w in what]])
        key = hashlib.sha256(told.encode()).hexdigest()
        out = self.folder / "out" / key
        for path, content in files.items():
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            (out / path).write_bytes(content if isinstance(content, bytes) else content.encode())
        packages = {"torch": "2.13.0+cu130", "numpy": "2.4.6", "sentencepiece": "0.2.3", "zstandard": "0.25.0"}
        provenance = {"seconds": seconds, "python": "3.13.1", "packages": packages, "cpu": "A CPU"}
        self.store.publish(
            stage=stage, part=part, key=key, folder=out, components={}, report=report, inputs=inputs or {},
            provenance=provenance,
        )  # fmt: skip
        return {"stage": stage, "part": part, "state": "ran", "key": key}


def score_of(loss: float) -> dict[str, Any]:
    """score.json of a score on the published validation set."""
    return {
        "bpb": loss / LN2 * TARGETS / TEXT_BYTES, "nats": loss * TARGETS, "nats_per_token": loss, "tokens": TARGETS,
        "bytes": TEXT_BYTES, "marks": [], "rules_broken": [], "ledger_sha256": "e" * 64,
    }  # fmt: skip


def _producer(number: int) -> dict[str, str]:
    return {"stage": "tokenize", "part": f"train-{number}", "key": "7" * 64, "record": "8" * 64, "role": "shards"}
