"""An S3 server of our own, for runs whose store is not a folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from uuid import uuid4

import pytest
from heldstages import HeldStages
from lab import CANARY, Lab, Machine, free_port, open_lab
from toyriver import behave, make_tree
from toyrun import RECIPE


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
        "AWS_SECRET_ACCESS_KEY": CANARY,
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


@pytest.fixture(scope="session")
def lab(s3_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A server, a machine that runs flows and one that runs stages; they share the server and a store on S3, no file.

    The stages' machine has another checkout: its stages cannot run at all.
    """
    base = tmp_path_factory.mktemp("lab")
    api, store = f"http://127.0.0.1:{(port := free_port())}/api", f"s3://fairway-runs/{uuid4().hex}"
    environment = {**os.environ, **s3_environment, "PREFECT_API_URL": api, "OMP_NUM_THREADS": "2"}
    submitter = Machine("submitter", base / "submitter", make_tree(base / "submitter" / "tree"), environment)
    device = {"CUDA_VISIBLE_DEVICES": f"lab{port}a,lab{port}b"}  # GPUs by name: claimed as any, touched by no stage
    gpu = Machine("gpu", base / "gpu", make_tree(base / "gpu" / "tree"), {**environment, **device})
    for stage in ("train", "quantize", "evaluate", "audit"):
        behave(submitter.tree, stage, 'print("edited code at", os.environ["HOME"])')
        behave(gpu.tree, stage, 'raise RuntimeError("the code of the worker\'s own checkout runs")')
    for machine, path, was, now in [(submitter, *each) for each in PATIENCE] + [(gpu, *each) for each in VOICE]:
        file = machine.tree / path
        assert was in file.read_text(encoding="utf-8"), path
        file.write_text(file.read_text(encoding="utf-8").replace(was, now), encoding="utf-8")
    with open_lab(port, base / "up", submitter, gpu, store) as lab:
        submitter.start_worker("cpu", 0)
        gpu.start_worker("gpu", 1)
        yield lab


@pytest.fixture
def spare(lab: Lab) -> Iterator[Machine]:
    """Another worker's machine of the stages' pool, beside the same GPUs; nothing runs there yet."""
    machine = Machine("spare", lab.gpu.folder.parent / "spare", lab.gpu.tree, lab.gpu.environment)
    yield machine
    machine.stop()


@pytest.fixture(scope="module")
def held(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HeldStages]:
    """Gates in the submitter's accelerated stages. The stages' pool has one slot, which a corpse would block."""
    stages = HeldStages(lab.submitter.tree, tmp_path_factory.mktemp("gates") / "files")
    lab.http.patch("work_pools/gpu", json={"concurrency_limit": 1}).raise_for_status()
    yield stages
    lab.http.patch("work_pools/gpu", json={"concurrency_limit": None}).raise_for_status()
    stages.restore()


@pytest.fixture
def recipe(lab: Lab) -> str:
    """The toy recipe as text; its documents lie on the submitter's machine."""
    source = lab.submitter.folder / "text.txt"
    source.write_text("Some text.\n", encoding="utf-8")
    return 'name = "toy"\n' + RECIPE.format(source=source)


# What takes a minute for people takes seconds for tests. All of it belongs to the submitter's checkout.
PATIENCE = (
    ("flows/remote_dispatch.py", "SILENCE_S = 60.0", "SILENCE_S = 15.0"),
    ("flows/mirror.py", "EVERY_S = 5.0", "EVERY_S = 0.5"),
    ("artifacts/lease.py", "TIME_LIMIT_S = 60.0", "TIME_LIMIT_S = 8.0"),
)
# So whoever lives speaks more often, on a machine that tests keep busy too.
VOICE = (("flows/signs.py", "BEAT_EVERY_S = 10.0", "BEAT_EVERY_S = 2.0"),)
