"""`fairway recipes`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from configs.introduced import resolved
from configs.load import challenge, load_recipe, names
from configs.recipe import Recipe
from configs.techniques import techniques
from flows.tables import print_json, print_table
from flows.verdicts import WORDS
from model.names import parameter_count
from stages.audit.policy import verdicts
from stages.audit.published import judge_published


def recipes(arguments: argparse.Namespace) -> int:
    """List the built-in recipes, what they are, what was published of them, and the scales."""
    rows = [describe(name) for name in names("recipe")]
    if arguments.json:
        print_json({"recipes": rows, "scales": names("scale")})
        return 0
    headings = ["recipe", "parameters", "what it is", "board", "strict", "published"]
    cells = [
        [row["name"], f"{row['parameters']:,}", row["about"], *_words(row["judged"]), row["verdict"]] for row in rows
    ]
    print_table(headings, cells, right="parameters")
    sys.stdout.write(f"scales: {', '.join(names('scale'))}\n")
    return 0


def judged(recipe: Recipe) -> dict[str, Any]:
    """Policy -> {"verdict", "rules", "because", "not_judged"}: by published bytes and losses, and by its protocols.

    What only a run can show, such as clocks and lineage, is not judged here but by the audit of a run.
    """
    protocols = {name: resolved(each) for name, each in recipe.evaluate.items() if each.of == "archive"}
    rules = challenge()
    findings = judge_published(recipe.published, protocols, rules)
    return verdicts(findings, rules)["policies"]


def _words(policies: dict[str, Any]) -> list[str]:
    words = {**WORDS, "legal": "legal in form"}
    return [words[policies[name]["verdict"]] for name in ("board", "strict")]


def describe(name: str) -> dict[str, Any]:
    """A built-in recipe at full size; `verdict` is null where nothing was published."""
    recipe = load_recipe(name).recipe
    return {
        "name": name,
        "about": recipe.about,
        "parameters": parameter_count(recipe.train.network),
        "techniques": techniques(recipe),
        "published": recipe.published,
        "verdict": recipe.published.get("verdict"),
        "judged": judged(recipe),
        "seed": recipe.seed,
        "protocols": list(recipe.evaluate),
    }
