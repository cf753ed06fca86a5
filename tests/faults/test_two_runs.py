"""Two runs of one recipe at once: everything is made once, both end well."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from toyriver import STAGES, behave, make_tree
from toyrun import request, run_toy, write_recipe

from artifacts.store import Store

ROOT = Path(__file__).resolve().parents[2]
RUN = """
import sys
from pathlib import Path
from toyrun import request, run_toy
folder, more = Path(sys.argv[1]), dict(word.split("=", 1) for word in sys.argv[2:])
outcomes = run_toy(request(folder, folder / "tree", **more))
print(len(outcomes), sum(o.state == "ran" for o in outcomes))
"""


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support'}"}
    environment = {**os.environ, **path}
    command = [sys.executable, "-c", RUN, str(folder), *more]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def counting_tree(folder: Path, body: str = "") -> Path:
    """A tree whose stages each leave a mark when they run."""
    write_recipe(folder)
    tree = make_tree(folder / "tree")
    (folder / "marks").mkdir()
    for stage in STAGES:
        mark = f"open({str(folder / 'marks')!r} + f'/{stage}-{{os.getpid()}}', 'w').close()\ntime.sleep(0.05)\n{body}"
        behave(tree, stage, mark)
    return tree


def both(folder: Path, *more: str) -> list[str]:
    """Two processes at once; what they printed."""
    printed = []
    for process in [start(folder, *more), start(folder, *more)]:
        out, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
        printed.append(out)
    return printed


def test_two_processes_make_everything_once(tmp_path: Path):
    counting_tree(tmp_path)
    counts = [[int(word) for word in printed.split()] for printed in both(tmp_path)]
    assert [total for total, _ in counts] == [16, 16]
    assert sum(ran for _, ran in counts) == 16
    assert len(list((tmp_path / "marks").iterdir())) == 16
    store = Store.open(tmp_path / "store")
    assert len(list(store.records())) == 16
    assert len(list(store.names())) == 16
    assert store.verify() == []
    assert [run["state"] for run in store.list_runs()] == ["completed", "completed"]


def test_two_threads_of_one_process_make_everything_once(tmp_path: Path):
    tree = counting_tree(tmp_path)
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(run_toy, request(tmp_path, tree)) for _ in range(2)]
        states = [[outcome.state for outcome in run.result()] for run in runs]
    assert sum(each.count("ran") for each in states) == 16


def test_results_that_differ_leave_the_first_and_both_go_on_with_it(tmp_path: Path):
    """As on two GPUs: both trained, because neither saw the other's lease."""
    tree = counting_tree(
        tmp_path, 'out.joinpath("raw_").mkdir()\nout.joinpath("raw_", "x").write_text(str(os.getpid()))'
    )
    first = run_toy(request(tmp_path, tree))
    second = run_toy(request(tmp_path, tree, force=("train",)))
    trained = [next(o.record for o in outcomes if o.step.stage == "train") for outcomes in (first, second)]
    assert trained[0] == trained[1]
    assert {o.state for o in second if o.step.stage != "train"} == {"cached"}
    assert len(second) == len(first)
    assert list((tmp_path / "store" / "conflicts" / "train").rglob("*.json"))


@pytest.mark.slow
def test_two_processes_make_everything_once_on_s3(tmp_path: Path, s3_store: str):
    counting_tree(tmp_path)
    counts = [[int(word) for word in printed.split()] for printed in both(tmp_path, f"store={s3_store}")]
    assert sum(ran for _, ran in counts) == 16
    assert len(list((tmp_path / "marks").iterdir())) == 16
    assert Store.open(s3_store).verify() == []
