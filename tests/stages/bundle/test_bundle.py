"""One program of many modules: what it reaches and no more, meaning what they mean, the same for the same meaning."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.load import names
from stages.bundle.config import Config
from stages.bundle.merge import merge
from stages.bundle.pack import pack
from stages.bundle.program import program
from stages.bundle.shake import shake
from stages.bundle.shorten import shorten, unmark
from stages.bundle.stage import run
from stages.bundle.strip import Strip
from stages.contract import Runtime, StageError

LIMIT_BYTES = 32_000

MODULES = {
    "model.one": '''"""Doc."""
from __future__ import annotations
from dataclasses import dataclass
import math
share = 1000
def double(number: int, *, times: int = 2) -> int:
    """2x"""
    return number * times + share - 1000
def unused() -> float:
    return math.pi
@dataclass(frozen=True)
class Base:
    side: float
    def area(self) -> float:
        return self.side**2
    def never(self) -> float:
        return unused()
''',
    "model.two": """from typing import TYPE_CHECKING
from model import one
from model.one import Base, double as twice
if TYPE_CHECKING:
    from stages.x import Y
def share(x: Y, encode: int = 3) -> list[int]:
    _hidden = [double for double in range(encode)]
    return [twice(number=x, times=encode), *_hidden, one.double(1)]
class Square(Base):
    def __init__(self, side: float) -> None:
        super().__init__(side)
        object.__setattr__(self, "_side", side)
    def _kept(self, by: float) -> float:
        return self.area() * by
    def scaled(self) -> float:
        return self._kept(2)
""",
    "stages.submission": """from model.two import Square, share
def main(recipe):
    print(share(21), Square(recipe["side"]).scaled())
    if recipe.get("fail"):
        raise ValueError(f"rule {recipe['side']}; what came; what to do")
