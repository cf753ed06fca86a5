"""The packed code: valid, alone, the same for the same meaning, and computing what our modules compute."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flows.closure import ROOT
from flows.source import bundle_source
from model.archive import write_archive
from model.config import BigramConfig, GPTConfig
from model.gpt import GPT
from model.init import initialise
from stages.bundle import pack as pack_module
from stages.bundle.config import Config
from stages.bundle.pack import CODECS
from stages.bundle.stage import run
from stages.contract import Runtime, StageError

RECIPE = {"name": "quickstart", "train": {"network": {"dim": 64}, "lr": 1e-4}, "about": "naïve “text”"}
NETWORK = GPTConfig(
    vocab=64, layers=2, dim=16, heads=2, kv_heads=1, mlp_hidden=32, bigram=BigramConfig(buckets=8), smear=True
)

IMPORT_ALL = """
import runpy, sys
packed = runpy.run_path(sys.argv[1])
for name in packed["MODULES"]:
    __import__(name)
ours = [m for n, m in sys.modules.items() if n.split(".")[0] in ("model", "stages", "flows", "configs", "artifacts")]
assert len(ours) > len(packed["MODULES"])  # and their packages
wrong = [m.__name__ for m in ours if type(m.__loader__).__name__ != "Packed"]
assert not wrong, wrong
needless = {"pydantic", "pyarrow", "prefect", "fsspec", "rich"} & set(sys.modules)
assert not needless, needless
print(len(packed["MODULES"]), packed["RECIPE"]["about"] == "na\\u00efve \\u201ctext\\u201d")
"""

LOGITS = """
import runpy, sys
runpy.run_path(sys.argv[1])
import torch
from pathlib import Path
from model.archive import read_archive
from model.gpt import GPT
torch.set_num_threads(2)
tensors, config, constants = read_archive(Path(sys.argv[2]))
model = GPT(config)
model.load_state_dict(tensors)
with torch.no_grad():
    torch.save(model(torch.arange(24).reshape(2, 12) % 64), sys.argv[3])
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for file in bundle_source(ROOT).files:
        (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file.path, folder / file.path)
    return folder


@pytest.fixture(scope="module")
def packed(source, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("packed")
    report = run(Config(recipe=RECIPE), {"source": source}, out / "out", quiet())
    path = out / "out" / "bundle" / "train_gpt.py"
    assert report["code_bytes"] == path.stat().st_size < report["minified_bytes"] < report["source_bytes"]
    return path


def quiet() -> Runtime:
    return Runtime(scratch=Path(), checkpoints=Path())


def alone(code: list[str], cwd: Path) -> str:
    """Run in an empty folder, without our tree on the path and without the environment."""
    done = subprocess.run([sys.executable, "-I", *code], cwd=cwd, env={}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_packed_module_imports_from_the_one_file_alone(packed, tmp_path):
    count, recipe = alone(["-c", IMPORT_ALL, str(packed)], tmp_path).split()
    assert int(count) == len(bundle_source(ROOT).files)
    assert recipe == "True"


def test_the_file_lists_its_modules_and_its_recipe_in_an_empty_folder(packed, tmp_path):
    modules = alone([str(packed), "--modules"], tmp_path).split()
    assert {"model.gpt", "model.rans", "model.referee", "stages.train.loop", "stages.quantize.clip"} <= set(modules)
    assert json.loads(alone([str(packed), "--recipe"], tmp_path)) == RECIPE
    assert not list(tmp_path.iterdir())


def test_without_an_argument_it_says_how_to_use_it(packed, tmp_path):
    done = subprocess.run(
        [sys.executable, "-I", str(packed)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "--modules" in done.stderr


def test_the_packed_network_computes_the_same_logits_from_an_archive(packed, tmp_path):
    model = GPT(NETWORK)
    initialise(model, 3)
    tensors = {name: tensor + 0.01 for name, tensor in model.state_dict().items()}
    write_archive(tmp_path / "a.fwy", tensors, NETWORK)
    alone(["-c", LOGITS, str(packed), str(tmp_path / "a.fwy"), str(tmp_path / "logits.pt")], tmp_path)
    model.load_state_dict(tensors)
    with torch.no_grad():
        want = model(torch.arange(24).reshape(2, 12) % 64)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), want)


def test_packed_modules_import_only_what_a_submission_may(source):
    optional = {"flash_attn", "flash_attn_interface"}  # asked for inside `try`
    allowed = {"torch", "numpy", "sentencepiece", "zstandard", "model", "stages", *optional, *sys.stdlib_module_names}
    for path in source.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or "" for _ in [0] if isinstance(node, ast.ImportFrom)]
            assert {name.split(".")[0] for name in names} <= allowed, path


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "one.py").write_text("def double(number: int) -> int:\n    return number * 2\n")
    return folder


