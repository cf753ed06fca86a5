"""The command line as people and programs meet it: whole processes on the toy river, some of them in a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from toyriver import behave, make_tree
from toyrun import write_recipe

from flows.server import OwnServer

FAIRWAY = [sys.executable, "-m", "flows.cli"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefect's folder, so that its database is made once and not in the user's home."""
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture(scope="module")
def api(home: Path) -> Iterator[str]:
    """One server for all commands that do not ask for their own."""
    server = OwnServer({"PREFECT_HOME": str(home)})
    server.start()
    server.wait_until_ready()
    yield server.url
    server.stop()


class Shell:
    """Runs `fairway` of the toy tree in a folder."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder, self.tree = folder, folder / "tree"
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        self.environment = {**kept, "PYTHONPATH": str(self.tree), **environment}

    def __call__(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*FAIRWAY, *words], cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == code, done.stderr + done.stdout
        return done

    def json(self, *words: str, code: int = 0) -> dict:
        """What a command prints with --json, which must be all that it prints on stdout."""
        return json.loads(self(*words, "--json", code=code).stdout)

    def terminal(self, *words: str) -> Terminal:
        """The command in a terminal of its own."""
        return Terminal([*FAIRWAY, *words], self.folder, self.environment)


class Terminal:
    """A process whose terminal is ours to read and to type into."""

    def __init__(self, command: list[str], folder: Path, environment: Mapping[str, str]) -> None:
        self.pid, self._master = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execvpe(command[0], command, {**environment, "TERM": "xterm", "COLUMNS": "100"})
        self.text = ""

    def read_until(self, pattern: str, limit_s: float = 240.0) -> None:
        deadline = time.monotonic() + limit_s
        while not re.search(pattern, self.text):
            assert time.monotonic() < deadline, self.text
            assert self._read(), self.text

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def wait(self) -> int:
        while self._read():
            pass
        _, status = os.waitpid(self.pid, 0)
        os.close(self._master)
        return os.waitstatus_to_exitcode(status)

    def _read(self) -> bool:
        if not select.select([self._master], [], [], 0.2)[0]:
            return True
        try:
            data = os.read(self._master, 65536)
        except OSError:  # Linux says EIO when the other side has closed
            return False
        self.text += data.decode("utf-8", "replace")
        return bool(data)


@pytest.fixture
def fairway(tmp_path: Path, api: str, home: Path) -> Shell:
    """`fairway` with a Prefect server configured, in a folder with the toy recipe."""
    make_tree(tmp_path / "tree")
    write_recipe(tmp_path)
    return Shell(tmp_path, {"PREFECT_API_URL": api, "PREFECT_HOME": str(home)})


@pytest.fixture(scope="module")
def finished_folder(tmp_path_factory: pytest.TempPathFactory, api: str, home: Path) -> Path:
    """A folder in which the toy recipe has run."""
    folder = tmp_path_factory.mktemp("finished")
    make_tree(folder / "tree")
    write_recipe(folder)
    Shell(folder, {"PREFECT_API_URL": api, "PREFECT_HOME": str(home)})("run", "toy.toml")
    return folder


@pytest.fixture
def finished(finished_folder: Path, tmp_path: Path, api: str, home: Path) -> Shell:
    """`fairway` where the toy recipe has run."""
    subprocess.run(["cp", "-a", f"{finished_folder}/.", str(tmp_path)], check=True)
    return Shell(tmp_path, {"PREFECT_API_URL": api, "PREFECT_HOME": str(home)})


def processes_with(text: str) -> list[str]:
    """Command lines of running processes that mention `text`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if text in line:
            found.append(line)
    return found


def test_run_prints_one_object_with_json_and_shows_progress_elsewhere(fairway: Shell):
    done = fairway("run", "toy.toml", "--seed", "7", "--set", "compress.level=3", "--json")
    result = json.loads(done.stdout)
    assert (result["recipe"], result["scale"], result["seed"]) == ("toy", "full", 7)
    assert {stage["state"] for stage in result["stages"]} == {"ran"}
    assert set(result["scores"]) == {"raw", "roundtrip", "sliding"}
    assert "train" in done.stderr


def test_a_second_run_is_cached_and_prints_scores_sizes_and_run(finished: Shell):
    done = finished("run", "toy.toml")
    assert "0 of 16 steps ran" in done.stdout
    assert re.search(r"roundtrip\t1\.2500\t2\.5000\t1,000\t3,000", done.stdout)
    assert "30 bytes (code 10 + model 20), 30.0 % of the cap of 100" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


