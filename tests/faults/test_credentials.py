"""Workers that have no key to the store: it is in a block of Prefect's, and in no file, database, log or argument."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from guarded_s3 import BUCKET, GuardedS3, guarded_s3
from lab import LIMIT_S, Lab, Machine, children_of, free_port, open_lab
from toyriver import make_tree
from toyrun import RECIPE
from weather import changed

from artifacts.backend import host_name, open_backend
from artifacts.errors import StoreRefused
from artifacts.keyring import Credentials, hang
from artifacts.store import Store

pytestmark = pytest.mark.slow

STORE = f"s3://{BUCKET}/lab"
SECRET = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL")


@dataclass
class Door:
    """The lab, and the S3 server that lets nobody in without a key."""

    lab: Lab
    s3: GuardedS3
    base: Path

    def save(self, name: str, key: str, secret: str) -> None:
        """Make a block as a person would: the values stand in this one command's environment."""
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", "credentials", "save", name, "--store", STORE],
            cwd=self.lab.submitter.folder / "work",
            env={
                **self.lab.submitter.environment,
                **self.s3.environment,
                "AWS_ACCESS_KEY_ID": key,
                "AWS_SECRET_ACCESS_KEY": secret,
            },
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert secret not in done.stdout + done.stderr


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """A server with the block `fairway-s3/lab`, and two workers whose machines have no key to the store."""
    pytest.importorskip("moto.server", reason="NO S3 TESTS: moto is not installed")
    pytest.importorskip("s3fs", reason="NO S3 TESTS: s3fs is not installed")
    base = tmp_path_factory.mktemp("door")
    api = f"http://127.0.0.1:{(port := free_port())}/api"
    kept = {name: value for name, value in os.environ.items() if name not in SECRET}
    environment = {**kept, "PREFECT_API_URL": api, "OMP_NUM_THREADS": "2", "AWS_EC2_METADATA_DISABLED": "true"}
    submitter = Machine("submitter", base / "submitter", make_tree(base / "submitter" / "tree"), environment)
    gpu = Machine("gpu", base / "gpu", make_tree(base / "gpu" / "tree"), environment)
    with guarded_s3() as s3, open_lab(port, base / "up", submitter, gpu, STORE) as lab:
        made = Door(lab, s3, base)
        made.save("lab", s3.key, s3.secret)
        submitter.fairway("deploy", "--store", STORE, "--credentials", "lab")
        submitter.start_worker("cpu", 0)
        gpu.start_worker("gpu", 1)
        yield made


@pytest.fixture
def recipe(door: Door) -> str:
    """The toy recipe as text; its documents lie on the submitter's machine."""
    source = door.lab.submitter.folder / "text.txt"
    source.write_text("Some text.\n", encoding="utf-8")
    return 'name = "toy"\n' + RECIPE.format(source=source)


