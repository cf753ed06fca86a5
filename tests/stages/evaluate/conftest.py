"""What `evaluate` reads, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from smallrun import make_inputs, make_texts


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """English prose of the installation."""
    return make_texts()


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders by role: `tokenizer`, `val` (two shards), `weights`, `archive`."""
    return make_inputs(tmp_path_factory.mktemp("evaluate"))
