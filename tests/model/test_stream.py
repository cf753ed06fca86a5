from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.stream import TokenStream


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 9), max_size=6), st.data())
def test_shards_read_as_if_they_were_one(sizes, data):
    whole = np.arange(sum(sizes), dtype=np.uint16)
    stream = TokenStream(np.split(whole, np.cumsum(sizes)[:-1]) if sizes else [])
    assert len(stream) == whole.size
    begin = data.draw(st.integers(0, whole.size))
    end = data.draw(st.integers(begin, whole.size))
    np.testing.assert_array_equal(stream.read(begin, end), whole[begin:end])


def test_what_is_read_is_a_copy():
    shard = np.arange(5, dtype=np.uint16)
    stream = TokenStream([shard])
    stream.read(0, 5)[:] = 0
    np.testing.assert_array_equal(shard, np.arange(5))


@pytest.mark.parametrize(("begin", "end"), [(-1, 2), (0, 6), (3, 2)])
def test_reading_outside_the_stream_is_an_error(begin, end):
    with pytest.raises(IndexError, match=r"the stream has tokens 0 \.\. 4"):
        TokenStream([np.arange(5, dtype=np.uint16)]).read(begin, end)
