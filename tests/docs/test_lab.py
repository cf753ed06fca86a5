"""The files for a lab hold together: the compose file, the pools' templates, and its server on PostgreSQL."""

from __future__ import annotations

import base64
import json
import os
import pwd
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import prefect
import pytest
import yaml
from kubernetesmodels import unknown_fields
from prefect.utilities.templating import apply_values, find_placeholders

from flows.cli import parser

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT / "docs" / "lab"
CATALOGUE = Path(prefect.__file__).parent / "server/api/collections_data/views/aggregate-worker-metadata.json"
GIVEN_AT_RUN_TIME = {"command", "name", "labels"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((LAB / "compose.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def example() -> dict[str, str]:
    lines = (LAB / "example.env").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def substituted(text: str, values: dict[str, str]) -> str:
    """As Docker Compose does it, for `${NAME}`, `${NAME:-default}` and `${NAME:?message}`."""
    return re.sub(
        r"\$\{(\w+)(?::([-?])([^}]*))?\}",
        lambda found: values.get(found[1]) or (found[3] if found[2] == "-" else ""),
        text,
    )


def test_every_secret_is_in_the_example_and_none_in_the_compose_file(compose, example):
    text = (LAB / "compose.yaml").read_text(encoding="utf-8")
    asked = set(re.findall(r"\$\{(\w+)", text))
    assert asked == set(example)
    for service in compose["services"].values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|AUTH|CONNECTION_URL", name):
                assert "${" in value, name


def test_services_volumes_and_image_targets_that_are_named_exist(compose):
    services = compose["services"]
    targets = set(re.findall(r"^FROM \S+ AS (\S+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE))
    for service in services.values():
        assert set(service.get("depends_on", {})) <= set(services)
        volumes = {each.split(":")[0] for each in service.get("volumes", [])}
        assert volumes <= set(compose["volumes"])
        if service["image"].startswith("fairway:"):
            assert service["image"].removeprefix("fairway:") in targets
    assert {"database", "objects", "server", "cpu-worker", "gpu-worker"} <= set(services)


@pytest.mark.parametrize("service", ["cpu-worker", "gpu-worker", "deploy"])
def test_the_commands_are_ones_that_fairway_has(compose, service):
    command = compose["services"][service]["command"]
    words = shlex.split(command if isinstance(command, str) else command[0].split("&& fairway ")[1])
    parser().parse_args(words)


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
class TestPoolTemplates:
    """`prefect work-pool create gpu --type KIND --base-job-template docs/lab/pools/KIND.json`."""

    @pytest.fixture
    def template(self, kind: str) -> dict[str, Any]:
        return json.loads((LAB / "pools" / f"{kind}.json").read_text(encoding="utf-8"))

    @pytest.fixture
    def known(self, kind: str) -> dict[str, Any]:
        workers = json.loads(CATALOGUE.read_text(encoding="utf-8"))[f"prefect-{kind}"]
        return workers[kind]["default_base_job_configuration"]

    def test_what_a_job_is_configured_by_is_what_prefect_knows(self, template, known):
        assert set(template["job_configuration"]) <= set(known["job_configuration"])

    def test_every_placeholder_is_a_variable_and_every_variable_is_used(self, template):
        placeholders = {each.name for each in find_placeholders(template["job_configuration"])}
        assert placeholders == set(template["variables"]["properties"])

    def test_the_variables_are_a_schema_that_their_own_defaults_satisfy(self, template):
        schema = template["variables"]
        jsonschema.Draft202012Validator.check_schema(schema)
        defaults = {name: each["default"] for name, each in schema["properties"].items() if "default" in each}
        jsonschema.validate(defaults, schema)

    def test_a_job_says_nothing_to_analytics(self, template):
        environment = template["variables"]["properties"]["env"]["default"]
        assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


def test_the_kubernetes_job_has_no_field_that_kubernetes_does_not_know():
    template = json.loads((LAB / "pools" / "kubernetes.json").read_text(encoding="utf-8"))
    properties = template["variables"]["properties"]
    values = {name: each["default"] for name, each in properties.items() if "default" in each}
    values |= {"command": ["python", "-m", "prefect.engine"], "name": "stage", "labels": {"a": "b"}}
    values["env"] = [{"name": name, "value": value} for name, value in values["env"].items()]
    manifest = apply_values(template["job_configuration"]["job_manifest"], values, remove_notset=True)
    unknown = list(unknown_fields(manifest, "V1Job", "job"))
    assert unknown == []
    container = manifest["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 8
    assert list(unknown_fields({"spec": {"replicas": 1}}, "V1Job", "job")) == ["job.spec.replicas"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[tuple[int, str]]:
    """(port, password) of a PostgreSQL of our own."""
    programs = [shutil.which("initdb"), shutil.which("postgres"), shutil.which("createdb")]
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin")) if None in programs else []
    initdb, server, createdb = (str(found[-1] / n) for n in ("initdb", "postgres", "createdb")) if found else programs
    if initdb is None:
        pytest.skip("NO POSTGRESQL TEST: initdb and postgres are not installed")
    as_user: dict[str, Any] = {}
    if os.geteuid() == 0:  # it refuses to run as root
        try:
            account = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("NO POSTGRESQL TEST: it does not run as root, and there is no user postgres")
        as_user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    folder = Path("/tmp") / f"fairway-pg-{os.getpid()}"  # a socket's path is short, and its folder the user's own
    folder.mkdir(mode=0o755)
    if as_user:
        os.chown(folder, as_user["user"], as_user["group"])
    port, password = free_port(), "not-a-secret"
    (tmp_path / "password").write_text(password, encoding="utf-8")
    shutil.copy(tmp_path / "password", folder / "password")
    (folder / "password").chmod(0o644)
    options = {**as_user, "cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    data = str(folder / "data")
    process = None
    try:
        first = [initdb, "-D", data, "-U", "prefect", "-A", "scram-sha-256", "--pwfile", str(folder / "password")]
        subprocess.run(first, check=True, **options)
        process = subprocess.Popen(
            [server, "-D", data, "-p", str(port), "-k", str(folder), "-h", "127.0.0.1"], **options
        )
        environment = {**os.environ, "PGPASSWORD": password}
        create = [createdb, "-h", "127.0.0.1", "-p", str(port), "-U", "prefect", "prefect"]
        for _ in range(100):
            if subprocess.run(create, env=environment, capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.1)
        else:
            raise RuntimeError("PostgreSQL did not come up")
        yield port, password
    finally:
        if process is not None:
            process.terminate()
            process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_the_servers_command_runs_on_postgresql_and_asks_for_the_password(compose, example, postgres, tmp_path):
    port, password = postgres
    service = compose["services"]["server"]
    values = {**example, "FAIRWAY_DATABASE_PASSWORD": password}
    environment = {name: substituted(value, values) for name, value in service["environment"].items()}
    url = environment["PREFECT_API_DATABASE_CONNECTION_URL"]
    environment["PREFECT_API_DATABASE_CONNECTION_URL"] = url.replace("@database:5432/", f"@127.0.0.1:{port}/")
    own = free_port()
    command = service["command"].replace("0.0.0.0", "127.0.0.1").replace("4200", str(own))
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", service["entrypoint"], *shlex.split(command)],
            env={**clean, **environment, "PREFECT_HOME": str(tmp_path / "home")},
            stdout=log,
            stderr=log,
        )
    try:
        api = f"http://127.0.0.1:{own}/api"
        for _ in range(600):
            assert process.poll() is None, (tmp_path / "server.log").read_text(encoding="utf-8")[-3000:]
            try:
                with urllib.request.urlopen(f"{api}/health", timeout=2):
                    break
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{api}/admin/version", timeout=5)
        assert refused.value.code == 401
        refused.value.close()
        basic = base64.b64encode(values["FAIRWAY_AUTH"].encode()).decode()

        def ask(path: str, body: dict[str, Any] | None = None) -> Any:
            data = None if body is None else json.dumps(body).encode()
            headers = {"Authorization": f"Basic {basic}", "Content-Type": "application/json"}
            with urllib.request.urlopen(urllib.request.Request(f"{api}{path}", data, headers), timeout=20) as answer:
                return json.load(answer)

        assert ask("/admin/version") == prefect.__version__
        for kind in ("docker", "kubernetes"):  # and it takes the pools' templates
            template = json.loads((LAB / "pools" / f"{kind}.json").read_text(encoding="utf-8"))
            made = ask("/work_pools/", {"name": kind, "type": kind, "base_job_template": template})
            assert made["base_job_template"]["variables"] == template["variables"]
        log_text = (tmp_path / "server.log").read_text(encoding="utf-8")
        assert password not in log_text
        assert values["FAIRWAY_AUTH"] not in log_text
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
