"""The tree at the top of errors.py is the tree."""

from __future__ import annotations

import re

from artifacts import errors


def test_the_drawn_tree_lists_every_error_below_its_parent():
    drawn = {}
    parents = {}
    for line in errors.__doc__.splitlines():
        if match := re.match(r"(?P<indent>[│├└─ ]*)(?P<name>[A-Z]\w+)\b", line):
            depth = len(match["indent"]) // 4
            if match["name"] == "StoreError" or depth:
                parents[depth] = match["name"]
                drawn[match["name"]] = parents.get(depth - 1, "Exception")
    real = {
        name: value.__base__.__name__
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert drawn == real
    assert set(errors.__all__) == set(real)
