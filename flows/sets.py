"""Sets: runs that are declared before they start, and what became of each. The document is `sets/<id>.json`.

A set of seeds is one configuration under several seeds. Its id is made of the configuration and the seeds, so that
asking for the same set again goes on with it. An attempt is never taken out of the document: a seed that crashed, was
cancelled or whose result was rejected shows as that, also after a later attempt succeeded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from artifacts.errors import NotFound
from artifacts.safety import redact_argv
from artifacts.store import Store
from configs.introduced import resolved
from configs.load import Loaded
from configs.recipe import Recipe
from flows.identity import canonical_json
from flows.rundoc import label_of, utc_now
from stages.contract import StageError

Document = dict[str, Any]
_NO_RESULT = ("name", "about", "published", "seed")  # fields of a recipe that change no result, or are the seed
# Steps that every seed shares: equal keys say that the seeds ran on one state of code and data.
_SHARED = ("corpus", "vocabulary", "tokenize", "bundle")


def configuration(recipe: Recipe) -> str:
    """A digest of everything that a recipe chooses, its seed aside. A new field that is off leaves it as it was."""
    chosen = {name: value for name, value in resolved(recipe).items() if name not in _NO_RESULT}
    return hashlib.sha256(canonical_json(chosen).encode()).hexdigest()


def configuration_of(document: Mapping[str, Any]) -> str | None:
    """The same of a run's document; None if this Fairway cannot read its recipe any more."""
    try:
        return configuration(Recipe.model_validate_json(json.dumps(document["resolved"]), strict=True))
    except (KeyError, ValidationError, ValueError):
        return None


def set_id(name: str, scale: str, identity: Mapping[str, Any]) -> str:
    """`pr714-full-3fa9c1d2e4b5`."""
    return f"{name}-{scale}-{hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:12]}"


def archive_protocols(recipe: Recipe) -> list[str]:
    """The protocols that score the archive, in the recipe's order; float diagnostics are no scores."""
    return [name for name, protocol in recipe.evaluate.items() if protocol.of == "archive"]


def headline(recipe: Recipe, asked: str = "") -> str:
    """The protocol whose score is tested, chosen before anything runs: the one asked for, or the recipe's last.

    Raises:
        StageError: there is no such protocol.
    """
    known = archive_protocols(recipe)
    if asked and asked not in known:
        raise StageError(
            f"--protocol names one that scores the archive; got {asked!r}; {recipe.name} has "
            f"{', '.join(known) or 'none'}"
        )
    if not known:
        raise StageError(f"seeds are compared by a score of the archive; {recipe.name} has no such protocol; add one")
    return asked or known[-1]


