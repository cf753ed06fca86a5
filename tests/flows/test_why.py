"""Explanations: the field with both values, the module with its lines, and silence about what is equal."""

from __future__ import annotations

from typing import Any

import pytest

from artifacts.errors import NotFound
from artifacts.record import Record
from flows.snapshot import pack
from flows.why import Change, Lines, changed_lines, explain, published_source

PARTS: dict[str, Any] = {
    "schema": 1,
    "stage": "train",
    "code": {"model.gpt": "a" * 64, "model.old": "b" * 64},
    "config": {"muon": {"lr": 0.02}},
    "inputs": {"shards": "c" * 64, "tokenizer": "d" * 64},
    "seed": 1,
    "device": {},
    "libraries": {"torch": "2.13.0"},
}


def texts(**changes: Any) -> list[str]:
    return [str(change) for change in explain(PARTS, {**PARTS, **changes})]


def test_equal_components_need_no_explanation() -> None:
    assert texts() == []


def test_a_field_is_named_with_both_values_also_when_one_is_that_of_the_introduction() -> None:
    assert texts(config={"muon": {"lr": 0.03}}) == ["config: train.muon.lr 0.02 -> 0.03"]
    assert texts(config={}) == ["config: train.muon.lr 0.02 -> 0.025"]
    assert texts(config={"muon": {"lr": 0.02}, "compile": "off"}) == ['config: train.compile "auto" -> "off"']
    assert texts(config={"muon": {"lr": 0.02}, "brand_new": 3}) == ["config: train.brand_new (none) -> 3"]


def test_a_protocol_is_part_of_the_path() -> None:
    parts = {**PARTS, "stage": "evaluate", "part": "ttt", "config": {}}
    changes = explain(parts, {**parts, "config": {"ttt": {"lr": 0.001}}})
    assert list(map(str, changes)) == ["config: evaluate.ttt.ttt.lr 0.002 -> 0.001"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seed": 2}, "seed: 1 -> 2"),
        ({"device": {"count": 8}}, "device: count 1 -> 8"),
        ({"libraries": {"torch": "2.14.0"}}, 'libraries: torch "2.13.0" -> "2.14.0"'),
        ({"inputs": {"shards": "e" * 64, "tokenizer": "d" * 64}}, "inputs: shards changed"),
        ({"repeat": "1"}, 'repeat: (none) -> "1"'),
        ({"schema": 2}, "schema: 1 -> 2"),
    ],
)
def test_each_component_is_named(changes: dict[str, Any], expected: str) -> None:
    assert texts(**changes) == [expected]


def test_an_input_that_is_not_known_yet_is_no_difference() -> None:
    assert texts(inputs={"shards": None, "tokenizer": "d" * 64}) == []


def test_modules_are_named_as_files() -> None:
    code = {"model.gpt": "f" * 64, "model.new": "b" * 64}
    assert texts(code=code) == ["code: model/gpt.py changed", "code: model/new.py is new", "code: model/old.py is gone"]


OLD = '''
"""Module."""
import math


def area(r):
    """Area."""
    return math.pi * r * r


class Box:
    def volume(self):
        x = 1
        y = 2
        return x + y

    def side(self):
        return 3
'''


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (("r * r", "r**2"), ["line 8 (area)"]),
        (("x = 1\n        y = 2\n", "x = 2\n\n        # two\n        y = 3\n"), ["lines 13-16 (Box.volume)"]),
        (("import math\n", "import math\nimport cmath\n"), ["line 4"]),
        (("        y = 2\n", ""), ["removed at line 14 (Box.volume)"]),
        (("    def side(self):\n        return 3\n", ""), ["removed at line 16 (Box), removed at line 16 (Box.side)"]),
        (("def area(r)", "@cache\ndef area(r)"), ["lines 6-7"]),
        (("Area.", "Surface."), []),
    ],
)  # fmt: skip
def test_lines_are_those_of_the_newer_source(edit: tuple[str, str], expected: list[str]) -> None:
    assert OLD.count(edit[0]) == 1
    lines = changed_lines(OLD, OLD.replace(*edit), "model/x.py")
    assert ", ".join(map(str, lines)) == ", ".join(expected)


def test_several_places_are_told_apart() -> None:
    new = OLD.replace("r * r", "r**2").replace("return 3", "return 4")
    assert changed_lines(OLD, new, "model/x.py") == (Lines("area", 8, 8), Lines("Box.side", 18, 18))


def test_a_field_of_a_config_module_has_no_lines() -> None:
    text = "class C(Strict):\n    a: int = 1\n"
    assert changed_lines(text, text.replace("1", "2"), "stages/train/config.py") == ()


def record(source: str | None = None, **changes: Any) -> Record:
    provenance = {"source": source} if source else {}
    return Record("train", "", "0" * 64, (), {**PARTS, **changes}, {}, {}, provenance)


class Objects(dict[str, bytes]):
    """A store of objects."""

    def read_object(self, sha256: str) -> bytes:
        if sha256 not in self:
            raise NotFound(sha256)
        return self[sha256]


def compare(old: Record, new: Record, objects: Objects) -> list[Change]:
    sources = (lambda: published_source(old, objects)), (lambda: published_source(new, objects))
    return explain(old.components, new.components, *sources)


def test_two_records_are_compared_through_their_published_sources(tmp_path: Any) -> None:
    objects = Objects()
    for name, text in (("old", OLD), ("new", OLD.replace("r * r", "r**2"))):
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "model" / "gpt.py").write_text(text)
        objects[name] = pack(tmp_path / name, ["model/gpt.py"])
    new = record("new", code={**PARTS["code"], "model.gpt": "f" * 64})
    assert [str(c) for c in compare(record("old"), new, objects)] == ["code: model/gpt.py line 8 (area)"]


def test_without_the_source_the_module_is_named_all_the_same() -> None:
    for old in (record(), record("gone")):
        assert published_source(old, Objects()) is None
        new = record(code={**PARTS["code"], "model.gpt": "f" * 64})
        assert [str(c) for c in compare(old, new, Objects())] == ["code: model/gpt.py changed"]
