"""A stage's process: what it is told, what it sees, how it ends, and that nothing of it stays."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from toyriver import behave, make_tree

from flows.launch import Interrupted, Job, Progress, ProgressTail, StageFailed, Watch, environment, launch
from flows.ranks import Said
from stages.compress.config import Config
from stages.contract import PARENT, Device


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job of the toy `compress`."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "codes").write_text("codes", encoding="utf-8")
    tree = make_tree(tmp_path / "tree")
    config = Config().model_dump(mode="json")
    return Job(stage="compress", config=config, inputs={"quantized": tmp_path / "in"}, source_root=tree)


def run(job: Job, folder: Path, watch: Watch | None = None) -> dict:
    return launch(job, folder / "job", folder / "log.txt", watch or Watch())


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, limit_s: float = 120.0) -> bool:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def pid_in(path: Path) -> int:
    assert wait_until(lambda: path.is_file() and path.read_text(encoding="ascii").endswith("\n"))
    return int(path.read_text(encoding="ascii"))


def test_a_finished_stage_returns_its_report_and_leaves_its_output(job: Job, tmp_path: Path):
    assert run(job, tmp_path) == {"toy": "compress"}
    assert [p.name for p in (tmp_path / "job" / "out" / "archive").iterdir()] == ["archive.txt"]


def test_a_user_error_comes_back_in_the_stages_own_words(job: Job, tmp_path: Path):
    behave(job.source_root, "compress", 'raise StageError("codes are small; got big ones; shrink them")')
    with pytest.raises(StageFailed, match=r"^codes are small; got big ones; shrink them$") as failed:
        run(job, tmp_path)
    assert failed.value.kind == "user"


def test_a_crash_names_the_exception_and_keeps_the_traceback_in_the_log(job: Job, tmp_path: Path):
    behave(job.source_root, "compress", 'raise KeyError("weights")')
    with pytest.raises(StageFailed, match="KeyError: 'weights'") as failed:
        run(job, tmp_path)
    assert failed.value.kind == "crash"
    assert "Traceback" in failed.value.log.read_text(encoding="utf-8")


def test_a_process_that_is_killed_shows_the_signal_and_its_last_lines(job: Job, tmp_path: Path):
    behave(job.source_root, "compress", 'print("last words", flush=True)\nos.kill(os.getpid(), signal.SIGKILL)')
    with pytest.raises(StageFailed, match=r"(?s)SIGKILL \(out of memory\?\).*last words"):
        run(job, tmp_path)


def test_a_process_that_exits_without_a_report_has_failed(job: Job, tmp_path: Path):
    behave(job.source_root, "compress", "os._exit(0)")
    with pytest.raises(StageFailed, match="ended with code 0 and left no report"):
        run(job, tmp_path)


def test_cancelling_asks_first_and_takes_less_than_the_grace(job: Job, tmp_path: Path):
    checkpoint = tmp_path / "checkpoint"
    behave(
        job.source_root,
        "compress",
        f"""
def stop(number, frame):
    open({str(checkpoint)!r}, "w").write("saved")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