class SeedSet:
    """A set of seeds, kept up to date in the store."""

    def __init__(self, store: Store, document: Document) -> None:
        self._store = store
        self.document = document

    @classmethod
    def declare(
        cls, store: Store, loaded: Loaded, seeds: Sequence[int], protocol: str, asked: Mapping[str, Any]
    ) -> SeedSet:
        """The set of these seeds: written now if it is new, else as it is in the store.

        Args:
            store: where.
            loaded: the checked recipe.
            seeds: of the training, each once.
            protocol: the headline.
            asked: recipe and overrides as they were given, to ask again.
        """
        digest = configuration(loaded.recipe)
        identity = {"configuration": digest, "scale": loaded.scale, "seeds": sorted(seeds)}
        if repeat := asked.get("repeat"):
            identity["repeat"] = repeat
        name = set_id(loaded.recipe.name, loaded.scale, identity)
        try:
            return cls(store, store.read_set(name))
        except NotFound:
            pass
        before = sorted({run["seed"] for run in runs_of(store, digest, loaded.scale) if run["seed"] in seeds})
        declared: Document = {
            "id": name,
            "kind": "seeds",
            "recipe": loaded.recipe.name,
            "asked": asked["recipe"],
            "scale": loaded.scale,
            "overrides": redact_argv(list(asked["overrides"])),
            "argv": redact_argv(list(asked["argv"])),
            "configuration": digest,
            "resolved": loaded.recipe.model_dump(mode="json"),
            "seeds": list(seeds),
            "protocol": protocol,
            "protocols": list(loaded.recipe.evaluate),  # in the recipe's order, which documents do not keep
            "ran_before": before,  # seeds that had been run when they were declared: they were not chosen blindly
            "declared": utc_now(),
            "state": "declared",
            "attempts": [],
        }
        store.write_set(declared)
        return cls(store, declared)

    @property
    def id(self) -> str:
        """The set's id."""
        return self.document["id"]

    def begin(self, seed: int, run_id: str) -> None:
        """A run of a seed starts. Written first, so that a run that kills its process is seen."""
        attempt = {"seed": seed, "run": run_id, "state": "running", "started": utc_now()}
        self.document["attempts"].append(attempt)
        self._write("running")

    def end(self, run: Mapping[str, Any], state: str, **fields: Any) -> None:
        """The latest attempt has ended; `run` is its document. A repeat that only found what is here is not one."""
        attempt = self.document["attempts"][-1]
        steps = [step for step in run["steps"] if "key" in step]
        attempt |= {"state": state, "finished": utc_now(), **fields}
        attempt["steps"] = {label_of(step): step["key"] for step in steps}
        if state == "completed":
            attempt["records"] = self._records(steps)
            same = (a for a in self.document["attempts"][:-1] if a.get("records") == attempt["records"])
            earlier = next((a for a in same if a["seed"] == attempt["seed"]), None)
            if earlier is not None:
                self.document["attempts"].remove(earlier)
                attempt |= {name: earlier[name] for name in ("run", "started", "finished")}
        self._write("running")

    def close(self, state: str = "") -> None:
        """Nothing runs any more. Without a state: `completed` if every seed has a result, else `incomplete`."""
        done = all(self.current(seed) is not None for seed in self.document["seeds"])
        self._write(state or ("completed" if done else "incomplete"))

    def refresh(self) -> None:
        """See what became of attempts whose process was killed, and of results that were rejected since."""
        rejected = {record.id: reason for record, reason in self._store.rejected()}
        for attempt in self.document["attempts"]:
            if attempt["state"] == "running":
                attempt["state"] = self._state_of_run(attempt["run"])
            taint = [rejected[record] for record in attempt.get("records", {}).values() if record in rejected]
            if taint and attempt["state"] == "completed":
                attempt |= {"state": "rejected", "error": taint[0]}

    def current(self, seed: int) -> dict[str, Any] | None:
        """The attempt that counts for a seed: its latest completed one."""
        mine = (a for a in reversed(self.document["attempts"]) if a["seed"] == seed and a["state"] == "completed")
        return next(mine, None)

    def results(self) -> dict[int, dict[str, Any]]:
        """Seed -> the attempt that counts, in the order in which seeds were declared."""
        found = {seed: self.current(seed) for seed in self.document["seeds"]}
        return {seed: attempt for seed, attempt in found.items() if attempt is not None}

    def is_mixed(self) -> bool:
        """Whether the results that count come from different states of code or data."""
        shared = [
            {label: key for label, key in attempt["steps"].items() if label.partition("[")[0] in _SHARED}
            for attempt in self.results().values()
        ]
        return any(steps != shared[0] for steps in shared)

    def _records(self, steps: Iterable[Mapping[str, Any]]) -> dict[str, str]:
        """{protocol: record id} of the scores."""
        scored = [(step["part"], step["key"]) for step in steps if step["stage"] == "evaluate"]
        found = {part: self._store.get("evaluate", key) for part, key in scored}
        return {part: record.id for part, record in found.items() if record is not None}

    def _state_of_run(self, run_id: str) -> str:
        try:
            return self._store.read_run(run_id)["state"]
        except NotFound:
            return "crashed"

    def _write(self, state: str) -> None:
        self.document["state"] = state
        self._store.write_set(self.document)


def present_state(store: Store, document: Document) -> str:
    """A set's state, or a sweep's: one that says `running` while nothing of it runs was killed."""
    if document["state"] != "running":
        return document["state"]
    if document["kind"] == "seeds":
        declared = SeedSet(store, document)
        declared.refresh()
        alive = any(attempt["state"] == "running" for attempt in document["attempts"])
    else:
        sets = [store.read_set(point["set"]) for point in document["points"]]
        # Between two points none of them runs, for a moment.
        alive = any(present_state(store, each) == "running" for each in sets)
    return "running" if alive else "crashed"


def runs_of(store: Store, digest: str, scale: str) -> Iterator[dict[str, Any]]:
    """The runs of a configuration that have a score, whoever asked for them."""
    for run in store.list_runs():
        if run.get("scale") == scale and run.get("scores") and configuration_of(run) == digest:
            yield run


def undeclared(store: Store, document: Document) -> list[dict[str, Any]]:
    """Runs of the very configuration under seeds that the set does not have: who drops a seed shows it here."""
    found = runs_of(store, document["configuration"], document["scale"])
    others = {run["seed"]: run for run in found if run["seed"] not in document["seeds"]}
    return [
        {"seed": seed, "run": run["id"], "bpb": run["scores"].get(document["protocol"], {}).get("bpb")}
        for seed, run in sorted(others.items())
    ]
