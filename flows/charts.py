"""The report's pictures: each function takes plain numbers and returns a matplotlib figure, drawn for people.

One picture, one question. Figures are written twice, as SVG inside the page and as PNG beside it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, GRID, ACCENT, SECOND, WARN = "#1c2733", "#64748b", "#e2e8f0", "#0f766e", "#b45309", "#b91c1c"
PALETTE = ("#0f766e", "#2dd4bf", "#b45309", "#fbbf24", "#475569", "#94a3b8", "#7c3aed", "#c4b5fd")
STYLE: Any = {  # matplotlib names its keys as literals, which a plain dict of text is not
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",  # text stays text: it can be searched, and the page's own font draws it
    "svg.hashsalt": "fairway",  # ids inside the SVG are the same in every run
}


WIDE_IN, HALF_IN = 11.4, 5.6  # as wide as the page shows them, so that text keeps its size


def _axes(width: float = HALF_IN, height: float = 3.2) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def ladder(scores: Sequence[tuple[str, float]]) -> Figure:
    """Bits per byte of each rung (name, BPB), from raw weights to the final protocol."""
    with mpl.rc_context(STYLE):
        figure, axes = _axes(WIDE_IN, 0.4 * len(scores) + 0.7)
        names, values = [n for n, _ in scores], [v for _, v in scores]
        low, high = min(values), max(values)
        margin = max(high - low, 0.01 * high) * 0.35
        best = values.index(low)
        colors = [ACCENT if i == best else "#94a3b8" for i in range(len(values))]
        places = range(len(values))
        axes.hlines(places, low - margin, values, color=GRID, linewidth=2)
        axes.scatter(values, places, s=90, color=colors, zorder=3)
        for place, value in zip(places, values, strict=True):
            step = "" if place == 0 else f"  ({value - values[place - 1]:+.4f})"
            axes.annotate(f"{value:.4f}{step}", (value, place), (9, 0), textcoords="offset points", va="center")
        axes.set_yticks(list(places), names)
        axes.set_ylim(len(values) - 0.5, -0.5)
        # Room on the right for the labels; the axis does not start at zero and says so by having no bars.
        axes.set_xlim(low - margin, high + margin + (high - low + 2 * margin) * 0.25)
        axes.set_xlabel("bits per byte (lower is better)")
        axes.grid(visible=False, axis="y")
        return figure


def loss_curve(points: Sequence[Mapping[str, Any]]) -> Figure:
    """Training loss by step, validation loss where it was measured, learning-rate multiplier behind."""
    with mpl.rc_context(STYLE):
        figure, axes = _axes()
        train = [(p["step"], p["train_loss"]) for p in points if p.get("train_loss") is not None]
        val = [(p["step"], p["val_loss"]) for p in points if p.get("val_loss") is not None]
        if train:
            steps, losses = zip(*train, strict=True)
            axes.plot(steps, losses, color="#99d5cf", linewidth=0.8, label="training, each step")
            axes.plot(steps, _smooth(losses), color=ACCENT, linewidth=1.8, label="training, smoothed")
            # The first steps jump to 8 and more with this family of networks; they would flatten everything else.
            body = sorted(losses[len(losses) // 20 :])
            axes.set_ylim(body[0] - 0.1, body[int(0.995 * (len(body) - 1))] + 0.2)
        if val:
            axes.plot(
                *zip(*val, strict=True), "o-", color=SECOND, markersize=5, linewidth=1.2, label="held-out train tail"
            )
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("nats per token")
        scale = [(p["step"], p["lr_scale"]) for p in points if p.get("lr_scale") is not None]
        if scale:
            behind = axes.twinx()
            behind.fill_between(
                [step for step, _ in scale], [at for _, at in scale], color="#cbd5e1", alpha=0.25, linewidth=0
            )
            behind.set_ylim(0, 1.6)
            behind.set_yticks([])
            behind.grid(visible=False)
            behind.spines[:].set_visible(False)
            axes.set_zorder(behind.get_zorder() + 1)
            axes.patch.set_visible(False)
            axes.plot([], [], color="#cbd5e1", linewidth=6, label="learning-rate multiplier")
        axes.legend(frameon=False, fontsize=9)
        return figure


def _smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    smoothed: list[float] = []
    for value in values:
        smoothed.append(value if not smoothed else weight * smoothed[-1] + (1 - weight) * value)
    return smoothed


def sizes(parts: Sequence[tuple[str, int]], cap_bytes: int) -> Figure:
    """What the submission weighs, part by part, against the cap."""
    with mpl.rc_context(STYLE):
        total = sum(size for _, size in parts)
        figure = Figure(figsize=(WIDE_IN, 2.2), layout="constrained")
        whole, detail = figure.subplots(2, 1, height_ratios=[1, 1.25])
        over = total > cap_bytes
        whole.barh([0], [total], color=WARN if over else ACCENT, height=0.55)
        whole.axvline(cap_bytes, color=INK, linewidth=1.5)
        whole.set_xlim(0, max(total, cap_bytes) * 1.02)
        whole.set_yticks([])
        whole.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:.0f} MB")
        whole.set_title(
            f"{total:,} of {cap_bytes:,} bytes ({total / cap_bytes:.1%})", fontsize=10, loc="left", color=INK
        )
        left = 0
        for (name, size), color in zip(parts, PALETTE * (len(parts) // len(PALETTE) + 1), strict=False):
            detail.barh([0], [size], left=left, color=color, height=0.5, label=f"{name} {size:,}")
            left += size
        detail.set_xlim(0, max(total, 1))
        detail.axis("off")
        detail.legend(frameon=False, fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 0.05))
        return figure


def by_position(rows: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """Cost by position in the window: for each protocol, (position, nats per token) points."""
    with mpl.rc_context(STYLE):
        figure, axes = _axes()
        for (name, points), color in zip(rows.items(), PALETTE, strict=False):
            axes.plot(*zip(*points, strict=True), "o-", color=color, label=name, markersize=3.5, linewidth=1.4)
        axes.set_xlabel("inputs that the model saw before the target, in tokens")
        axes.set_ylabel("nats per token")
        axes.set_xscale("symlog", linthresh=4)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0f}")
        axes.legend(frameon=False, fontsize=9)
        return figure


def quantisation(rows: Sequence[tuple[str, float]]) -> Figure:
    """Relative root-mean-square error of each quantised tensor."""
    with mpl.rc_context(STYLE):
        figure, axes = _axes(WIDE_IN, 0.26 * len(rows) + 0.8)
        places = range(len(rows))
        axes.barh(places, [100 * error for _, error in rows], color=ACCENT, height=0.62)
        axes.set_yticks(list(places), [name for name, _ in rows], fontsize=9)
        axes.invert_yaxis()
        axes.set_xlabel("relative rms error, %")
        axes.grid(visible=False, axis="y")
        return figure


def svg(figure: Figure) -> str:
    """The figure as an <svg> element that scales with its container."""
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'width="100%" role="img"', text, count=1)


def png(figure: Figure, path: Path) -> None:
    """The figure as a PNG file, at twice the screen's resolution."""
    with mpl.rc_context(STYLE):
        figure.savefig(path, format="png", dpi=160, facecolor="white", metadata={"Software": "Fairway"})