def test_without_a_server_a_run_starts_its_own_and_leaves_none(finished: Shell):
    del finished.environment["PREFECT_API_URL"]
    assert "0 of 16 steps ran" in finished("run", "toy.toml").stdout
    assert not [line for line in processes_with("prefect.server.api.server") if str(finished.folder) in line]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "quickstrat"], "got 'quickstrat'"),
        (["run", "toy.toml", "--set", "train.muon.lrr=1"], "did you mean 'lr'"),
        (["run", "toy.toml", "--set", "train.steps=ten"], "train.steps is a whole number"),
        (["run", "toy.toml", "--scale", "smok"], "did you mean 'smoke'"),
        (["run", "toy.toml", "--until", "trian"], "--until names a stage; got 'trian'"),
        (["run", "toy.toml", "--set", "corpus.source=/nowhere/at/all.txt"], "/nowhere/at/all.txt"),
        (["run", "toy.toml", "--store", "s3://key:secret@bucket/x"], "must not carry credentials"),
        (["artifacts", "show", "nothing/like/1/this"], "there is no nothing/like/1/this"),
        (["runs", "show", "nothing"], "there is no run 'nothing'"),
    ],
)
def test_a_mistake_is_one_clean_message_and_leaves_nothing(fairway: Shell, words: list[str], message: str):
    done = fairway(*words, code=3)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert "secret" not in done.stderr
    assert not (fairway.folder / ".fairway" / "runs").exists()


def test_a_mistake_is_an_object_with_json(fairway: Shell):
    error = fairway.json("run", "quickstrat", code=3)["error"]
    assert error["kind"] == "user"
    assert "quickstrat" in error["message"]


def test_wrong_usage_has_its_own_code(fairway: Shell):
    assert "usage: fairway" in fairway("runn", code=2).stderr


def test_a_stage_that_refuses_its_input_ends_the_run_with_its_words_and_its_log(fairway: Shell):
    behave(
        fairway.tree, "average", 'print("before the end")\nraise StageError("snapshots are there; got none; set every")'
    )
    done = fairway("run", "toy.toml", code=3)
    assert "snapshots are there; got none; set every" in done.stderr
    log = Path(re.search(r"log: (.+)", done.stderr)[1])
    assert "before the end" in log.read_text(encoding="utf-8")
    assert "Traceback" not in done.stderr


def test_a_stage_that_crashes_has_code_1(fairway: Shell):
    behave(fairway.tree, "average", "1 / 0")
    assert "ZeroDivisionError" in fairway("run", "toy.toml", code=1).stderr


def test_a_fault_of_our_own_keeps_its_traceback_in_a_file(fairway: Shell):
    (fairway.tree / "flows" / "summary.py").write_text("def summarise(*given):\n    raise KeyError('scores')\n")
    done = fairway("run", "toy.toml", "--until", "corpus", code=1)
    assert "unexpected KeyError" in done.stderr
    assert "Traceback" not in done.stderr
    assert "summarise" in Path(re.search(r"traceback is in (\S+)", done.stderr)[1]).read_text(encoding="utf-8")


def test_plan_says_with_its_code_whether_there_is_work(finished: Shell):
    steps = finished.json("plan", "toy.toml")["steps"]
    assert {step["state"] for step in steps} == {"cached"}
    planned = finished.json("plan", "toy.toml", "--set", "average.last=3", code=2)
    states = {step["stage"]: step["state"] for step in planned["steps"]}
    assert (states["train"], states["average"], states["quantize"]) == ("cached", "run", "depends")
    assert planned["expected_s"] > 0
    assert "config: average.last 12 -> 3" in finished("plan", "toy.toml", "--set", "average.last=3", code=2).stdout


def test_plan_and_other_questions_import_neither_torch_nor_prefect(finished: Shell):
    for words in (["plan", "toy.toml"], ["recipes"], ["artifacts", "ls"], ["runs", "ls"]):
        code = (
            f"import sys; from flows.cli import main; main({words!r}); "
            "sys.exit(bool({'torch', 'prefect', 'matplotlib', 'numpy'} & set(sys.modules)))"
        )
        subprocess.run(
            [sys.executable, "-c", code], cwd=finished.folder, env=finished.environment, check=True, capture_output=True
        )


def test_plan_leaves_the_store_as_it_was(finished: Shell):
    def content() -> dict[str, bytes]:
        store = finished.folder / ".fairway"
        paths = [p for p in store.rglob("*") if p.is_file() and p.relative_to(store).parts[0] != "cache"]
        return {str(p): p.read_bytes() for p in paths}

    before = content()
    finished("plan", "toy.toml", "--set", "train.steps=3", code=2)
    assert content() == before


