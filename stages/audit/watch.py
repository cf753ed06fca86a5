"""Counts training where there should be none: backward passes and optimizer steps, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook


@dataclass
class Seen:
    """What happened while somebody looked."""

    gradients: int = 0  # calls of backward or grad
    steps: int = 0  # optimizer steps

    @property
    def any(self) -> bool:
        """Whether anything was trained."""
        return bool(self.gradients or self.steps)


@contextmanager
def watch_training() -> Iterator[Seen]:
    """Count what happens in the body. A scorer may train in ways that this cannot see; state and replay show those."""
    seen = Seen()

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            seen.gradients += 1
            return original(*args, **kwargs)

        return call

    def stepped(*_: Any) -> None:
        seen.steps += 1

    handle = register_optimizer_step_pre_hook(stepped)
    try:
        with (
            mock.patch.object(torch.autograd, "backward", counted(torch.autograd.backward)),
            mock.patch.object(torch.autograd, "grad", counted(torch.autograd.grad)),
        ):
            yield seen
    finally:
        handle.remove()
