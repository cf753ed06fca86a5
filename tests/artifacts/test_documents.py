"""Documents carry the digest of their own text."""

from __future__ import annotations

import hashlib
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts.digest import canonical_json, digest_json
from artifacts.documents import dump_document, load_document
from artifacts.errors import BadName, DamagedArtifact

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
DOCUMENTS = st.dictionaries(st.text().filter(lambda name: name != "sha256"), JSON, min_size=1, max_size=4)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(DOCUMENTS)
def test_a_document_reads_back_as_it_was_and_is_plain_json(document):
    raw, digest = dump_document(document)
    assert load_document(raw, "x") == (document, digest)
    assert json.loads(raw) == {**document, "sha256": digest}
    assert digest == hashlib.sha256(b"{" + raw[78:]).hexdigest()


@settings(deadline=None, derandomize=True, max_examples=100)
@given(DOCUMENTS, st.data())
def test_no_document_survives_a_flipped_a_cut_or_an_added_byte(document, data):
    raw, _ = dump_document(document)
    position = data.draw(st.integers(0, len(raw) - 1))
    flipped = bytearray(raw)
    flipped[position] ^= data.draw(st.integers(1, 255))
    for damaged in (bytes(flipped), raw[:position], raw + b" ", b"", b" " + raw):
        with pytest.raises(DamagedArtifact):
            load_document(damaged, "x")


@pytest.mark.parametrize("value", [math.nan, math.inf, {1, 2}, b"bytes", object()])
def test_what_json_cannot_say_is_refused(value):
    for refuse in (lambda: dump_document({"x": value}), lambda: digest_json({"x": [value]})):
        with pytest.raises(BadName, match="plain JSON values"):
            refuse()


def test_a_document_cannot_have_a_digest_field_of_its_own():
    with pytest.raises(BadName, match="rename the field"):
        dump_document({"sha256": "mine"})


def test_equal_values_have_one_canonical_text():
    assert canonical_json({"b": 1.0, "a": [1e-4, -0.0, True]}) == '{"a":[0.0001,0,true],"b":1}'
    assert canonical_json({"b": 1, "a": (0.0001, 0, True)}) == canonical_json({"a": [1e-4, 0.0, True], "b": 1.0})
    assert canonical_json(True) != canonical_json(1)
    assert canonical_json("ä") == '"\\u00e4"'