def test_why_names_the_field_and_the_code_that_changed(finished: Shell):
    assert "nothing that the key is made of differs" in finished("why", "toy/full/1337/train").stdout
    finished("run", "toy.toml", "--set", "train.steps=4")
    assert finished("why", "toy/full/1337/train@1", "toy/full/1337/train@2").stdout == "config: train.steps 9000 -> 4\n"
    behave(finished.tree, "train", "time.sleep(0)")
    assert "code: stages/train/stage.py line" in finished("why", "toy/full/1337/train@1").stdout


def test_runs_are_listed_shown_and_removed(finished: Shell):
    (run,) = finished.json("runs", "ls")["runs"]
    assert (run["state"], run["recipe"]) == ("completed", "toy")
    shown = finished.json("runs", "show", run["id"])
    assert {step["state"] for step in shown["steps"]} == {"ran"}
    assert "toy/full/1337/train@1" in finished("runs", "show", run["id"]).stdout
    made = finished.json("artifacts", "ls")["artifacts"]
    assert "under their names" in finished("runs", "rm", run["id"][4:]).stdout
    assert finished.json("runs", "ls")["runs"] == []
    assert "nothing to remove" in finished("artifacts", "gc", "--yes").stdout
    for listing in ("runs", "artifacts"):  # a mistyped store is an empty one
        assert str(finished.folder / "mistyped") in finished(listing, "ls", "--store", "mistyped").stderr
    assert not (finished.folder / "mistyped").exists()
    assert finished.json("artifacts", "ls")["artifacts"] == made


def test_a_run_whose_recipe_is_gone_can_still_be_explained(finished: Shell):
    recipe = finished.folder / "toy.toml"
    text = recipe.read_text(encoding="utf-8")
    recipe.unlink()
    try:
        assert "nothing that the key is made of differs" in finished("why", "toy/full/1337/train").stdout
    finally:
        recipe.write_text(text, encoding="utf-8")


def test_a_run_without_logs_says_so(finished: Shell):
    (run,) = finished.json("runs", "ls")["runs"]
    for log in (finished.folder / ".fairway" / "logs" / run["id"]).iterdir():
        log.write_text("", encoding="utf-8")
    told = finished("runs", "logs", run["id"][4:])
    assert (told.stdout, run["id"] in told.stderr) == ("", True)


def test_artifacts_travel_as_a_file_and_between_stores(finished: Shell):
    name = "toy/full/1337/compress"
    finished("artifacts", "get", name, "out")
    assert [p.name for p in (finished.folder / "out" / "archive").iterdir()] == ["archive.txt"]
    assert "new or empty folder" in finished("artifacts", "get", name, "out", code=3).stderr
    finished("artifacts", "export", name, "one.fairway", "--closure")
    finished("artifacts", "import", "one.fairway", "--store", "second")
    finished("artifacts", "push", name, "third")
    finished("artifacts", "pull", name, "third", "--store", "fourth")
    wanted = {a["key"] for a in finished.json("artifacts", "ls", "--store", "second")["artifacts"]}
    assert len(wanted) == 8  # itself, quantize, average, train, three shards and their vocabulary and corpus
    for store in ("third", "fourth"):
        assert {a["key"] for a in finished.json("artifacts", "ls", "--store", store)["artifacts"]} == wanted
        assert finished.json("artifacts", "verify", "--store", store)["findings"] == []


def test_a_rejected_artifact_and_what_came_from_it_runs_again(finished: Shell):
    rejected = finished.json("artifacts", "reject", "toy/full/1337/quantize", "--reason", "wrong scale")["rejected"]
    assert {each["artifact"] for each in rejected} >= {"quantize", "compress", "weigh", "evaluate[sliding]"}
    ran = {s["stage"] for s in finished.json("run", "toy.toml")["stages"] if s["state"] == "ran"}
    assert ran == {"quantize", "compress", "weigh", "evaluate", "audit"}


def test_verify_finds_a_flipped_byte_and_rebuild_compares_bytes(finished: Shell):
    assert "every byte is what it was" in finished("artifacts", "verify").stdout
    assert finished.json("artifacts", "verify", "--rebuild", "train", "--rebuild", "compress") == {
        "rebuilt": [
            {**each, "state": "same"}
            for each in finished.json("artifacts", "verify", "--rebuild", "train", "--rebuild", "compress")["rebuilt"]
        ]
    }
    victim = next((finished.folder / ".fairway" / "objects").rglob("??/*"))
    victim.chmod(0o644)
    victim.write_bytes(b"x" + victim.read_bytes()[1:])
    findings = finished.json("artifacts", "verify", code=1)["findings"]
    assert victim.name in findings[0]["path"]


