"""Plans: what is cached, what runs and why, what depends; quickly, and without torch and Prefect."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import DamagedArtifact
from artifacts.record import File, Record
from configs.load import Loaded, load_recipe
from flows.identity import Identity, key_of
from flows.plan import Planned, is_done, plan
from flows.river import Input, Outside, Step
from flows.snapshot import pack

STAGES = (
    *("corpus", "vocabulary", "tokenize", "train", "average"),
    *("quantize", "compress", "bundle", "weigh", "evaluate", "overlap", "audit"),
)
OUTSIDE = Outside(corpus=Input("c" * 64), source=Input("d" * 64))


class FakeStore:
    """Records in memory, and the names of one recipe."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.named: dict[tuple[Any, ...], Record] = {}
        self.objects: dict[str, bytes] = {}
        self.accepted: dict[str, list[Any]] = {}

    def get(self, stage: str, key: str) -> Record | None:
        return self.records.get(key)

    def latest(self, recipe: str, scale: str, seed: int, stage: str, part: str = "") -> Record | None:
        return self.named.get((recipe, scale, seed, stage, part))

    def equivalents(self, stage: str, code: Any) -> list[Any]:
        codes = self.accepted.get(stage, [])
        return [other for other in codes if other != code] if code in codes else []

    def read_object(self, sha256: str) -> bytes:
        return self.objects[sha256]


