"""Fingerprints: they follow contents and nothing else, and asking again is cheap."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from artifacts import keyring
from flows import outside
from flows.outside import fingerprint_corpus, fingerprint_model
from stages.contract import StageError
from stages.corpus import embedded
from stages.corpus.config import Config

ROOT = Path(__file__).resolve().parents[2]


def settle(path: Path) -> Path:
    """Make a file look as if it had been written a minute ago."""
    minute_ago = time.time() - 60
    os.utime(path, (minute_ago, minute_ago))
    return path


def digest(cache: Path, **config: Any) -> str:
    return fingerprint_corpus(Config(**config), cache)[0]


def test_a_digest_follows_contents_and_not_names_or_places(tmp_path: Path):
    cache = tmp_path / "cache"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "one" / "a.jsonl").write_text("x")
    (tmp_path / "one" / "b.jsonl").write_text("y")
    (tmp_path / "two" / "m.jsonl").write_text("x")
    (tmp_path / "two" / "n.jsonl").write_text("y")
    first = digest(cache, source=str(tmp_path / "one"))
    assert digest(cache, source=f"file://{tmp_path}/two/*.jsonl") == first
    (tmp_path / "two" / "m.jsonl").write_text("z")
    assert digest(cache, source=str(tmp_path / "two")) != first
    (tmp_path / "two" / "m.jsonl").write_text("y")
    (tmp_path / "two" / "n.jsonl").write_text("x")  # the same files in another order
    assert digest(cache, source=str(tmp_path / "two")) != first


def test_what_the_reader_goes_by_is_part_of_the_digest(tmp_path: Path):
    cache = tmp_path / "cache"
    for name in ("a.txt", "b.jsonl", "x_train_0.bin", "x_val_0.bin"):
        (tmp_path / name).write_text("same")
    digests = {digest(cache, source=str(tmp_path / n)) for n in ("a.txt", "b.jsonl", "x_train_0.bin", "x_val_0.bin")}
    assert len(digests) == 4
    assert digest(cache, source=str(tmp_path / "b.jsonl"), format="text") in digests
    both = digest(cache, source=str(tmp_path / "a.txt"), val_source=str(tmp_path / "b.jsonl"))
    swapped = digest(cache, source=str(tmp_path / "b.jsonl"), val_source=str(tmp_path / "a.txt"))
    assert len({both, swapped, *digests}) == 6


def test_a_file_is_hashed_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hashed: list[int] = []
    real = outside._hash
    monkeypatch.setattr(outside, "_hash", lambda chunks: hashed.append(1) or real(chunks))
    path = tmp_path / "a.jsonl"
    path.write_text("one")
    settle(path)
    first = digest(tmp_path / "cache", source=str(path))
    assert digest(tmp_path / "cache", source=str(path)) == first
    assert len(hashed) == 1
    path.write_text("two")
    settle(path)
    os.utime(path, (time.time() - 50, time.time() - 50))
    assert digest(tmp_path / "cache", source=str(path)) != first
    assert len(hashed) == 2


def test_a_file_written_just_now_is_hashed_again(tmp_path: Path):
    """A second write within the clock's tick would leave size and time as they were."""
    path = tmp_path / "a.jsonl"
    path.write_text("one")
    stamp = path.stat()
    first = digest(tmp_path / "cache", source=str(path))
    path.write_text("two")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert digest(tmp_path / "cache", source=str(path)) != first


@pytest.mark.parametrize(
    "damage",
    [lambda raw: "", lambda raw: raw[:-9], lambda raw: "[]", lambda raw: '{"memory": 3, "sha256": 4}', str.swapcase],
)
def test_a_damaged_memory_costs_time_and_nothing_else(tmp_path: Path, damage: Callable[[str], str]):
    path = tmp_path / "a.jsonl"
    path.write_text("one")
    settle(path)
    first = digest(tmp_path / "cache", source=str(path))
    memory = tmp_path / "cache" / outside.CACHE_FILE
    memory.write_text(damage(memory.read_text()))
    assert digest(tmp_path / "cache", source=str(path)) == first


