"""The shard format: what is written comes back, and nothing that is damaged is taken for a shard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model import shards
from model.shards import ShardWriter, open_shard, read_count, write_shard

IDS = np.array([1, 5, 9, 1023, 0, 7], dtype=np.uint16)


def test_the_layout_is_the_challenges(tmp_path: Path):
    path = tmp_path / "a.bin"
    write_shard(path, IDS)
    raw = path.read_bytes()
    header = np.frombuffer(raw[:1024], dtype="<i4")
    assert header[:3].tolist() == [20240520, 1, 6]
    assert not header[3:].any()
    assert raw[1024:] == IDS.astype("<u2").tobytes()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 0xFFFF), max_size=40), max_size=6))
def test_pieces_come_back_as_one_stream(tmp_path: Path, pieces: list[list[int]]):
    path = tmp_path / "a.bin"
    write_pieces(path, (np.array(piece, dtype=np.int64) for piece in pieces))
    whole = [i for piece in pieces for i in piece]
    assert open_shard(path, 65_536).tolist() == whole
    assert read_count(path) == len(whole)


def test_a_failed_write_leaves_nothing(tmp_path: Path):
    def pieces() -> Iterator[np.ndarray]:
        yield IDS
        yield IDS.reshape(2, 3)

    with pytest.raises(ValueError, match="flat list"):
        write_pieces(tmp_path / "a.bin", pieces())
    assert list(tmp_path.iterdir()) == []


def write_pieces(path: Path, pieces: Iterable[np.ndarray]) -> None:
    with ShardWriter(path) as writer:
        for piece in pieces:
            writer.append(piece)


def test_the_map_cannot_be_written(tmp_path: Path):
    write_shard(tmp_path / "a.bin", IDS)
    with pytest.raises(ValueError, match="read-only"):
        open_shard(tmp_path / "a.bin")[0] = 3


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda raw: raw[:-2], "truncated"),
        (lambda raw: raw[:-1], "truncated"),
        (lambda raw: raw[:600], "truncated or no shard"),
        (lambda raw: b"", "truncated or no shard"),
        (lambda raw: raw + b"\0\0", "bytes to spare"),
        (lambda raw: b"\0" + raw[1:], "magic"),
        (lambda raw: raw[:4] + b"\2" + raw[5:], "version 2"),
        (lambda raw: raw[:8] + b"\xff\xff\xff\xff" + raw[12:], "declares -1 tokens"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage, said: str):
    path = tmp_path / "bad.bin"
    write_shard(path, IDS)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=said) as error:
        open_shard(path)
    assert "bad.bin" in str(error.value)


def test_an_id_beyond_the_vocabulary_is_found_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards, "_CHECK_TOKENS", 8)
    for position in (0, 7, 8, 20):
        ids = np.zeros(21, dtype=np.uint16)
        ids[position] = 512
        write_shard(tmp_path / "a.bin", ids)
        with pytest.raises(ValueError, match=f"has 512 at token {position}"):
            open_shard(tmp_path / "a.bin", 512)
        assert open_shard(tmp_path / "a.bin", 513)[position] == 512


@pytest.mark.parametrize("ids", [np.array([-1]), np.array([65_536]), np.array([[1]]), np.array([1.0])])
def test_what_uint16_cannot_hold_is_refused(tmp_path: Path, ids: np.ndarray):
    with pytest.raises(ValueError, match="a shard holds"):
        write_shard(tmp_path / "a.bin", ids)
    assert list(tmp_path.iterdir()) == []


def test_the_published_validation_head_opens(shared_data: Path):
    tokens = open_shard(shared_data / "fineweb_val_prefix_sp1024.bin", 1024)
    assert (tokens.dtype, len(tokens), int(tokens[0])) == (np.uint16, 1_040_298, 1)
