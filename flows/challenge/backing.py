"""Which logged runs and scores stand behind the claims: what a check compares a submission.json with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from flows.challenge.claims import Claims, Entry, same
from flows.challenge.folder import Evidence, Folder
from flows.challenge.log import Score


@dataclass(frozen=True)
class Backed:
    """A declared seed, and the run and score that say the same; None where none does."""

    entry: Entry
    bpb: Decimal | None
    runs: tuple[Evidence, ...]  # everything logged for the seed
    run: Evidence | None
    score: Score | None

    @property
    def value(self) -> Decimal | None:
        """The BPB with the most digits that there are for it."""
        return self.score.val_bpb if self.score else self.bpb


def backed(folder: Folder) -> list[Backed]:
    """Every declared seed with its evidence."""
    claims = folder.claims
    if claims is None:
        return []
    found: list[Backed] = []
    for entry in claims.entries:
        bpb, runs = claims.bpb_of(entry), tuple(folder.of_seed(entry.seed))
        run, score = _match(bpb, runs, entry.number("val_loss"))
        found.append(Backed(entry, bpb, runs, run, score))
    return found


def backing_runs(folder: Folder) -> list[Evidence]:
    """The runs that sizes, clocks and denominators are checked on: those behind the claims, or all that were scored."""
    seeds = backed(folder)
    if not seeds:
        headline = folder.claims.val_bpb if folder.claims else None
        scored = [each for each in folder.evidence if each.run.final_scores]
        alone = [each for each in scored if headline is not None and _best(headline, each)]
        several = len({each.seed for each in scored}) > 1
        return alone if alone and not several else scored
    return [each for seed in seeds for each in _telling(seed)]


def _telling(seed: Backed) -> Sequence[Evidence]:
    """The run behind a seed; where its log says nothing of sizes (a score alone), also those that do."""
    if seed.run is None:
        return seed.runs
    sized = [each for each in seed.runs if each.run.counted_total_bytes is not None and each is not seed.run]
    return [seed.run] if seed.run.run.counted_total_bytes is not None else [seed.run, *sized]


def claimed_score(folder: Folder, evidence: Evidence) -> Score | None:
    """The score of a run that is the claim: the one that was declared, else the last one."""
    for seed in backed(folder):
        if seed.run is evidence and seed.score:
            return seed.score
    finals = evidence.run.final_scores
    headline = folder.claims.val_bpb if folder.claims else None
    found = _best(headline, evidence) if headline is not None else None
    return found or (finals[-1] if finals else None)


def by_label(evidence: Iterable[Evidence]) -> dict[str, dict[str, Decimal]]:
    """{label: {seed: BPB}} of final scores, the last of each run."""
    table: dict[str, dict[str, Decimal]] = {}
    for each in evidence:
        for score in each.run.final_scores:
            if each.seed is not None:
                table.setdefault(score.label, {})[each.seed] = score.val_bpb
    return table


def declared_totals(claims: Claims) -> list[int]:
    """Artifact bytes of the seeds as declared."""
    return [total for entry in claims.entries if (total := entry.artifact_bytes) is not None]


def _match(
    bpb: Decimal | None, runs: Sequence[Evidence], val_loss: Decimal | None
) -> tuple[Evidence | None, Score | None]:
    if bpb is None:
        return None, None
    matches = [(each, score) for each in runs for score in each.run.scores if same(bpb, score.val_bpb)]
    # The same number may stand there twice: a line with a matching loss and more digits says more, then a final one.
    matches.sort(
        key=lambda pair: (
            val_loss is not None and same(val_loss, pair[1].val_loss),
            not pair[1].diagnostic,
            pair[1].decimals,
            pair[0].run.counted_total_bytes is not None,
        )
    )
    return matches[-1] if matches else (None, None)


def _best(headline: Decimal, evidence: Evidence) -> Score | None:
    matches = [score for score in evidence.run.final_scores if same(headline, score.val_bpb)]
    return max(matches, key=lambda score: score.decimals, default=None)
