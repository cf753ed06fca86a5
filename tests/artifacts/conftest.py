"""The places a store can lie in. A test that asks for `place` runs once in each of them: the store's contract."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

import pytest
import smalldisk

from artifacts.backend import open_backend
from artifacts.records import Published
from artifacts.store import Store

S3_ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AWS_DEFAULT_REGION": "us-east-1"}


def key_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass
class Place:
    """A store's address, with a door for tests that tamper with what lies there."""

    url: str
    folder: Path
    local: bool

    def open(self, host: str = "a") -> Store:
        """The store as one host sees it: each host has a cache of its own."""
        return Store.open(self.url, cache=self.folder / "hosts" / host)

    def paths(self, folder: str = "") -> list[str]:
        found = [entry.path for entry in open_backend(self.url).walk(folder)]
        return [path for path in found if not path.startswith("cache/")]

    def read(self, path: str) -> bytes:
        return open_backend(self.url).read(path)

    def overwrite(self, path: str, data: bytes) -> None:
        if self.local:
            target = Path(self.url, path)
            target.chmod(0o644)
            with target.open("r+b") as file:  # in place, as a failing disk or a stray program does
                file.truncate(0)
                file.write(data)
            target.chmod(0o444)
        else:
            open_backend(self.url).write(path, data)

    def flip(self, path: str, position: int = 0, bit: int = 1) -> None:
        data = bytearray(self.read(path))
        data[position] ^= bit
        self.overwrite(path, bytes(data))


@contextlib.contextmanager
def in_environment(environment: Mapping[str, str]) -> Iterator[None]:
    """Set for drivers that find their server there."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@pytest.fixture(scope="session")
def s3_bucket() -> Iterator[str]:
    """A bucket on an S3 server of our own, on a free port of 127.0.0.1."""
    server_module = pytest.importorskip("moto.server", reason="NO S3 TESTS: moto is not installed")
    pytest.importorskip("s3fs", reason="NO S3 TESTS: s3fs is not installed")
    import boto3

    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        with in_environment({**S3_ENVIRONMENT, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}):
            with contextlib.closing(boto3.client("s3")) as client:
                client.create_bucket(Bucket="fairway-tests")
            yield "fairway-tests"
    finally:
        server.stop()


@pytest.fixture(scope="session")
def gs_bucket() -> Iterator[str]:
    """A bucket on a Google Cloud Storage server of our own, or on the one that STORAGE_EMULATOR_HOST leads to."""
    if find_spec("gcsfs") is None:  # not imported here: the store sets what it reads then
        pytest.skip("NO GOOGLE STORAGE TESTS: gcsfs is not installed")
    if "STORAGE_EMULATOR_HOST" in os.environ:  # such as Google's testbench, with this bucket in it
        yield "fairway-tests"
        return
    pytest.importorskip("gcp_storage_emulator", reason="NO GOOGLE STORAGE TESTS: gcp-storage-emulator is not installed")
    from objectstores import google

    with google("fairway-tests") as environment, in_environment(environment):
        yield "fairway-tests"


@pytest.fixture(scope="session")
def az_container() -> Iterator[str]:
    """A container on an Azurite of our own."""
    adlfs = pytest.importorskip("adlfs", reason="NO AZURE TESTS: adlfs is not installed")
    from objectstores import azure, azurite

    program = azurite()
    if program is None:
        pytest.skip("NO AZURE TESTS: Azurite is not installed; `npm install azurite@3.35.0` in this checkout brings it")
    with azure(program) as environment, in_environment(environment):
        adlfs.AzureBlobFileSystem().mkdir("fairway-tests")
        yield "fairway-tests"


BUCKETS = {"s3": "s3_bucket", "gs": "gs_bucket", "az": "az_container"}


@pytest.fixture(
    params=["local", "memory", "s3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gs", "az"))]
)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty store, in each of the places that are tested."""
    if request.param == "local":
        return Place(str(tmp_path / "store"), tmp_path, local=True)
    if request.param == "memory":
        return Place(f"memory://{uuid4().hex}", tmp_path, local=False)
    bucket = request.getfixturevalue(BUCKETS[request.param])
    return Place(f"{request.param}://{bucket}/{uuid4().hex}", tmp_path, local=False)


@pytest.fixture
def local_place(tmp_path: Path) -> Place:
    """An empty store in a folder, for what the place makes no difference to."""
    return Place(str(tmp_path / "store"), tmp_path, local=True)


Publish = Callable[..., Published]


@pytest.fixture
def publish(tmp_path: Path) -> Publish:
    """Publish files given as {path: bytes} under the key of a text."""

    def run(
        store: Store,
        text: str,
        files: Mapping[str, bytes] | None = None,
        *,
        stage: str = "train",
        part: str = "",
        made_from: Mapping[str, Published] | None = None,
        **more: object,
    ) -> Published:
        folder = tmp_path / "outputs" / uuid4().hex
        for path, data in (files if files is not None else {"raw/weights.bin": text.encode() * 100}).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        folder.mkdir(parents=True, exist_ok=True)
        inputs = {
            role: {"digest": key_of(role), "from": [made.record.producer("raw")]}
            for role, made in (made_from or {}).items()
        }
        fields = {"components": {}, "report": {"bpb": 1.25}, "inputs": inputs, **more}
        return store.publish(stage=stage, part=part, key=key_of(text), folder=folder, **fields)  # type: ignore[arg-type]

    return run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    with smalldisk.small_disk(tmp_path / "disk", 1 << 20) as folder:
        yield folder
