"""Reads a recipe: TOML files, what they extend, the scale's overlay and `--set`, checked once when all is merged.

The order is: the fields' defaults, the recipe's bases, the recipe, the scale, `--set`. Tables merge field by field,
lists and values are replaced. The table `[evaluate."*"]` speaks to every protocol that the layers before it named.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_jsonable_python

from configs.complaints import complaints, nearest
from configs.introduced import is_off
from configs.recipe import Recipe
from stages.contract import StageError
from stages.evaluate.config import Config as EvaluateConfig

FOLDER = Path(__file__).parent
DEFAULT_SCALE = "full"
# A recipe that extends another is a system of its own: these say who the other one is.
_OWN = ("name", "about", "published")
_EVERY = "*"

Table = dict[str, Any]


@dataclass(frozen=True)
class Layer:
    """One source of values."""

    origin: str  # as people read it: "recipe pr714", "scale smoke", "--set"
    table: Table


@dataclass(frozen=True)
class Loaded:
    """A checked recipe, and who chose what in it."""

    recipe: Recipe
    scale: str
    origins: Mapping[str, str]  # dotted path of a value -> its layer; a value that is not here is a default

    def origin(self, path: str) -> str:
        """The layer that a value comes from."""
        return self.origins.get(path, "default")


def load_recipe(name: str, scale: str = DEFAULT_SCALE, overrides: Sequence[str] = ()) -> Loaded:
    """The recipe called `name`, at a scale, with `path=value` overrides.

    Args:
        name: a built-in recipe, or the path of a TOML file (it ends in .toml).
        scale: a name of `configs/scales/`, or the path of a TOML file.
        overrides: such as `train.muon.lr=0.02`; values in TOML's syntax, where bare text is a string.

    Raises:
        StageError: for any unknown name, field or value; the text lists everything that is wrong.
    """
    layers = recipe_layers(name)
    overlay = _find(scale, "scale")
    layers.append(Layer(f"scale {overlay.stem}", _only_resize(_read(overlay), layers)))
    layers += [Layer("--set", parse_override(text)) for text in overrides]
    return check(layers, overlay.stem)


def names(kind: str) -> list[str]:
    """The built-in recipes or scales: `kind` is "recipe" or "scale"."""
    return sorted(path.stem for path in (FOLDER / f"{kind}s").glob("*.toml"))


def challenge() -> Table:
    """The rules of the challenge: `challenge.toml`."""
    return _read(FOLDER / "challenge.toml")


def recipe_layers(name: str) -> list[Layer]:
    """A recipe's own layer and those that it extends, base first."""
    layers: list[Layer] = []
    seen: list[Path] = []
    left_out: list[str] = []
    path = _find(name, "recipe")
    while True:
        if path in seen:
            chain = " -> ".join(each.stem for each in [*seen, path])
            raise StageError(f"a recipe extends another one and never itself; got {chain}; break the circle")
        table = _read(path)
        extends, without = table.pop("extends", None), table.pop("without", [])
        table.setdefault("name", path.stem)
        left_out = [dotted for dotted in left_out if not _remove(table, dotted.split("."))]
        left_out += _without(without, path)
        if seen:
            table = {field: value for field, value in table.items() if field not in _OWN}
        layers.insert(0, Layer(f"recipe {path.stem}", table))
        seen.append(path)
        if extends is None:
            if left_out:
                raise StageError(
                    f"without lists what the recipes below have; {name} leaves out {left_out[0]!r}, which none of "
                    f"{', '.join(each.stem for each in seen[1:]) or 'them'} has; drop it, or mend its path"
                )
            return layers
        if not isinstance(extends, str):
            raise StageError(f"extends is a recipe's name or path; {path.name} has {extends!r}; write one in quotes")
        path = _find(extends, "recipe", path.parent)


def _without(value: object, path: Path) -> list[str]:
    """The dotted paths that a recipe leaves out of those that it extends."""
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return value
    raise StageError(f'without is a list of paths; {path.name} has {value!r}; write ["evaluate.published"]')


def _remove(table: Table, keys: list[str]) -> bool:
    """Take what lies at a path out of a table; whether anything was there."""
    below = table.get(keys[0])
    if len(keys) == 1:
        return table.pop(keys[0], None) is not None
    return isinstance(below, dict) and _remove(below, keys[1:])


def parse_override(text: str) -> Table:
    """`a.b=value` as nested tables. The value is TOML; what is not TOML is a string as it stands."""
    path, equals, value = text.partition("=")
    path, value = re.sub(r"(?<=\.)\*(?=\.)", '"*"', path.strip()), value.strip()
    try:
        if not equals or not path or "\n" in text:
            raise ValueError
        keys = tomllib.loads(f"{path} = 0")
    except ValueError as error:  # tomllib's own error is one
        raise StageError(
            f"--set takes path=value; got {text!r}; write for instance --set train.muon.lr=0.02"
        ) from error
    try:
        return tomllib.loads(f"{path} = {value}")
    except ValueError:
        return _replace_leaf(keys, value)


