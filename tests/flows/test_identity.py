"""Keys: one text for one value, the right components, and nothing that is not theirs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.recipe import DeviceConfig, Recipe
from flows.identity import canonical_json, components, find, key_of, library_version, unknown_roles
from flows.river import Input, Outside, Step, river
from stages.contract import StageError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(JSON)
def test_canonical_text_survives_a_round_trip(value: Any) -> None:
    text = canonical_json(value)
    assert text.isascii()
    assert canonical_json(json.loads(text)) == text


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.dictionaries(st.text(), JSON, min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_matter(value: dict[str, Any], random: Any) -> None:
    items = list(value.items())
    random.shuffle(items)
    assert canonical_json(dict(items)) == canonical_json(value)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False))
def test_floats_are_equal_exactly_when_their_texts_are(left: float, right: float) -> None:
    assert (canonical_json(left) == canonical_json(right)) == (left == right)
    assert canonical_json(left) == canonical_json(float(repr(left)))


@pytest.mark.parametrize(
    ("left", "right"), [(1, 1.0), (1e-4, 0.0001), (-0.0, 0), (-0.0, 0.0), (1e22, 10**22), ((1, 2), [1, 2])]
)
def test_equal_values_have_one_text(left: Any, right: Any) -> None:
    assert canonical_json({"a": left}) == canonical_json({"a": right})


@pytest.mark.parametrize(
    ("left", "right"), [(True, 1), (False, 0), (None, 0), ("1", 1), ([], {}), ("", None), (0.1, 0.1 + 2**-56)]
)
def test_different_values_have_different_texts(left: Any, right: Any) -> None:
    assert canonical_json(left) != canonical_json(right)


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, {1, 2}, b"x", object(), Path("x"), {1: 2}, {"a": [{"b": {3}}]}]
)
def test_what_has_no_canonical_text_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"\$"):
        canonical_json(value)


def test_the_refusal_names_the_place() -> None:
    with pytest.raises(TypeError, match=r"\$\.a\[1\]\.b is \{3\}"):
        canonical_json({"a": [0, {"b": {3}}]})


def steps(recipe: Recipe, seed: int = 1) -> dict[str, Step]:
    """Every step, its inputs all known."""
    outside = Outside(corpus=Input("c" * 64), source=Input("d" * 64))
    found: dict[str, Step] = {}
    outputs: dict[tuple[str, str], None] = {}
    for step in river(recipe, seed, outside, outputs):
        outputs[step.id] = None
        known = {role: Input(each.digest or "e" * 64, origin=each.origin) for role, each in step.inputs.items()}
        found[step.stage] = replace(step, inputs=known)
    return found


CODE = {"stages.train.stage": "a" * 64}
RECIPE = Recipe.model_validate({"name": "r", "evaluate": {"roundtrip": {}}})


def parts_of(step: Step, **changes: Any) -> dict[str, Any]:
    return components(replace(step, **changes), CODE, {"torch": "2.13.0"})


def test_the_components_are_those_of_the_design() -> None:
    train = parts_of(steps(RECIPE)["train"])
    assert train == {
        "schema": 1,
        "stage": "train",
        "code": CODE,
        "config": {},
        "inputs": {"shards": "e" * 64, "tokenizer": "e" * 64},
        "seed": 1,
        "device": {},
        "libraries": {"torch": "2.13.0"},
    }


def test_only_stages_that_declare_a_seed_or_a_device_have_one() -> None:
    found = {stage: set(parts_of(step)) for stage, step in steps(RECIPE).items()}
    assert [stage for stage, names in found.items() if "seed" in names] == ["train"]
    assert [stage for stage, names in found.items() if "device" in names] == ["train", "quantize", "evaluate", "audit"]
    assert [stage for stage, names in found.items() if "part" in names] == ["tokenize", "evaluate"]


def test_names_of_recipes_and_what_is_published_about_them_are_not_in_any_key() -> None:
    other = RECIPE.model_copy(update={"name": "other", "about": "x", "published": {"bpb": 1.0}, "seed": 9})
    assert {s: key_of(parts_of(step)) for s, step in steps(RECIPE).items()} == {
        s: key_of(parts_of(step)) for s, step in steps(other).items()
    }


def test_locations_are_not_in_a_key() -> None:
    corpus = steps(RECIPE)["corpus"]
    moved = corpus.config.model_copy(update={"source": "s3://elsewhere/x.jsonl"})
    assert key_of(parts_of(corpus)) == key_of(parts_of(corpus, config=moved))


def test_a_repeat_has_a_key_of_its_own() -> None:
    train = steps(RECIPE)["train"]
    keys = {key_of(components(train, CODE, {}, repeat)) for repeat in (None, "1", "2")}
    assert len(keys) == 3


@pytest.mark.parametrize(
    "changes", [{"seed": 2}, {"device": DeviceConfig(count=2)}, {"inputs": {"shards": Input("f" * 64)}}]
)
def test_each_component_changes_the_key(changes: dict[str, Any]) -> None:
    train = steps(RECIPE)["train"]
    assert key_of(parts_of(train)) != key_of(parts_of(train, **changes))


def test_a_part_is_in_the_key_of_a_mapped_stage_only() -> None:
    found = {step.stage: step for step in steps(RECIPE).values()}
    changed = {stage for stage, step in found.items() if key_of(parts_of(step)) != key_of(parts_of(step, part="x"))}
    assert changed == {"tokenize", "evaluate"}


def test_there_is_no_key_before_every_input_is_known() -> None:
    parts = parts_of(steps(RECIPE)["train"], inputs={"shards": Input(None), "tokenizer": Input("f" * 64)})
    assert unknown_roles(parts) == ["shards"]
    with pytest.raises(ValueError, match="shards of train is not known yet"):
        key_of(parts)


def test_a_version_comes_without_its_build_and_without_an_import() -> None:
    assert "+" not in library_version("torch")
    code = "from flows.identity import library_version as v; import sys; v('torch'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_python_is_a_library_where_a_stage_writes_source_code() -> None:
    # ast.unparse, which the packed code comes from, differs between versions.
    assert library_version("python") == f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert "python" in steps(RECIPE)["bundle"].config.SPEC.libraries


def test_a_missing_library_is_named() -> None:
    with pytest.raises(StageError, match="no-such-distribution is not"):
        library_version("no-such-distribution")


OLD, MIDDLE, NEW, OTHER = ({"stages.train.stage": letter * 64} for letter in "abcd")


class Memory:
    """A store with records of some codes, and codes that were accepted as equal to NEW."""

    def __init__(self, accepted: list[dict[str, str]], *codes: dict[str, str]) -> None:
        self.accepted = accepted
        self.known = {key_of(components(TRAIN, code, {})): code for code in codes}

    def get(self, stage: str, key: str) -> Any:
        return self.known.get(key)

    def equivalents(self, stage: str, code: Any) -> list[dict[str, str]]:
        return self.accepted if code == NEW else []


TRAIN = steps(RECIPE)["train"]
PARTS = components(TRAIN, NEW, {})


def test_an_accepted_code_serves_its_records() -> None:
    assert find(Memory([OLD], OLD), PARTS) == OLD
    assert find(Memory([OLD, MIDDLE], MIDDLE), PARTS) == MIDDLE


def test_the_own_record_comes_first_and_others_never() -> None:
    assert find(Memory([OLD], OLD, NEW), PARTS) == NEW
    assert find(Memory([OLD], OTHER), PARTS) is None
    assert find(Memory([], OLD), PARTS) is None
