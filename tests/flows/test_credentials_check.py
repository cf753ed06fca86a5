"""`fairway credentials check` on a store that is empty still."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts.backend import open_backend
from artifacts.errors import StoreUnavailable
from artifacts.keyring import Credentials, hang
from flows.blocks import driver_options
from flows.commands.credentials import _try_to_write

pytestmark = pytest.mark.slow


def test_a_bucket_that_is_not_there_is_no_empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("moto.server", reason="NO S3 TESTS: moto is not installed")
    pytest.importorskip("s3fs", reason="NO S3 TESTS: s3fs is not installed")
    from guarded_s3 import BUCKET, guarded_s3

    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with guarded_s3() as s3:
        fields = {"access_key": s3.key, "secret_key": s3.secret, "endpoint": s3.endpoint, "region": "us-east-1"}
        there, missing = f"s3://{BUCKET}/new", "s3://no-such-bucket/new"
        for url in (there, missing):
            hang(url, Credentials("fairway-s3/lab", driver_options("fairway-s3", "lab", fields)))
        _try_to_write(there)
        assert list(open_backend(there).walk("")) == []
        with pytest.raises(StoreUnavailable, match=r"no-such-bucket.*create it first"):
            _try_to_write(missing)
