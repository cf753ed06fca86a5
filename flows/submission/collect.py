"""What a submission is made of: finished runs of one configuration, one per seed, with the records behind each figure.

Everything that a submission says is read here, and only from records whose bytes were hashed in full.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from artifacts.errors import NotFound
from artifacts.record import Record
from artifacts.store import Store
from configs.recipe import Recipe
from flows.rundoc import find_run
from flows.seeds import find_set
from flows.sets import Document, SeedSet, configuration_of, headline, undeclared
from stages.contract import StageError

Records = Mapping[tuple[str, str], Record]
_NEEDED = ("train", "average", "quantize", "compress", "bundle", "weigh")


@dataclass(frozen=True)
class Seed:
    """One seed's run."""

    seed: int
    run: Mapping[str, Any]  # its document
    records: Records
    scores: Mapping[str, Mapping[str, Any]]  # score.json of every protocol of the archive
    curve: Sequence[Mapping[str, Any]]
    verdict: Mapping[str, Any] | None  # verdict.json of the audit, of all scores; None: not audited

    def report(self, stage: str, part: str = "") -> Mapping[str, Any]:
        """What a stage reported."""
        return self.records[stage, part].report

    def judged(self, protocol: str) -> Mapping[str, Any] | None:
        """{"verdict": {policy: outcome}, "rules": {rule: verdict}, "policies": ...} of one score; None: not audited."""
        return self.verdict["scores"].get(protocol) if self.verdict else None

    def seconds(self, *stages: str) -> float:
        """The wall clock of the stages' processes, start to end."""
        return sum(self.records[stage, ""].provenance["seconds"] for stage in stages)

    @property
    def archive_sha256(self) -> str:
        """Of the archive's file."""
        (file,) = self.records["compress", ""].role("archive")
        return file.sha256


@dataclass(frozen=True)
class Submission:
    """Every seed of one configuration, and what else was tried."""

    recipe: Recipe
    scale: str
    protocol: str  # the headline
    seeds: tuple[Seed, ...]
    code: bytes  # train_gpt.py
    code_sha256: str
    attempts: tuple[Mapping[str, Any], ...]  # every run of the set, failed ones too; of single runs, those
    others: tuple[Mapping[str, Any], ...]  # runs of this configuration that were not declared

    @property
    def first(self) -> Seed:
        """The first seed, for what all share."""
        return self.seeds[0]

    @property
    def protocols(self) -> list[str]:
        """Protocols of the archive that every seed has, the headline last."""
        common = [name for name in self.first.scores if all(name in each.scores for each in self.seeds)]
        return [*(name for name in common if name != self.protocol), self.protocol]

    @property
    def cap_bytes(self) -> int:
        """Of code and model."""
        return self.first.report("weigh")["cap_bytes"]

    @property
    def total_bytes(self) -> int:
        """Code and model of the largest seed."""
        return max(each.report("weigh")["total_bytes"] for each in self.seeds)


def collect(store: Store, names: Sequence[str], scratch: Path, protocol: str = "") -> Submission:
    """The submission of a finished set of seeds, or of finished runs.

    Raises:
        StageError: unfinished, rejected, or of different configurations or code.
        DamagedArtifact: a byte is not what it was.
    """
    runs, attempts, others, chosen = _runs(store, names)
    recipe = _recipe(runs)
    chosen = headline(recipe, protocol or chosen)
    seeds = tuple(_seed(store, run, recipe, chosen, scratch) for run in runs)
    codes = {each.records["bundle", ""].role("bundle") for each in seeds}
    if len(codes) > 1:
        raise StageError(
            "a submission is one train_gpt.py; these runs were made by different states of the code: run the set again"
        )
    ((file,),) = codes
    return Submission(
        recipe=recipe,
        scale=runs[0]["scale"],
        protocol=chosen,
        seeds=seeds,
        code=store.read_object(file.sha256),
        code_sha256=file.sha256,
        attempts=tuple(attempts),
        others=tuple(others),
    )


