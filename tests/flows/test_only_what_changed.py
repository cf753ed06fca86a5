"""Only what changed: one table of edits, and the exact set of steps whose key each of them changes.

Keys are compared with the outputs of every stage held fixed, so the table shows each edit's own reach. What lies below
runs only if bytes change (early cut-off, `test_plan.py`).

    python tests/flows/test_only_what_changed.py ROOT      # prints the keys that the tree at ROOT gives, as JSON
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from artifacts.record import File, Record
from configs.introduced import field_names, is_group
from configs.load import load_recipe
from configs.recipe import DeviceConfig, Recipe
from flows.account import account_of
from flows.identity import Identity, key_of
from flows.river import Input, Outside, Step, river
from flows.source import bundle_source
from stages.contract import StageError

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("artifacts", "configs", "flows", "model", "stages")


def fixed_outputs(step: Step) -> tuple[File, ...]:
    """What every run of a stage is held to give."""
    paths = [f"{role}/file" for role in step.config.SPEC.outputs]
    if step.stage == "corpus":
        paths = ["train/00000.parquet", "val/00000.parquet"]
    return tuple(File(p, hashlib.sha256(f"{step.label} {p}".encode()).hexdigest(), 1) for p in paths)


def fixed_record(step: Step) -> Record:
    """The record of it: nothing in it depends on the tree, so that the audit's key shows the audit's own reach."""
    key = hashlib.sha256(step.label.encode()).hexdigest()
    return Record(step.stage, step.part, key, fixed_outputs(step), {}, {"seconds": 1.0}, {}, {"seconds": 2.0}, id=key)


def keys(root: Path, recipe: Recipe) -> dict[str, str]:
    """Step -> key, for a source tree and a recipe."""
    return keys_of(Identity(root), bundle_source(root), recipe)


def keys_of(identity: Identity, source: Input, recipe: Recipe) -> dict[str, str]:
    """Step -> key, with what was read of the tree already."""
    outside = Outside(corpus=Input("c" * 64), vocabulary=Input("d" * 64), source=source)
    outputs: dict[tuple[str, str], Any] = {}
    records: dict[tuple[str, str], Record] = {}
    found: dict[str, str] = {}
    for step in river(recipe, 1, outside, outputs, account_of(records.get)):
        outputs[step.id] = fixed_outputs(step)
        records[step.id] = fixed_record(step)
        found[step.label] = key_of(identity.components(step))
    return found


def the_recipe() -> Recipe:
    # Some fields are valid only beside others: documents from outside, a budget for the wall clock.
    beside = ["corpus.source=/elsewhere/text.jsonl", "train.budget_s=60.0", "evaluate.ttt.protocol=ttt"]
    return load_recipe("base11", "smoke", beside).recipe


def differing(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {label for label in before.keys() | after.keys() if before.get(label) != after.get(label)}


EVALUATE = {f"evaluate[{part}]" for part in ("raw", "averaged", "roundtrip", "sliding", "ttt")}
TOKENIZE = {"tokenize[train-00000]", "tokenize[val-00000]"}
ACCELERATED = {"train", "quantize", *EVALUATE, "audit"}
ALL = {*TOKENIZE, *ACCELERATED, "corpus", "vocabulary", "average", "compress", "bundle", "weigh", "overlap"}


# Every field of every stage.


def leaves(group: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(path, declared type, value) of every field below a group."""
    for name in field_names(group):
        value, here = getattr(group, name), f"{path}.{name}".lstrip(".")
        if is_group(value):
            yield from leaves(value, here)
        elif here == "evaluate":
            for part, protocol in value.items():
                yield from leaves(protocol, f"evaluate.{part}")
        else:
            yield here, get_type_hints(type(group))[name], value


