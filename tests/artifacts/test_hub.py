"""The Hub as a source and an export target, against a server that speaks to the real library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from artifacts.errors import BadName, StoreUnavailable, UnsafeURL
from artifacts.hub import HubFile
from artifacts.store import Store

TOKEN = f"hf_{uuid4().hex}"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def hub():
    pytest.importorskip("huggingface_hub", reason="NO HUB TESTS: huggingface_hub is not installed")
    from fakehub import Hub, serving

    with serving(Hub(TOKEN)) as hub:
        hub.repositories = {"datasets/me/results": {}, "models/me/model": {}, "datasets/me/private": {}}
        hub.private = {"datasets/me/private"}
        yield hub


@pytest.fixture
def call(hub, tmp_path):
    """Run a program as a user would, in a process whose library looks at our hub."""

    def run(*arguments: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            **({"HF_TOKEN": token} if token else {}),
        }
        return subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )

    return run


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("hf://datasets/me/repo/a/b.tar", ("dataset", "me/repo", "main", "a/b.tar")),
        ("hf://me/repo/b.tar", ("model", "me/repo", "main", "b.tar")),
        ("hf://models/me/re.po@v1.0/b.tar", ("model", "me/re.po", "v1.0", "b.tar")),
    ],
)
def test_an_address_names_a_file_of_a_repository(address, expected):
    found = HubFile.parse(address)
    assert (found.kind, found.repo, found.revision, found.path) == expected


@pytest.mark.parametrize(
    "address", ["hf://", "hf://me/repo", "hf://datasets/me/x.tar", "hf://me/r/../x.tar", "hf://me/r/x"]
)
def test_another_address_is_refused_with_an_example(address):
    with pytest.raises(BadName, match=r"hf://datasets/OWNER/REPO/NAME\.tar"):
        HubFile.parse(address)


def test_a_token_in_an_address_is_refused_and_not_repeated():
    with pytest.raises(UnsafeURL) as refused:
        HubFile.parse(f"hf://user:{TOKEN}@datasets/me/repo/a.tar")
    assert TOKEN not in str(refused.value)


def test_the_hub_is_no_store(tmp_path):
    with pytest.raises(StoreUnavailable, match=r"not a store.*artifacts export"):
        Store.open("hf://datasets/me/repo", cache=tmp_path)


@pytest.mark.parametrize(
    ("repository", "size"),
    [
        ("datasets/me/results", 300_000),
        pytest.param("datasets/me/results", 100, marks=pytest.mark.slow),
        pytest.param("models/me/model", 300_000, marks=pytest.mark.slow),
    ],
)
def test_an_artifact_goes_to_the_hub_and_comes_back(hub, call, tmp_path, publish, repository, size):
    record = publish(Store.open(tmp_path / "store"), "a", {"raw/w.bin": os.urandom(size)}).record
    address = f"hf://{repository.removeprefix('models/')}/runs/a.tar"
    sent = call(
        "-m", "flows.cli", "artifacts", "export", record.key, address, "--store", str(tmp_path / "store"), "--json"
    )
    assert sent.returncode == 0, sent.stderr
    assert json.loads(sent.stdout)["commit"] == hub.oid(repository)
    assert list(hub.repositories[repository]) == ["runs/a.tar"]
    assert hub.messages == [f"train {record.key[:12]}"]
    got = call("-m", "flows.cli", "artifacts", "import", address, "--store", str(tmp_path / "other"))
    assert got.returncode == 0, got.stderr
    other = Store.open(tmp_path / "other")
    assert other.get("train", record.key) == record
    assert other.verify() == []
    texts = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in text for text in [*texts, sent.stdout.encode(), sent.stderr.encode()])


def test_who_has_no_token_is_told_what_to_look_at(hub, call, tmp_path, publish):
    record = publish(Store.open(tmp_path / "store"), "a").record
    address = "hf://datasets/me/results/a.tar"
    sent = call(
        "-m", "flows.cli", "artifacts", "export", record.key, address, "--store", str(tmp_path / "store"), token=""
    )
    assert sent.returncode != 0
    assert "HF_TOKEN" in sent.stderr
    assert "Traceback" not in sent.stderr
    assert hub.refused
    assert hub.repositories["datasets/me/results"] == {}


@pytest.mark.slow
def test_a_repository_that_is_not_there_is_named(hub, call, tmp_path, publish):
    record = publish(Store.open(tmp_path / "store"), "a").record
    address = "hf://datasets/me/none/a.tar"
    sent = call("-m", "flows.cli", "artifacts", "export", record.key, address, "--store", str(tmp_path / "store"))
    assert sent.returncode != 0
    assert "hf://datasets/me/none/a.tar" in sent.stderr
    assert "Traceback" not in sent.stderr


SOURCE = """
import json, sys
from pathlib import Path
from flows.outside import fingerprint_corpus
from stages.corpus.config import Config
from stages.corpus.sources import list_files
url, cache = sys.argv[1:]
files = list_files(url, "auto")
digest, provenance = fingerprint_corpus(Config(source=url), Path(cache))
print(json.dumps([[f.name, f.kind, f.fs.cat_file(f.path).decode()] for f in files] + [digest, provenance]))
"""


def test_documents_on_the_hub_are_a_source_whose_fingerprint_follows_their_bytes(hub, call, tmp_path):
    repository = hub.repositories["datasets/me/private"]
    repository |= {"docs/b.jsonl": b'{"text": "two"}\n', "docs/a.jsonl": b'{"text": "one"}\n', "README.md": b"words"}

    def look(url: str) -> list:
        done = call("-c", SOURCE, url, str(tmp_path / "cache"))
        assert done.returncode == 0, done.stderr
        assert TOKEN not in done.stdout + done.stderr
        return json.loads(done.stdout)

    url = "hf://datasets/me/private/docs"
    first = look(url)
    assert first[:2] == [["a.jsonl", "jsonl", '{"text": "one"}\n'], ["b.jsonl", "jsonl", '{"text": "two"}\n']]
    assert look(f"{url}/*.jsonl")[:2] == first[:2]
    assert look(url) == first
    assert first[3]["source"]["url"] == url
    repository["docs/a.jsonl"] = b'{"text": "ONE"}\n'
    assert look(url)[2] != first[2]
    assert all(TOKEN.encode() not in path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file())


@pytest.mark.slow
def test_a_checkpoint_on_the_hub_is_looked_at_as_one_of_this_machine(hub, call, tmp_path):
    hub.repositories["models/me/model"] |= {"net/weights.safetensors": b"neither weights nor archive" * 2000}
    score = ("-m", "flows.cli", "score", "--store", str(tmp_path / "store"))
    looked = call(*score, "hf://me/model/net/weights.safetensors")
    assert looked.returncode != 0
    assert "weights.safetensors is none" in looked.stderr
    lost = call(*score, "hf://me/model/net/none.safetensors")
    assert lost.returncode != 0
    assert "hf://me/model/net/none.safetensors is not there" in lost.stderr
    assert "Traceback" not in looked.stderr + lost.stderr
