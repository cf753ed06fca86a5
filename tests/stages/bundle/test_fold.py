"""Branches that a recipe never takes go, and no other: what may change at run time is never folded."""

from __future__ import annotations

import ast
import functools
import inspect
import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

import pytest
from pydantic import BaseModel
from torch import nn
from torch.optim import Optimizer

from configs.load import load_recipe, names
from flows.river import bundled
from model.config import GPTConfig
from model.protocol import Protocol, chunk_targets, from_dict, phases_of
from stages.bundle.fold import fold
from stages.bundle.program import ENTRY, needed, spare, stripped
from stages.bundle.shake import HOOKS, shake
from stages.config import StageConfig
from stages.settings import Settings

OFF = Settings({"kind": "off", "size": 3, "inner": {"rate": 0.5}})


def folded(text: str, known: dict[str, list[Any]] | None = None) -> str:
    """Folded and shaken until nothing changes; `Config` is the class with known objects."""
    module, before = stripped("m", "from c import Config\n" + text), ""
    module.body = [each for each in module.body if not isinstance(each, ast.ImportFrom)]
    while ast.dump(module) != before:
        before = ast.dump(module)
        module = shake(fold(module, {"c.Config": [OFF]} if known is None else known), "main")
    return ast.unparse(module)


def test_a_branch_that_the_recipe_never_takes_goes_with_all_that_it_alone_reaches():
    source = folded(
        "def costly(): return 1\ndef cheap(): return input()\n"
        "def main(config: Config):\n if config.kind == 'on': return costly()\n return cheap()"
    )
    assert "costly" not in source
    assert "return cheap()" in source


def test_knowledge_goes_through_locals_attributes_arguments_and_results():
    source = folded(
        "class Box:\n"
        " def __init__(self, config: Config):\n"
        "  inner = config.inner\n"
        "  self.rate, self.part = inner.rate, make(config)\n"
        " def use(self, x):\n"
        "  if self.part is not None: return never(self.part)\n"
        "  return x if self.rate < 1 else never(x)\n"
        "def make(config: Config):\n if config.kind == 'off': return None\n return never(config)\n"
        "def helper(limit, part):\n return never(1) if limit > 5 or part else limit\n"
        "def never(x): return x\n"
        "def main(config: Config):\n box = Box(config)\n return box.use(1) + helper(config.size, box.part)"
    )
    assert "never" not in source


NOT_KNOWN = {
    "a name bound twice": "def main(config: Config):\n kind = config.kind\n for kind in input(): pass\n"
    " return stay() if kind == 'on' else 1",
    "an attribute set from outside": "class A:\n def __init__(self): self.on = False\n"
    "def main(other):\n a = A()\n other.on = True\n return stay() if a.on else 1",
    "an attribute set in another method": "class A:\n def __init__(self): self.on = False\n"
    " def turn(self): self.on = True\n"
    "def main():\n a = A()\n a.turn()\n return stay() if a.on else 1",
    "an attribute set in a derived class": "class A:\n def __init__(self): self.on = False\n"
    " def use(self): return stay() if self.on else 1\n"
    "class B(A):\n def turn(self): self.on = True\n"
    "def main():\n b = B()\n b.turn()\n return b.use()",
    "an argument of a function that is handed around": "def f(on): return stay() if on else 1\n"
    "def main(): return f(False), map(f, input())",
    "an argument that one call makes true": "def f(on=False): return stay() if on else 1\n"
    "def main(): return f(), f(on=True)",
    "a field that the program sets": "def main(config: Config):\n config.kind = input()\n"
    " return stay() if config.kind == 'on' else 1",
    "a method in place of an absent field": "class A:\n def rate(self): return stay()\n"
    "def main(config: Config):\n return config.rate(1), A().rate()",
    "a variable of a comprehension": "def main(config: Config):\n kind = config.kind\n"
    " return kind, [stay() for kind in input() if kind == 'on']",
    "a test that does something": "def main(config: Config):\n return stay() and config.absent",
    "an object that has a length": "class A:\n def __len__(self): return 0\n"
    "def main():\n a = A()\n return 1 if a else stay()",
}


@pytest.mark.parametrize("what", NOT_KNOWN)
def test_what_may_change_is_not_known(what: str):
    assert "stay()" in folded(NOT_KNOWN[what] + "\ndef stay(): return input()").split("def stay")[0]


