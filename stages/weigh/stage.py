"""Archive and code -> the size table; over the cap is an error unless the recipe allows it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.archive import list_sections
from model.weights import FormatError
from stages.contract import Runtime, StageError, fresh_role
from stages.weigh.config import Config
from stages.weigh.table import Sizes, archive_parts, render, what_would_fit


def run(config: Config, inputs: Mapping[str, Path], out: Path, runtime: Runtime) -> dict[str, Any]:
    """Write `sizes/sizes.json`."""
    del runtime
    archive, code = inputs["archive"] / "archive.fwy", inputs["bundle"] / "train_gpt.py"
    try:
        sections = list_sections(archive)
        code_bytes = code.stat().st_size
    except (FormatError, OSError) as error:
        raise StageError(f"weigh needs a whole archive and the packed code; {error}; run the stages above") from error
    model_bytes = archive.stat().st_size
    sizes = Sizes(archive_parts(sections, model_bytes), model_bytes, code_bytes, config.cap_bytes)
    if sizes.margin_bytes < 0 and not config.allow_oversize:
        raise StageError(over_the_cap(sizes))
    table = sizes.to_dict()
    path = fresh_role(out, "sizes") / "sizes.json"
    path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return {name: value for name, value in table.items() if name != "parts"}


def over_the_cap(sizes: Sizes) -> str:
    """The error: the rule, the table, and what would fit."""
    ways = "".join(f"\n  - {line}" for line in what_would_fit(sizes))
    return (
        f"code and model take at most {sizes.cap_bytes:,} bytes together; they take {sizes.total_bytes:,}, "
        f"{-sizes.margin_bytes:,} too many:\n{render(sizes)}\nWhat would fit:{ways or ' a smaller network'}\n"
        "Or set weigh.allow_oversize = true, which marks every later number."
    )
