"""The size table: every byte accounted for, the cap kept, and a way out named where it is not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from model.archive import write_archive
from model.config import GPTConfig
from model.grid import Grid, choose_scales, quantize
from model.quantized import Coded
from stages.contract import StageError
from stages.weigh.config import Config
from stages.weigh.stage import run
from stages.weigh.table import Part, Sizes, what_would_fit


def coded(bits: int, *shape: int) -> Coded:
    w = torch.randn(*shape, generator=torch.Generator().manual_seed(bits))
    grid = Grid(bits=bits)
    scales = choose_scales(w.abs().amax(-1), grid)
    return Coded(quantize(w, scales, grid), scales, bits)


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    folders = {role: tmp_path / role for role in ("archive", "bundle")}
    for folder in folders.values():
        folder.mkdir()
    quantized = {"attn.q": coded(6, 2, 64, 64), "embed.tokens": coded(8, 64, 32), "smear.gate": torch.zeros(64).half()}
    write_archive(folders["archive"] / "archive.fwy", quantized, GPTConfig())
    (folders["bundle"] / "train_gpt.py").write_text("print('ä')\n", encoding="utf-8")
    return folders


def test_every_byte_is_accounted_for(inputs, tmp_path, runtime):
    report = run(Config(), inputs, tmp_path / "out", runtime)
    sizes = json.loads((tmp_path / "out" / "sizes" / "sizes.json").read_text())
    files = [inputs["archive"] / "archive.fwy", inputs["bundle"] / "train_gpt.py"]
    assert sizes["total_bytes"] == sum(file.stat().st_size for file in files) == sum(p["bytes"] for p in sizes["parts"])
    assert sizes["code_bytes"] == len("print('ä')\n".encode())
    assert sizes["margin_bytes"] == 16_000_000 - sizes["total_bytes"]
    names = [part["part"] for part in sizes["parts"]]
    assert names == ["int6 codes", "int8 codes", "row scales", "fp16 tensors", "header and checksum", "code"]
    assert report == {name: value for name, value in sizes.items() if name != "parts"}
    assert report["oversize"] is False


def test_exactly_the_cap_fits_and_one_byte_more_does_not(inputs, tmp_path, runtime):
    total = run(Config(), inputs, tmp_path / "a", runtime)["total_bytes"]
    assert run(Config(cap_bytes=total), inputs, tmp_path / "b", runtime)["margin_bytes"] == 0
    with pytest.raises(StageError):
        run(Config(cap_bytes=total - 1), inputs, tmp_path / "c", runtime)
    assert not (tmp_path / "c").exists()


def test_over_the_cap_the_error_has_the_table_and_what_would_fit(inputs, tmp_path, runtime):
    total = run(Config(), inputs, tmp_path / "a", runtime)["total_bytes"]
    with pytest.raises(StageError) as caught:
        run(Config(cap_bytes=total - 900), inputs, tmp_path / "b", runtime)
    text = str(caught.value)
    assert f"at most {total - 900:,} bytes together; they take {total:,}, 900 too many" in text
    assert re.search(r"int6 codes +[\d,]+ +5\.\d\d bits/weight", text)
    assert re.search(r"margin +-900", text)
    assert "int6 codes with 5 bits instead of 6: about 1,024 bytes less" in text
    assert "fewer weights" in text
    assert "weigh.allow_oversize = true" in text


def test_allowed_oversize_goes_on_and_is_marked(inputs, tmp_path, runtime):
    report = run(Config(cap_bytes=10, allow_oversize=True), inputs, tmp_path / "out", runtime)
    assert report["oversize"] is True
    assert report["margin_bytes"] < 0
    assert json.loads((tmp_path / "out" / "sizes" / "sizes.json").read_text())["oversize"] is True


def test_the_advice_would_fit():
    parts = (Part("int6 codes", 6000, 9000, 6, 3), Part("int8 codes", 1000, 1000, 8, 1), Part("header", 100))
    sizes = Sizes(parts, 7100, 900, 6600)
    assert sizes.margin_bytes == -1400
    lines = what_would_fit(sizes)
    # 1,400 bytes are 11,200 bits: two bits of each of 9,000 weights, but more bits than 1,000 weights have.
    assert lines[0] == "int6 codes with 4 bits instead of 6: about 2,250 bytes less"
    assert lines[1].startswith("2,100 fewer weights (21.0 %)")
    assert len(lines) == 2
    assert sizes.total_bytes - 2250 <= sizes.cap_bytes


def test_where_no_smaller_code_fits_only_fewer_weights_are_advised():
    sizes = Sizes((Part("int4 codes", 6000, 12000, 4, 3),), 6000, 10, 3000)
    assert [line.split(" (")[0] for line in what_would_fit(sizes)] == ["6,020 fewer weights"]


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "no code"])
def test_a_damaged_or_missing_input_is_a_stage_error(inputs, tmp_path, runtime, damage):
    path = inputs["archive"] / "archive.fwy"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    if damage == "missing":
        path.unlink()
    elif damage == "no code":
        (inputs["bundle"] / "train_gpt.py").unlink()
    else:
        path.write_bytes(raw if damage == "flip" else raw[:-10])
    with pytest.raises(StageError, match="weigh needs a whole archive and the packed code"):
        run(Config(), inputs, tmp_path / "out", runtime)
    assert not (tmp_path / "out").exists()
