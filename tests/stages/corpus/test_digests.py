"""The set of digests is a set, however its parts are merged."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.corpus import digests
from stages.corpus.digests import DIGEST_BYTES, Digests, digest_text

# Few distinct values, many of them ending in zero bytes, which NumPy's strings drop.
ITEMS = st.lists(st.integers(0, 40).map(lambda i: (i * 2**120).to_bytes(DIGEST_BYTES, "big")), max_size=120)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(items=ITEMS, flush=st.integers(1, 9))
def test_it_says_what_a_set_says(items: list[bytes], flush: int):
    before = digests.FLUSH
    digests.FLUSH = flush
    try:
        ours, known = Digests(), set()
        for item in items:
            assert ours.add(item) == (item not in known)
            known.add(item)
            assert len(ours) == len(known)
    finally:
        digests.FLUSH = before


def test_many_digests_take_few_runs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(digests, "FLUSH", 64)
    ours = Digests()
    texts = [digest_text(str(i).encode()) for i in range(5_000)]
    assert all(ours.add(item) for item in texts)
    assert not any(ours.add(item) for item in texts)
    assert len(ours._runs) <= 8
