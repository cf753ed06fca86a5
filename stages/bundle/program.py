"""Modules and a recipe -> the source of one small program: strip, merge, fold, shake, shorten, minify."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from python_minifier import minify

from stages.bundle.fold import fold
from stages.bundle.known import Known, known_objects
from stages.bundle.merge import in_order, merge
from stages.bundle.shake import shake
from stages.bundle.shorten import shorten, unmark
from stages.bundle.strip import Strip
from stages.contract import StageError
from stages.settings import TABLES

ENTRY = "stages.submission"  # the module whose function `main` is the program


def program(sources: Mapping[str, str], recipe: Mapping[str, Any]) -> str:
    """The program's source. `sources`: source by module name; what of it the entry does not reach is left out."""
    if ENTRY not in sources:
        raise StageError(f"the program is {ENTRY}; the source tree does not have it; start from a whole one")
    trees = {name: stripped(name, source) for name, source in sources.items()}
    module = reduced(merge(trees, ENTRY), known_objects(recipe))
    baked = dict(recipe)
    if "evaluate" in recipe:
        baked["evaluate"] = {name: spare(protocol) for name, protocol in recipe["evaluate"].items()}
    baked = literal(needed(baked, words_of(module)))
    preserved = ["main", *classes_asked_for_their_names(trees)]
    for node in ast.walk(module):
        if isinstance(node, ast.arg):
            node.annotation = None
    source = ast.unparse(ast.fix_missing_locations(shorten(module)))
    small = minify(
        source,
        remove_literal_statements=True,
        rename_globals=True,
        preserve_globals=preserved,
        hoist_literals=False,  # what repeats is cheap once the whole is compressed; measured
    )
    return f"{unmark(small)}\nif __name__=='__main__':main({baked})\n"


def reduced(module: ast.Module, known: Known) -> ast.Module:
    """What the entry reaches under this recipe: folding and shaking in turns, until neither finds more."""
    unchecked(module)
    module = shake(module, "main")
    before = ""
    while (now := ast.dump(module)) != before:
        before = now
        module = shake(fold(module, known), "main")
    return module


def unchecked(module: ast.Module) -> None:
    """The network's own checks go: the recipe's network has passed them here, and no other is ever used."""
    for node in module.body:
        if isinstance(node, ast.ClassDef) and node.name == "GPTConfig":
            node.body = [each for each in node.body if getattr(each, "name", "") != "__post_init__"]


def spare(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """A protocol without the adaptation that it does not do."""
    phases = {name: phase for name, phase in protocol.get("pre_eval", {}).items() if phase.get("epochs")}
    mixer = protocol.get("mixer", {})
    kept = {
        "ttt": protocol.get("ttt") if protocol.get("protocol") == "ttt" else None,
        "pre_eval": phases,
        "mixer": {"kind": "off"} if mixer.get("kind") == "off" else mixer,
    }
    return {name: kept.get(name, value) for name, value in protocol.items() if kept.get(name, value) not in (None, {})}


def needed(recipe: Any, words: set[str], table: bool = False) -> Any:
    """The fields of a recipe whose names stand in the program; keys of tables stay."""
    if not isinstance(recipe, Mapping):
        return recipe
    return {
        name: needed(value, words, name in (*TABLES, "evaluate"))
        for name, value in recipe.items()
        if table or name in words
    }


def words_of(module: ast.Module) -> set[str]:
    """Every name and text."""
    found: set[str] = set()
    for node in ast.walk(module):
        found |= {word for _, word in ast.iter_fields(node) if isinstance(word, str)}
    return found


def stripped(name: str, source: str) -> ast.Module:
    """A module's tree without what does not act."""
    path = name.replace(".", "/") + ".py"
    try:
        return Strip(name).visit(ast.parse(source, path))
    except (SyntaxError, ValueError) as error:
        raise StageError(f"what is packed is Python source; {path} is not: {error}; mend it") from error


def classes_asked_for_their_names(trees: Mapping[str, ast.Module]) -> list[str]:
    """Classes of modules that read a `__name__`: there it is data, as in an archive's table of steps."""
    found: list[str] = []
    for name in in_order(trees, ENTRY):
        nodes = list(ast.walk(trees[name]))
        if any(isinstance(node, ast.Attribute) and node.attr == "__name__" for node in nodes):
            found += [node.name for node in nodes if isinstance(node, ast.ClassDef)]
    return found


def literal(value: Any) -> str:
    """A JSON value as Python source without blanks."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key!r}:{literal(each)}" for key, each in sorted(value.items())) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(literal(each) for each in value) + "]"
    return repr(value)
