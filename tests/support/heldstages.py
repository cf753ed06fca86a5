"""Toys for the accelerated stages that stand still where a test wants to kill them, and that know their device.

A toy of `train` makes ten of its twenty steps, each a link of a chain that its checkpoint holds and its output ends
with, so that a step made twice or left out changes bytes. With several ranks they meet in a gloo group at each step.
"""

from __future__ import annotations

import fcntl
from pathlib import Path

from lab import Lab, wait_for
from toyriver import behave

from flows.claims import folder

ACCELERATED = ("train", "quantize", "evaluate", "audit")
RECIPE = """
name = "toy"
about = "One protocol, so that every accelerated stage runs once."
[corpus]
source = "{source}"
[evaluate.roundtrip]
"""

ALONE = """
import fcntl
import hashlib
gates, stage = {folder!r}, config.SPEC.name
names = os.environ.get("CUDA_VISIBLE_DEVICES")
if runtime.rank == 0 and names:  # a worker's
    globals()["devices"] = [open(os.path.join(gates, name), "w") for name in names.split(",")]
    try:
        for device in devices:
            fcntl.flock(device, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        open(os.path.join(gates, "twice"), "a").write(stage)
        raise

def gate():
    if runtime.rank == 0:
        open(os.path.join(gates, "at-" + stage), "a").write("x")
    while os.path.exists(os.path.join(gates, "hold-" + stage)):
        time.sleep(0.05)
"""
OTHERS = ALONE + "\ngate()"
TRAIN = (
    ALONE
    + """
def end(*ignored):
    sys.exit(143)

signal.signal(signal.SIGTERM, end)
step, chain = 0, ""
state = runtime.checkpoints / "state.json"
if state.exists():
    step, chain = json.loads(state.read_text())
if runtime.rank == 0:
    print("from step", step, "with ranks", runtime.world)
if runtime.world > 1:
    import torch
    import torch.distributed as group
    group.init_process_group("gloo")
while step < 20:
    if runtime.rank == 1 and os.path.exists(os.path.join(gates, "raise-" + stage)):
        raise RuntimeError("the second rank has a fault of its own")
    if runtime.world > 1:
        together = torch.ones(1)
        group.all_reduce(together)
        assert together.item() == runtime.world
    step += 1
    chain = hashlib.sha256((chain + str(step)).encode()).hexdigest()
    if runtime.rank == 0:
        runtime.report_progress(step, 20, "steps", loss=2.5)
        state.with_suffix(".tmp").write_text(json.dumps([step, chain]))
        os.replace(state.with_suffix(".tmp"), state)
        if step == 10:
            gate()
if runtime.world > 1:
    group.barrier()
return chain.encode()
"""
)


class HeldStages:
    """The gates of a tree's accelerated toys: files in a folder that only they and the test know."""

    def __init__(self, tree: Path, folder: Path) -> None:
        self._tree, self._folder = tree, folder
        folder.mkdir(parents=True)
        self._before = {path: path.read_text(encoding="utf-8") for path in map(self._path, ACCELERATED)}
        for stage in ACCELERATED:
            behave(tree, stage, (TRAIN if stage == "train" else OTHERS).format(folder=str(folder)))
            text = self._path(stage).read_text(encoding="utf-8")
            called = 'digest.update(act(runtime, out, config) or b"")\n    if runtime.rank:\n        return {}'
            text = text.replace("\n    act(runtime, out)\n", f"\n    {called}\n")
            self._path(stage).write_text(
                text.replace("def act(runtime, out)", "def act(runtime, out, config)"), "utf-8"
            )

    def _path(self, stage: str) -> Path:
        return self._tree / "stages" / stage / "stage.py"

    def restore(self) -> None:
        """The toys as they were."""
        for path, text in self._before.items():
            path.write_text(text, encoding="utf-8")

    def set(self, what: str, *stages: str) -> None:
        """`hold`: stop in the middle from now on. `raise`: the second rank fails."""
        for stage in stages:
            (self._folder / f"at-{stage}").unlink(missing_ok=True)
            (self._folder / f"{what}-{stage}").touch()

    def clear(self, what: str, stage: str) -> None:
        """Take it back."""
        (self._folder / f"{what}-{stage}").unlink(missing_ok=True)

    def wait_in(self, stage: str) -> None:
        """Return once a process stands in the middle of the stage."""
        wait_for(lambda: (self._folder / f"at-{stage}").exists(), f"{stage} stands in its middle")

    def held_twice(self) -> bool:
        """Whether two processes ever had the device at once."""
        return (self._folder / "twice").exists()


def devices(lab: Lab) -> list[str]:
    """What the GPU worker's machine has."""
    return lab.gpu.environment["CUDA_VISIBLE_DEVICES"].split(",")


def claimed(lab: Lab) -> list[str]:
    """Which of them somebody has claimed."""
    return [name for name in devices(lab) if _is_locked(folder() / f"{name}.lock")]


def _is_locked(path: Path) -> bool:
    if not path.exists():
        return False  # nobody ever claimed it
    with path.open("a", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def toy_recipe(lab: Lab) -> str:
    """The recipe as text; its documents lie on the submitter's machine."""
    source = lab.submitter.folder / "text.txt"
    source.write_text("Some text.\n", encoding="utf-8")
    return RECIPE.format(source=source)
