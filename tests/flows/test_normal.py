"""The normal form: what it forgets, what it keeps, and that every supported Python writes the same one."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from flows.normal import digest_form, normal_form, statements, whole_form_of

ROOT = Path(__file__).resolve().parents[2]
OURS = ("artifacts", "configs", "flows", "model", "stages", "tests")
PYTHONS = ("3.11", "3.12", "3.13")

BASE = '''
"""Module."""
import math
from pydantic import Field

def area(r: float, unit: str = "m") -> float:
    """Area of a circle."""
    # pi r squared
    if r < 0:
        raise ValueError(f"a radius is positive; got {r}")
    return math.pi * r**2

class Box:
    """A box."""
    size = Field(3, ge=1, description="Size of it.")
    """Attribute docstring."""
'''


def equal(old: str, new: str, *, is_config: bool = False) -> bool:
    old, new = textwrap.dedent(old), textwrap.dedent(new)
    return normal_form(old, is_config=is_config) == normal_form(new, is_config=is_config)


FORGOTTEN = {
    "comment": ("# pi r squared", "# the well-known formula\n    # of Archimedes"),
    "docstring": ('"""Area of a circle."""', '"""Surface."""'),
    "no docstring": ('"""Area of a circle."""', "pass"),
    "module docstring": ('"""Module."""', ""),
    "attribute docstring": ('"""Attribute docstring."""', '"""Another."""'),
    "description": ('description="Size of it."', 'description="How big it is.", title="S"'),
    "error text": ('f"a radius is positive; got {r}"', '"a radius is at least 0"'),
    "layout": ("return math.pi * r**2", "return (\n        math.pi\n        * r ** 2\n    )"),
    "quotes": ('"m"', "'m'"),
    "type-checking import": ("import math\n", "import math\nif TYPE_CHECKING:\n    from model.gpt import GPT\n"),
}

KEPT = {
    "operator": ("math.pi * r**2", "math.pi * r**3"),
    "constant": ('"m"', '"cm"'),
    "number's type": ("Field(3,", "Field(3.0,"),
    "type of the error": ("raise ValueError(", "raise TypeError("),
    "condition of the error": ("if r < 0", "if r <= 0"),
    "constraint outside a config module": ("ge=1", "ge=0"),
    "import": ("import math", "import cmath as math"),
    "order of statements": ("import math\nfrom pydantic import Field", "from pydantic import Field\nimport math"),
    "name": ("def area", "def surface"),
    "nesting": ("    return math", "        return math"),
}


@pytest.mark.parametrize("edit", FORGOTTEN)
def test_what_cannot_change_a_result_is_forgotten(edit: str) -> None:
    assert BASE.count(FORGOTTEN[edit][0]) == 1
    assert equal(BASE, BASE.replace(*FORGOTTEN[edit]))


@pytest.mark.parametrize("edit", KEPT)
def test_what_can_change_a_result_is_kept(edit: str) -> None:
    assert BASE.count(KEPT[edit][0]) == 1
    assert not equal(BASE, BASE.replace(*KEPT[edit]))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('raise E("a")', 'raise E("b")'),
        ('raise E(f"a {x}")', 'raise E("b")'),
        ('raise E("a %s" % x)', 'raise E("b %s" % x)'),
        ('raise E("a" + why(x))', 'raise E("b" + why(x))'),
        ('raise E("a" if x else "b") from y', 'raise E("c" if x else "d") from y'),
        ('raise E(message="a")', 'raise E(message="b")'),
        ('assert x, "a"', "assert x"),
    ],
)
def test_error_text_is_forgotten(old: str, new: str) -> None:
    assert equal(old, new)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('raise E("a", 1)', 'raise E("a", 2)'),
        ('raise E("a" + f(x))', 'raise E("a" + g(x))'),
        ('raise E("a") from y', 'raise E("a") from z'),
        ('raise E("a")', 'raise E("a", "b")'),
        ("assert x", "assert y"),
        ('e = E("a")\nraise e', 'e = E("b")\nraise e'),
    ],
)
def test_the_rest_of_a_raise_is_kept(old: str, new: str) -> None:
    assert not equal(old, new)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('f"a{x}" "b"', 'f"a{x}b"'),
        ('"a" f"{x}"', 'f"a{x}"'),
        ('f"{x:}"', 'f"{x}"'),
        ('f"{{{x}}}"', '"{" f"{x}" "}"'),
    ],
)
def test_an_f_string_is_its_parts(old: str, new: str) -> None:
    assert equal(f"y = {old}", f"y = {new}")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('y = f"{x:>4}"', 'y = f"{x:>5}"'),
        ('y = f"{x!r}"', 'y = f"{x!s}"'),
        ("y = True", "y = 1"),
        ("y = 1", "y = 1.0"),
        ("y = 'a'", "y = b'a'"),
        ("y = 'c3a9'", "y = 'é'"),
        ("y = {**a}", "y = {a: b}"),
        ("f(*a, **b)", "f(*a, b=b)"),
        ("for a in b:\n    c()\nelse:\n    d()", "for a in b:\n    c()\n    d()"),
        ("if a:\n    b()\nelse:\n    c()", "if a:\n    b()\nc()"),
        ("try:\n    a()\nexcept E:\n    b()", "try:\n    a()\nfinally:\n    b()"),
        ("match a:\n    case 1:\n        b()", "match a:\n    case 2:\n        b()"),
        ("def f(*, a=1): b()", "def f(a=1): b()"),
        ("def f(a, /): b()", "def f(a): b()"),
        ("async def f(): b()", "def f(): b()"),
    ],
)
def test_different_statements_have_different_forms(old: str, new: str) -> None:
    assert not equal(old, new)


CONFIG = """
from typing import ClassVar, Literal
from pydantic import Field, model_validator
from stages.config import StageConfig, Strict

