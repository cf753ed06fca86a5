"""Import of published shards: the challenge's names decide the split, damage is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model.shards import open_shard, write_shard
from stages.contract import Runtime, StageError
from stages.corpus.config import Config
from stages.corpus.stage import run


def publish(folder: Path, *names: str) -> str:
    folder.mkdir(exist_ok=True)
    for i, name in enumerate(names):
        write_shard(folder / name, np.array([1, i, 7], dtype=np.uint16))
    return str(folder)


def import_from(tmp_path: Path, runtime: Runtime, **config) -> tuple[dict, Path]:
    out = tmp_path / "out"
    out.mkdir()
    return run(Config(**config), {}, out, runtime), out


def test_names_decide_the_split_and_paths_the_order(tmp_path: Path, runtime: Runtime):
    names = ("fineweb_train_000001.bin", "fineweb_train_000000.bin", "fineweb_val_000000.bin")
    report, out = import_from(tmp_path, runtime, source=publish(tmp_path / "in", *names))
    found = {str(f.relative_to(out)): int(open_shard(f)[1]) for f in sorted(out.rglob("*.bin"))}
    assert found == {"train/00000.bin": 1, "train/00001.bin": 0, "val/00000.bin": 2}
    assert report == {"train": {"tokens": 6, "shards": 2}, "val": {"tokens": 3, "shards": 1}}


def test_a_source_of_its_own_for_val_needs_no_names(tmp_path: Path, runtime: Runtime):
    url = publish(tmp_path / "in", "a.bin", "b.bin")
    report, _ = import_from(tmp_path, runtime, source=f"{url}/a.bin", val_source=f"{url}/b.bin")
    assert report["train"]["shards"] == report["val"]["shards"] == 1


def test_the_copies_are_the_stages_own(tmp_path: Path, runtime: Runtime):
    url = publish(tmp_path / "in", "x_train_0.bin", "x_val_0.bin")
    _, out = import_from(tmp_path, runtime, source=url)
    (out / "train" / "00000.bin").chmod(0o400)
    (Path(url) / "x_train_0.bin").write_bytes(b"changed")
    assert int(open_shard(out / "train" / "00000.bin")[1]) == 0


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("x_train_0.bin",), "no name has _val_"),
        (("x_val_0.bin",), "no name has _train_"),
        (("x_train_0.bin", "x_val_0.bin", "tokens.bin"), r"_train_ or _val_ in their names; got tokens\.bin"),
    ],
)
def test_names_that_do_not_say_the_split_are_refused(tmp_path: Path, runtime: Runtime, names, said: str):
    with pytest.raises(StageError, match=said):
        import_from(tmp_path, runtime, source=publish(tmp_path / "in", *names))


def test_a_truncated_shard_is_named(tmp_path: Path, runtime: Runtime):
    url = publish(tmp_path / "in", "x_train_0.bin", "x_val_0.bin")
    shard = Path(url) / "x_val_0.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(StageError, match=r"x_val_0\.bin.*truncated"):
        import_from(tmp_path, runtime, source=url)


def test_documents_and_shards_do_not_mix(tmp_path: Path, runtime: Runtime):
    url = publish(tmp_path / "in", "x_val_0.bin")
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(StageError, match="both must hold the same"):
        import_from(tmp_path, runtime, source=str(tmp_path / "a.jsonl"), val_source=url)
