"""Secrets stay out of addresses and command lines."""

from __future__ import annotations

import pytest

from artifacts.backend import open_backend
from artifacts.errors import UnsafeURL
from artifacts.safety import redact, redact_argv, redact_text, refuse_credentials
from artifacts.store import Store

SECRET = "hunter2"
UNSAFE = [
    f"s3://user:{SECRET}@bucket/x",
    f"https://{SECRET}@host/x",
    f"https://user:{SECRET}@host/x.jsonl",
    f"https://host/x?token={SECRET}",
    f"https://host/x?a=1&X-Amz-Signature={SECRET}&b=2",
    f"https://host/x?X-Amz-Credential={SECRET}",
    f"https://host/x?X-Amz-Security-Token={SECRET}",
    f"https://account.blob.core.windows.net/c/x?sv=2024&sig={SECRET}",
    f"https://host/x?api_key={SECRET}",
    f"https://host/x?AWSAccessKeyId={SECRET}",
    f"s3://bucket/x?secret_access_key={SECRET}",
    f"ftp://me:{SECRET}@host/x",
]
SAFE = [
    "s3://bucket/path",
    "abfs://container@account.dfs.core.windows.net/path",
    "https://host/a@b/c?name=x&tokenizer=y&authority=z",
    "hf://datasets/org/name@main/x.parquet",
    "/home/me/x@y:z",
    "memory://x",
    ".fairway",
]


@pytest.mark.parametrize("url", UNSAFE)
def test_an_address_with_a_credential_is_refused_without_repeating_it(url, tmp_path):
    for refuse in (refuse_credentials, open_backend, lambda u: Store.open(u, cache=tmp_path)):
        with pytest.raises(UnsafeURL, match="must not carry credentials") as caught:
            refuse(url)
        assert SECRET not in str(caught.value)
    assert SECRET not in redact_text(f"before {url} after")
    assert redact_text(f"before {url} after").endswith(" after")


@pytest.mark.parametrize("url", SAFE)
def test_an_address_without_one_is_left_alone(url):
    assert refuse_credentials(url) == url


def test_command_lines_lose_their_secrets_and_nothing_else():
    argv = [
        "fairway",
        "run",
        "--token",
        SECRET,
        "--store=s3://b",
        f"--hf-token={SECRET}",
        "--set",
        f"corpus.token={SECRET}",
    ]
    argv += [f"https://me:{SECRET}@host", "--seed", "42", "--password", "--password", "-token", SECRET, "x"]
    redacted = redact_argv(argv)
    assert SECRET not in " ".join(redacted)
    assert redacted == [
        *("fairway", "run", "--token", "***", "--store=s3://b", "--hf-token=***", "--set", "corpus.token=***"),
        *("https://***@host", "--seed", "42", "--password", "***", "-token", "***", "x"),
    ]
    assert redact_argv(["--set", "train.batch_tokens=5", "--key", "abc"]) == [
        "--set",
        "train.batch_tokens=5",
        "--key",
        "abc",
    ]


def test_redaction_reaches_every_depth_of_a_document():
    deep = {"a": [{"b": (f"https://x:{SECRET}@h", 1, None)}], "n": 2.5}
    assert redact(deep) == {"a": [{"b": ["https://***@h", 1, None]}], "n": 2.5}