open({str(tmp_path / "pid")!r}, "w").write(f"{{os.getpid()}}\\n")
time.sleep(600)
""",
    )
    cancel = threading.Event()
    threading.Thread(target=lambda: (pid_in(tmp_path / "pid"), cancel.set())).start()
    started = time.monotonic()
    with pytest.raises(Interrupted):
        run(job, tmp_path, Watch(cancel=cancel, grace_s=300))
    assert checkpoint.read_text(encoding="utf-8") == "saved"
    assert time.monotonic() - started < 300


def test_a_stage_that_does_not_stop_is_ended_with_all_its_helpers(job: Job, tmp_path: Path):
    helper = textwrap.dedent(
        f"""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        helper = os.fork()
        if helper == 0:
            time.sleep(600)
        open({str(tmp_path / "pid")!r}, "w").write(f"{{helper}}\\n")
        time.sleep(600)
        """
    )
    behave(job.source_root, "compress", helper)
    cancel = threading.Event()
    threading.Thread(target=lambda: (pid_in(tmp_path / "pid"), cancel.set())).start()
    with pytest.raises(Interrupted):
        run(job, tmp_path, Watch(cancel=cancel, grace_s=0.2))
    helper_pid = pid_in(tmp_path / "pid")
    assert wait_until(lambda: not alive(helper_pid))


def test_a_second_request_cuts_the_grace_short(job: Job, tmp_path: Path):
    behave(
        job.source_root,
        "compress",
        f"""
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open({str(tmp_path / "pid")!r}, "w").write(f"{{os.getpid()}}\\n")
time.sleep(600)
""",
    )
    watch = Watch(grace_s=300)

    def twice() -> None:
        pid_in(tmp_path / "pid")
        watch.cancel.set()
        time.sleep(0.3)
        watch.kill.set()

    threading.Thread(target=twice).start()
    started = time.monotonic()
    with pytest.raises(Interrupted):
        run(job, tmp_path, watch)
    assert time.monotonic() - started < 300


def test_a_stage_that_exceeds_its_limit_is_stopped_and_says_so(job: Job, tmp_path: Path):
    behave(job.source_root, "compress", "time.sleep(600)")
    with pytest.raises(StageFailed, match="longer than its limit of 1 s"):
        run(job, tmp_path, Watch(deadline_s=1, grace_s=0.1))


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_a_stage_dies_with_a_launcher_that_is_killed(job: Job, tmp_path: Path):
    behave(
        job.source_root,
        "compress",
        f'open({str(tmp_path / "pid")!r}, "w").write(f"{{os.getpid()}}\\n")\ntime.sleep(600)',
    )
    launcher = tmp_path / "launcher.py"
    launcher.write_text(
        "from pathlib import Path\n"
        "from flows.launch import *\n"
        f"root = Path({str(job.source_root)!r})\n"
        f"job = Job(stage='compress', config={dict(job.config)!r}, inputs={{}}, source_root=root)\n"
        f"launch(job, Path({str(tmp_path / 'job')!r}), Path({str(tmp_path / 'log')!r}), Watch())\n",
        encoding="utf-8",
    )
    parent = subprocess.Popen([sys.executable, str(launcher)])
    stage = pid_in(tmp_path / "pid")
    assert alive(stage)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert wait_until(lambda: not alive(stage))


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_a_stage_whose_launcher_died_before_it_had_begun_ends_at_once(job: Job, tmp_path: Path):
    """Its interpreter was still starting, so the kernel has nobody to tell."""
    behave(job.source_root, "compress", f"open({str(tmp_path / 'began')!r}, 'w').close()")
    with pytest.raises(StageFailed, match="SIGKILL"):
        run(replace(job, environment={PARENT: "1"}), tmp_path)
    assert not (tmp_path / "began").exists()


def test_a_stage_sees_no_variable_that_is_not_declared(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SOME_SWITCH", "1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    behave(
        job.source_root,
        "compress",
        f'open({str(tmp_path / "env")!r}, "w").write("\\n".join(f"{{k}}={{v}}" for k, v in os.environ.items()))',
    )
    run(replace(job, device=Device(threads=3)), tmp_path)
    seen = dict(
        line.split("=", 1) for line in (tmp_path / "env").read_text(encoding="utf-8").splitlines() if "=" in line
    )
    assert "SOME_SWITCH" not in seen
    assert "AWS_SECRET_ACCESS_KEY" not in seen
    assert seen["CUDA_LAUNCH_BLOCKING"] == "1"
    assert (seen["PYTHONHASHSEED"], seen["OMP_NUM_THREADS"]) == ("0", "3")


def test_only_stages_that_fetch_get_credentials(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    assert "AWS_SECRET_ACCESS_KEY" in environment(replace(job, stage="corpus"), tmp_path)
    assert "AWS_SECRET_ACCESS_KEY" not in environment(replace(job, stage="train"), tmp_path)


def test_a_stage_that_fetches_from_a_hub_does_not_report_on_us(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "0")
    assert environment(replace(job, stage="corpus"), tmp_path)["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_progress_lines_become_rate_and_remaining_time(tmp_path: Path):
    path = tmp_path / "progress.jsonl"
    tail = ProgressTail(path)
    assert tail.poll() is None
    path.write_text(
        '{"monotonic_s": 10, "done": 0, "total": 100, "unit": "steps"}\n'
        '{"monotonic_s": 12, "done": 20, "total": 100, "unit": "steps", "loss": 3.5}\n{"monotonic_s": 13, "do',
        encoding="utf-8",
    )
    assert tail.poll() == Progress(done=20, total=100, unit="steps", rate=10.0, eta_s=8.0, metrics={"loss": 3.5})
    assert tail.poll() is None


def test_a_new_phase_does_not_spoil_the_rate(tmp_path: Path):
    path = tmp_path / "progress.jsonl"
    lines = [(0, 90), (1, 100), (5, 1), (6, 3)]
    path.write_text(
        "".join(f'{{"monotonic_s": {t}, "done": {d}, "total": 100, "unit": "x"}}\n' for t, d in lines), encoding="utf-8"
    )
    progress = ProgressTail(path).poll()
    assert progress is not None
    assert progress.rate == 2.0


@pytest.mark.slow
def test_two_ranks_start_finish_and_die_together(job: Job, tmp_path: Path):
    ranks = replace(job, device=Device(count=2, threads=1))
    behave(
        job.source_root,
        "compress",
        f"""
