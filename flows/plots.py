"""Pictures of several seeds: a line per configuration, a dot per seed, the mean and its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from flows.charts import ACCENT, GRID, INK, MUTED, SECOND, STYLE, WIDE_IN
from flows.references import Reference


@dataclass(frozen=True)
class Group:
    """One line: its name, the scores of its seeds, and what else is known."""

    name: str
    values: Sequence[float]
    low: float | None = None  # 95 % interval of the mean
    high: float | None = None
    published: float | None = None  # somebody else's number for the same
    is_reference: bool = False


def groups_of(result: Mapping[str, Any], row: Reference | None) -> list[Group]:
    """A set's protocols, and the row it is tested against if there is a test."""
    groups = [
        Group(name, list(score["values"].values()), score["low"], score["high"])
        for name, score in result["scores"].items()
    ]
    if groups and row is not None and result["test"]:
        bpb = row.scores.bpb
        groups.append(Group(row.name, bpb.values, bpb.low, bpb.high, is_reference=True))
    return groups


def dots(groups: Sequence[Group]) -> Figure:
    """Groups from top to bottom; lower is better. The axis does not start at zero, so there are no bars."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDE_IN, 0.42 * len(groups) + 1.0), layout="constrained")
        axes = figure.add_subplot()
        for place, group in enumerate(groups):
            color = SECOND if group.is_reference else ACCENT
            axes.axhline(place, color=GRID, linewidth=1)
            if group.low is not None and group.high is not None:
                axes.plot([group.low, group.high], [place, place], color=color, linewidth=5, alpha=0.22)
            axes.scatter(group.values, [place] * len(group.values), s=34, color=color, alpha=0.75, zorder=3)
            if group.values:
                mean = sum(group.values) / len(group.values)
                axes.scatter([mean], [place], marker="|", s=260, color=INK, zorder=4)
                axes.annotate(f"{mean:.4f}", (mean, place), (0, 9), textcoords="offset points", ha="center", fontsize=8)
            else:
                axes.annotate(
                    "no result", (0.01, place), (0, 4), ("axes fraction", "data"), "offset points", fontsize=8
                )
            if group.published is not None:
                axes.scatter([group.published], [place], marker="D", s=30, facecolors="none", edgecolors=MUTED)
        axes.set_yticks(range(len(groups)), [group.name for group in groups])
        axes.set_ylim(len(groups) - 0.4, -0.7)
        axes.grid(visible=False, axis="y")
        _focus(axes, groups)
        legend = "dot: a seed    |: mean    band: 95 % interval of the mean"
        published = "    diamond: published" if any(group.published is not None for group in groups) else ""
        axes.set_xlabel(f"bits per byte (lower is better)      {legend}{published}")
        return figure


def _focus(axes: Any, groups: Sequence[Group]) -> None:
    """Show the scores: the interval of two seeds can be a hundred times as wide as all that was measured."""
    shown = [value for group in groups for value in group.values]
    shown += [group.published for group in groups if group.published is not None]
    if not shown:
        return
    low, high = min(shown), max(shown)
    margin = max((high - low) * 0.35, 1e-4 * high)
    axes.set_xlim(low - margin, high + margin)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.4f}")