class World:
    """A small source tree, a store, and a way to run what a plan says."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = FakeStore()
        self.outside = OUTSIDE
        self.loaded = load_recipe("base11", "smoke")
        self.contents: Callable[[Step, str], str] = lambda step, path: f"{step.label} {path}"
        for stage in STAGES:
            self.write(f"stages/{stage}/__main__.py", f"import stages.{stage}.stage\n")
            self.write(f"stages/{stage}/stage.py", f"import model.shared\n\ndef run():\n    return '{stage}'\n")
        self.write("model/shared.py", "x = 1\n")
        self.write("model/gpt.py", "def forward(x):\n    return x\n")
        self.write("stages/train/stage.py", "import model.gpt\nimport model.shared\n")

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        for folder in (path.parent, self.root / name.split("/")[0]):
            (folder / "__init__.py").touch()

    def use(self, *overrides: str, recipe: str = "base11", scale: str = "smoke") -> Loaded:
        self.loaded = load_recipe(recipe, scale, overrides)
        return self.loaded

    def plan(self, seed: int = 1, **options: Any) -> list[Planned]:
        return plan(self.loaded, seed, self.outside, self.store, Identity(self.root), **options)

    def states(self, **options: Any) -> dict[str, str]:
        return {each.label: each.state for each in self.plan(**options)}

    def work(self, **options: Any) -> dict[str, str]:
        return {label: state for label, state in self.states(**options).items() if state != "cached"}

    def run(self, seed: int = 1, **options: Any) -> list[str]:
        """Run what is not cached, first come first; the labels that ran."""
        ran: list[str] = []
        while True:
            todo = [each for each in self.plan(seed, **options) if each.key and each.state != "cached"]
            if not todo:
                return ran
            step = todo[0].step
            self.publish(step, seed)
            ran.append(step.label)

    def publish(self, step: Step, seed: int) -> None:
        parts = Identity(self.root).components(step)
        closure = Identity(self.root).closure(step.stage)
        source = pack(self.root, sorted(closure.files))
        digest = hashlib.sha256(source).hexdigest()
        self.store.objects[digest] = source
        files = tuple(self.file(step, path) for path in self.paths(step))
        provenance = {"seconds": 12.5, "source": digest}
        record = Record(step.stage, step.part, key_of(parts), files, parts, {}, {}, provenance, id=key_of(parts))
        self.store.records[record.key] = record
        name = (self.loaded.recipe.name, self.loaded.scale, seed, step.stage, step.part)
        self.store.named[name] = record

    def paths(self, step: Step) -> list[str]:
        if step.stage == "corpus":
            return ["train/00000.parquet", "train/00001.parquet", "val/00000.parquet"]
        if step.stage == "tokenize":
            return [f"shards/{step.part}.bin"]
        return [f"{role}/file" for role in step.config.SPEC.outputs]

    def file(self, step: Step, path: str) -> File:
        return File(path, hashlib.sha256(self.contents(step, path).encode()).hexdigest(), 1)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


ALL = [
    *("corpus", "vocabulary", "tokenize[train-00000]", "tokenize[train-00001]", "tokenize[val-00000]", "train"),
    *("average", "quantize", "compress", "bundle", "weigh"),
    *("evaluate[raw]", "evaluate[averaged]", "evaluate[roundtrip]", "evaluate[sliding]"),
    *("overlap", "audit"),
]


def reasons(planned: list[Planned]) -> dict[str, tuple[str, ...]]:
    return {each.label: each.reasons for each in planned if each.state != "cached"}


def test_before_the_first_run_everything_runs(world: World) -> None:
    planned = world.plan()
    assert {each.state for each in planned} == {"run"}
    assert "tokenize[train-?]" in [each.label for each in planned]
    assert {each.reasons for each in planned} == {("no record of this recipe, scale and seed",)}
    assert not is_done(planned)


def test_after_a_run_everything_is_cached(world: World) -> None:
    assert sorted(world.run()) == sorted(ALL)
    planned = world.plan()
    assert [each.label for each in planned] == ALL
    assert is_done(planned)
    assert {each.expected_s for each in planned} == {0.0}


def test_a_changed_field_runs_its_stage_and_what_is_below_depends(world: World) -> None:
    world.run()
    world.use("train.muon.lr=0.5")
    planned = world.plan()
    found = reasons(planned)
    assert found["train"] == ("config: train.muon.lr 0.025 -> 0.5",)
    assert found["average"] == ("inputs: ema comes after train",)
    assert {each.label: each.state for each in planned if each.state != "cached"} == {
        "train": "run",
        "average": "depends",
        "quantize": "depends",
        "compress": "depends",
        "bundle": "run",  # it packs the recipe
        "weigh": "depends",
        **{f"evaluate[{name}]": "depends" for name in ("raw", "averaged", "roundtrip", "sliding")},
        "audit": "depends",
    }
    assert {each.expected_s for each in planned if each.state != "cached"} == {12.5}


def test_what_depends_is_cached_if_the_bytes_come_out_the_same(world: World) -> None:
    world.run()
    world.use("train.muon.lr=0.5")
    assert world.run() == ["train", "bundle", "audit"]  # it tells of the new records


def test_what_depends_runs_if_the_bytes_differ(world: World) -> None:
    world.run()
    world.use("train.muon.lr=0.5")
    contents = world.contents
    world.contents = lambda step, path: contents(step, path) + ("!" if path.startswith(("raw", "archive")) else "")
    # Raw weights differ and EMA weights do not, so the archive and all that is made of it stay.
    assert world.run() == ["train", "bundle", "evaluate[raw]", "audit"]


def test_a_stage_below_that_changes_itself_says_run(world: World) -> None:
    world.run()
    world.use("train.muon.lr=0.5", "average.kind=raw", "compress.level=3")
    found = reasons(world.plan())
    assert found["compress"] == ("config: compress.level 22 -> 3", "inputs: quantized comes after quantize")
    assert world.states()["compress"] == "run"
    assert world.states()["quantize"] == "depends"


def test_code_is_named_with_its_lines(world: World) -> None:
    world.run()
    world.write("model/gpt.py", "# better\ndef forward(x):\n    y = x\n    return y\n")
    found = reasons(world.plan())
    assert found["train"] == ("code: model/gpt.py lines 3-4 (forward)",)
    assert [each.label for each in world.plan() if each.state == "run"] == ["train"]


def test_a_comment_changes_no_plan(world: World) -> None:
    world.run()
    world.write("model/gpt.py", '# better\ndef forward(x):\n    """Forward."""\n    return x\n')
    assert world.work() == {}


def test_another_seed_has_a_history_of_its_own(world: World) -> None:
    world.run()
    assert reasons(world.plan(seed=2))["train"] == ("no record of this recipe, scale and seed",)
    assert world.run(seed=2) == ["train", "audit"]


def test_a_result_of_another_recipe_is_shared(world: World, tmp_path: Path) -> None:
    world.run()
    mine = tmp_path / "mine.toml"
    mine.write_text('extends = "base11"\n[average]\nkind = "raw"\n')
    world.use(recipe=str(mine))
    assert world.states()["train"] == "cached"
    assert world.states()["average"] == "run"


def test_the_way_back_is_cached(world: World) -> None:
    world.run()
    world.use("train.muon.lr=0.5")
    world.run()
    world.use()
    assert world.work() == {}


def test_a_new_corpus_plans_with_the_shards_of_the_last_one(world: World) -> None:
    world.run()
    world.outside = Outside(corpus=Input("e" * 64), source=OUTSIDE.source)
    planned = world.plan()
    assert [each.label for each in planned] == ALL
    found = reasons(planned)
    assert found["corpus"] == ("inputs: source changed",)
    assert {state for label, state in world.work().items() if label != "corpus"} == {"depends"}
    assert "bundle" not in found


def test_a_forced_stage_runs_although_it_is_cached(world: World) -> None:
    world.run()
    found = reasons(world.plan(force=["quantize"]))
    assert found["quantize"] == ("forced",)
    assert world.states(force=["quantize"])["compress"] == "depends"


def test_an_accepted_edit_is_cached_and_an_edit_after_it_is_explained_alone(world: World) -> None:
    world.run()
    old = dict(Identity(world.root).closure("train").digests)
    world.write("model/gpt.py", "def forward(x):\n    return x + 0\n")
    new = dict(Identity(world.root).closure("train").digests)
    assert world.work()["train"] == "run"
    world.store.accepted["train"] = [old, new]
    assert world.work() == {}
    train = next(each for each in world.plan() if each.label == "train")
    assert train.record is not None
    assert train.reasons == (f"accepted as equal to {train.record.key[:12]}",)
    assert train.key != train.record.key
    world.use("train.muon.lr=0.5")
    assert reasons(world.plan())["train"] == ("config: train.muon.lr 0.025 -> 0.5",)


def test_a_lost_record_is_told(world: World) -> None:
    world.run()
    lost = next(each for each in world.plan() if each.label == "quantize")
    assert lost.key is not None
    del world.store.records[lost.key]
    assert reasons(world.plan())["quantize"] == ("its record is gone",)


def test_a_damaged_record_runs_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.run()
    get = world.store.get

    def damaged(stage: str, key: str) -> Record | None:
        if stage == "quantize":
            raise DamagedArtifact("records/quantize", "a", "b")
        return get(stage, key)

    monkeypatch.setattr(world.store, "get", damaged)
    assert reasons(world.plan())["quantize"] == ("its record is damaged",)
    assert world.states()["compress"] == "depends"


def test_planning_imports_neither_torch_nor_prefect() -> None:
    code = (
        "import sys, flows.plan; print(sorted({'torch', 'prefect', 'numpy', 'pyarrow', 'fsspec'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