def text_of(folder: Path, out: Path, recipe: dict | None = None) -> str:
    run(Config(recipe=recipe or {}), {"source": folder}, out, quiet())
    return (out / "bundle" / "train_gpt.py").read_text()


EQUAL = {
    "comments": '"""Doc."""\n# a comment\ndef double(number: int) -> int:\n    """2x"""\n    return number * 2  # x\n',
    "layout and annotations": "def double(number: float):\n\n\n    return (number*2)\n",
    "type-checking imports": "if TYPE_CHECKING:\n    from x import Y\ndef double(number: 'Y'):\n return number*2\n",
}


@pytest.mark.parametrize("equal", EQUAL)
def test_comments_docstrings_layout_and_annotations_do_not_change_the_bytes(tiny, tmp_path, equal):
    before = text_of(tiny, tmp_path / "a")
    (tiny / "model" / "one.py").write_text(EQUAL[equal])
    assert text_of(tiny, tmp_path / "b") == before


def test_code_and_recipe_change_the_bytes(tiny, tmp_path):
    before = text_of(tiny, tmp_path / "a")
    assert text_of(tiny, tmp_path / "b", {"x": 1}) != before
    (tiny / "model" / "one.py").write_text("def double(number):\n    return number * 3\n")
    assert text_of(tiny, tmp_path / "c") != before


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_whichever_codec_is_shortest_the_file_opens(tmp_path, monkeypatch, codec):
    monkeypatch.setattr(pack_module, "CODECS", {codec: CODECS[codec]})
    modules = {"model.one": "X='ä\\0'\n" * 500, "two": "pass"}
    (tmp_path / "train_gpt.py").write_text(pack_module.pack(modules, {"a": "\0"}), encoding="ascii")
    assert alone([str(tmp_path / "train_gpt.py"), "--modules"], tmp_path).split() == ["model.one", "two"]
    assert json.loads(alone([str(tmp_path / "train_gpt.py"), "--recipe"], tmp_path)) == {"a": "\0"}


def test_a_module_with_nul_in_it_is_refused():
    with pytest.raises(ValueError, match="NUL"):
        pack_module.pack({"model.one": "X='\0'"}, {})


def test_keyword_arguments_across_modules_survive_shorter_names(tiny, tmp_path):
    (tiny / "model" / "two.py").write_text("from model.one import double\nRESULT = double(number=21)\n")
    text_of(tiny, tmp_path / "out")
    code = "import runpy, sys; runpy.run_path(sys.argv[1]); import model.two; print(model.two.RESULT)"
    assert alone(["-c", code, str(tmp_path / "out" / "bundle" / "train_gpt.py")], tmp_path) == "42\n"


def test_packed_code_shows_its_file_in_errors_and_its_source_to_those_who_ask(tiny, tmp_path):
    (tiny / "model" / "bad.py").write_text("def fail():\n    raise RuntimeError('here')\n")
    text_of(tiny, tmp_path / "out")
    code = "import inspect, runpy, sys; runpy.run_path(sys.argv[1]); import model.bad as m; "
    code += "print(inspect.getsource(m.fail)); m.fail()"
    command = [sys.executable, "-I", "-c", code, str(tmp_path / "out" / "bundle" / "train_gpt.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "model/bad.py" in done.stderr
    assert "RuntimeError: here" in done.stderr
    assert "raise RuntimeError('here')" in done.stdout


def test_packing_is_deterministic(source, packed, tmp_path):
    assert text_of(source, tmp_path / "again", RECIPE) == packed.read_text()


def test_no_modules_or_broken_source_is_a_stage_error(tiny, tmp_path):
    (tiny / "model" / "one.py").write_text("def broken(:\n")
    with pytest.raises(StageError, match=r"model/one\.py is not"):
        text_of(tiny, tmp_path / "a")
    (tmp_path / "none").mkdir()
    with pytest.raises(StageError, match="there are none"):
        text_of(tmp_path / "none", tmp_path / "b")
