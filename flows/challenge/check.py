"""`fairway submit --check`: every check over one records folder, ours or anybody's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from configs.load import challenge
from flows.challenge import check_claims, check_package, check_scores
from flows.challenge.findings import LEVELS, Finding, Report
from flows.challenge.folder import Folder, read_folder

Check = Callable[[Folder, Mapping[str, Any]], Iterator[Finding]]
CHECKS: tuple[Check, ...] = (
    check_package.check_files,
    check_package.check_json,
    check_package.check_sizes,
    check_package.check_code,
    check_claims.check_seeds,
    check_claims.check_values,
    check_claims.check_statistics,
    check_scores.check_clocks,
    check_scores.check_denominators,
    check_scores.check_data,
)


def check_folder(path: Path) -> Report:
    """Check a records folder. Raises StageError if it is no folder; whatever is in it, this ends with a report."""
    folder, rules = read_folder(path), challenge()
    found = [finding for check in CHECKS for finding in check(folder, rules)]
    return Report(
        folder=path.resolve().name,
        record=folder.record,
        figures={
            "cap_bytes": rules["cap_bytes"],
            "sizes": check_package.sizes(folder, rules),
            "statistics": check_claims.figures(folder),
            "fingerprints": check_scores.fingerprints(folder, rules),
        },
        findings=tuple(sorted(found, key=lambda finding: LEVELS.index(finding.level))),
    )
