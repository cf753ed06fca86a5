"""An S3 server of our own, for runs whose store is not a folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from uuid import uuid4

import pytest


@pytest.fixture(scope="session")
def s3_environment() -> Iterator[dict[str, str]]:
    """Variables with which any process here reaches the server's bucket `fairway-runs`."""
    server_module = pytest.importorskip("moto.server", reason="NO S3 TESTS: moto is not installed")
    pytest.importorskip("s3fs", reason="NO S3 TESTS: s3fs is not installed")
    import boto3

    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "key",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        with contextlib.closing(boto3.client("s3")) as client:
            client.create_bucket(Bucket="fairway-runs")
        yield environment
    finally:
        server.stop()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@pytest.fixture
def s3_store(s3_environment: dict[str, str]) -> str:
    """An empty store on it."""
    return f"s3://fairway-runs/{uuid4().hex}"