def test_rebuild_sees_a_stage_that_does_not_repeat_its_bytes(finished: Shell):
    behave(finished.tree, "average", 'out.joinpath("weights_").mkdir()\nout.joinpath("weights_", "x").touch()')
    rebuilt = finished.json("artifacts", "verify", "--rebuild", "average", code=1)["rebuilt"]
    assert [each["state"] for each in rebuilt] == ["changed"]


def test_gc_says_what_would_go_and_goes_only_when_told(finished: Shell):
    run = finished.json("runs", "ls")["runs"][0]["id"]
    finished("runs", "rm", run)
    for path in (finished.folder / ".fairway" / "names").rglob("*.json"):
        path.unlink()
    would = finished.json("artifacts", "gc", "--grace-days", "0")
    assert would["dry_run"]
    assert would["stages"]["train"] == 1
    assert len(finished.json("artifacts", "ls")["artifacts"]) == 16
    finished("artifacts", "gc", "--grace-days", "0", "--yes")
    assert finished.json("artifacts", "ls")["artifacts"] == []
    assert finished.json("artifacts", "du")["stages"] == {}


def test_a_pinned_artifact_stays(finished: Shell):
    finished("artifacts", "pin", "toy/full/1337/corpus")
    finished("runs", "rm", finished.json("runs", "ls")["runs"][0]["id"])
    for path in (finished.folder / ".fairway" / "names").rglob("*.json"):
        path.unlink()
    finished("artifacts", "gc", "--grace-days", "0", "--yes")
    (left,) = finished.json("artifacts", "ls")["artifacts"]
    assert left["artifact"] == "corpus"
    finished("artifacts", "unpin", left["key"])


def test_recipes_lists_what_can_run(fairway: Shell):
    listed = fairway.json("recipes")
    assert {"smoke", "one-gpu", "full"} <= set(listed["scales"])
    assert all(row["about"] for row in listed["recipes"])
    rows = {row["name"]: row for row in listed["recipes"]}
    assert {"name", "parameters", "techniques", "published", "verdict"} <= set(rows["pr714"])
    assert rows["pr714"]["parameters"] == 27_124_828
    assert rows["pr714"]["published"]["total_bytes"] == [16_064_457, 16_129_153, 16_064_549]
    assert rows["pr714"]["verdict"].startswith("over the cap")
    assert "xsa" in rows["pr714"]["techniques"]
    assert rows["quickstart"]["verdict"] is None


def nothing_runs(fairway: Shell) -> None:
    """Return once no process of the folder is left."""
    deadline_s = time.monotonic() + 120
    while processes_with(str(fairway.folder)) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not processes_with(str(fairway.folder))


def test_a_terminal_gets_bars_and_tables_and_control_c_stops(fairway: Shell):
    behave(
        fairway.tree,
        "train",
        "for done in range(6000):\n    runtime.report_progress(done, 6000, 'steps', loss=3.5)\n    time.sleep(0.1)",
    )
    terminal = fairway.terminal("run", "toy.toml")
    terminal.read_until(r"steps/s.*left.*loss 3\.5")
    terminal.type(b"\x03")
    assert terminal.wait() == 130
    assert "Traceback" not in terminal.text
    assert "stopping" in terminal.text
    nothing_runs(fairway)
    (run,) = fairway.json("runs", "ls")["runs"]
    assert run["state"] == "cancelled"
    behave(fairway.tree, "train", "pass")
    states = {s["stage"]: s["state"] for s in fairway.json("run", "toy.toml")["stages"]}
    assert (states["tokenize"], states["train"]) == ("cached", "ran")


def test_control_c_with_a_server_of_our_own_leaves_no_process(fairway: Shell):
    del fairway.environment["PREFECT_API_URL"]
    behave(fairway.tree, "train", "time.sleep(600)")
    terminal = fairway.terminal("run", "toy.toml")
    terminal.read_until(r"vocabulary\s+ran")
    time.sleep(1.5)
    terminal.type(b"\x03")
    assert terminal.wait() == 130
    nothing_runs(fairway)
    assert "Traceback" not in terminal.text


def test_no_color_is_heeded_in_a_terminal(finished: Shell):
    finished.environment["NO_COLOR"] = "1"
    terminal = finished.terminal("artifacts", "ls")
    assert terminal.wait() == 0
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", terminal.text)


def test_a_killed_run_takes_its_processes_along_and_is_called_crashed(fairway: Shell):
    del fairway.environment["PREFECT_API_URL"]
    behave(fairway.tree, "train", "time.sleep(600)")
    process = subprocess.Popen(
        [*FAIRWAY, "run", "toy.toml"], cwd=fairway.folder, env=fairway.environment, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if line.startswith("train"):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    nothing_runs(fairway)
    assert fairway.json("runs", "ls")["runs"][0]["state"] == "crashed"
