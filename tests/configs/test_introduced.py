"""Values at introduction: which fields a key holds, and that every field is on file."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from configs.introduced import (
    changed,
    declared,
    device_slice,
    field_names,
    introduced,
    is_group,
    put_on_file,
    resolved,
    stage_slice,
)
from configs.load import load_recipe
from configs.recipe import DeviceConfig, Recipe
from stages.config import Strict


@dataclass(frozen=True)
class Net:
    """A dataclass as a group."""

    layers: int = 4
    smear: bool = False


class Group(Strict):
    """A nested group."""

    lr: float = Field(0.1)
    beta: float = Field(0.0)


class Stage(Strict):
    """A stage's configuration."""

    steps: int = Field(10)
    names: tuple[str, ...] = Field(())
    group: Group = Field(Group())
    net: Net = Field(Net())


KNOWN = {"steps": 10, "names": [], "group": {"lr": 0.1, "beta": 0.0}, "net": {"layers": 4, "smear": False}}


def test_values_of_the_introduction_are_left_out() -> None:
    assert changed(Stage(), KNOWN) == {}


def test_other_values_are_held_at_their_path() -> None:
    config = Stage(steps=11, names=("a",), group=Group(lr=0.2), net=Net(smear=True))
    assert changed(config, KNOWN) == {"steps": 11, "names": ["a"], "group": {"lr": 0.2}, "net": {"smear": True}}


@pytest.mark.parametrize("missing", ["names", "smear", "beta"])
def test_a_field_that_is_not_on_file_is_left_out_while_it_is_off(missing: str) -> None:
    known = {k: {n: v for n, v in g.items() if n != missing} if isinstance(g, dict) else g for k, g in KNOWN.items()}
    known.pop(missing, None)
    assert changed(Stage(), known) == {}
    assert changed(Stage(names=("a",), group=Group(beta=0.5), net=Net(smear=True)), known) == {
        "names": ["a"],
        "group": {"beta": 0.5},
        "net": {"smear": True},
    }


def test_a_field_that_is_not_on_file_and_not_off_is_held() -> None:
    assert changed(Stage(), {k: v for k, v in KNOWN.items() if k != "steps"}) == {"steps": 10}
    assert changed(Stage(), {k: v for k, v in KNOWN.items() if k != "group"}) == {"group": {"lr": 0.1}}


def test_a_changed_default_is_held_because_the_file_keeps_the_old_one() -> None:
    class Changed(Stage):
        steps: int = Field(12)

    assert changed(Changed(), KNOWN) == {"steps": 12}
    assert changed(Changed(steps=10), KNOWN) == {}


def test_a_switch_is_not_a_count() -> None:
    assert changed(Net(smear=True), {"layers": 4, "smear": 1}) == {"smear": True}


def test_new_fields_go_on_file_and_old_ones_never_change() -> None:
    today = {"train": {"steps": 12, "new": 1, "muon": {"lr": 9, "beta": 0}}, "weigh": {"cap": 3}}
    known = {"train": {"steps": 10, "muon": {"lr": 1}, "gone": 5}}
    assert put_on_file(known, today) == {
        "train": {"steps": 10, "new": 1, "muon": {"lr": 1, "beta": 0}, "gone": 5},
        "weigh": {"cap": 3},
    }


def test_every_field_is_on_file() -> None:
    # `python -m configs.introduced` puts new ones there; commit it with the field.
    assert put_on_file(introduced(), declared()) == introduced()


def leaves(table: dict[str, Any]) -> list[Any]:
    return [leaf for v in table.values() for leaf in (leaves(v) if isinstance(v, dict) and v else [v])]


def test_no_group_is_optional_because_its_absence_would_be_no_value_of_its_own() -> None:
    assert None not in leaves(declared())


def test_every_stage_of_a_recipe_has_a_slice() -> None:
    recipe = load_recipe("base11", "smoke").recipe
    assert stage_slice(recipe.train)["network"]["dim"] == 32
    assert stage_slice(Recipe(name="x").train) == {} == device_slice(DeviceConfig())
    assert stage_slice(recipe.corpus.model_copy(update={"source": "x", "max_documents": 3})) == {"max_documents": 3}


def test_resolved_holds_everything_but_what_is_off_by_default() -> None:
    assert resolved(Stage()) == {"steps": 10, "group": {"lr": 0.1}, "net": {"layers": 4}}
    assert resolved(Stage(steps=0, net=Net(layers=0)))["steps"] == 0  # off, but on by default
    assert resolved(Stage(steps=0, net=Net(layers=0)))["net"] == {"layers": 0}


class Listed(Strict):
    """A stage with groups in a list and in a table."""

    several: tuple[Group, ...] = Field(())
    by_name: dict[str, Group] = Field({})


def test_groups_in_a_list_or_table_leave_out_what_is_off_so_that_new_fields_change_no_key() -> None:
    config = Listed(several=(Group(),), by_name={"a": Group(beta=0.5)})
    want = {"several": [{"lr": 0.1}], "by_name": {"a": {"lr": 0.1, "beta": 0.5}}}
    assert changed(config, {"several": [], "by_name": {}}) == want
    assert resolved(config) == want
    assert changed(Listed(), {"several": [], "by_name": {}}) == {}


def test_every_group_of_a_recipe_is_walked() -> None:
    def walk(group: Any) -> int:
        values = [getattr(group, name) for name in field_names(group)]
        return 1 + sum(walk(value) for value in values if is_group(value))

    assert walk(Recipe(name="x")) > 20


def test_no_code_of_a_stage_builds_a_configuration_from_defaults() -> None:
    # The key holds resolved values and not the declared defaults: code that used a default would escape it.
    root = Path(__file__).resolve().parents[2]
    built: list[str] = []
    for path in [*(root / "model").glob("*.py"), *(root / "stages").rglob("*.py")]:
        if path.name == "config.py" or "fixtures" in path.parts:  # fixtures are in no stage's closure
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        from_config = [
            n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and (n.module or "").endswith("config")
        ]
        names = {alias.asname or alias.name for node in from_config for alias in node.names if alias.name[0].isupper()}
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
        built += [f"{path.name}:{n.lineno} {n.func.id}" for n in calls if n.func.id in names]  # type: ignore[attr-defined]
    assert built == []
