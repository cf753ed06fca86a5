"""The safetensors format, against its reference implementation where that is installed, and against damage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.weights import DTYPES, FormatError, load_weights, save_weights


def sample() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "attn.q": torch.randn(2, 3, 5, generator=generator),
        "table": torch.randn(7, 3, generator=generator).to(torch.bfloat16),
        "codes": torch.arange(-5, 6, dtype=torch.int8),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "flags": torch.tensor([True, False, True]),
    }


def write_raw(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_what_is_saved_comes_back_bit_for_bit(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    save_weights(path, sample(), {"network": '{"dim": 8}'})
    tensors, metadata = load_weights(path)
    assert metadata == {"network": '{"dim": 8}'}
    assert set(tensors) == set(sample())
    for name, want in sample().items():
        assert tensors[name].dtype == want.dtype
        assert tensors[name].shape == want.shape
        assert torch.equal(tensors[name], want)


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_dtype_survives(tmp_path: Path, name: str):
    tensor = torch.arange(12).reshape(3, 4).to(DTYPES[name])
    save_weights(tmp_path / "w", {"a": tensor, "b": tensor.T})
    loaded, _ = load_weights(tmp_path / "w")
    assert torch.equal(loaded["a"], tensor)
    assert torch.equal(loaded["b"], tensor.T)


def test_bytes_do_not_depend_on_insertion_order(tmp_path: Path):
    save_weights(tmp_path / "a", sample(), {"x": "1", "y": "2"})
    save_weights(tmp_path / "b", dict(reversed(sample().items())), {"y": "2", "x": "1"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert not list(tmp_path.glob("*.partial"))


def test_every_tensor_is_aligned_to_its_element(tmp_path: Path):
    save_weights(tmp_path / "w", sample())
    for tensor in load_weights(tmp_path / "w")[0].values():
        assert tensor.data_ptr() % tensor.itemsize == 0


def test_changing_a_loaded_tensor_leaves_the_file_alone(tmp_path: Path):
    save_weights(tmp_path / "w", sample())
    before = (tmp_path / "w").read_bytes()
    load_weights(tmp_path / "w")[0]["attn.q"].zero_()
    assert (tmp_path / "w").read_bytes() == before
    assert load_weights(tmp_path / "w")[0]["attn.q"].abs().sum() > 0


def test_the_reference_implementation_reads_ours_and_we_read_its(tmp_path: Path):
    reference = pytest.importorskip("safetensors.torch")
    save_weights(tmp_path / "ours", sample(), {"k": "v"})
    theirs = reference.load_file(tmp_path / "ours")
    assert set(theirs) == set(sample())
    assert all(torch.equal(theirs[name], want) for name, want in sample().items())
    reference.save_file(sample(), tmp_path / "theirs", metadata={"k": "v"})
    ours, metadata = load_weights(tmp_path / "theirs")
    assert metadata == {"k": "v"}
    assert all(torch.equal(ours[name], want) for name, want in sample().items())


def test_a_file_whose_writer_did_not_align_is_still_read(tmp_path: Path):
    values = np.array([1.5, -2.0], np.float32)
    header = {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}
    header["b"] = {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]}
    path = write_raw(tmp_path / "w", header, b"\x07" + values.tobytes())
    tensors, metadata = load_weights(path)
    assert metadata == {}
    assert tensors["a"].item() == 7
    assert torch.equal(tensors["b"], torch.from_numpy(values))


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


ATTACKS = {
    "overlap": {"a": entry(), "b": entry(offsets=[4, 12])},
    "hole": {"a": entry(), "b": entry(offsets=[12, 20])},
    "out of range": {"a": entry(offsets=[0, 800], shape=[200])},
    "length and shape disagree": {"a": entry(shape=[3])},
    "backward offsets": {"a": entry(offsets=[8, 0])},
    "negative shape": {"a": entry(shape=[-2])},
    "bool as number": {"a": entry(shape=[True, 2])},
    "float as number": {"a": entry(shape=[2.0])},
    "shape that is no list": {"a": entry(shape="2")},
    "unknown dtype": {"a": entry(dtype="F3")},
    "dtype that is no name": {"a": entry(dtype=["F32"])},
    "missing field": {"a": {"dtype": "F32", "shape": [2]}},
    "extra field": {"a": {**entry(), "x": 1}},
    "entry that is no object": {"a": 3},
    "metadata of another type": {"__metadata__": {"a": 1}, "a": entry()},
    "header that is no object": [entry()],
    "trailing bytes": {"a": entry(shape=[1], offsets=[0, 4])},
    "two equal names": b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
    b'"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
    "not JSON": b"{nope}",
    "not UTF-8": b'{"\xff\xfe": 1}',
    "nesting": b"[" * 100_000,
    "absurd dimension": {"a": entry(), "b": entry(shape=[0, 2**63], offsets=[8, 8])},
}


@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_a_malformed_header_is_our_error(tmp_path: Path, attack: str):
    path = write_raw(tmp_path / "w.safetensors", ATTACKS[attack], b"\0" * 8)
    with pytest.raises(FormatError, match=r"w\.safetensors"):
        load_weights(path)


def test_a_huge_header_length_allocates_nothing(tmp_path: Path):
    (tmp_path / "w").write_bytes((2**63).to_bytes(8, "little") + b"{}")
    with pytest.raises(FormatError, match="header length"):
        load_weights(tmp_path / "w")


@pytest.mark.parametrize("content", [b"", b"\1\0"])
def test_an_empty_stump_or_missing_file_is_our_error(tmp_path: Path, content: bytes):
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(FormatError):
        load_weights(tmp_path / "w")
    with pytest.raises(FormatError):
        load_weights(tmp_path / "none")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(position=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_never_gives_wrong_tensors(tmp_path_factory, position: int, bit: int):
    folder = tmp_path_factory.mktemp("flip")
    save_weights(folder / "w", sample(), {"network": "{}"})
    raw = bytearray((folder / "w").read_bytes())
    raw[position % len(raw)] ^= 1 << bit
    (folder / "w").write_bytes(raw)
    try:
        tensors, _ = load_weights(folder / "w")
    except FormatError:
        return
    assert set(tensors) == set(sample())
    assert all(
        torch.equal(tensors[name], want) and tensors[name].dtype == want.dtype for name, want in sample().items()
    )


def test_a_file_cut_anywhere_or_with_more_behind_it_is_refused(tmp_path: Path):
    save_weights(tmp_path / "w", sample())
    raw = (tmp_path / "w").read_bytes()
    for size in range(len(raw)):
        (tmp_path / "w").write_bytes(raw[:size])
        with pytest.raises(FormatError):
            load_weights(tmp_path / "w")
    (tmp_path / "w").write_bytes(raw + b"\0")
    with pytest.raises(FormatError):
        load_weights(tmp_path / "w")


def test_names_of_the_format_and_unknown_dtypes_are_refused_before_writing(tmp_path: Path):
    with pytest.raises(ValueError, match="crc32"):
        save_weights(tmp_path / "w", {}, {"crc32": "0"})
    with pytest.raises(ValueError, match="phase"):
        save_weights(tmp_path / "w", {"phase": torch.zeros(1, dtype=torch.complex64)})
    assert not list(tmp_path.iterdir())