open({str(tmp_path)!r} + f"/pid{{runtime.rank}}", "w").write(f"{{os.getpid()}}\\n")
time.sleep(600)
""",
    )
    cancel = threading.Event()
    threading.Thread(target=lambda: (pid_in(tmp_path / "pid0"), pid_in(tmp_path / "pid1"), cancel.set())).start()
    with pytest.raises(Interrupted):
        run(ranks, tmp_path, Watch(cancel=cancel, grace_s=1))
    for rank in (0, 1):
        pid = pid_in(tmp_path / f"pid{rank}")
        assert wait_until(lambda pid=pid: not alive(pid)), f"rank {rank} stayed behind"


@pytest.mark.slow
@pytest.mark.parametrize("peer", ["waits", "fails"])
def test_a_rank_that_a_signal_ended_is_named_even_if_its_peer_fails_of_it(job: Job, tmp_path: Path, peer: str):
    ranks = replace(job, device=Device(count=2, threads=1))
    body = f"""
ready = {str(tmp_path / "ready")!r}
def fail(*ignored):  # as a rank does that waits for its peer
    raise RuntimeError("my peer is gone")
if runtime.rank == 0:
    if {peer == "fails"}:
        signal.signal(signal.SIGTERM, fail)
    open(ready, "w").close()
    time.sleep(600)
while not os.path.exists(ready):
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""
    behave(job.source_root, "compress", body)
    with pytest.raises(StageFailed, match="its rank 1 was ended by SIGKILL") as failed:
        run(ranks, tmp_path)
    assert failed.value.kind == "crash"
    assert ("my peer is gone" in str(failed.value)) == (peer == "fails")


@pytest.mark.slow
def test_of_two_ranks_the_first_is_heard_and_the_second_when_it_warns(job: Job, tmp_path: Path):
    behave(
        job.source_root,
        "compress",
        """
import warnings
print(f"I am rank {runtime.rank}")
if runtime.rank == 1:
    warnings.warn("a slow link")
    os._exit(0)  # toys would write one folder twice
""",
    )
    heard: list[Said] = []
    assert run(replace(job, device=Device(count=2, threads=1)), tmp_path, Watch(on_line=heard.append))
    assert [said.text for said in heard if said.rank == 0] == ["I am rank 0"]
    assert [said.text.partition(": ")[2] for said in heard if said.rank == 1] == ["UserWarning: a slow link"]
    whole = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert {"rank 0: I am rank 0", "rank 1: I am rank 1"} <= set(whole.splitlines())
