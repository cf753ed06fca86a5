"""What a block's fields become is what each driver takes: the right ones open a store, others are refused by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import pytest

from artifacts.errors import StoreRefused
from artifacts.keyring import Credentials, hang
from artifacts.store import Store
from flows.blocks import TYPES, driver_options

pytestmark = pytest.mark.slow

BUCKET = "fairway-blocks"


@pytest.fixture(autouse=True)
def nothing_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only blocks have credentials here."""
    for known in TYPES.values():
        for name in known.environment.values():
            monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("NO_GCE_CHECK", "true")


def opens(url: str, slug: str, fields: Mapping[str, str], folder: Path) -> None:
    """Write to and read from a store with a block's fields."""
    hang(url, Credentials(f"{slug}/lab", driver_options(slug, "lab", fields)))
    (folder / "file").write_bytes(b"content")
    store = Store.open(url, cache=folder / "cache")
    put = store.put_file(folder / "file")
    again = Store.open(url, cache=folder / "another")
    assert again.read_object(put.sha256) == b"content"
    store.write_run({"id": "20260714-093012-417-4f2a", "state": "running"})
    assert [run["state"] for run in again.list_runs()] == ["running"]


def is_refused(url: str, slug: str, fields: Mapping[str, str], secret: str, folder: Path) -> None:
    """The message names the block, and neither it nor its cause has the secret."""
    hang(url, Credentials(f"{slug}/wrong", driver_options(slug, "wrong", fields)))
    with pytest.raises(StoreRefused, match=re.escape(f"from {slug}/wrong")) as caught:
        Store.open(url, cache=folder / "refused").list_runs()
    seen: BaseException | None = caught.value
    while seen is not None:
        assert secret not in str(seen)
        seen = seen.__cause__


def test_s3(tmp_path: Path):
    pytest.importorskip("moto.server", reason="NO S3 TESTS: moto is not installed")
    pytest.importorskip("s3fs", reason="NO S3 TESTS: s3fs is not installed")
    from guarded_s3 import BUCKET as S3_BUCKET
    from guarded_s3 import guarded_s3

    with guarded_s3() as s3:
        place = {"endpoint": s3.endpoint, "region": "us-east-1"}
        opens(f"s3://{S3_BUCKET}/a", "fairway-s3", {"access_key": s3.key, "secret_key": s3.secret, **place}, tmp_path)
        wrong = {"access_key": s3.key, "secret_key": "not-the-secret", **place}
        is_refused(f"s3://{S3_BUCKET}/b", "fairway-s3", wrong, "not-the-secret", tmp_path)
        old = {"minio_root_user": s3.key, "minio_root_password": s3.secret, "region_name": "us-east-1"}
        endpoint = {"aws_client_parameters": {"endpoint_url": s3.endpoint}}
        opens(f"s3://{S3_BUCKET}/c", "minio-credentials", {**old, **endpoint}, tmp_path)


def test_google(tmp_path: Path):
    pytest.importorskip("gcsfs", reason="NO GOOGLE STORAGE TESTS: gcsfs is not installed")
    pytest.importorskip("gcp_storage_emulator", reason="NO GOOGLE STORAGE TESTS: gcp-storage-emulator is not installed")
    from guarded_google import guarded_google

    with guarded_google(BUCKET) as guard:
        fields = {"service_account": guard.key_file(), "endpoint": guard.endpoint}
        opens(f"gs://{BUCKET}/{uuid4().hex}", "fairway-gcs", fields, tmp_path)
        assert guard.tokens  # it was asked
        other = guard.key_file(guard.powerless)  # of an account without rights: gcsfs tells of it without retrying
        line = other.split("\\n")[3]  # of the private key
        wrong = {"service_account": other, "endpoint": guard.endpoint}
        is_refused(f"gs://{BUCKET}/{uuid4().hex}", "fairway-gcs", wrong, line, tmp_path)


def test_azure(tmp_path: Path):
    adlfs = pytest.importorskip("adlfs", reason="NO AZURE TESTS: adlfs is not installed")
    from objectstores import azure, azurite

    program = azurite()
    if program is None:
        pytest.skip("NO AZURE TESTS: Azurite is not installed; `npm install azurite@3.35.0` in this checkout brings it")
    with azure(program) as environment:
        text = environment["AZURE_STORAGE_CONNECTION_STRING"]
        adlfs.AzureBlobFileSystem(connection_string=text).mkdir(BUCKET)
        for slug in ("fairway-azure", "azure-blob-storage-credentials"):
            opens(f"az://{BUCKET}/{uuid4().hex}", slug, {"connection_string": text}, tmp_path)
        key = "bm90LXRoZS1rZXktb2YtdGhpcy1hY2NvdW50"
        wrong = re.sub("AccountKey=[^;]+", f"AccountKey={key}", text)
        is_refused(f"az://{BUCKET}/{uuid4().hex}", "fairway-azure", {"connection_string": wrong}, key, tmp_path)
