"""`fairway submit --check`: every check over one records folder, ours or anybody's."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from configs.load import challenge
from flows.challenge import check_claims, check_package, check_scores
from flows.challenge.claims import same
from flows.challenge.findings import LEVELS, Finding, Report
from flows.challenge.folder import Folder, read_folder

Check = Callable[[Folder, Mapping[str, Any]], Iterator[Finding]]
CHECKS: tuple[Check, ...] = (
    check_package.check_files,
    check_package.check_json,
    check_package.check_sizes,
    check_package.check_code,
    check_package.check_models,
    check_claims.check_seeds,
    check_claims.check_values,
    check_claims.check_statistics,
    check_scores.check_clocks,
    check_scores.check_denominators,
    check_scores.check_data,
)


def check_folder(path: Path, against: str = "") -> Report:
    """Check a records folder; with `against`, also test its seeds against that row of the board or submission.json.

    Whatever is in the folder, this ends with a report. Raises StageError if there is no folder, or no such row.
    """
    folder, rules = read_folder(path), challenge()
    found = [finding for check in CHECKS for finding in check(folder, rules)]
    tested, faults = check_against(folder, against) if against else ({}, [])
    found += faults
    return Report(
        folder=path.resolve().name,
        record=folder.record,
        figures={
            "cap_bytes": rules["cap_bytes"],
            "sizes": check_package.sizes(folder, rules),
            "statistics": check_claims.figures(folder),
            "fingerprints": check_scores.fingerprints(folder, rules),
            **({"against": tested} if against else {}),
        },
        findings=tuple(sorted(found, key=lambda finding: LEVELS.index(finding.level))),
    )


def check_against(folder: Folder, against: str) -> tuple[dict[str, Any], list[Finding]]:
    """The organisers' test against a reference row, in every reading; and whether a declared p is one of them."""
    from flows.references import reference
    from flows.statistics import Scores, compare, estimate

    row = reference(against)
    values = list(check_claims.seed_values(folder).values())
    if not values:
        return {}, [Finding("note", "S1", "", f"no scores by seed are known: nothing to test against {row.name}")]
    text_bytes = [each["bytes"] / each["targets"] for each in check_scores.fingerprints(folder, challenge())]
    factor = math.log(2) * statistics.fmean(text_bytes) if text_bytes else None  # nats per token of one BPB
    tested = compare(Scores(estimate(values), factor), row.scores)
    p = folder.claims.number("p_value") if folder.claims else None
    found = [reading.welch.p for reading in tested.readings if reading.welch.p is not None]
    faults: list[Finding] = []
    if p is not None and found and not any(same(p, value) or same(p, 2 * value) for value in found):
        listed = ", ".join(f"{value:.3g}" for value in found)
        faults = [Finding("error", "S1", "I41", f"p_value {p} is none of {listed}, Welch's p against {row.name}")]
    return {"row": row.name, **tested.as_json()}, faults
