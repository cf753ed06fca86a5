"""The one score that a run is called by, wherever there is room for one: lists, state messages, links."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flows import verdicts


def archive_scores(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Scores of the archive; those of float weights are diagnostics."""
    asked = document.get("resolved", {}).get("evaluate", {})
    scores = document.get("scores") or {}
    return {name: score for name, score in scores.items() if asked.get(name, {}).get("of", "archive") == "archive"}


def best_score(document: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """The archive's lowest score among those that break no rule; one that does only where there is no other."""
    candidates = [
        (_illegal(score), score["bpb"], name, score) for name, score in sorted(archive_scores(document).items())
    ]
    if not candidates:
        return None
    _, _, name, score = min(candidates, key=lambda each: each[:3])
    return name, score


def _illegal(score: Mapping[str, Any]) -> bool:
    return bool(score.get("rules_broken")) or "not_legal" in score.get("verdict", {}).values()


def says(document: Mapping[str, Any]) -> str:
    """`3.80681 BPB (ttt), legal, 15,712,345 bytes`: a finished run in a line; empty if it has no score."""
    best = best_score(document)
    if best is None:
        return ""
    name, score = best
    words = [f"{score['bpb']:.5f} BPB ({name})"]
    words += [f"breaks {' '.join(score['rules_broken'])}"] if score.get("rules_broken") else []
    if verdict := verdicts.words(score.get("verdict", {})):
        words.append("legality unknown" if verdict == verdicts.WORDS["unknown"] else verdict)
    if sizes := document.get("bytes"):
        over = " of " + f"{sizes['cap']:,}, over the cap" if sizes["total"] > sizes["cap"] else ""
        words.append(f"{sizes['total']:,} bytes{over}")
    return ", ".join(words)
