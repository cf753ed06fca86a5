"""Code in a records folder: reached files and packed scripts, told without running anything."""

from __future__ import annotations

import base64
import bz2
import lzma
import zlib

import pytest

from flows.challenge.code import read_script

INNER = b"from helper import tilt\n" + b"".join(f"x{i} = {i * i}\n".encode() for i in range(500))


def script(text: bytes, **others: bytes):
    return read_script("train_gpt.py", {"train_gpt.py": text, **{f"{k}.py": v for k, v in others.items()}})


@pytest.mark.parametrize("compress", [lzma.compress, bz2.compress, zlib.compress])
def test_a_packed_script_is_opened_and_what_it_imports_is_found(compress) -> None:
    packed = base64.b85encode(compress(INNER)).decode()
    found = script(f"import zlib,base64\nexec(zlib.decompress(base64.b85decode({packed!r})))\n".encode(), helper=b"")
    assert found.unpacked == (INNER,)
    assert found.reaches == ("helper.py",)
    assert found.indirect == ""  # it runs what it carries, which is counted


def test_raw_lzma_is_opened_too() -> None:
    raw = lzma.compress(INNER, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA1, "preset": 9}])
    assert script(f"x = {base64.b85encode(raw).decode()!r}\n".encode()).unpacked == (INNER,)


@pytest.mark.parametrize(
    "text",
    [
        "exec(open(__file__.replace('train_gpt.py', 'other.py')).read())",
        "import runpy; runpy.run_path('other.py')",
        "from pathlib import Path; exec(Path('other.py').read_text())",
    ],
)
def test_a_script_that_only_runs_another_file_says_so(text: str) -> None:
    found = script(text.encode(), other=b"print()")
    assert found.indirect
    assert found.reaches == ("other.py",)


def test_what_is_reached_through_another_file_counts() -> None:
    found = script(b"import a\n", a=b"import b\n", b=b"import a\n", c=b"")
    assert found.reaches == ("a.py", "b.py")


def test_source_that_this_python_cannot_parse_is_searched_as_text() -> None:
    assert script(b"def f(:\n  from helper import x\n", helper=b"").reaches == ("helper.py",)


def test_a_bomb_unpacks_to_the_limit_only() -> None:
    bomb = base64.b85encode(zlib.compress(b"a" * 40_000_000, 9)).decode()
    (inner,) = script(f"x = {bomb!r}\n".encode()).unpacked
    assert len(inner) == 32_000_000
