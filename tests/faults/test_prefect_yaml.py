"""`prefect.yaml` for those who prefer Prefect's own commands: those of its comment, word for word."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from lab import LIMIT_S, Lab
from toyriver import ROOT, make_tree

from artifacts.store import Store

pytestmark = pytest.mark.slow
POOL = "own"  # the lab's pool `cpu` has a worker of ours already


def test_prefects_own_commands_deploy_a_run_that_a_worker_of_prefects_carries_out(
    lab: Lab, recipe: str, tmp_path: Path
):
    tree = make_tree(tmp_path / "checkout")
    text = (ROOT / "prefect.yaml").read_text(encoding="utf-8")
    assert text.count("      name: cpu\n") == 1
    (tree / "prefect.yaml").write_text(text.replace("      name: cpu\n", f"      name: {POOL}\n"), encoding="utf-8")
    commands = [line.removeprefix("#   ") for line in text.splitlines() if line.startswith("#   prefect ")]
    pool, deploy, start = (shlex.split(command.replace(" cpu", f" {POOL}")) for command in commands)
    environment = {
        **{name: value for name, value in lab.submitter.environment.items() if name != "PYTHONPATH"},
        "PYTHONPATH": str(tree),  # where a user's checkout is installed
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PWD": str(tree),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    for command in (pool, deploy):
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
        assert done.returncode == 0, done.stdout + done.stderr
    deployment = lab.http.get("deployments/name/score/recipe").json()
    assert deployment["work_pool_name"] == POOL
    assert len(deployment["schedules"]) == 3
    assert not [each for each in deployment["schedules"] if each["active"]]
    seeds = {each["parameters"]["seed"] for each in deployment["schedules"]}
    assert seeds == {1, 2, 3}
    with (tmp_path / "worker.log").open("wb") as log:
        worker = subprocess.Popen(start, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        asked = {"toml": recipe, "scale": "smoke", "seed": 72}
        run = lab.post(f"deployments/{deployment['id']}/create_flow_run", parameters=asked)["id"]
        state = lab.ended(run)
        assert state["type"] == "COMPLETED", state["message"] + (tmp_path / "worker.log").read_text(encoding="utf-8")
    finally:
        os.killpg(worker.pid, signal.SIGTERM)
        worker.wait(LIMIT_S)
        lab.http.delete(f"deployments/{deployment['id']}").raise_for_status()
    store = Store.open(str(tree / ".fairway"))  # beside the checkout, as for `fairway run`
    assert [name for name in store.names() if name.endswith("/72/audit@1")]
