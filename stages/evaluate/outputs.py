"""The files of a score: sums that can be checked, the ledger's hash, and what the report draws. No clock in any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import sentencepiece

from model.ledger import Account, Ledger, bits_per_byte
from model.referee import Referee

if TYPE_CHECKING:
    from stages.evaluate.config import Config


def score_table(
    config: Config, referee: Referee, stream_tokens: int, adaptation: dict[str, Any], mixed_positions: int
) -> dict[str, Any]:
    """score.json: the sums as they were counted, what they are sums of, and every mark that they carry."""
    ledger, windows = referee.ledger, referee.windows
    counted = ledger.account + ledger.again
    return {
        **_sums(counted),
        "of": config.of,
        "protocol": config.protocol,
        "context_tokens": windows.context,
        "stride_tokens": windows.stride,
        "windows": windows.total,
        "stream_tokens": stream_tokens,
        "marks": marks(config, stream_tokens, windows.targets),
        "rules_broken": referee.broken,
        **({"each_target_once": _sums(ledger.account)} if ledger.again.targets else {}),
        "adaptation": adaptation,
        "mixer": {"kind": config.mixer.kind, "mixed_positions": mixed_positions} if config.mixer.kind != "off" else {},
        "ledger_sha256": ledger.sha256,
    }


def _sums(account: Account) -> dict[str, Any]:
    return {
        "bpb": bits_per_byte(account.nats, account.bytes),
        "nats": account.nats,
        "nats_per_token": account.nats / account.targets,
        "tokens": account.targets,
        "bytes": account.bytes,
    }


def marks(config: Config, stream_tokens: int, targets: int) -> list[str]:
    """What a reader must know before comparing the number with another."""
    asked = min(config.max_targets or stream_tokens, stream_tokens - 1)
    found = {
        "partial": asked < stream_tokens - 1,
        "partial_row_dropped": targets < asked,
        "tail_rescored": config.tail_rescore,
    }
    return [mark for mark, holds in found.items() if holds]


def write_ledger(folder: Path, ledger: Ledger, tokenizer: sentencepiece.SentencePieceProcessor) -> None:
    """ledger.json, head.npy, rows.npy, positions.json and documents.json.

    head.npy: float32 [first targets, 2], nll and log Z. rows.npy: float32 logits [sampled targets, V].
    """
    sampled = sorted(ledger.rows)
    _write_json(
        folder / "ledger.json",
        {
            "sha256": ledger.sha256,
            "row": "target int64, nll float32, log_z float32, little-endian, in stream order",
            "targets": ledger.account.targets,
            "sampled_targets": sampled,
            "events": ledger.events,
        },
    )
    np.save(folder / "head.npy", ledger.head_N2.astype("<f4"))
    np.save(folder / "rows.npy", np.stack([ledger.rows[target] for target in sampled]).astype("<f4"))
    columns = zip(ledger.position_targets_T, ledger.position_nats_T, ledger.position_bytes_T, strict=True)
    positions = [
        {"position": i, "targets": int(targets), "nats": float(nats), "bytes": int(text_bytes)}
        for i, (targets, nats, text_bytes) in enumerate(columns)
        if targets
    ]
    _write_json(folder / "positions.json", positions)
    documents = [
        {
            "document": excerpt.document,
            "first_target": excerpt.lo,
            "ids": excerpt.ids,
            "pieces": [tokenizer.id_to_piece(i) for i in excerpt.ids],
            "nats": excerpt.nats,
            "bytes": excerpt.bytes,
        }
        for excerpt in ledger.excerpts
    ]
    _write_json(folder / "documents.json", documents)


def write_score(folder: Path, table: dict[str, Any]) -> None:
    """score.json; floats are written so that reading them back gives the same bits."""
    _write_json(folder / "score.json", table, indent=1)


def _write_json(path: Path, value: Any, indent: int | None = None) -> None:
    text = json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