def test_a_flipped_digit_in_the_memory_is_not_believed(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text("one")
    settle(path)
    first = digest(tmp_path / "cache", source=str(path))
    memory = tmp_path / "cache" / outside.CACHE_FILE
    known = json.loads(memory.read_text())
    [entry] = known["memory"]["files"].values()
    entry["sha256"] = "0" * 64
    memory.write_text(json.dumps(known))
    assert digest(tmp_path / "cache", source=str(path)) == first


def test_a_folder_that_cannot_be_written_costs_time_and_nothing_else(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text("one")
    settle(tmp_path / "a.jsonl")
    (tmp_path / "file").write_text("in the way")
    assert digest(tmp_path / "file" / "cache", source=str(tmp_path / "a.jsonl"))


def test_provenance_says_where_and_the_digest_does_not(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text("one")
    found, provenance = fingerprint_corpus(Config(source=str(tmp_path / "a.jsonl")), tmp_path / "cache")
    assert provenance["source"]["url"] == str(tmp_path / "a.jsonl")
    assert provenance["source"]["files"] == 1
    assert provenance["source"]["listed"][0]["name"] == "a.jsonl"
    assert "val_source" not in provenance
    json.dumps(provenance)
    assert len(found) == 64


class Vouching(MemoryFileSystem):
    """A remote filesystem that says of its files what `says` holds; reading them is counted."""

    protocol = "vouching"
    says: ClassVar[dict[str, Any]] = {}
    reads = 0
    store: ClassVar[dict[str, Any]] = {}

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        return {k: v for k, v in super().info(path, **options).items() if k != "created"} | type(self).says

    def _open(self, *arguments: Any, **options: Any) -> Any:
        type(self).reads += 1
        return super()._open(*arguments, **options)


@pytest.fixture
def remote() -> type[Vouching]:
    fsspec.register_implementation("vouching", Vouching, clobber=True)
    Vouching.says = {}
    with fsspec.open("vouching://x/a.jsonl", "wb") as file:
        file.write(b"one")
    Vouching.reads = 0
    return Vouching


@pytest.mark.parametrize(
    "says",
    [
        lambda v: {"ETag": f'"{v}"'},
        lambda v: {"etag": v},
        lambda v: {"blob_id": "same", "lfs": {"sha256": v}},
        lambda v: {"blob_id": v, "lfs": None},
        lambda v: {"LastModified": f"2026-01-0{v}"},
    ],
)
def test_what_the_other_side_vouches_for_is_trusted_unread(tmp_path: Path, remote: type[Vouching], says):
    remote.says = says("1")
    first = digest(tmp_path, source="vouching://x/a.jsonl")
    assert digest(tmp_path, source="vouching://x/a.jsonl") == first
    remote.says = says("2")
    second, provenance = fingerprint_corpus(Config(source="vouching://x/a.jsonl"), tmp_path)
    assert second != first
    assert remote.reads == 0
    evidence = set(provenance["source"]["listed"][0]) - {"name", "bytes"}
    assert evidence <= {"etag", "sha256", "blob_id", "size and time"}


def test_a_file_that_nobody_vouches_for_is_read(tmp_path: Path, remote: type[Vouching]):
    first = digest(tmp_path, source="vouching://x/a.jsonl")
    assert remote.reads == 1
    with fsspec.open("vouching://x/a.jsonl", "wb") as file:
        file.write(b"two")
    assert digest(tmp_path, source="vouching://x/a.jsonl") != first


def test_the_embedded_text_is_extracted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = ["first"]
    monkeypatch.setattr(embedded, "extract", lambda: [embedded.Module("a", "a", text[0])])
    monkeypatch.setattr(embedded, "stamp", lambda: "one installation")
    first, provenance = fingerprint_corpus(Config(), tmp_path)
    assert provenance["source"]["documents"] == 1
    text[0] = "second"
    assert digest(tmp_path) == first
    monkeypatch.setattr(embedded, "stamp", lambda: "another installation")
    assert digest(tmp_path) != first


@pytest.mark.parametrize("config", [{"source": "missing.jsonl"}, {"source": "nope://x"}])
def test_what_is_not_there_is_an_error(tmp_path: Path, config: dict[str, str]):
    with pytest.raises(StageError, match="mend the URL"):
        digest(tmp_path, **config)


def test_a_models_fingerprint_is_its_sha256(tmp_path: Path):
    (tmp_path / "x.model").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert fingerprint_model(str(tmp_path / "x.model")) == expected
    with fsspec.open("memory://outside/x.model", "wb") as file:
        file.write(b"abc")
    assert fingerprint_model("memory://outside/x.model") == expected
    with pytest.raises(StageError, match=r"must be readable; .*y\.model"):
        fingerprint_model(str(tmp_path / "y.model"))
    with pytest.raises(StageError, match="must carry no credentials"):
        fingerprint_model("https://me:secret@host/x.model")


def test_planning_imports_nothing_heavy():
    code = (
        "import sys; import flows.outside; from stages.corpus import embedded; embedded.stamp();"
        "print(sorted({'torch', 'numpy', 'pyarrow', 'prefect', 'sentencepiece', 'fsspec'} & set(sys.modules)))"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Refusing(MemoryFileSystem):
    """A remote filesystem that lets nobody in."""

    protocol = "refusing"
    error: ClassVar[Exception] = PermissionError("Forbidden")

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        raise type(self).error

    cat_file = info


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> type[Refusing]:
    fsspec.register_implementation("refusing", Refusing, clobber=True)
    monkeypatch.setattr(keyring, "_RING", {})
    return Refusing


def look(tmp_path: Path, what: str) -> Any:
    """Fingerprint documents or a tokenizer that nobody is let in to."""
    url = "refusing://x/private"
    return digest(tmp_path, source=url) if what == "documents" else fingerprint_model(url)


@pytest.mark.parametrize("what", ["documents", "a tokenizer"])
def test_a_refused_source_of_a_run_with_a_block_is_told_whose_key_it_is_read_with(
    tmp_path: Path, refused: type[Refusing], what: str
):
    keyring.hang("s3://lab/store", keyring.Credentials("fairway-s3/lab", {"key": "id", "secret": "planted-secret"}))
    with pytest.raises(
        StageError, match="PermissionError: Forbidden; fairway-s3/lab opens this run's store and no"
    ) as e:
        look(tmp_path, what)
    assert "read refusing://x/private with a key of its own" in str(e.value)
    assert "AWS_ACCESS_KEY_ID" in str(e.value)
    assert "planted" not in str(e.value)


@pytest.mark.parametrize("what", ["documents", "a tokenizer"])
def test_where_no_block_is_in_play_or_nobody_was_refused_none_is_spoken_of(
    tmp_path: Path, refused: type[Refusing], monkeypatch: pytest.MonkeyPatch, what: str
):
    with pytest.raises(StageError, match=r"PermissionError: Forbidden$"):
        look(tmp_path, what)
    keyring.hang("s3://lab/store", keyring.Credentials("fairway-s3/lab", {"key": "id", "secret": "planted-secret"}))
    monkeypatch.setattr(refused, "error", ConnectionError("no route"))
    with pytest.raises(StageError, match=r"ConnectionError: no route$"):
        look(tmp_path, what)
