"""`fairway recipes`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from configs.load import load_recipe, names
from configs.techniques import techniques
from flows.tables import print_json, print_table
from model.names import parameter_count


def recipes(arguments: argparse.Namespace) -> int:
    """List the built-in recipes, what they are, what was published of them, and the scales."""
    rows = [describe(name) for name in names("recipe")]
    if arguments.json:
        print_json({"recipes": rows, "scales": names("scale")})
        return 0
    headings = ["recipe", "parameters", "what it is", "published"]
    cells = [[row["name"], f"{row['parameters']:,}", row["about"], row["verdict"]] for row in rows]
    print_table(headings, cells, right="parameters")
    sys.stdout.write(f"scales: {', '.join(names('scale'))}\n")
    return 0


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
        "seed": recipe.seed,
        "protocols": list(recipe.evaluate),
    }
