"""Token shards end to end as one read-only stream, however large: only what is asked for is copied into memory."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np


class TokenStream:
    """Arrays of token ids (memory maps, as a rule) read as if they were one."""

    def __init__(self, shards: Sequence[np.ndarray]) -> None:
        self._shards = [shard for shard in shards if len(shard)]
        self._starts = [0]
        for shard in self._shards:
            self._starts.append(self._starts[-1] + len(shard))

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, begin: int, end: int) -> np.ndarray:
        """Tokens begin .. end - 1 as a fresh int64 array; IndexError outside the stream."""
        if not 0 <= begin <= end <= len(self):
            raise IndexError(f"the stream has tokens 0 .. {len(self) - 1}; asked for {begin} .. {end - 1}")
        out = np.empty(end - begin, dtype=np.int64)
        shard = bisect_right(self._starts, begin) - 1
        done = 0
        while done < len(out):
            offset = begin + done - self._starts[shard]
            part = self._shards[shard][offset : offset + len(out) - done]
            out[done : done + len(part)] = part
            done += len(part)
            shard += 1
        return out
