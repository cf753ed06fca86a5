"""What is packed, and when it counts as changed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from artifacts.record import digest_files
from flows.closure import ROOT
from flows.source import bundle_source
from stages.contract import StageError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for path, text in {
        "model/__init__.py": "",
        "model/gpt.py": "def forward(x):\n    return x + 1\n",
        "model/config.py": "WIDTH = 3\n",
        "stages/__init__.py": "",
        "stages/contract.py": "NAME = 'contract'\n",
        "stages/train/__init__.py": "",
        "stages/train/loop.py": "import model.config\nfrom model.gpt import forward\nfrom stages.contract import NAME",
        "stages/train/config.py": "import pydantic\n",
        "stages/train/stage.py": "from stages.train.config import Config\n",
        "stages/submission.py": "from stages.train.loop import NAME\n",
        "stages/train/unused.py": "Y = 1\n",
        "stages/corpus/__init__.py": "",
        "stages/corpus/read.py": "X = 1\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    return tmp_path


def test_the_program_and_what_it_imports_are_packed_and_nothing_else(tree):
    packed = bundle_source(tree)
    assert [f.path for f in packed.files] == [
        "model/config.py",
        "model/gpt.py",
        "stages/contract.py",
        "stages/submission.py",
        "stages/train/loop.py",
    ]
    for file in packed.files:
        content = (tree / file.path).read_bytes()
        assert (file.sha256, file.bytes) == (hashlib.sha256(content).hexdigest(), len(content))


def test_comments_do_not_change_the_digest_and_code_does(tree):
    before = bundle_source(tree)
    (tree / "model" / "gpt.py").write_text('"""Doc."""\n\ndef forward(x):  # a comment\n    return x + 1\n')
    commented = bundle_source(tree)
    assert commented.digest == before.digest
    assert digest_files(commented.files) != digest_files(before.files)
    for edit in (
        "def forward(x):\n    return x + 2\n",
        "def forward(x):\n    return x + 1\nraise ValueError('text')\n",
    ):
        (tree / "model" / "gpt.py").write_text(edit)
        assert bundle_source(tree).digest != before.digest


def test_a_new_module_of_another_room_changes_nothing(tree):
    before = bundle_source(tree)
    (tree / "stages" / "corpus" / "more.py").write_text("Y = 2\n")
    (tree / "stages" / "train" / "config.py").write_text("import pydantic\nX = 1\n")
    (tree / "stages" / "train" / "unused.py").write_text("Y = 3\n")
    assert bundle_source(tree) == before


def test_a_hot_module_that_needs_pydantic_is_refused(tree):
    (tree / "stages" / "train" / "loop.py").write_text("from stages.train.config import Config\n")
    with pytest.raises(StageError, match=r"stages\.submission needs stages/train/config\.py"):
        bundle_source(tree)


def test_our_own_tree_can_be_packed():
    packed = {f.path for f in bundle_source(ROOT).files}
    assert {"model/gpt.py", "model/config.py", "model/archive.py", "stages/train/muon.py"} <= packed
    assert not any(path.startswith(("flows/", "artifacts/", "configs/", "stages/corpus/")) for path in packed)
