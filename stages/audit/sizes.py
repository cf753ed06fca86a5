"""T14: the size, both ways: as it would be packed, and as the files that a clean process opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stages.audit.finding import Finding


def check_sizes(packed: Mapping[str, int], files: Mapping[str, int], cap_bytes: int, traced: bool = False) -> Finding:
    """Both figures against the cap; the verdict is that of the larger one.

    Args:
        packed: {"code": bytes, "model": bytes} as they are counted.
        files: name -> bytes of every file that scoring opens, the tokenizer and the validation set left out.
        cap_bytes: of the challenge, decimal.
        traced: whether the system has told which files a clean process opened; else `files` are all that there are.
    """
    packed_bytes, files_bytes = sum(packed.values()), sum(files.values())
    evidence = {
        "packed_bytes": packed_bytes,
        "files_bytes": files_bytes,
        "cap_bytes": cap_bytes,
        "files": dict(sorted(files.items())),
        "traced": traced,
    }
    over = max(packed_bytes, files_bytes) - cap_bytes
    how = "as packed and as files" if packed_bytes == files_bytes else f"as packed, {files_bytes:,} as files"
    says = f"{packed_bytes:,} bytes {how}: " + (f"{over:,} over the cap" if over > 0 else f"{-over:,} under the cap")
    return Finding(rule="B1", detector="T14", verdict="fail" if over > 0 else "pass", says=says, evidence=evidence)


def check_published_sizes(
    total_bytes: Sequence[int], cap_bytes: int, files_bytes: Sequence[int] | None = None
) -> Finding:
    """What was published of a system: bytes of every seed. The largest one decides, since every seed must fit."""
    files_bytes = list(files_bytes or total_bytes)
    evidence: dict[str, Any] = {
        "packed_bytes": max(total_bytes),
        "files_bytes": max(files_bytes),
        "cap_bytes": cap_bytes,
        "total_bytes": list(total_bytes),
    }
    over = [bytes_ - cap_bytes for bytes_ in total_bytes]
    if max(over) > 0:
        says = f"{sum(each > 0 for each in over)} of {len(over)} archives over the cap, by up to {max(over):,} bytes"
        return Finding(rule="B1", detector="T14", verdict="fail", says=says, evidence=evidence)
    verdict = "fail" if max(files_bytes) > cap_bytes else "pass"
    says = f"the largest of {len(over)} archives is {-max(over):,} bytes under the cap"
    return Finding(rule="B1", detector="T14", verdict=verdict, says=says, evidence=evidence)
