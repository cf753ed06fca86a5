"""A run whose stages are jobs of Kubernetes: its API is played by a server of ours, all the rest is real.

The worker is Prefect's, started as docs/lab says, in a pool made from our template. What it asks of the cluster is held
against Kubernetes' own models, and the container's command is carried out as a process with the manifest's environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetesmodels import unknown_fields
from lab import LIMIT_S, Lab, children_of, wait_for

from artifacts.store import Store

pytest.importorskip("prefect_kubernetes", reason="NO KUBERNETES TEST: prefect-kubernetes is not installed")
pytestmark = pytest.mark.slow

LAB = Path(__file__).resolve().parents[2] / "docs" / "lab"
POOL = "k8s"
ACCELERATED = ["train", "quantize", "evaluate", "audit"]


class Cluster:
    """Takes jobs as Kubernetes' API does, and runs each as a process in a folder of its own."""

    def __init__(self, folder: Path, image: dict[str, str], secrets: dict[str, dict[str, str]]) -> None:
        self.folder, self.image, self.secrets = folder, image, secrets
        self.jobs: list[dict[str, Any]] = []
        self.unknown: list[str] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{self.server.server_port}"
        self.kubeconfig = folder / "kubeconfig"
        named = {"name": "lab"}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "lab",
            "clusters": [{**named, "cluster": {"server": address}}],
            "users": [{**named, "user": {"token": "not-a-secret"}}],
            "contexts": [{**named, "context": {"cluster": "lab", "user": "lab"}}],
        }
        self.kubeconfig.write_text(yaml.safe_dump(config), encoding="utf-8")

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                manifest = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                is_job = self.path.partition("?")[0] == "/apis/batch/v1/namespaces/default/jobs"
                self.answer(201, cluster.start(manifest)) if is_job else self.answer(404, {"message": self.path})

            def do_GET(self) -> None:
                self.answer(404, {"message": "not found"})

            def answer(self, status: int, body: dict[str, Any]) -> None:
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                return

        return Handler

    def start(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Check a job, run it, and give it a name."""
        self.unknown += unknown_fields(manifest, "V1Job", "job")
        self.jobs.append(manifest)
        container = manifest["spec"]["template"]["spec"]["containers"][0]
        given = {each["name"]: each["value"] for each in container["env"]}
        for source in container["envFrom"]:
            given |= self.secrets[source["secretRef"]["name"]]
        work = self.folder / f"job-{len(self.jobs)}"
        work.mkdir()
        given |= {"PREFECT_HOME": str(work / "prefect"), "HOME": str(work)}  # an image's user has a home of his own
        with (work / "log").open("wb") as log:
            process = subprocess.Popen(
                container["args"], cwd=work, env={**self.image, **given}, stdout=log, stderr=log, start_new_session=True
            )
        self.processes.append(process)
        name = f"{manifest['metadata']['generateName']}{len(self.jobs)}"
        return {**manifest, "metadata": {**manifest["metadata"], "name": name, "namespace": "default"}}

    def stop(self) -> None:
        """No job is left."""
        self.server.shutdown()
        self.server.server_close()
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def cluster(lab: Lab, tmp_path: Path) -> Iterator[Cluster]:
    """A pool of our template, a cluster, and Prefect's worker between them."""
    template = json.loads((LAB / "pools" / "kubernetes.json").read_text(encoding="utf-8"))
    made = {"name": POOL, "type": "kubernetes", "base_job_template": template}
    lab.http.post("work_pools/", json=made).raise_for_status()
    lab.submitter.fairway("deploy", "--store", lab.store, "--gpu-pool", POOL)
    lab.submitter.fairway("deploy", "--store", lab.store)  # the form's pool is the lab's again
    theirs = {name: value for name, value in lab.gpu.environment.items() if not name.startswith(("PREFECT", "AWS"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), theirs["PATH"]])
    store = {name: value for name, value in lab.gpu.environment.items() if name.startswith("AWS_")}
    cluster = Cluster(tmp_path, {**theirs, "PATH": path}, {"fairway-store": store})
    options = {
        "KUBECONFIG": str(cluster.kubeconfig),
        "PREFECT_HOME": str(tmp_path / "worker"),
        "PREFECT_API_URL": lab.api,
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_ENABLED": "false",  # it watches; our cluster has nothing to watch
    }
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL]
    with (tmp_path / "worker.log").open("wb") as log:
        worker = subprocess.Popen(command, cwd=tmp_path, env={**theirs, **options}, stdout=log, stderr=log)
    try:
        yield cluster
    finally:
        worker.terminate()
        worker.wait(LIMIT_S)
        cluster.stop()
        wait_for(lambda: not [pid for p in cluster.processes for pid in children_of(p.pid)], "no process is left")


def test_each_accelerated_stage_is_one_job_that_kubernetes_knows_and_whose_command_runs_it(
    lab: Lab, cluster: Cluster, recipe: str
):
    path = lab.submitter.folder / "work" / "kubernetes.toml"
    path.write_text(recipe, encoding="utf-8")
    asked = ["run", str(path), "--scale", "smoke", "--seed", "71", "--store", lab.store, "--pool", POOL]
    lab.submitter.fairway(*asked)
    assert cluster.unknown == []
    assert [process.wait(LIMIT_S) for process in cluster.processes] == [0] * len(cluster.jobs)
    store = Store.open(lab.store)
    ran = [step for step in lab.document()["steps"] if step.get("flow_run")]
    assert {step["stage"] for step in ran} == set(ACCELERATED)
    assert len(cluster.jobs) == len(ran)
    for step in ran:  # the submitter's code, although the image's own cannot run
        made = store.get(step["stage"], step["key"])
        assert made is not None
        assert store.read_object(made.provenance["log"]).decode().startswith("edited code at")
    for job in cluster.jobs:
        pod = job["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert container["image"] == "fairway:job"
        assert container["args"] == ["python", "-m", "prefect.engine"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == 8
        given = {each["name"]: each["value"] for each in container["env"]}
        assert given["PREFECT_API_URL"] == lab.api
        assert given["PREFECT_HOME"] == "/home/fairway/.prefect"  # not the worker's
        assert not [name for name in given if name.startswith("AWS")]
        assert pod["restartPolicy"] == "Never"  # another attempt is another run