def _runs(
    store: Store, names: Sequence[str]
) -> tuple[list[Document], Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]], str]:
    """(runs in the order of their seeds' declaration, all attempts, undeclared runs, the declared protocol)."""
    found = find_set(store, names[0]) if len(names) == 1 else None
    if found is None:
        runs = [_run(store, name) for name in names]
        return _one_configuration(runs), [_attempt(run) for run in runs], [], ""
    if found.get("kind") != "seeds":
        raise StageError(
            f"submit takes a set of seeds or runs; {found['id']} is a {found.get('kind')}; name a seed set"
        )
    declared = SeedSet(store, found)
    declared.refresh()
    results = declared.results()
    if missing := [seed for seed in found["seeds"] if seed not in results]:
        raise StageError(
            f"a submission reports every seed that was declared; {found['id']} has no result yet of seed "
            f"{', '.join(map(str, missing))}; run `fairway seeds` again"
        )
    if declared.is_mixed():
        raise StageError(
            f"a submission is one configuration; the seeds of {found['id']} ran on different states of code or data; "
            "run `fairway seeds` again"
        )
    runs = [_run(store, attempt["run"]) for attempt in results.values()]
    return runs, found["attempts"], undeclared(store, found), found["protocol"]


def _run(store: Store, name: str) -> Document:
    try:
        run = find_run(store, name)
    except NotFound as error:
        raise StageError(f"submit takes a set of seeds or runs; {store.url} has neither called {name!r}") from error
    if run["state"] != "completed":
        raise StageError(f"only finished runs are submitted; {name} is {run['state']}; run it again")
    return run


def _one_configuration(runs: Sequence[Document]) -> list[Document]:
    kinds = {(configuration_of(run), run["scale"]) for run in runs}
    seeds = [run["seed"] for run in runs]
    if len(kinds) > 1 or len(set(seeds)) < len(seeds):
        got = ", ".join(f"{run['id']} ({run['recipe']} {run['scale']}, seed {run['seed']})" for run in runs)
        raise StageError(f"the seeds of a submission are runs of one configuration, each seed once; got {got}")
    return list(runs)


def _attempt(run: Mapping[str, Any]) -> dict[str, Any]:
    return {"seed": run["seed"], "run": run["id"], "state": run["state"], "scores": run.get("scores", {})}


def _recipe(runs: Sequence[Document]) -> Recipe:
    try:
        return Recipe.model_validate_json(json.dumps(runs[0]["resolved"]))
    except ValidationError as error:
        raise StageError(
            f"a submission says what its recipe is; this Fairway refuses that of {runs[0]['id']}, which an older one "
            f"accepted: {error.errors()[0]['msg']}; run it again"
        ) from error


def _seed(store: Store, run: Document, recipe: Recipe, protocol: str, scratch: Path) -> Seed:
    records: dict[tuple[str, str], Record] = {}
    for step in run["steps"]:
        record = store.get(step["stage"], step["key"]) if step.get("key") else None
        if record is not None:
            records[step["stage"], step.get("part", "")] = record
    for stage, part in [*((stage, "") for stage in _NEEDED), ("evaluate", protocol)]:
        label = f"{stage}[{part}]" if part else stage
        if (stage, part) not in records:
            raise StageError(
                f"a submission stands on the records of its run; {run['id']} has none of {label} any more (never run, "
                "rejected or collected); run it again"
            )
        reason = store.rejection(records[stage, part])
        if reason is not None:
            raise StageError(f"nothing that was rejected is submitted; {label} of {run['id']} is: {reason}")
    store.fetch(records["compress", ""].files, scratch / run["id"] / "compress", verify="full")
    store.fetch(records["bundle", ""].files, scratch / run["id"] / "bundle", verify="full")
    # In the recipe's order, which documents do not keep.
    names = [name for name, each in recipe.evaluate.items() if each.of == "archive" and ("evaluate", name) in records]
    audit = next((record for (stage, _), record in records.items() if stage == "audit"), None)
    return Seed(
        seed=run["seed"],
        run=run,
        records=records,
        scores={name: json.loads(read(store, records["evaluate", name], "score/score.json")) for name in names},
        curve=[json.loads(line) for line in read(store, records["train", ""], "curve/curve.jsonl").splitlines()],
        verdict=json.loads(read(store, audit, "verdict/verdict.json")) if audit else None,
    )


def read(store: Store, record: Record, path: str) -> str:
    """The text of one of a record's files."""
    for file in record.files:
        if file.path == path:
            return store.read_object(file.sha256).decode("utf-8")
    raise StageError(f"a record of {record.label} holds {path}; {record.key[:12]} does not; run its stage again")
