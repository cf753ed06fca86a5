"""The wiring: what reads what, in which order, and what reaches the packed code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from artifacts.record import File, digest_files
from configs.introduced import stage_slice
from configs.load import load_recipe
from configs.recipe import Recipe
from flows.identity import components
from flows.river import Input, Outside, Step, bundled, river, told

OUTSIDE = Outside(corpus=Input("c" * 64), source=Input("d" * 64))
RECIPE = load_recipe("base11", "smoke").recipe


def file(path: str, letter: str = "a") -> File:
    return File(path, letter * 64, 1)


FILES: dict[str, tuple[File, ...]] = {
    "corpus": (file("train/00000.parquet"), file("train/00001.parquet", "b"), file("val/00000.parquet", "c")),
    "vocabulary": (file("tokenizer/tokenizer.model"),),
    "train": (file("raw/w"), file("ema/w", "b"), file("snapshots/1", "c"), file("curve/c", "d")),
    "average": (file("weights/w"),),
    "quantize": (file("quantized/q"), file("errors/e")),
    "compress": (file("archive/a"),),
    "bundle": (file("bundle/b"),),
    "weigh": (file("sizes/s"),),
    "evaluate": (file("score/s"), file("ledger/l")),
    "overlap": (file("overlap/o"),),
    "audit": (file("verdict/v"),),
}


ACCOUNT = (file("records.json", "f"),)


def account(steps: Sequence[Step]) -> Input:
    return Input(digest_files(ACCOUNT), ACCOUNT, told(steps), b"{}")


def flow(recipe: Recipe = RECIPE, **changes: tuple[File, ...]) -> dict[tuple[str, str], Step]:
    """Every step, as if each stage had made FILES."""
    outputs: dict[tuple[str, str], Any] = {}
    found: dict[tuple[str, str], Step] = {}
    for step in river(recipe, 42, OUTSIDE, outputs, account):
        made = (file(f"shards/{step.part}.bin", "e"),) if step.stage == "tokenize" else FILES[step.stage]
        outputs[step.id] = changes.get(step.stage, made)
        found[step.id] = step
    return found


def test_the_river_flows_in_the_order_of_the_design() -> None:
    order = list(dict.fromkeys(stage for stage, _ in flow()))
    assert order == [
        *("corpus", "vocabulary", "tokenize", "train", "average"),
        *("quantize", "compress", "bundle", "weigh", "evaluate", "overlap", "audit"),
    ]


def test_tokenize_has_a_part_for_each_document_shard() -> None:
    parts = [part for stage, part in flow() if stage == "tokenize"]
    assert parts == ["train-00000", "train-00001", "val-00000"]


def test_a_new_train_shard_adds_a_part_and_leaves_the_others_and_the_scores_alone() -> None:
    before = flow()
    after = flow(corpus=(*FILES["corpus"], file("train/00002.parquet", "d")))
    assert set(after) - set(before) == {("tokenize", "train-00002")}
    changed = {step.label for id_, step in before.items() if step.inputs != after[id_].inputs}
    # All of `documents` and of `shards`, and the account; val is a role of its own.
    assert changed == {"vocabulary", "train", "overlap", "audit"}


def test_every_step_reads_what_its_configuration_asks_for() -> None:
    for step in flow().values():
        assert tuple(step.inputs) == step.config.reads()
        assert set(step.config.reads()) <= set(step.config.SPEC.inputs)
        assert all(given.digest is not None for given in step.inputs.values()), step.label


def test_every_input_names_its_producer() -> None:
    steps = flow()
    for step in steps.values():
        for role, given in step.inputs.items():
            outside = (step.stage, role) in {("corpus", "source"), ("bundle", "source")}
            assert bool(given.origin) != outside
            for stage, part, its_role in given.origin:
                assert (stage, part) in steps
                assert its_role in steps[stage, part].config.SPEC.outputs


@pytest.mark.parametrize(("kind", "role"), [("raw", "raw"), ("ema", "ema"), ("swa", "snapshots")])
def test_average_reads_the_chosen_weights_only(kind: str, role: str) -> None:
    recipe = RECIPE.model_copy(update={"average": RECIPE.average.model_copy(update={"kind": kind})})
    assert list(flow(recipe)["average", ""].inputs) == [role]


def test_diagnostics_read_weights_and_scores_read_the_archive() -> None:
    steps = flow()
    assert steps["evaluate", "raw"].inputs["weights"].origin == (("train", "", "raw"),)
    assert steps["evaluate", "averaged"].inputs["weights"].origin == (("average", "", "weights"),)
    for part in ("roundtrip", "sliding"):
        assert set(steps["evaluate", part].inputs) == {"archive", "tokenizer", "val"}


def test_the_audit_reads_every_score_of_the_archive_in_a_folder_of_its_own() -> None:
    audit = flow()["audit", ""]
    names = [name for name, protocol in RECIPE.evaluate.items() if protocol.of == "archive"]
    assert [f.path for f in audit.inputs["scores"].files] == [f"{name}/s" for name in sorted(names)]
    assert [f.path for f in audit.inputs["ledgers"].files] == [f"{name}/l" for name in sorted(names)]
    assert set(audit.config.protocols) == set(RECIPE.evaluate)
    assert audit.config.challenge["cap_bytes"] == 16_000_000
    # A worker elsewhere gets the configuration as JSON and must find the same key.
    sent = type(audit.config).model_validate_json(audit.config.model_dump_json())
    assert stage_slice(sent) == stage_slice(audit.config)
    assert {stage for stage, _, _ in audit.inputs["records"].origin} == {s for s, _ in flow()} - {"audit"}


def test_nothing_is_audited_where_nothing_is_scored() -> None:
    raw = RECIPE.model_copy(update={"evaluate": {"raw": RECIPE.evaluate["raw"]}})
    assert ("audit", "") not in flow(raw)
    assert ("overlap", "") not in flow(RECIPE.model_copy(update={"evaluate": {}}))


def test_the_audit_asks_for_one_device_of_the_kind_that_scored() -> None:
    recipe = recipe_with("devices.evaluate", {"kind": "cuda", "count": 8, "model": "H100"})
    device = flow(recipe)["audit", ""].device
    assert device is not None
    assert (device.kind, device.count, device.model) == ("cuda", 1, "H100")
    assert flow(recipe)["audit", ""].config.evaluate_ranks == 8
    own = recipe_with("devices.audit", {"kind": "cpu", "count": 1, "threads": 4})
    assert flow(own)["audit", ""].device == own.devices.audit
    assert bundled(own) == bundled(RECIPE)


def test_train_never_sees_val() -> None:
    steps = flow()
    for name in ("train", "average", "quantize", "compress", "bundle"):
        for given in steps[name, ""].inputs.values():
            assert not any(part.startswith("val-") or role == "val" for _, part, role in given.origin)


def test_what_is_not_made_yet_is_unknown_below_and_known_elsewhere() -> None:
    outputs: dict[tuple[str, str], Any] = {}
    unknown: list[str] = []
    for step in river(RECIPE, 42, OUTSIDE, outputs):
        made = (file(f"shards/{step.part}.bin", "e"),) if step.stage == "tokenize" else FILES[step.stage]
        outputs[step.id] = None if step.stage == "train" else made
        unknown += [step.label for given in step.inputs.values() if given.digest is None]
    assert unknown == ["average", "evaluate[raw]", "audit"]  # the others read what FILES pretends that average has made


def test_before_the_corpus_is_made_its_shards_are_one_unknown_part_each() -> None:
    outputs: dict[tuple[str, str], Any] = {}
    for step in river(RECIPE, 42, OUTSIDE, outputs):
        outputs[step.id] = None
    assert [part for stage, part in outputs if stage == "tokenize"] == ["train-?", "val-?"]


def test_a_digest_is_that_of_paths_and_contents() -> None:
    files = (file("a"), file("b", "b"))
    assert digest_files(files) == digest_files(files[::-1])
    assert digest_files(files) != digest_files((file("a", "b"), file("b")))


def recipe_with(path: str, value: Any) -> Recipe:
    raw = RECIPE.model_dump()
    *parents, last = path.split(".")
    table = raw
    for parent in parents:
        table = table[parent]
    table[last] = value
    return Recipe.model_validate(raw)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", "other"),
        ("about", "other"),
        ("published", {"bpb": 1.0}),
        ("seed", 5),
        ("corpus.source", "s3://elsewhere/x.jsonl"),
        ("corpus.max_documents", 5),
        ("vocabulary.model", "s3://elsewhere/x.model"),
        ("weigh.cap_bytes", 5),
        ("weigh.allow_oversize", False),
        ("evaluate.raw.batch_windows", 5),
    ],
)
def test_what_the_packed_code_does_not_do_does_not_reach_it(path: str, value: Any) -> None:
    assert bundled(recipe_with(path, value)) == bundled(RECIPE)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("train.muon.lr", 0.5),
        ("train.network.smear", False),
        ("average.kind", "raw"),
        ("quantize.matrices.bits", 5),
        ("compress.level", 3),
        ("evaluate.sliding.stride_tokens", 8),
        ("devices.train.count", 2),
    ],
)
def test_what_the_packed_code_does_reaches_it(path: str, value: Any) -> None:
    assert bundled(recipe_with(path, value)) != bundled(RECIPE)
    assert flow(recipe_with(path, value))["bundle", ""].config.recipe == bundled(recipe_with(path, value))


def test_a_mean_of_runs_trains_the_other_seeds_and_keeps_their_own_keys() -> None:
    alone = flow()[("train", "")]
    recipe = load_recipe("base11", "smoke", ["average.kind=mean", "average.seeds=[7, 42, 8]"]).recipe
    steps = flow(recipe)
    trained = {part: step.seed for (stage, part), step in steps.items() if stage == "train"}
    assert trained == {"": 42, "seed-7": 7, "seed-8": 8}
    assert [file.path for file in steps[("average", "")].inputs["others"].files] == ["seed-7/w", "seed-8/w"]
    other = steps[("train", "seed-7")]
    code = {"module": "digest"}
    assert components(other, code, {}) == {**components(alone, code, {}), "seed": 7}
