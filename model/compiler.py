"""One compiled graph of static shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` (or module) as one graph, deterministic where the process is."""
    # The compiler has a switch of its own, which this sets. It loads the compiler: only who compiles pays for that.
    torch.use_deterministic_algorithms(torch.are_deterministic_algorithms_enabled())
    return torch.compile(function, fullgraph=True, dynamic=False)
