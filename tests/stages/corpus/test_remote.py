"""A corpus in an object store reads as it does on disk, and its fingerprint follows the ETag."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.outside import fingerprint_corpus, fingerprint_model
from stages.contract import Runtime, StageError
from stages.corpus.config import Config
from stages.corpus.sources import list_files
from stages.corpus.stage import run


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of a bucket on an S3 server of our own."""
    server_module = pytest.importorskip("moto.server", reason="NO S3 TESTS: moto is not installed")
    pytest.importorskip("s3fs", reason="NO S3 TESTS: s3fs is not installed")
    import s3fs

    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "id")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "key")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("corpus-tests")
        yield "s3://corpus-tests"
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def put(url: str, raw: bytes) -> None:
    import fsspec

    with fsspec.open(url, "wb") as file:
        file.write(raw)


def test_an_object_store_is_a_source_like_any_other(bucket: str, tmp_path: Path, runtime: Runtime):
    lines = [json.dumps({"text": f"document {i}"}) + "\n" for i in range(300)]
    put(f"{bucket}/a/0.jsonl.gz", gzip.compress("".join(lines[:200]).encode()))
    put(f"{bucket}/a/1.jsonl.gz", gzip.compress("".join(lines[200:]).encode()))
    (tmp_path / "local.jsonl").write_text("".join(lines))
    contents = []
    for number, source in enumerate([f"{bucket}/a", f"{bucket}/a/*.gz", str(tmp_path / "local.jsonl")]):
        out = tmp_path / f"out{number}"
        out.mkdir()
        run(Config(source=source), {}, out, runtime)
        contents.append({str(f.relative_to(out)): f.read_bytes() for f in out.rglob("*.parquet")})
    assert contents[0] == contents[1] == contents[2]


def test_the_fingerprint_follows_the_etag(bucket: str, tmp_path: Path):
    put(f"{bucket}/b/0.jsonl", b"one")
    first, provenance = fingerprint_corpus(Config(source=f"{bucket}/b"), tmp_path)
    assert "etag" in provenance["source"]["listed"][0]
    put(f"{bucket}/b/0.jsonl", b"one")
    assert fingerprint_corpus(Config(source=f"{bucket}/b/0.jsonl"), tmp_path)[0] == first
    put(f"{bucket}/b/0.jsonl", b"two")
    assert fingerprint_corpus(Config(source=f"{bucket}/b"), tmp_path)[0] != first
    put(f"{bucket}/b/1.jsonl", b"one")
    assert provenance["source"]["files"] == 1
    assert fingerprint_corpus(Config(source=f"{bucket}/b"), tmp_path)[1]["source"]["files"] == 2


def test_what_the_object_store_refuses_is_said(bucket: str, tmp_path: Path):
    with pytest.raises(StageError, match=r"there is none at s3://corpus-tests/nothing"):
        list_files(f"{bucket}/nothing.jsonl", "auto")
    with pytest.raises(StageError, match=r"there is none at s3://no-such-bucket-here"):
        list_files("s3://no-such-bucket-here/x.jsonl", "auto")
    with pytest.raises(StageError, match="must be readable"):
        fingerprint_model(f"{bucket}/nothing.model")
