"""Everything that an object can remember with: what a score may depend on, found by walking, not by asking nicely."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

State = tuple[str, "Tensor | np.ndarray | bytes"]

_PLAIN = (str, int, float, complex, bool, type(None), torch.dtype, torch.device)
# A compiler's own books change when it is called and hold nothing that is scored; the module below it is walked.
_COMPILER = ("torch._dynamo", "torch._inductor")


def reachable(root: Any, name: str = "") -> Iterator[State]:
    """Tensors, arrays, bytes, numbers and texts below `root`, each once, with the path that leads there.

    Followed are attributes, slots, containers, bound methods and what functions close over. Not followed: modules,
    classes and globals. So a scorer that hides its memory in a global is not caught here, but by asking it twice.
    """
    seen: set[int] = set()
    kept: list[Any] = []  # an id is only unique while its object lives
    todo = deque([(name, root)])
    while todo:
        path, value = todo.popleft()
        if isinstance(value, _PLAIN):
            yield path, repr(value).encode()
        elif isinstance(value, bytes | bytearray):
            yield path, bytes(value)
        elif id(value) not in seen:
            seen.add(id(value))
            kept.append(value)
            if isinstance(value, Tensor | np.ndarray):
                yield path, value
                value = getattr(value, "grad", None)
                todo.extend([(f"{path}.grad", value)] if value is not None else [])
            else:
                todo.extend((f"{path}.{key}" if path else key, below) for key, below in _below(value))


def _below(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        # Keys may be objects (an optimizer's parameters): their order is their name.
        for index, (key, below) in enumerate(value.items()):
            yield str(key) if isinstance(key, str | int) else str(index), below
    elif isinstance(value, list | tuple | deque):
        yield from ((str(index), below) for index, below in enumerate(value))
    elif isinstance(value, set | frozenset):
        yield "set", repr(sorted(map(repr, value))).encode()
    elif isinstance(value, FunctionType):
        yield from ((f"cell{index}", _content(cell)) for index, cell in enumerate(value.__closure__ or ()))
    elif isinstance(value, MethodType):
        yield "self", value.__self__
    elif not isinstance(value, ModuleType | type | BuiltinFunctionType) and not _is_compiler(value):
        yield from dict(getattr(value, "__dict__", {})).items()
        for holder in type(value).__mro__:
            slots = getattr(holder, "__slots__", ())
            for slot in (slots,) if isinstance(slots, str) else slots:
                if slot not in ("__dict__", "__weakref__") and hasattr(value, slot):
                    yield slot, getattr(value, slot)
        if isinstance(value, torch.nn.Module) and hasattr(value, "_orig_mod"):
            yield "_orig_mod", value._orig_mod


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _is_compiler(value: Any) -> bool:
    return type(value).__module__.startswith(_COMPILER) and not isinstance(value, torch.nn.Module)


def digests(state: Iterable[State]) -> dict[str, str]:
    """A hash of each named part."""
    return {name: _digest(part) for name, part in state}


def _digest(part: Tensor | np.ndarray | bytes) -> str:
    if isinstance(part, Tensor):
        part = part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes()).hexdigest()


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Names of parts that differ, came or went."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