def test_what_adds_to_an_attribute_reads_it():
    source = folded(
        "class A:\n def __init__(self): self.n = 0\n def up(self): self.n += 1\ndef main(): return A().up()"
    )
    assert "self.n = 0" in source


def test_a_recipes_fields_stay_where_the_program_names_them():
    recipe = {"train": {"lr": 1, "unread": 2}, "evaluate": {"any": {"lr": 3}}, "overrides": {"*.q": {"lr": 1}}}
    kept = {"train": {"lr": 1}, "evaluate": {"any": {"lr": 3}}, "overrides": {"*.q": {"lr": 1}}}
    assert needed(recipe, {"train", "lr", "evaluate", "overrides"}) == kept


def leaves(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, value) of every field of a configuration."""
    listed = fields(group) if is_dataclass(group) else type(group).model_fields
    for each in listed:
        name = each if isinstance(each, str) else each.name
        value = getattr(group, name)
        if isinstance(value, BaseModel) or is_dataclass(value):
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name), value


@pytest.mark.parametrize("name", names("recipe"))
def test_settings_hold_what_the_configuration_does(name: str):
    recipe = load_recipe(name, "full").recipe
    settings = Settings(json.loads(json.dumps(bundled(recipe))))
    for stage in ("train", "average", "quantize", "compress"):
        for path, value in leaves(getattr(recipe, stage)):
            if path[0] in ("network", "overrides"):  # made by `from_dict`; tables of groups
                continue
            found = getattr(settings, stage)
            for word in path:
                found = getattr(found, word)
            assert found == value, (stage, path)
    assert settings.train.qat.live == recipe.train.qat.live


@pytest.mark.parametrize("name", names("recipe"))
def test_a_packed_protocol_is_the_one_that_is_evaluated(name: str):
    """The program reads settings where `evaluate` has a `Protocol`: equal but for what it does not do."""
    recipe = load_recipe(name, "full").recipe
    baked = json.loads(json.dumps(bundled(recipe)))["evaluate"]
    for part, values in baked.items():
        protocol = recipe.evaluate[part].to_protocol()
        packed: Any = Settings(spare(values))
        assert from_dict(values) == protocol
        assert chunk_targets(packed) == chunk_targets(protocol)
        assert list(phases_of(packed)) == list(phases_of(protocol))
        unread = {"ttt"} if protocol.protocol != "ttt" else set()
        unread |= {"mixer"} if protocol.mixer.kind == "off" else set()
        unread |= {"pre_eval"} if protocol.protocol != "pre_eval" else set()
        unread |= {"second"} if not protocol.pre_eval.second.epochs else set()
        for path, value in leaves(protocol):
            if not unread & set(path):
                assert functools.reduce(getattr, path, packed) == value, path
        assert packed.mixer.kind == protocol.mixer.kind


def groups_of(kind: type[Any]) -> Iterator[type[Any]]:
    """A configuration's class and those of its groups."""
    yield kind
    for hint in get_type_hints(kind).values():
        for each in (hint, *get_args(hint)):
            if isinstance(each, type) and (is_dataclass(each) or issubclass(each, BaseModel)):
                yield from groups_of(each)


def test_settings_are_asked_for_nothing_but_fields():
    """They answer 0 for what they do not have: a property that hot code reads would be off in every bundle."""
    known = {"live", "SPEC"} | {name for name in dir(StageConfig) if not name.startswith("_")}
    recipe = load_recipe("quickstart").recipe
    kinds = [Protocol, *(type(getattr(recipe, stage)) for stage in ("train", "average", "quantize", "compress"))]
    for kind in {group for each in kinds for group in groups_of(each)} - set(groups_of(GPTConfig)):
        declared = {*getattr(kind, "model_fields", ()), *getattr(kind, "__dataclass_fields__", ())}
        assert {name for name in dir(kind) if not name.startswith("_")} - declared - known == set(), kind


def test_modules_and_optimizers_share_no_other_method_with_their_base(source):
    """What `shake` must know: which of our methods torch may call by name."""
    for path in source.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and {ast.unparse(base) for base in node.bases} & {
                "nn.Module",
                "Optimizer",
                "Muon",
            }:
                own = {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
                theirs = {name for name, _ in [*inspect.getmembers(nn.Module), *inspect.getmembers(Optimizer)]}
                assert {name for name in own & theirs if not name.startswith("__")} <= HOOKS, node.name


def test_the_entry_is_a_module_of_ours(source):
    assert (source / (ENTRY.replace(".", "/") + ".py")).is_file()
