"""The import closure: what it follows, what it refuses, and that its cache never serves a stale digest."""

from __future__ import annotations

import json
import os
import shutil
import textwrap
from pathlib import Path

import pytest

from flows.closure import SourceTree
from stages.contract import StageError

TREE = {
    "model/__init__.py": "",
    "model/gpt.py": "from model import layers\nfrom model.maths import square\n",
    "model/layers.py": "import torch\n",
    "model/maths.py": "def square(x):\n    return x * x\n",
    "model/lazy.py": "def f():\n    import model.deep.inner as inner\n    return inner\n",
    "model/deep/__init__.py": "",
    "model/deep/inner.py": "x = 1\n",
    "model/unused.py": "y = 2\n",
    "stages/__init__.py": "",
    "stages/train/__init__.py": "",
    "stages/train/__main__.py": "from stages.train.stage import run\n",
    "stages/train/stage.py": """
        from typing import TYPE_CHECKING
        import model.gpt
        if TYPE_CHECKING:
            from model.unused import y
        def run():
            from model.lazy import f
            return f
        """,
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in TREE.items():
        write(tmp_path, name, text)
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(textwrap.dedent(text), encoding="utf-8")


def digests(root: Path, **options: Path) -> dict[str, str]:
    return dict(SourceTree(root, **options).stage("train").digests)


def test_it_follows_module_names_and_imports_inside_functions(root: Path) -> None:
    assert set(digests(root)) == {
        "model.deep.inner",
        "model.gpt",
        "model.layers",
        "model.lazy",
        "model.maths",
        "stages.train.__main__",
        "stages.train.stage",
    }


def test_the_files_of_a_closure_run_by_themselves(root: Path) -> None:
    files = SourceTree(root).stage("train").files
    assert {"model/__init__.py", "stages/train/__init__.py", "model/deep/__init__.py"} <= set(files)
    assert "model/unused.py" not in files
    assert all(path.is_file() for path in files.values())


@pytest.mark.parametrize("name", ["model/maths.py", "model/deep/inner.py", "stages/train/__main__.py"])
def test_an_edit_changes_the_digest_of_its_own_module_only(root: Path, name: str) -> None:
    before = digests(root)
    write(root, name, TREE[name] + "\nnew = 3\n")
    after = digests(root)
    assert [m for m in before if before[m] != after[m]] == [name.removesuffix(".py").replace("/", ".")]


def test_a_comment_changes_nothing(root: Path) -> None:
    before = digests(root)
    write(root, "model/maths.py", TREE["model/maths.py"] + "\n# remark\n")
    assert digests(root) == before


def test_a_new_import_inside_a_function_joins_the_closure(root: Path) -> None:
    write(root, "model/maths.py", "def square(x):\n    from model.unused import y\n    return x * x * y\n")
    assert "model.unused" in digests(root)


def test_an_init_with_statements_counts(root: Path) -> None:
    write(root, "model/__init__.py", "import model.unused\n")
    assert {"model", "model.unused"} <= set(digests(root))


def test_a_declared_data_file_counts(root: Path) -> None:
    write(root, "model/table.json", "[1]")
    write(root, "model/maths.py", 'DATA_FILES = ("model/table.json",)\n' + TREE["model/maths.py"])
    before = digests(root)
    assert "model/table.json" in SourceTree(root).stage("train").files
    write(root, "model/table.json", "[2]")
    after = digests(root)
    assert [m for m in before if before[m] != after[m]] == ["model/table.json"]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("import importlib", "importlib"),
        ("from importlib import import_module", "importlib.import_module"),
        ("from importlib.util import find_spec", "importlib.util.find_spec"),
        ("import runpy", "runpy"),
        ("x = __import__('model.unused')", "__import__"),
        ("def f(s):\n    exec(s)", "exec"),
        ("f = eval", "eval"),
    ],
)
def test_dynamic_imports_are_refused_with_file_and_line(root: Path, line: str, named: str) -> None:
    write(root, "model/maths.py", f"\n{line}\n")
    with pytest.raises(StageError, match=rf"model/maths\.py line \d uses {named}"):
        digests(root)


@pytest.mark.parametrize("line", ["from importlib import metadata", "import importlib.resources", "model.eval()"])
def test_what_only_reads_is_no_dynamic_import(root: Path, line: str) -> None:
    write(root, "model/maths.py", f"{line}\n")
    digests(root)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("from . import gpt", "relative"),
        ("import model.nowhere", "model.nowhere is none"),
        ("def f(:", "line 1 does not"),
    ],
)
def test_a_broken_module_is_named(root: Path, line: str, message: str) -> None:
    write(root, "model/maths.py", f"{line}\n")
    with pytest.raises(StageError, match=message):
        digests(root)


def test_a_tree_is_read_once_so_that_a_plan_sees_one_state(root: Path) -> None:
    tree = SourceTree(root)
    before = tree.stage("train").digests
    write(root, "model/maths.py", "def square(x):\n    return 0\n")
    assert tree.stage("train").digests == before


def test_a_copy_with_the_same_text_is_not_parsed_and_an_edited_one_is(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = SourceTree(root)
    expected = original.stage("train").digests
    copied = shutil.copytree(root, tmp_path / "copied")
    with monkeypatch.context() as forbidden:
        forbidden.setattr("flows.closure.read_facts", lambda *_: pytest.fail("parsed"))
        assert SourceTree(copied, original=original).stage("train").digests == expected
    write(copied, "model/maths.py", (copied / "model/maths.py").read_text().replace("x * x", "x + x"))
    assert SourceTree(copied, original=original).stage("train").digests == digests(copied) != expected


class TestCache:
    """Only a file whose stamp is unchanged is served from the cache."""

    def fill(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr("flows.closure._SETTLED_S", -1e9)
        cache = root / "cache" / "closures.json"
        tree = SourceTree(root, cache)
        tree.stage("train")
        tree.save()
        return cache

    def test_a_second_plan_parses_nothing(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        cache = self.fill(root, monkeypatch)
        expected = digests(root)
        monkeypatch.setattr("flows.closure.read_facts", lambda *_: pytest.fail("parsed"))
        assert digests(root, cache=cache) == expected

    def test_an_edit_of_equal_size_and_time_is_seen(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        cache = self.fill(root, monkeypatch)
        path = root / "model/maths.py"
        status = path.stat()
        path.write_text(path.read_text().replace("x * x", "x + x"), encoding="utf-8")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert path.stat().st_mtime_ns == status.st_mtime_ns
        assert digests(root, cache=cache) == digests(root)

    def test_a_file_that_was_just_written_is_not_remembered(self, root: Path) -> None:
        cache = root / "closures.json"
        tree = SourceTree(root, cache)
        tree.stage("train")
        tree.save()
        assert json.loads(cache.read_text())["files"] == {}

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 0, "files": 3}'])
    def test_a_damaged_cache_is_ignored(self, root: Path, content: str) -> None:
        cache = root / "closures.json"
        cache.write_text(content)
        assert digests(root, cache=cache) == digests(root)

    def test_a_place_that_cannot_be_written_is_no_error(self, root: Path) -> None:
        (root / "file").write_text("")
        tree = SourceTree(root, root / "file" / "closures.json")
        tree.stage("train")
        tree.save()
