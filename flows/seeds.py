"""Several seeds of one configuration: declared, run one after the other, reported whole.

Stages that do not depend on the seed run once, because the store has them the second time. A seed that fails does not
stop the others; Ctrl-C does, and the next call goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from artifacts.errors import LeaseCancelled, StoreError
from artifacts.store import Store
from configs.load import Loaded, load_recipe
from flows.launch import Interrupted, StageFailed
from flows.prepare import Prepared, Request, local_folder, prepare, sweep
from flows.references import Reference, comparable
from flows.sets import Document, SeedSet, headline, undeclared
from flows.statistics import FRONTIER_LEVEL, LEVEL, Comparison, Estimate, Scores, compare, detectable, estimate, paired
from flows.validation import validation
from stages.contract import StageError

Conduct = Callable[[Prepared], Mapping[str, Any]]  # `flows.pipeline.run`
LEAST_SEEDS = 3  # what the challenge asks for
_KEPT = ("scores", "bytes")  # of a run's result


@dataclass(frozen=True)
class Show:
    """How progress is shown: a viewer for each run, and a line between runs."""

    viewer: Callable[[], Any]  # each a context manager that is called with events, as `show.PlainRun`
    say: Callable[[str], None]


def check_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """Seeds in the order asked for; each is declared once, since a repeat would count one result twice."""
    if not seeds or len(set(seeds)) < len(seeds) or any(seed < 0 for seed in seeds):
        got = ",".join(map(str, seeds)) or "none"
        raise StageError(f"seeds are whole numbers from 0, each once; got {got}; write for instance 42,1337,2025")
    return tuple(seeds)


def declare(request: Request, seeds: Sequence[int], protocol: str = "", loaded: Loaded | None = None) -> SeedSet:
    """Check everything and write the set, before the first run.

    Raises:
        StageError: the recipe, a field, a seed or the protocol is wrong.
    """
    loaded = loaded or load_recipe(request.recipe, request.scale, request.overrides)
    chosen = headline(loaded.recipe, protocol)
    store = Store.open(request.store)
    asked = {"recipe": request.recipe, "overrides": request.overrides, "argv": request.argv, "repeat": request.repeat}
    return SeedSet.declare(store, loaded, check_seeds(seeds), chosen, asked)


def run_set(declared: SeedSet, request: Request, conduct: Conduct, show: Show) -> None:
    """Run every seed of a set; those with a result in the store take no time.

    Raises:
        Interrupted, KeyboardInterrupt, LeaseCancelled: stopped; the set says `cancelled`.
    """
    store = Store.open(request.store)
    seeds = declared.document["seeds"]
    key = hashlib.sha256(declared.id.encode()).hexdigest()
    # Two processes on one set would overwrite each other's list of attempts.
    with store.lease(key, on_wait=lambda who: show.say(f"{declared.id} is being run by {who}; waiting")):
        declared.document = store.read_set(declared.id)
        sweep(store, local_folder(store))
        declared.refresh()
        try:
            for place, seed in enumerate(seeds, 1):
                if len(seeds) > 1:
                    show.say(f"seed {seed} ({place} of {len(seeds)})")
                _run_seed(declared, replace(request, seed=seed), conduct, show)
        except (Interrupted, KeyboardInterrupt, LeaseCancelled):
            declared.close("cancelled")
            raise
        except BaseException:
            declared.close("crashed")
            raise
        declared.close()


def _run_seed(declared: SeedSet, request: Request, conduct: Conduct, show: Show) -> None:
    viewer = show.viewer()
    begun: Prepared | None = None

    def end(state: str, **fields: Any) -> None:
        if begun is not None:
            declared.end(begun.session.run.snapshot(), state, **fields)

    try:
        with prepare(request, viewer) as prepared:
            declared.begin(prepared.session.seed, prepared.session.run.id)
            begun = prepared
            with viewer:
                result = conduct(prepared)
        end("completed", **{name: result[name] for name in _KEPT if name in result})
    except (Interrupted, KeyboardInterrupt, LeaseCancelled):
        end("cancelled")
        raise
    except (StageFailed, StageError, StoreError) as error:
        if begun is None:  # nothing started: the request itself is wrong, as it would be for every seed
            raise
        end("failed", error=str(error))
        show.say(f"seed {request.seed} failed: {str(error).splitlines()[0]}")
    except BaseException as error:
        end("crashed", error=str(error) or type(error).__name__)
        raise


def result_of(
    store: Store, declared: SeedSet, reference: Reference | None = None, protocol: str = ""
) -> dict[str, Any]:
    """The set as one JSON object: every attempt, every protocol's mean and deviation, the test, and what to know."""
    document, results = declared.document, declared.results()
    tested = protocol or document["protocol"]
    scores = {name: _protocol(store, document, results, name) for name in scored_protocols(document, results)}
    found: dict[str, Any] = {
        "set": document["id"],
        "recipe": document["recipe"],
        "scale": document["scale"],
        "overrides": document["overrides"],
        "state": document["state"],
        "declared": document["declared"],
        "seeds": document["seeds"],
        "protocol": tested,
        "n": len(results),
        "runs": [_attempt_line(attempt, results, tested) for attempt in _by_seed(document)],
        "scores": scores,
        "bytes": sizes(results),
        "reference": None,
        "test": None,
        "undeclared": undeclared(store, document),
        "report": None,
    }
    notes = [*_notes(declared, results, found, tested)]
    if reference is not None:
        found["reference"] = _reference_line(reference)
        found["test"], said = against(scores.get(tested), reference)
        notes += said
    found["notes"] = notes
    return found


