"""The wiring: which stage reads which role of which other, in river order. One line per stage.

`river` is a generator, because what a mapped stage maps over (the document shards of `corpus`) is known only once the
stage above has its output. The driver asks for the next step, finds or makes its record, and reports the record's files
back in `outputs`; `plan` leaves unknown what has not run yet, and everything below such a step has unknown inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from artifacts.record import File, digest_files
from configs.introduced import resolved
from configs.load import challenge
from configs.recipe import DeviceConfig, Recipe
from stages.config import StageConfig

SEEDS = "seed-"  # part of a training that another run's average reads

StepId = tuple[str, str]  # (stage, part); the part of an unmapped stage is ""
Outputs = Mapping[StepId, tuple[File, ...] | None]  # files of a finished step, or None while it is not known


@dataclass(frozen=True)
class Input:
    """What a step reads under one role: files of the store, or a fingerprint of something outside it."""

    digest: str | None  # None: not known before a stage above has run
    files: tuple[File, ...] = ()  # paths relative to the role's folder
    origin: tuple[tuple[str, str, str], ...] = ()  # (stage, part, role) of each producer, for lineage
    written: bytes = b""  # contents of the one file, where the flow itself has written it


@dataclass(frozen=True)
class Step:
    """One stage, or one part of a mapped stage, with everything that its key needs but code and libraries."""

    stage: str
    part: str
    config: StageConfig
    inputs: Mapping[str, Input]
    seed: int | None
    device: DeviceConfig | None

    @property
    def id(self) -> StepId:
        """(stage, part)."""
        return (self.stage, self.part)

    @property
    def label(self) -> str:
        """`stage` or `stage[part]`, as people read it."""
        return f"{self.stage}[{self.part}]" if self.part else self.stage


@dataclass(frozen=True)
class Outside:
    """Fingerprints of what does not come from a stage; made before the river flows."""

    corpus: Input
    source: Input  # the modules that `bundle` packs
    vocabulary: Input | None = None  # an imported .model


Account = Callable[[Sequence[Step]], Input]
"""What the audit is told about finished steps: a file that the flow writes of their records (`account.py`)."""


def not_known(steps: Sequence[Step]) -> Input:
    """The account of steps whose records nobody has."""
    return Input(None, origin=told(steps))


def told(steps: Sequence[Step]) -> tuple[tuple[str, str, str], ...]:
    """An account comes from all of its steps: what taints one of them taints the audit."""
    return tuple((step.stage, step.part, step.config.SPEC.outputs[0]) for step in steps)


def of(outputs: Outputs, stage: str, role: str, part_prefix: str = "") -> Input:
    """The union of `role` over the parts of `stage` whose name starts with `part_prefix`."""
    parts = sorted(step for step in outputs if step[0] == stage and step[1].startswith(part_prefix))
    # Shards are named after their part; the weights of several runs are not, so each gets a folder.
    return _union(outputs, parts, role, in_folders=part_prefix == SEEDS)


def _union(outputs: Outputs, parts: Sequence[StepId], role: str, in_folders: bool) -> Input:
    origin = tuple((stage, part, role) for stage, part in parts)
    files: list[File] = []
    for step in parts:
        known = outputs[step]
        if known is None:
            return Input(None, origin=origin)
        found = [f.below(role) for f in known if f.path.startswith(f"{role}/")]
        files += [replace(f, path=f"{step[1]}/{f.path}") for f in found] if in_folders else found
    if not parts:
        return Input(None)
    ordered = tuple(sorted(files, key=lambda f: f.path))
    return Input(digest_files(ordered), ordered, origin)


# What the packed code does: it trains, makes the archive and scores it. Data, size checks and names stay outside.
_BUNDLED = ("train", "average", "quantize", "compress")


def bundled(recipe: Recipe) -> dict[str, Any]:
    """The part of a recipe that reaches the packed code, seed-free; a field that is absent is off."""
    stages = {name: resolved(getattr(recipe, name)) for name in _BUNDLED}
    protocols = {name: resolved(each) for name, each in recipe.evaluate.items() if each.of == "archive"}
    devices = {name: value for name, value in resolved(recipe.devices).items() if name != "audit"}
    return {**stages, "evaluate": protocols, "devices": devices}


def river(
    recipe: Recipe, seed: int, outside: Outside, outputs: Outputs, account: Account = not_known
) -> Iterator[Step]:
    """Every step in river order. `outputs` must hold a step's files (or None) before the next step is asked for."""
    steps: list[Step] = []
    for each in _to_the_scores(recipe, seed, outside, outputs):
        steps.append(each)
        yield each
    if scored := sorted(name for name, protocol in recipe.evaluate.items() if protocol.of == "archive"):
        yield _audit(recipe, scored, outputs, account(steps))


