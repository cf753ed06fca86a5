"""Where outside inputs lie: what is refused, and what the error says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stages.contract import StageError
from stages.urls import absolute, filesystem, refuse_credentials


def test_a_protocol_that_nobody_knows_is_refused():
    with pytest.raises(StageError, match="a local path or an fsspec URL; got nope://x"):
        filesystem("nope://x")


@pytest.mark.parametrize(
    ("url", "driver"),
    [
        ("hf://datasets/a/b", "fairway[hf]"),
        ("gs://a/b", "fairway[gcs]"),
        ("abfs://c@a/b", "fairway[azure]"),
        ("https://a/b.jsonl", "fsspec[http]"),
    ],
)
def test_a_missing_driver_is_named(url: str, driver: str, monkeypatch: pytest.MonkeyPatch):
    def missing(protocol: str) -> type:
        raise ImportError(f"no driver for {protocol}")

    monkeypatch.setattr("fsspec.core.get_filesystem_class", missing)
    with pytest.raises(StageError, match=re.escape(f"pip install '{driver}'")):
        filesystem(url)


def test_a_relative_path_becomes_absolute_and_a_url_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert absolute("a/*.txt") == f"{tmp_path}/a/*.txt"
    assert absolute("~/a.txt") == "/home/someone/a.txt"
    for url in ("", "/a/b", "s3://bucket/x", "hf://datasets/a/b", "simplecache::https://host/x"):
        assert absolute(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "https://user:pass@host/x.jsonl",
        "https://ghp_abc@host/x.jsonl",
        "s3://key:secret@bucket/x",
        "sftp://me:word@host/x",
        "https://b.s3.amazonaws.com/x?X-Amz-Signature=abc&X-Amz-Date=1",
        "https://a.blob.core.windows.net/c/x?sv=1&sig=abc",
        "https://storage.googleapis.com/b/x?X-Goog-Credential=abc",
        "https://host/x?access_token=abc",
        "simplecache::https://host/x?api_key=abc",
    ],
)
def test_a_url_with_credentials_is_refused_without_repeating_them(url: str):
    with pytest.raises(StageError, match="must carry no credentials") as error:
        filesystem(url)
    for secret in ("pass", "ghp_", "abc", "secret@", "word"):
        assert secret not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "abfs://container@account/x.parquet",
        "hf://datasets/org/name@main/x.parquet",
        "github://org:repo@sha/x.txt",
        "sftp://me@host/x",
        "https://host/x?download=true&version=3",
        "/plain/path@home/x?.txt",
    ],
)
def test_a_url_without_credentials_passes(url: str):
    assert refuse_credentials(url) == url
