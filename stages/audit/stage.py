"""Audit a finished run: every protocol's detectors, and one verdict per rule."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.audit.config import Config
from stages.contract import Runtime


def run(config: Config, inputs: Mapping[str, Path], out: Path, runtime: Runtime) -> dict[str, Any]:
    """Write `verdict/verdict.json`."""
    raise NotImplementedError
