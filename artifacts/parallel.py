"""Threads for what waits: hashing, disks and object stores all let threads overlap."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


STREAMS = 8


def in_parallel(work: Callable[[_Item], _Result], items: Iterable[_Item], streams: int = STREAMS) -> list[_Result]:
    """`work` over items in threads, results in order; the first error stops what has not begun."""
    items = list(items)
    if min(len(items), streams) < 2:
        return [work(item) for item in items]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max_workers=min(streams, len(items))) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            raise
