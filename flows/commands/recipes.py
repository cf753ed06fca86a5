"""`fairway recipes`."""

from __future__ import annotations

import argparse
import sys

from configs.load import load_recipe, names
from flows.tables import print_json, print_table


def recipes(arguments: argparse.Namespace) -> int:
    """List the built-in recipes, what they are, and the scales."""
    rows = []
    for name in names("recipe"):
        recipe = load_recipe(name).recipe
        rows.append({"name": name, "about": recipe.about, "seed": recipe.seed, "protocols": list(recipe.evaluate)})
    if arguments.json:
        print_json({"recipes": rows, "scales": names("scale")})
        return 0
    print_table(["recipe", "what it is"], [[row["name"], row["about"]] for row in rows])
    sys.stdout.write(f"scales: {', '.join(names('scale'))}\n")
    return 0