def scores_of(line: Mapping[str, Any] | None) -> Scores | None:
    """The scores of one protocol of a result, for tests."""
    if not line:
        return None
    return Scores(estimate(list(line["values"].values())), line["nats_per_bpb"], estimate(list(line["nats"].values())))


def against(line: Mapping[str, Any] | None, reference: Reference) -> tuple[dict[str, Any] | None, list[str]]:
    """The test of a result's protocol against a row, and what to know about it; None where nothing can be tested."""
    scores = scores_of(line)
    if line is None or scores is None:
        return None, ["no test: no seed has a score yet"]
    same = comparable(reference, line["bytes"], line["validation"])
    if same is False:
        return None, [
            f"no test: {reference.name} was scored on other text ({reference.validation or _size(reference)}) than "
            f"this set ({line['validation']}, {line['bytes']:,} bytes); such scores say nothing about each other"
        ]
    found: Comparison = compare(scores, reference.scores)
    notes = [*found.notes, *_outcome(found)]
    pairs = None
    if reference.ours:
        before = dict(zip(map(str, reference.seeds), reference.scores.bpb.values, strict=True))
        pairs = pair(line["values"], before)
    if same is None:
        notes.append(f"{reference.name} does not say which text it was scored on; make sure that it is this one")
    return {**found.as_json(), "strictest": found.strictest.name, "paired": pairs}, notes


def _outcome(found: Comparison) -> Iterator[str]:
    """What the tests come to, in words."""
    strictest, frontier = found.strictest, found.readings[0].welch.p
    if strictest.welch.p is None or frontier is None:
        return
    passes = "passes" if strictest.welch.p < LEVEL else "does not pass"
    yield f"{passes} the strictest reading, {strictest.name}: p = {strictest.welch.p:.3g}, asked for is p < {LEVEL:g}"
    passes = "passes" if frontier < FRONTIER_LEVEL else "does not pass"
    yield f"{passes} what the organisers took: margin 0, p = {frontier:.3g}, asked for was p < {FRONTIER_LEVEL:g}"


def _size(reference: Reference) -> str:
    return f"{reference.text_bytes or 0:,} bytes"


def pair(new: Mapping[str, float], old: Mapping[str, float]) -> dict[str, Any] | None:
    """The paired test over the seeds that both have, {seed: BPB} each; None without two of them."""
    seeds = [seed for seed in new if seed in old]
    if len(seeds) < 2:
        return None
    return {"seeds": seeds, **asdict(paired([new[seed] for seed in seeds], [old[seed] for seed in seeds]))}