def _audit(recipe: Recipe, scored: Sequence[str], outputs: Outputs, records: Input) -> Step:
    """The last step: it reads what was submitted, what was scored and what is on record, and nothing reads it."""
    protocols = {name: resolved(protocol) for name, protocol in recipe.evaluate.items()}
    wired = {"protocols": protocols, "evaluate_ranks": recipe.devices.evaluate.count, "challenge": challenge()}
    config = recipe.audit.model_copy(update=wired)
    parts = [("evaluate", name) for name in scored]
    inputs = {
        "archive": of(outputs, "compress", "archive"),
        "bundle": of(outputs, "bundle", "bundle"),
        "sizes": of(outputs, "weigh", "sizes"),
        "tokenizer": of(outputs, "vocabulary", "tokenizer"),
        "val": of(outputs, "tokenize", "shards", "val-"),
        "scores": _union(outputs, parts, "score", in_folders=True),
        "ledgers": _union(outputs, parts, "ledger", in_folders=True),
        "overlap": of(outputs, "overlap", "overlap"),
        "records": records,
    }
    wanted = {role: inputs[role] for role in config.reads()}
    return Step("audit", "", config, wanted, None, recipe.devices.of("audit"))


def _to_the_scores(recipe: Recipe, seed: int, outside: Outside, outputs: Outputs) -> Iterator[Step]:
    r = recipe

    def step(stage: str, config: StageConfig, part: str = "", /, **inputs: Input) -> Step:
        spec = config.SPEC
        wanted = {role: inputs[role] for role in config.reads()}
        device = r.devices.of(stage) if spec.accelerated else None
        return Step(stage, part, config, wanted, seed if spec.seeded else None, device)

    yield step("corpus", r.corpus, source=outside.corpus)
    missing = Input(None)
    documents = of(outputs, "corpus", "train")
    yield step("vocabulary", r.vocabulary, documents=documents, model=outside.vocabulary or missing)
    tokenizer = of(outputs, "vocabulary", "tokenizer")
    for split in ("train", "val"):
        for file in of(outputs, "corpus", split).files or (None,):
            # A part keeps its shard's name, so a new shard adds a part and leaves the others as they are.
            part = f"{split}-{file.path.split('.')[0]}" if file else f"{split}-?"
            shard = Input(digest_files((file,)), (file,), (("corpus", "", split),)) if file else missing
            yield step("tokenize", r.tokenize, part, documents=shard, tokenizer=tokenizer)
    shards = of(outputs, "tokenize", "shards", "train-")
    yield step("train", r.train, shards=shards, tokenizer=tokenizer)
    trained = {role: of(outputs, "train", role) for role in ("raw", "ema", "snapshots")}
    others = [f"{SEEDS}{other}" for other in r.average.seeds if other != seed]
    for part in others:
        # Not a part of the key: the same training under its own name is found, and found again there.
        yield replace(
            step("train", r.train, part, shards=shards, tokenizer=tokenizer), seed=int(part.removeprefix(SEEDS))
        )
    yield step("average", r.average, **trained, others=of(outputs, "train", "raw", SEEDS))
    weights = of(outputs, "average", "weights")
    yield step("quantize", r.quantize, weights=weights, shards=shards)
    yield step("compress", r.compress, quantized=of(outputs, "quantize", "quantized"))
    archive = of(outputs, "compress", "archive")
    yield step("bundle", r.bundle.model_copy(update={"recipe": bundled(r)}), source=outside.source)
    yield step("weigh", r.weigh, archive=archive, bundle=of(outputs, "bundle", "bundle"))
    val = of(outputs, "tokenize", "shards", "val-")
    for name, protocol in r.evaluate.items():
        scored = trained["raw"] if protocol.of == "raw" else weights
        yield step("evaluate", protocol, name, weights=scored, archive=archive, tokenizer=tokenizer, val=val)
    if r.evaluate:
        yield step("overlap", r.overlap, train=shards, val=val, tokenizer=tokenizer)