def candidates(declared: Any, value: Any) -> list[Any]:
    """Other values that might be valid."""
    if get_origin(declared) is Literal:
        return [choice for choice in get_args(declared) if choice != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1, value * 2, value // 2, 2, 4, 64]
    if isinstance(value, float):
        return [value * 0.5, value * 1.5, 0.5, 1.0, 3.0]
    if isinstance(value, str):
        return [*(["cuda"] if value == "cpu" else []), f"{value}x"]
    if DeviceConfig in get_args(declared):
        return [{"kind": "cuda", "count": 3}]
    if isinstance(value, tuple):
        return [*([list(value[:-1])] if value else []), [0], [0.5], ["x"]]
    return [{"x": 1}]


def edited(recipe: Recipe, path: str, declared: Any, value: Any) -> Recipe:
    """The recipe with another value at `path`: a valid one, or an unchecked one where no other is valid alone."""
    for other in candidates(declared, value):
        raw = recipe.model_dump(mode="json")
        table = raw
        *parents, last = path.split(".")
        for parent in parents:
            table = table[parent]
        table[last] = other
        try:
            changed = Recipe.model_validate_json(json.dumps(raw), strict=True)
        except ValueError:
            continue
        if changed != recipe:
            return changed
    # Fields that are valid only together, such as a mixer's kind and its orders: the key must tell them apart as well.
    return unchecked(recipe, path.split("."), next(other for other in candidates(declared, value) if other != value))


def unchecked(group: Any, path: list[str], value: Any) -> Any:
    """A copy of a group of fields with another value at `path`, its checks left out."""
    name, *rest = path
    if isinstance(group, dict):
        return {**group, name: unchecked(group[name], rest, value)}
    plain = tuple(value) if isinstance(value, list) else value
    new = unchecked(getattr(group, name), rest, value) if rest else plain
    changed = copy(group)
    object.__setattr__(changed, "__dict__", {**group.__dict__, name: new})
    return changed


def reach(path: str, recipe: Recipe) -> set[str]:
    """The steps whose key a field changes."""
    stage, *rest = path.split(".")
    if stage in {"name", "about", "seed", "published"} or path in {"corpus.source", "corpus.val_source"}:
        return set()  # names, claims, the default of --seed; locations, whose fingerprint is the identity
    if path in WIRED:
        return set()  # the wiring fills it in
    if path == "average.seeds":
        return {"train[seed-0]", "average", "bundle", "audit"}  # the other run is a new step
    if path == "devices.audit":
        return {"audit"}
    if stage == "devices":
        # The audit scores on the device of evaluate, and is told what the others asked for.
        return {step for step in ACCELERATED if step.startswith(rest[0])} | {"bundle", "audit"}
    if stage == "evaluate":
        scored = recipe.evaluate[rest[0]].of == "archive"  # diagnostics on float weights are not in the packed code
        return {f"evaluate[{rest[0]}]", "audit"} | ({"bundle"} if scored else set())
    return {stage, "bundle"} if stage in {"train", "average", "quantize", "compress"} else {stage}


WIRED = {"bundle.recipe", "audit.protocols", "audit.challenge", "audit.evaluate_ranks"}  # the wiring fills them in
FIELDS = [(path, declared, value) for path, declared, value in leaves(the_recipe()) if path not in WIRED]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source tree that nobody edits."""
    folder = tmp_path_factory.mktemp("pristine")
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def base_keys(pristine: Path) -> dict[str, str]:
    return keys(pristine, the_recipe())


@pytest.fixture
def tree(pristine: Path, tmp_path: Path) -> Path:
    """A copy to edit."""
    return shutil.copytree(pristine, tmp_path / "tree")


def test_the_table_has_every_step(base_keys: dict[str, str]) -> None:
    assert set(base_keys) == ALL
    assert len(FIELDS) > 100


def test_every_field_of_every_stage_reruns_exactly_its_own(pristine: Path, base_keys: dict[str, str]) -> None:
    recipe, identity, source = the_recipe(), Identity(pristine), bundle_source(pristine)
    wrong = {}
    for path, declared, value in FIELDS:
        changed = edited(recipe, path, declared, value)
        found = differing(base_keys, keys_of(identity, source, changed))
        if found != reach(path, recipe):
            wrong[path] = (found, reach(path, recipe))
    assert wrong == {}


# Edits of the source tree, and the steps whose key each of them changes.


@dataclass(frozen=True)
class Edit:
    """A change of one file: every match of a pattern, or what is appended."""

    path: str
    reruns: set[str]
    pattern: str = ""
    replacement: str = ""
    append: str = ""

    def apply(self, root: Path) -> None:
        """Edit the file below `root`; an edit that finds nothing to change is a mistake of the table."""
        file = root / self.path
        before = file.read_text(encoding="utf-8")
        after = re.sub(self.pattern, self.replacement, before) if self.pattern else before
        assert after != before or not self.pattern, f"{self.path} has nothing that matches {self.pattern}"
        file.write_text(after + self.append, encoding="utf-8")


COMMENT = "\n# a remark\n"
HELPER = "\n\ndef brand_new_helper() -> int:\n    return 1\n"
PACKED = {"bundle"}  # the packed code holds the module too
SCORED = {*EVALUATE, "audit", *PACKED}
NETWORK = {"train", *SCORED}
FIELD = r"(?m)^(    log_every: )"  # a field of train's configuration, as a place to put a new one before
NEW_FIELD = "    brand_new: {} = Field(default={}, description='New.')\n\\1"
IN_RAISE = r"(raise \w+\(\s*f?\")"

EDITS = {
    # What no output can depend on.
    "comment in the network": Edit("model/gpt.py", set(), append=COMMENT),
    "comment in a stage": Edit("stages/train/stage.py", set(), append=COMMENT),
    "comment in the contract": Edit("stages/contract.py", set(), append=COMMENT),
    "docstring of a module": Edit("model/referee.py", set(), '^"""', '"""Edited. '),
    "docstrings of functions": Edit("model/windows.py", set(), r'(?m)^( {4,}""")(?=\S)', r"\1Edited. "),
    "field descriptions": Edit("stages/train/config.py", set(), r'(description=\s*")', r"\1Edited. "),
    "attribute docstrings": Edit("model/config.py", set(), '(?m)^(    """)', r"\1Edited. "),
    "error text of a stage": Edit("stages/corpus/readers.py", set(), IN_RAISE, r"\1edited: "),
    "error text that is packed": Edit("model/windows.py", PACKED, IN_RAISE, r"\1edited: "),
    "blank lines": Edit("model/gpt.py", set(), r"\n\n", "\n\n\n"),
    # Fields. The recipe says train.muon.lr itself; it leaves train.muon.nesterov to its default.
    "default that the recipe overrides": Edit("stages/train/config.py", set(), r"(lr: .*default=)0\.025", r"\g<1>0.03"),
    "default that the recipe uses": Edit(
        "stages/train/config.py", {"train", "bundle"}, r"(nesterov: .*default=)True", r"\1False"
    ),
    "default of a protocol": Edit(
        "model/protocol.py",
        {*EVALUATE, "bundle", "audit"},
        r"(precision: [^=]*= knob\(\s*)\"auto\"",
        r'\1"bfloat16"',
    ),
    "default of the network": Edit("model/config.py", {"train", "bundle"}, "(auxiliary_zero: bool = )False", r"\1True"),
    "new field that is off": Edit("stages/train/config.py", set(), FIELD, NEW_FIELD.format("bool", "False")),
    "new field that is on": Edit(
        "stages/train/config.py", {"train", "bundle"}, FIELD, NEW_FIELD.format("float", "0.5")
    ),
    "new group that is off": Edit(
        "stages/train/config.py",
        set(),
        r"(?m)^(class Config\()",
        "class Brand(Strict):\n    rate: float = Field(default=0.0, ge=0, description='Rate.')\n\n\n\\1",
    ),
    "new field of the network that is off": Edit(
        "model/config.py", PACKED, r"(?m)^(    tied_head: )", r"    brand_new: bool = False\n\1"
    ),
    "new field of a protocol that is off": Edit(
        "model/protocol.py",
        PACKED,
        r"(?m)^(    tail_rescore: )",
        "    brand_new: bool = knob(False, description='New.')\n\\1",
    ),
    "bound of a protocol": Edit("model/protocol.py", PACKED, r"(context_tokens: int = knob\(2048, ge=)2", r"\g<1>3"),
    "constraint": Edit("stages/train/config.py", set(), r"(nesterov: .*)(description)", r"\1frozen=True, \2"),
    "property of the network's configuration": Edit(
        "model/config.py",
        {*NETWORK, "compress", "weigh"},
        r"return self\.dim // self\.heads",
        "return self.dim // 1 // self.heads",
    ),
    # Helpers, each with the stages that can execute it.
    "helper of one stage": Edit("stages/quantize/errors.py", {"quantize", *PACKED}, append=HELPER),
    "helper beside the work": Edit("stages/corpus/readers.py", {"corpus"}, append=HELPER),
    "helper in the network": Edit("model/gpt.py", NETWORK, append=HELPER),
    "helper of training": Edit("model/batches.py", {"train", *PACKED}, append=HELPER),
    "helper of bytes": Edit("model/bytes.py", {"vocabulary", *TOKENIZE, *NETWORK}, append=HELPER),
    "helper of the archive": Edit("model/archive.py", {"compress", "weigh", *SCORED}, append=HELPER),
    "the referee": Edit("model/referee.py", SCORED, append=HELPER),
    "the windows": Edit("model/windows.py", SCORED, append=HELPER),
    "the contract": Edit("stages/contract.py", ALL, append=HELPER),
    # The audit reruns nothing but itself.
    "a detector": Edit("stages/audit/clocks.py", {"audit"}, append=HELPER),
    "the verdict": Edit("stages/audit/policy.py", {"audit"}, append=HELPER),
    "the overlap": Edit("stages/overlap/measure.py", {"overlap"}, append=HELPER),
    "what both look for": Edit("stages/shingles.py", {"overlap", "audit"}, append=HELPER),
    "a limit of a policy": Edit("configs/challenge.toml", {"audit"}, r"at_most = 600\.5", "at_most = 600.4"),
    # Imports inside functions: what they bring in counts, for type checkers it does not.
    "import in a function": Edit(
        "stages/average/combine.py",
        {"average", *PACKED},
        append="\n\ndef late():\n    import model.rotary\n    return model.rotary\n",
    ),
    "import for type checkers": Edit(
        "stages/average/combine.py", set(), append="\n\nif TYPE_CHECKING:\n    from model.rotary import rotate\n"
    ),
    # Rooms that no stage runs.
    "the flow": Edit("flows/launch.py", set(), append=HELPER),
    "the store": Edit("artifacts/store.py", set(), append=HELPER),
    "the loader of recipes": Edit("configs/load.py", set(), append=HELPER),
}  # fmt: skip