def scored_protocols(document: Document, results: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """Every protocol that some seed has a score of, in the recipe's order."""
    scored = {name for attempt in results.values() for name in attempt["scores"]}
    return [name for name in document["protocols"] if name in scored]


def _protocol(store: Store, document: Document, results: Mapping[int, Mapping[str, Any]], name: str) -> dict[str, Any]:
    scored = {str(seed): attempt["scores"][name] for seed, attempt in results.items() if name in attempt["scores"]}
    bpb = {seed: score["bpb"] for seed, score in scored.items()}
    nats = {seed: score["nats_per_token"] for seed, score in scored.items()}
    first = next(iter(scored.values()))
    steps = next(attempt["steps"] for attempt in results.values() if name in attempt["scores"])
    told: Estimate = estimate(list(bpb.values()))
    return {
        **{name: value for name, value in asdict(told).items() if name != "values"},
        "values": bpb,
        "nats": nats,
        "nats_per_bpb": sum(nats.values()) / sum(bpb.values()),
        "tokens": first["tokens"],
        "bytes": first["bytes"],
        "validation": validation(store, steps, document["resolved"], name, first["bytes"]),
        "marks": sorted({mark for score in scored.values() for mark in score.get("marks", [])}),
        "rules_broken": sorted({rule for score in scored.values() for rule in score.get("rules_broken", [])}),
    }


def sizes(results: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Total bytes over the seeds: the rule is on each, so the largest counts."""
    totals = {str(seed): attempt["bytes"]["total"] for seed, attempt in results.items() if attempt.get("bytes")}
    if not totals:
        return {}
    cap = next(attempt["bytes"]["cap"] for attempt in results.values() if attempt.get("bytes"))
    return {"max": max(totals.values()), "mean": sum(totals.values()) / len(totals), "cap": cap, "values": totals}


def _by_seed(document: Document) -> list[dict[str, Any]]:
    """Every attempt, by seed as declared and then by time."""
    order = {seed: place for place, seed in enumerate(document["seeds"])}
    return sorted(document["attempts"], key=lambda attempt: (order[attempt["seed"]], attempt["started"]))


def _attempt_line(
    attempt: Mapping[str, Any], results: Mapping[int, Mapping[str, Any]], protocol: str
) -> dict[str, Any]:
    score = attempt.get("scores", {}).get(protocol, {})
    return {
        "seed": attempt["seed"],
        "state": attempt["state"],
        "counts": results.get(attempt["seed"]) is attempt,
        "bpb": score.get("bpb"),
        "nats_per_token": score.get("nats_per_token"),
        "bytes": attempt.get("bytes", {}).get("total"),
        "verdict": score.get("verdict", {}),
        "run": attempt["run"],
        "error": attempt.get("error", "").partition("\n")[0],
    }


def _reference_line(reference: Reference) -> dict[str, Any]:
    told = asdict(reference.scores.bpb)
    return {"name": reference.name, "source": reference.source, "about": reference.about, **told}


def _notes(
    declared: SeedSet, results: Mapping[int, Mapping[str, Any]], found: Mapping[str, Any], protocol: str
) -> Iterator[str]:
    document = declared.document
    if missing := [seed for seed in document["seeds"] if seed not in results]:
        yield f"no result yet of seed {', '.join(map(str, missing))}: the means below are of {len(results)} seeds only"
    if protocol != document["protocol"]:
        yield f"declared was {document['protocol']}; a protocol that is chosen afterwards proves less"
    if declared.is_mixed():
        yield "the results come from different states of code or data: run the set again"
    if document["ran_before"]:
        yield f"seed {', '.join(map(str, document['ran_before']))} had been run before the set was declared"
    for other in found["undeclared"]:
        score = "" if other["bpb"] is None else f", {other['bpb']:.5f} BPB"
        yield f"not in the set, though of the same configuration: seed {other['seed']} (run {other['run']}{score})"
    line = found["scores"].get(protocol)
    if line and line["rules_broken"]:
        yield f"{protocol} breaks {' '.join(line['rules_broken'])}: no legal score, whatever its mean"
    if (found["bytes"] or {"max": 0, "cap": 0})["max"] > (found["bytes"] or {"cap": 0})["cap"]:
        yield f"over the cap: {found['bytes']['max']:,} of {found['bytes']['cap']:,} bytes"
    if 0 < len(document["seeds"]) < LEAST_SEEDS:
        yield f"the challenge asks for {LEAST_SEEDS} seeds or more; this set has {len(document['seeds'])}"
    if line and line["std"] and line["n"] > 1:
        least = detectable(line["std"], line["n"], line["n"])
        yield (
            f"with this deviation, {line['n']} seeds on each side show a difference (p < 0.01) from {least:.4f} BPB on"
        )


def find_set(store: Store, text: str) -> Document | None:
    """The set with this id, or whose id begins like this if only one does."""
    found = [each for each in store.list_sets() if each["id"].startswith(text)]
    exact = [each for each in found if each["id"] == text]
    return (exact or found)[0] if exact or len(found) == 1 else None


def set_as_reference(store: Store, document: Document) -> Reference:
    """A set of seeds in the store as a row to test against."""
    if document["kind"] != "seeds":
        raise StageError(
            f"a reference is a set of seeds; {document['id']} is a {document['kind']}; name one of its sets"
        )
    declared = SeedSet(store, document)
    declared.refresh()
    line = result_of(store, declared)["scores"].get(document["protocol"])
    scores = scores_of(line)
    if line is None or scores is None:
        raise StageError(f"a reference has scores; no seed of {document['id']} has one; run it first")
    about = f"{document['recipe']} {document['scale']}, {document['protocol']}"
    seeds = tuple(map(int, line["values"]))
    return Reference(
        document["id"], scores, line["bytes"], store.url, about, seeds, ours=True, validation=line["validation"]
    )
