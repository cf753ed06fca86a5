"""The embedded corpus: prose, no leak from train to val, the same text each time, nothing imported or fetched."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stages.corpus import embedded

ROOT = Path(__file__).resolve().parents[3]

# Runs the stage and writes every path that it opens, every address that it connects to, and what it imported.
WATCHED = """
import sys
opened = []
def hook(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        opened.append(arguments[0])
    if event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system"):
        opened.append(f"forbidden: {event}")
sys.addaudithook(hook)
from stages.contract import main
from stages.corpus.config import Config
from stages.corpus.stage import run
code = main(Config.SPEC, Config, run)
packages = sorted({name.partition(".")[0] for name in sys.modules})
import json
with open(sys.argv[1] + ".watched", "w") as file:
    json.dump({"opened": opened, "packages": packages}, file)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished job over the embedded source, run by a process of its own."""
    folder = tmp_path_factory.mktemp("job")
    for name in ("out", "scratch", "checkpoints"):
        (folder / name).mkdir()
    runtime = {"scratch": str(folder / "scratch"), "checkpoints": str(folder / "checkpoints")}
    text = json.dumps({"config": {}, "inputs": {}, "out": str(folder / "out"), "seed": None, "runtime": runtime})
    (folder / "job.json").write_text(text)
    command = [sys.executable, "-c", WATCHED, str(folder / "job.json")]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"}
    subprocess.run(command, check=True, cwd=folder, env=environment, timeout=120)
    return folder


@pytest.fixture(scope="module")
def modules() -> list[embedded.Module]:
    return embedded.extract()


def test_the_stage_writes_exactly_what_is_extracted_here(job: Path, modules: list[embedded.Module]):
    val = embedded.val_groups(modules, 0.04)
    for split in ("train", "val"):
        expected = [(m.name, m.text) for m in modules if (m.group in val) == (split == "val")]
        table = pq.read_table(job / "out" / split)
        assert list(zip(table.column("id").to_pylist(), table.column("text").to_pylist(), strict=True)) == expected


def test_no_package_and_no_paragraph_is_in_both_splits(job: Path):
    paragraphs, packages = {}, {}
    for split in ("train", "val"):
        table = pq.read_table(job / "out" / split)
        packages[split] = {name.split(".")[0].strip("_") for name in table.column("id").to_pylist()}
        texts = table.column("text").to_pylist()
        every = [p for text in texts for p in text.split("\n\n")]
        paragraphs[split] = set(every)
        assert len(every) == len(paragraphs[split])
    assert not packages["train"] & packages["val"]
    assert not paragraphs["train"] & paragraphs["val"]


def test_it_has_about_eight_megabytes_and_val_is_a_mix(modules: list[embedded.Module]):
    val = embedded.val_groups(modules, 0.04)
    total = sum(len(m.text.encode()) for m in modules)
    held_out = sum(len(m.text.encode()) for m in modules if m.group in val)
    assert 6_000_000 < total < 12_000_000
    assert 0.035 < held_out / total <= 0.04
    assert len(val) > 10


def test_it_reads_as_prose(modules: list[embedded.Module]):
    text = "\n\n".join(m.text for m in modules)
    words = re.findall(r"[a-z]+", text.lower())
    assert ">>>" not in text
    assert sum(c.isalpha() for c in text) > 0.88 * sum(not c.isspace() for c in text)
    assert 0.04 < words.count("the") / len(words) < 0.09
    assert all(len(m.text) >= embedded.MIN_DOCUMENT_CHARS for m in modules)


def test_the_stage_opens_nothing_but_the_installation_and_its_job(job: Path):
    watched = json.loads((job / "job.json.watched").read_text())
    roots = {sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
    allowed = [*roots, sys.prefix, sys.base_prefix, str(ROOT), str(job)]
    outside = [p for p in watched["opened"] if not any(p.startswith(a) for a in allowed) and os.path.isabs(p)]
    system = ("/usr/lib", "/lib", "/proc/", "/sys/", "/etc/ld", "/usr/share/zoneinfo", "/etc/localtime", "/dev/null")
    assert [p for p in outside if not p.startswith(system)] == []
    assert [p for p in watched["opened"] if p.startswith("forbidden")] == []
    assert not {"torch", "matplotlib", "sqlalchemy", "prefect", "networkx"} & set(watched["packages"])


def test_the_digest_depends_on_every_part():
    one = [embedded.Module("a", "g", "text"), embedded.Module("b", "g", "more")]
    others = [
        one[::-1],
        one[:1],
        [embedded.Module("a", "g", "texts"), one[1]],
        [embedded.Module("a", "h", "text"), one[1]],
        [embedded.Module("ag", "", "text"), one[1]],
    ]
    digests = {embedded.digest(modules) for modules in [one, *others]}
    assert len(digests) == 6
    assert embedded.digest(list(one)) == embedded.digest(one)


def test_groups_that_do_not_fit_stay_in_train():
    modules = [embedded.Module(f"{g}.{i}", g, "x" * 10) for g in "abcdefghij" for i in range(3)]
    modules.append(embedded.Module("large", "large", "x" * 700))
    val = embedded.val_groups(modules, 0.1)
    assert "large" not in val
    assert len(val) == 3
    assert embedded.val_groups(modules[::-1], 0.1) == val


def test_sources_are_read_as_syntax(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sentence = "This sentence is long enough to be kept as a paragraph of prose, and says {}. "
    package = tmp_path / "site" / "click"
    (package / "tests").mkdir(parents=True)
    long = [sentence.format(word) * 6 for word in ("one", "two", "three", "four")]
    code = f'raise SystemExit("imported")\nclass A:\n    """{long[0]}\n\n    >>> code(1, 2, 3, 4, 5, 6, 7, 8, 9, 10)\n'
    code += f'    """\n    async def f(self):\n        """{long[1]}"""\n'
    (package / "__init__.py").write_text(code)
    (package / "copy.py").write_text(f'"""{long[0]}\n\n{long[2]}"""\n')
    (package / "broken.py").write_text(f'"""{long[3]}"""\ndef (')
    (package / "tests" / "x.py").write_text(f'"""{long[3]}"""')
    (tmp_path / "stdlib").mkdir()
    paths = {"stdlib": tmp_path / "stdlib", "purelib": tmp_path / "site", "platlib": tmp_path / "site"}
    monkeypatch.setattr(embedded.sysconfig, "get_path", lambda kind: str(paths[kind]))
    found = {m.name: m.text for m in embedded.extract()}
    assert found == {"click": f"{long[0].strip()}\n\n{long[1].strip()}", "click.copy": long[2].strip()}
    before = embedded.stamp()
    assert embedded.stamp() == before
    (package / "__init__.py").write_text('"""Another release."""')
    assert embedded.stamp() != before