def keys_apart(root: Path) -> dict[str, str]:
    """The keys that the tree at `root` gives: its own classes declare the fields, so a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, __file__, str(root)], env=environment, cwd=root, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("what", EDITS)
def test_an_edit_reruns_exactly_its_own(what: str, tree: Path, base_keys: dict[str, str]) -> None:
    edit = EDITS[what]
    edit.apply(tree)
    after = keys_apart(tree) if edit.path.endswith(("config.py", "protocol.py", ".toml")) else keys(tree, the_recipe())
    assert differing(base_keys, after) == edit.reruns


def test_editing_the_referee_never_retrains(tree: Path, base_keys: dict[str, str]) -> None:
    """The row of the table that costs GPU hours, said again without the table's constants."""
    for name in ("referee", "score", "ledger", "windows", "stream", "adapt"):
        Edit(f"model/{name}.py", set(), append=HELPER).apply(tree)
    changed = differing(base_keys, keys(tree, the_recipe()))
    assert not changed & {"corpus", "vocabulary", *TOKENIZE, "train", "average", "quantize", "compress"}
    assert changed >= EVALUATE


def test_a_process_of_its_own_finds_the_same_keys(tree: Path, base_keys: dict[str, str]) -> None:
    assert keys_apart(tree) == base_keys


def test_a_dynamic_import_stops_the_plan(tree: Path) -> None:
    Edit("model/gpt.py", set(), append="\nimport importlib\n").apply(tree)
    with pytest.raises(StageError, match=r"model/gpt\.py line \d+ uses importlib"):
        keys(tree, the_recipe())


if __name__ == "__main__":
    sys.stdout.write(json.dumps(keys(Path(sys.argv[1]), the_recipe())))
