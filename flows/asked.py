"""A run's recipe, asked for again: its file may be gone, as that of a form's text is when its run has ended."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def kept_text(recipe: str) -> dict[str, str]:
    """What a run's document keeps of a recipe that is a file; nothing of a built-in one."""
    return {"toml": Path(recipe).read_text(encoding="utf-8")} if recipe.endswith(".toml") else {}


@contextmanager
def asked_again(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The document with an `asked` that `load_recipe` takes as long as the `with` lasts; a file that is there is it."""
    asked, text = document["asked"], document.get("toml")
    if text is None or Path(asked).is_file():
        yield dict(document)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{document['recipe']}.toml"
        path.write_text(text, encoding="utf-8")
        yield {**document, "asked": str(path)}
