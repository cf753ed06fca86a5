"""What a sweep asks for: points around one recipe, from a grid or a file. Nothing runs here.

A point is a list of overrides. Points come from `--grid path=v1,v2` (every combination) or from a file:

    recipe = "pr398"                    # what the points start from
    set = ["train.steps=100"]           # overrides of every point
    base = "first"                      # the point that others are compared with (default: the first)

    [grid]                              # every combination
    "quantize.matrices.bits" = [5, 6]

    [[point]]                           # or points by name
    name = "first"
    set = ["average.kind=raw"]
    at = { smoke = ["train.batch_tokens=384"] }   # further overrides at one scale
    score = "sliding"                   # whose score counts here (default: the sweep's)
    published = 1.1242                  # somebody's number for it
    note = "what the reader should know"

    [[left_out]]                        # what the table it follows has and this sweep does not
    name = "..."
    published = 1.1250
    why = "..."
"""

from __future__ import annotations

import itertools
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from configs.complaints import nearest
from configs.load import parse_override
from stages.contract import StageError

_POINT_FIELDS = {"name": str, "set": list, "at": dict, "score": str, "published": float, "note": str}
_FIELDS = {
    "about": str, "recipe": str, "set": list, "base": str, "score": str, "seeds": list, "grid": dict, "point": list,
    "left_out": list,
}  # fmt: skip
MOST_POINTS = 1000


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point, before a scale is chosen."""

    name: str
    overrides: tuple[str, ...]
    at: Mapping[str, Sequence[str]]  # scale -> further overrides
    score: str = ""
    published: float | None = None
    note: str = ""

    def at_scale(self, scale: str) -> tuple[str, ...]:
        """All overrides at a scale."""
        return (*self.overrides, *self.at.get(Path(scale).stem, ()))


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is to be run."""

    name: str
    recipe: str
    points: tuple[Point, ...]
    about: str = ""
    base: str = ""
    seeds: tuple[int, ...] = ()
    left_out: tuple[Mapping[str, Any], ...] = ()


def grid_points(axes: Sequence[tuple[str, Sequence[Any]]], common: Sequence[str] = ()) -> tuple[Point, ...]:
    """Every combination of the values of every path, the last path fastest."""
    count = 1
    for _, values in axes:
        count *= len(values)
    if count > MOST_POINTS:
        raise StageError(f"a sweep has at most {MOST_POINTS} points; this grid has {count}; leave out values or axes")
    points: list[Point] = []
    for chosen in itertools.product(*(values for _, values in axes)):
        told = tuple(f"{path}={_toml(value)}" for (path, _), value in zip(axes, chosen, strict=True))
        points.append(Point(name=" ".join(_short(each) for each in told), overrides=(*common, *told), at={}))
    if len({point.name for point in points}) < len(points):
        points = [replace(point, name=" ".join(point.overrides[len(common) :])) for point in points]
    return tuple(points)


def parse_grid(text: str) -> tuple[str, list[Any]]:
    """`quantize.matrices.bits=5,6`: a path and its values, in TOML's syntax, where bare words are text.

    Raises:
        StageError: there is no path or no value.
    """
    path, equals, values = text.partition("=")
    parse_override(f"{path}=0")  # the same complaint as of --set
    if not equals or not values.strip():
        raise StageError(
            f"--grid takes path=value,value; got {text!r}; write for instance --grid train.muon.lr=0.02,0.03"
        )
    try:
        return path.strip(), tomllib.loads(f"values = [{values}]")["values"]
    except tomllib.TOMLDecodeError:
        return path.strip(), [word.strip() for word in values.split(",")]


def read_sweep(path: Path) -> Sweep:
    """The sweep of a file.

    Raises:
        StageError: it is not TOML, or has a field that a sweep does not know.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StageError(f"a sweep is a readable TOML file; {path} is not: {error}; mend it") from error
    _check(table, _FIELDS, str(path))
    if "recipe" not in table or not (table.get("grid") or table.get("point")):
        raise StageError(f"a sweep has a recipe and [grid] or [[point]]; {path} does not; see docs/statistics.md")
    common = tuple(table.get("set", ()))
    points = list(grid_points(list(table["grid"].items()), common)) if table.get("grid") else []
    for place, given in enumerate(table.get("point", ()), 1):
        _check(given, _POINT_FIELDS, f"point {place} of {path}")
        points.append(
            Point(
                name=given.get("name", f"point {place}"),
                overrides=(*common, *given.get("set", ())),
                at=given.get("at", {}),
                score=given.get("score", table.get("score", "")),
                published=given.get("published"),
                note=given.get("note", ""),
            )
        )
    names = [point.name for point in points]
    if len(set(names)) < len(names):
        raise StageError(
            f"points have names of their own; {path} has {max(names, key=names.count)!r} twice; rename one"
        )
    base = table.get("base", "")
    if base and base not in names:
        raise StageError(
            f"base names a point; {path} has {base!r}{nearest(base, names)}; use one of {', '.join(names)}"
        )
    recipe = table["recipe"]
    return Sweep(
        name=path.stem,
        recipe=str((path.parent / recipe).resolve()) if recipe.endswith(".toml") else recipe,
        points=tuple(points),
        about=table.get("about", ""),
        base=base,
        seeds=tuple(table.get("seeds", ())),
        left_out=tuple(table.get("left_out", ())),
    )


def is_sweep(path: Path) -> bool:
    """Whether a .toml file is a sweep rather than a recipe: it says which recipe it is about."""
    try:
        return "recipe" in tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return False


def _toml(value: Any) -> str:
    """A value as `--set` takes it. JSON is TOML but for tables and null, which no field has alone."""
    return value if isinstance(value, str) else json.dumps(value)


def _short(override: str) -> str:
    """`bits=5` of `quantize.matrices.bits=5`."""
    path, _, value = override.partition("=")
    return f"{path.rpartition('.')[2]}={value}"


def _check(table: object, known: Mapping[str, type], where: str) -> None:
    if not isinstance(table, dict):
        raise StageError(f"a sweep is made of tables; {where} is {type(table).__name__}; see docs/statistics.md")
    for name, value in table.items():
        if name not in known:
            raise StageError(f"{name} is no field of {where}{nearest(name, known)}; it has {', '.join(known)}")
        wanted = known[name]
        if not isinstance(value, (int, float) if wanted is float else wanted):
            raise StageError(f"{name} of {where} is a {wanted.__name__}; got {value!r}; mend it")
    for name in ("set", *(("at",) if "at" in table else ())):
        lists = table.get("at", {}).values() if name == "at" else [table.get("set", [])]
        if not all(isinstance(each, list) and all(isinstance(text, str) for text in each) for each in lists):
            raise StageError(f'{name} of {where} lists overrides as text; got {table[name]!r}; write ["path=value"]')