class Group(Strict):
    a: int = Field(1, ge=0, description="A.")

class Config(StageConfig):
    SPEC: ClassVar[int] = 3
    lr: float = Field(0.1, gt=0, description="Rate.")
    group: Group = Field(Group(), description="Group.")

    @model_validator(mode="after")
    def _check(self):
        if self.lr > 1:
            raise ValueError("too fast")
        return self

    def reads(self):
        return ("weights",) if self.lr else ()
"""

CONFIG_FORGOTTEN = {
    "new field": ("    group:", "    mixing: Literal['none', 'all'] = Field('none', description='M.')\n    group:"),
    "changed default": ("0.1", "0.2"),
    "constraint": ("gt=0", "ge=0"),
    "new group": ("class Config", "class Mixer(Strict):\n    p: float = 0.0\n\nclass Config"),
    "new import for a field": ("import ClassVar, Literal", "import Annotated, ClassVar, Literal"),
    "check": ("self.lr > 1", "self.lr > 2"),
}
CONFIG_KEPT = {
    "method": ('("weights",)', '("raw",)'),
    "class variable": ("= 3", "= 4"),
    "validator that can change a value": ("        return self\n", "        return self.model_copy()\n"),
    "validator that sets a value": ("        return self\n", "        self.__dict__['lr'] = 2\n        return self\n"),
    "function": ("class Config", "def helper():\n    return 1\n\nclass Config"),
    "base": ("Config(StageConfig)", "Config(Strict)"),
}


@pytest.mark.parametrize("edit", CONFIG_FORGOTTEN)
def test_a_config_module_forgets_what_acts_through_values(edit: str) -> None:
    assert CONFIG.count(CONFIG_FORGOTTEN[edit][0]) == 1
    edited = CONFIG.replace(*CONFIG_FORGOTTEN[edit])
    assert equal(CONFIG, edited, is_config=True)
    assert not equal(CONFIG, edited)


@pytest.mark.parametrize("edit", CONFIG_KEPT)
def test_a_config_module_keeps_its_code(edit: str) -> None:
    assert CONFIG.count(CONFIG_KEPT[edit][0]) == 1
    assert not equal(CONFIG, CONFIG.replace(*CONFIG_KEPT[edit]), is_config=True)


@pytest.mark.parametrize("head", ["class Plain:", "class Plain(NamedTuple):"])
def test_a_class_that_is_no_group_of_fields_keeps_its_values(head: str) -> None:
    assert not equal(f"{head}\n    a: int = 1\n", f"{head}\n    a: int = 2\n", is_config=True)


def test_the_whole_form_keeps_error_text_and_fields_and_forgets_the_rest() -> None:
    def whole(text: str) -> str:
        return whole_form_of(ast.parse(text))

    assert whole('raise E("a")') != whole('raise E("b")')
    assert whole(CONFIG) != whole(CONFIG.replace("0.1", "0.2"))
    for edit in ("comment", "docstring", "description", "layout", "quotes"):
        assert whole(BASE) == whole(BASE.replace(*FORGOTTEN[edit]))


def test_a_module_of_prose_alone_has_an_empty_form() -> None:
    assert normal_form('"""Prose."""\n# and a comment\n') == ""


def test_statements_know_their_definition_and_lines() -> None:
    found = [(s.definition, s.first_line, s.last_line) for s in statements(ast.parse(BASE))]
    assert found == [
        ("", 3, 3),
        ("", 4, 4),
        ("", 6, 6),
        ("area", 9, 9),
        ("area", 10, 10),
        ("area", 11, 11),
        ("", 13, 13),
        ("Box", 15, 15),
    ]


def pythons() -> list[tuple[str, Path | None]]:
    """Each supported version, with an interpreter of it if this machine has one."""
    found: dict[str, Path | None] = dict.fromkeys(PYTHONS)
    found[f"{sys.version_info[0]}.{sys.version_info[1]}"] = Path(sys.executable)
    folders = [Path(p) for p in os.get_exec_path()] + sorted((Path.home() / ".pyenv" / "versions").glob("*/bin"))
    for folder in folders:
        for version in PYTHONS:
            candidate = folder / f"python{version}"
            if found[version] is None and os.access(candidate, os.X_OK) and candidate.parent.name != "shims":
                found[version] = candidate
    return list(found.items())


TRICKY = """
x = f"{a!r:>{w}.{p}}" "tail" f"{b=}"
y = 'é\\udc80', b'\\xff', 1e400, -0.0, 1_000, 10**30, 3j, ..., None
z = {**a, 'k': [*b]}
@d(1)
def f(a, /, b=1, *c, d, e=2, **g) -> "int": ...
try:
    pass