@dataclass
class Watch:
    """Looks at the arguments and variables of every process below some others, as long as the `with` lasts."""

    parents: list[int]
    words: list[bytes]
    programs: set[str] = field(default_factory=set)  # modules that were seen to run
    leaks: set[str] = field(default_factory=set)

    def look(self) -> None:
        for pid in [*self.parents, *(child for parent in self.parents for child in children_of(parent))]:
            try:
                arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
                variables = Path(f"/proc/{pid}/environ").read_bytes()
            except OSError:
                continue  # it has ended
            self.programs.update(each.decode() for each in arguments.split(b"\0") if each.startswith(b"flows."))
            self.programs.update(each.decode() for each in arguments.split(b"\0") if each.startswith(b"stages."))
            if any(word in arguments + variables for word in self.words):
                self.leaks.add(arguments.replace(b"\0", b" ").decode())

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        stop = threading.Event()

        def loop() -> None:
            while not stop.wait(0.05):
                self.look()

        thread = threading.Thread(target=loop)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def files_with(folder: Path, words: list[bytes]) -> list[str]:
    """Files below a folder, databases and logs too, that hold one of the words."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [str(path.relative_to(folder)) for path in files if any(word in path.read_bytes() for word in words)]


def test_a_run_goes_through_with_a_key_that_only_a_block_has_and_that_shows_nowhere(door: Door, recipe: str):
    lab, secret = door.lab, door.s3.secret
    hang(STORE, Credentials("nobody", {**door.s3.options, "secret": "wrong"}))
    with pytest.raises(StoreRefused, match="nobody"):  # the server does ask for a key
        Store.open(STORE)
    words = [secret.encode(), door.s3.key.encode()]
    assert lab.submitter.worker is not None
    assert lab.gpu.worker is not None
    watch = Watch([lab.submitter.worker.pid, lab.gpu.worker.pid, os.getpid()], words)
    planted = subprocess.Popen(["sleep", "60"], env={**os.environ, "PLANTED": secret})
    watch.look()
    planted.kill()
    planted.wait()
    assert watch.leaks == {"sleep 60 "}  # it would see one
    watch.leaks.clear()
    with watch.looking():
        state = lab.ended(lab.score(toml=recipe, scale="smoke"))
    assert state["type"] == "COMPLETED", state
    assert {"flows.worker", "stages.train", "stages.tokenize"} <= watch.programs  # it saw what it is to see
    assert watch.leaks == set()

    (door.base / "planted").write_bytes(words[0])
    assert files_with(door.base, words) == ["planted"]  # server, its database and logs, both workers' folders
    (door.base / "planted").unlink()
    hang(STORE, Credentials("test", door.s3.options))
    backend = open_backend(STORE)
    held = [entry.path for entry in backend.walk("")]
    assert len(held) > 20
    assert [path for path in held if any(word in backend.read(path) for word in words)] == []
    assert {run["parameters"]["credentials"] for run in lab.stages()} == {"fairway-s3/lab"}
    shown = lab.post("block_documents/filter", block_documents={"name": {"any_": ["lab"]}})
    assert [each["data"]["secret_key"] for each in shown] == ["*" * 8]  # what the page gets

    # A terminal that has no key either.
    options = ["--store", STORE, "--credentials", "lab"]
    assert [run["state"] for run in lab.submitter.fairway("runs", "ls", *options)["runs"]] == ["completed"]
    assert lab.submitter.fairway("credentials", "check", "lab", "--store", STORE)["artifacts"] > 5
    # And a notebook, with the block's name from its environment.
    code = f"from flows import notebook; print(*(run['state'] for run in notebook.runs({STORE!r})))"
    named = {**lab.submitter.environment, "FAIRWAY_STORE_CREDENTIALS": "lab"}
    done = subprocess.run([sys.executable, "-c", code], env=named, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.stdout.split() == ["completed"], done.stderr


def test_a_block_that_is_wrong_or_missing_is_named_and_its_values_are_not(door: Door, recipe: str):
    door.save("wrong", door.s3.key, "not-the-secret-of-this-lab")
    for name, why in (("wrong", "refuses the credentials, from fairway-s3/wrong"), ("nowhere", "there is no nowhere")):
        command = [sys.executable, "-m", "flows.cli", "deploy", "--store", STORE, "--credentials", name]
        done = subprocess.run(command, env=door.lab.submitter.environment, capture_output=True, text=True)
        assert done.returncode != 0
        assert why in done.stderr
    state = door.lab.ended(door.lab.score(toml=recipe, scale="smoke", credentials="wrong"))
    assert state["type"] == "FAILED"
    assert "refuses the credentials, from fairway-s3/wrong" in state["message"]
    assert "SignatureDoesNotMatch" in state["message"] or "signature" in state["message"]
    assert not any(each in state["message"] for each in (door.s3.key, "not-the-secret"))
    state = door.lab.ended(door.lab.score(toml=recipe, scale="smoke", credentials="nowhere"))
    assert state["type"] == "FAILED"
    assert "there is no nowhere" in state["message"]
    # The machine itself still has no key.
    state = door.lab.ended(door.lab.score(toml=recipe, scale="smoke", credentials=""))
    assert "refuses the credentials, this machine's own" in state["message"]


def test_a_block_of_prefects_own_type_opens_the_store_too(door: Door):
    kind = door.lab.http.get("block_types/slug/aws-credentials").json()["id"]
    (schema, *_) = door.lab.post("block_schemas/filter", block_schemas={"block_type_id": {"any_": [kind]}})
    data = {
        "aws_access_key_id": door.s3.key,
        "aws_secret_access_key": door.s3.secret,
        "region_name": "us-east-1",
        "aws_client_parameters": {"endpoint_url": door.s3.endpoint},
    }
    door.lab.post("block_documents/", name="old", block_type_id=kind, block_schema_id=schema["id"], data=data)
    found = door.lab.submitter.fairway("credentials", "check", "old", "--store", STORE)
    assert found["block"] == "aws-credentials/old"
    assert "aws-credentials/old" in {each["block"] for each in door.lab.submitter.fairway("credentials", "ls")}


def test_a_changed_key_is_used_from_the_next_run_on(door: Door, recipe: str):
    door.s3.rotate()
    assert "fairway-s3/lab" in door.lab.ended(door.lab.score(toml=recipe, scale="smoke"))["message"]
    door.save("lab", door.s3.key, door.s3.secret)
    told = door.lab.submitter.fairway("doctor", "--pool", "gpu")["findings"]
    (store,) = [each for each in told if each["name"] == "store"]
    assert (store["state"], store["text"].split(":")[0]) == ("ok", "s3")  # the worker itself opens it


def test_a_source_beside_the_store_needs_a_key_of_the_machines_own_and_whoever_has_none_is_told_so(
    door: Door, recipe: str, tmp_path: Path
):
    lab, s3 = door.lab, door.s3
    source = f"s3://{BUCKET}/private/text.txt"
    write_object(s3, "private/text.txt", b"Some text.\n")
    private = f"corpus.source={source}"
    whose = "fairway-s3/lab opens this run's store and no source, since stages get no secrets"
    stranger = {**s3.environment, "AWS_ACCESS_KEY_ID": "stranger", "AWS_SECRET_ACCESS_KEY": "of-another-account"}
    with changed(lab.submitter, "cpu", 0, **stranger):
        ended = lab.ended(lab.score(toml=recipe, scale="smoke", overrides=[private]))
    assert ended["type"] == "FAILED"
    assert f"a source must be readable; {source} is not" in ended["message"]
    assert f"{whose}: let {host_name()}, where this ran, read {source} with a key of its own" in ended["message"]

    (tmp_path / "toy.toml").write_text(recipe, encoding="utf-8")
    plan = [sys.executable, "-m", "flows.cli", "plan", "toy.toml", "--scale", "smoke", "--set", private]
    plan += ["--store", STORE, "--credentials", "lab"]

    def planned(**own: str) -> subprocess.CompletedProcess[str]:
        environment = {**lab.submitter.environment, **own}
        return subprocess.run(plan, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=LIMIT_S)

    refused = planned(**stranger)
    assert refused.returncode == 3
    assert whose in refused.stderr
    assert planned(**s3.environment, **s3.credentials).returncode == 2  # there is work to do, and nothing in the way
    assert files_with(door.base, [s3.secret.encode()]) == []


def write_object(s3: GuardedS3, name: str, content: bytes) -> None:
    """Put a file into the store's bucket, beside the store."""
    import boto3

    keys = {"aws_access_key_id": s3.key, "aws_secret_access_key": s3.secret}
    with contextlib.closing(boto3.client("s3", endpoint_url=s3.endpoint, region_name="us-east-1", **keys)) as client:
        client.put_object(Bucket=BUCKET, Key=name, Body=content)
