"""What runs are called in lists: recipe, scale, seeds and changes, so that nobody has to open one to know it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

LONGEST_CHANGES, LONGEST_REASON = 60, 100  # characters; the page's lists have room for about so much


def run_title(
    recipe: str, scale: str, seed: int | None = None, seeds: Sequence[int] = (), overrides: Sequence[str] = ()
) -> str:
    """`pr714 full seed 42 muon.lr=0.02`, `pr714 full seeds 42 1337`."""
    words = [recipe, scale]
    if seed is not None:
        words += ["seed", str(seed)]
    if seeds:
        words += ["seeds", *map(str, seeds)]
    return " ".join(filter(None, [*words, changes(overrides)]))


def changes(overrides: Iterable[str]) -> str:
    """Overrides in a few words: each field by the end of its path; what has no room is counted."""
    said: list[str] = []
    lines = [line.strip() for line in overrides if line.strip()]
    for line in lines:
        path, equals, value = line.partition("=")
        said.append(".".join(path.strip().split(".")[-2:]) + equals + value.strip())
    shown = [each for i, each in enumerate(said) if len(" ".join(said[: i + 1])) <= LONGEST_CHANGES]
    return " ".join([*shown, *([f"and {len(said) - len(shown)} more changes"] if len(shown) < len(said) else [])])


def with_reason(title: str, reason: str) -> str:
    """A failed run's name in lists, which show no messages: what it was, and the rule that it broke."""
    first = reason.strip().partition("\n")[0]
    return f"{title}: {first if len(first) <= LONGEST_REASON else first[: LONGEST_REASON - 1] + '…'}"