except* E as e:
    raise F("x") from e
match v:
    case {"k": [1, *rest], **others} if rest: pass
    case P(x=1) | None: q()
lambda: (yield)
"""

SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
from flows.normal import digest_form, normal_form
sources = json.load(open(sys.argv[2], encoding="utf-8"))
form = lambda path, text: digest_form(normal_form(text, is_config=path.endswith("config.py")))
print(json.dumps({path: form(path, text) for path, text in sources.items()}))
"""


@pytest.mark.parametrize(("version", "python"), pythons())
def test_every_supported_python_writes_the_same_form(version: str, python: Path | None, tmp_path: Path) -> None:
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    sources = {str(p): p.read_text(encoding="utf-8") for room in OURS for p in sorted((ROOT / room).rglob("*.py"))}
    sources["tricky.py"] = TRICKY
    (tmp_path / "sources.json").write_text(json.dumps(sources), encoding="utf-8")
    command = [str(python), "-I", "-c", SCRIPT, str(ROOT), str(tmp_path / "sources.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    expected = {
        path: digest_form(normal_form(text, is_config=path.endswith("config.py"))) for path, text in sources.items()
    }
    assert json.loads(done.stdout) == expected


def test_the_form_of_a_known_module_never_changes() -> None:
    # A new form makes everything that was ever paid for run again: raise flows.identity.SCHEMA when that is meant.
    assert digest_form(normal_form(TRICKY)) == "f18719f8de1a4802c2269583c5a381df84c588ed183c246dae52629e7d57d504"