""",
}


def quiet() -> Runtime:
    return Runtime(scratch=Path(), checkpoints=Path())


def output(text: str, folder: Path) -> str:
    (folder / "train_gpt.py").write_text(text, encoding="ascii")
    command = [sys.executable, "-I", "train_gpt.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_the_packed_program_does_what_its_modules_do(tmp_path):
    assert output(pack(program(MODULES, {"side": 3})), tmp_path) == "[63, 0, 1, 2, 2] 18\n"


def test_an_error_keeps_its_rule(tmp_path):
    said = output(pack(program(MODULES, {"side": 3, "fail": True})), tmp_path)
    assert said.endswith("ValueError: rule 3\n")


def test_what_the_entry_does_not_reach_is_left_out():
    source = program(MODULES, {})
    assert "math" not in source
    assert "never" not in source
    assert source.count("def ") == 7  # main, share, double, area, __init__, _kept, scaled


EQUAL = {
    "comments": ("def double(", "# a comment\ndef double("),
    "docstrings": ('"""2x"""', '"""Twice as much."""'),
    "annotations": ("number: int", "number: float"),
    "unreached code": ("math.pi", "math.e"),
    "error text after its rule": ("what came", "what else"),
}


@pytest.mark.parametrize("equal", EQUAL)
def test_what_does_not_act_does_not_change_the_bytes(equal):
    changed = {name: text.replace(*EQUAL[equal]) for name, text in MODULES.items()}
    assert changed != MODULES
    assert pack(program(changed, {"side": 3})) == pack(program(MODULES, {"side": 3}))


def test_code_and_recipe_change_the_bytes():
    before = pack(program(MODULES, {"side": 3}))
    assert pack(program(MODULES, {"side": 4})) != before
    changed = {name: text.replace("side**2", "side**3") for name, text in MODULES.items()}
    assert pack(program(changed, {"side": 3})) != before


def merged(modules: dict[str, str]) -> str:
    return ast.unparse(merge({name: Strip(name).visit(ast.parse(text)) for name, text in modules.items()}, "e"))


def test_two_meanings_of_one_name_are_told_apart():
    source = merged(
        {"a": "import os as x\ndef f():\n    return x.sep", "e": "import sys as x\nfrom a import f\ny = x, f()"}
    )
    scope: dict = {}
    exec(source, scope)
    assert scope["y"][1] == "/"


def test_a_local_name_that_would_hide_what_is_merged_is_refused():
    hidden = "from a import f as g\ndef h(f):\n    return g(f)"
    with pytest.raises(StageError, match="hidden by a local name"):
        merged({"a": "def f(x):\n    return x", "e": hidden})


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("print(1)", "defines and does nothing else"),
        ("from a import g", "does not define it"),
        ("import a\nfrom a import f\nx = a", "`module.name` only"),
        ("def f():\n    global x\n    x = 1", "no global statement"),
    ],
)
def test_what_one_namespace_could_change_is_refused(text, match):
    with pytest.raises(StageError, match=match):
        merged({"a": "def f(x):\n    return x", "e": text})


def test_modules_in_a_circle_are_refused():
    with pytest.raises(StageError, match="in a circle"):
        merged({"a": "from e import f\ng = 1", "e": "from a import g\nf = 1"})


def shaken(text: str) -> str:
    return ast.unparse(shake(ast.parse(text), "main"))


def test_a_method_stays_where_a_text_or_a_base_from_outside_may_call_it():
    kept = shaken(
        "import nn\nclass A:\n def one(self): 0\n def two(self): 0\nclass B(nn.Other):\n def three(self): 0\n"
        "class C(A):\n def __len__(self): return four()\n def one(self): 0\ndef four(): 0\ndef five(): 0\n"
        "def main(): return getattr(C(), 'one'), B(), A()"
    )
    assert "def one" in kept
    assert kept.count("def one") == 2
    assert "two" not in kept
    assert "three" in kept
    assert "four" in kept
    assert "five" not in kept


def test_parameters_lose_their_names_where_no_keyword_uses_them():
    text = "def main(alpha, beta, gamma):\n    return alpha + beta + gamma\nx = main(1, beta=2, gamma=3)"
    source = ast.unparse(shorten(ast.parse(text)))
    assert "def main(alpha, /, beta, gamma)" in source
    assert unmark("def main(a,/,beta,gamma):return'a,/,b'") == "def main(a, beta, gamma):\n    return 'a,/,b'"
    assert unmark("def main(a,/,beta):return a") == "def main(a,beta):return a"


def test_private_attributes_are_shortened_and_those_of_others_are_not():
    text = (
        "class A:\n def __init__(self):\n  self._long = 1\n def _method(self):\n  return self._long\n"
        "class B:\n _field: int\nuse = A()._method, torch._foreach_norm, B(1)._field, getattr(A(), '_text')"
    )
    source = ast.unparse(shorten(ast.parse(text)))
    assert "_long" not in source
    assert "_method" not in source
    assert all(name in source for name in ("_foreach_norm", "_field", "_text"))


def test_packed_modules_import_only_what_a_submission_may(source):
    optional = {"flash_attn", "flash_attn_interface"}  # asked for inside `try`
    allowed = {"torch", "numpy", "sentencepiece", "zstandard", "model", "stages", *optional, *sys.stdlib_module_names}
    for path in source.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or "" for _ in [0] if isinstance(node, ast.ImportFrom)]
            assert {name.split(".")[0] for name in names} <= allowed, path


def test_the_largest_bundle_is_under_the_limit_and_the_same_every_time(packed: Callable[..., Path]):
    file = packed("pr714-fit", "full")
    assert file.stat().st_size < LIMIT_BYTES
    assert packed("pr714-fit", "full").read_bytes() == file.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", names("recipe"))
def test_every_recipes_bundle_is_under_the_limit(recipe: str, packed: Callable[..., Path]):
    assert packed(recipe, "full").stat().st_size < LIMIT_BYTES


def test_no_modules_or_broken_source_is_a_stage_error(tmp_path):
    for folder in ("none", "stages"):
        (tmp_path / folder).mkdir()
    with pytest.raises(StageError, match="there are none"):
        run(Config(), {"source": tmp_path / "none"}, tmp_path / "a", quiet())
    (tmp_path / "stages" / "submission.py").write_text("def broken(:\n")
    with pytest.raises(StageError, match=r"stages/submission\.py is not"):
        run(Config(), {"source": tmp_path}, tmp_path / "b", quiet())
    with pytest.raises(StageError, match="does not have it"):
        program({"model.one": "x = 1"}, {})