def _only_resize(overlay: Table, layers: Sequence[Layer]) -> Table:
    """A scale's overlay without what would switch on a feature that the recipe has off."""
    merged: Table = {}
    for layer in layers:
        _merge(merged, layer.table, "", "", {})
    before = _defaults(merged.get("evaluate"))
    _merge(before, merged, "", "", {})
    resized = dict(overlay)
    for stage, resize in (
        ("train", _resize_network),
        ("quantize", _resize_fit),
        ("evaluate", _resize_protocols),
    ):
        if isinstance(overlay.get(stage), dict) and isinstance(before[stage], dict):
            resized[stage] = resize(overlay[stage], before[stage])
    return resized


def _resize_network(train: Table, before: Table) -> Table:
    return {**train, "network": _present(train["network"], before.get("network"))} if "network" in train else train


def _resize_fit(quantize: Table, before: Table) -> Table:
    return {**quantize, "fit": _present(quantize["fit"], before.get("fit"))} if "fit" in quantize else quantize


def _resize_protocols(evaluate: Table, before: Table) -> Table:
    """What a scale says to every protocol at once: plain fields as they are, groups where the protocol has them on."""
    every = evaluate.get(_EVERY)
    if not isinstance(every, dict):
        return evaluate
    groups = {name: value for name, value in every.items() if isinstance(value, dict)}
    resized: Table = {_EVERY: {name: value for name, value in every.items() if name not in groups}}
    for part, protocol in before.items():
        resized[part] = _present(groups, protocol)
        own = evaluate.get(part)
        if isinstance(own, dict):
            _merge(resized[part], own, "", "", {})
    return {**{part: value for part, value in evaluate.items() if part not in resized}, **resized}


def _present(overlay: Any, before: Any) -> Any:
    """The overlay where `before` is not off; names that `before` does not know stay, to be complained about."""
    if not (isinstance(overlay, dict) and isinstance(before, dict)):
        return overlay
    stays = {name: value for name, value in overlay.items() if not (name in before and is_off(before[name]))}
    return {name: _present(value, before.get(name)) for name, value in stays.items()}


def _replace_leaf(table: Table, value: str) -> Table:
    return {key: _replace_leaf(below, value) if isinstance(below, dict) else value for key, below in table.items()}


def check(layers: Sequence[Layer], scale: str = DEFAULT_SCALE) -> Loaded:
    """Merge the layers over the defaults and check the result once."""
    merged: Table = {}
    origins: dict[str, str] = {}
    for layer in layers:
        _refuse_foreign_types(layer)
        _merge(merged, layer.table, layer.origin, "", origins)
    # Groups with defaults of their own (the quantiser's `matrices`) start from those, not from their type's defaults.
    defaults = _defaults(merged.get("evaluate"))
    given = deepcopy(defaults)
    _merge(given, merged, "", "", {})
    try:
        recipe = Recipe.model_validate_json(json.dumps(given), strict=True)
    except ValidationError as error:
        raise StageError(complaints(error, Recipe, origins, defaults)) from error
    if recipe.bundle.recipe:
        raise StageError("bundle.recipe is filled in by the wiring; the recipe sets it too; leave it out")
    return Loaded(recipe, scale, origins)


def _defaults(protocols: object) -> Table:
    """Today's defaults of all fields, with the named protocols."""
    table: Table = to_jsonable_python(Recipe(name="defaults"))
    del table["name"]
    if isinstance(protocols, dict):
        table["evaluate"] = {name: to_jsonable_python(EvaluateConfig()) for name in protocols}
    return table


def _merge(into: Table, table: Table, origin: str, path: str, origins: dict[str, str]) -> None:
    ordered = sorted(table.items(), key=lambda item: item[0] != _EVERY)  # the particular protocol has the last word
    for name, value in ordered:
        here = f"{path}.{name}" if path else name
        if name == _EVERY and path == "evaluate" and isinstance(value, dict):
            for part, below in into.items():
                if isinstance(below, dict):
                    _merge(below, value, origin, f"{path}.{part}", origins)
        elif isinstance(value, dict) and isinstance(into.get(name, {}), dict):
            _merge(into.setdefault(name, {}), value, origin, here, origins)
        else:
            into[name] = value
            origins[here] = origin


def _refuse_foreign_types(layer: Layer) -> None:
    """TOML knows dates and infinities, recipes do not."""
    try:
        json.dumps(layer.table, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StageError(
            f"recipes hold text, finite numbers, true and false, lists and tables; {layer.origin} holds something else "
            f"({error}); write a date as text, and leave a limit out instead of inf"
        ) from error


def _find(name: str, kind: str, beside: Path | None = None) -> Path:
    """The file of a built-in name, or of a path, which is relative to the file that mentions it."""
    if name.endswith(".toml"):
        path = ((beside or Path()) / name).resolve()
        if path.is_file():
            return path
        raise StageError(f"a {kind} given as a path is a file; {path} is not there; give a file, or a built-in name")
    path = FOLDER / f"{kind}s" / f"{name}.toml"
    if "/" in name or "\\" in name or not path.is_file():
        known = names(kind)
        raise StageError(
            f"a {kind} is a built-in name or the path of a .toml file; got {name!r}{nearest(name, known)}; "
            f"there are {', '.join(known)}"
        )
    return path


def _read(path: Path) -> Table:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise StageError(f"recipes are TOML; {path} is not: {error}; mend that line") from error
    except (OSError, UnicodeDecodeError) as error:
        raise StageError(f"recipes are readable UTF-8 files; {path} is not: {error}") from error
