"""The one file alone in a folder: it makes the stages' archive, byte for byte, and their scores, digit for digit."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from configs.load import load_recipe, names
from flows.river import bundled
from stages.submission import headline

TINY = (
    "quickstart",
    "smoke",
    "train.steps=6",
    "train.expected_steps=6",
    "train.network.dim=16",
    "train.network.mlp_hidden=32",
    "train.snapshots.every.steps=300",
    "train.snapshots.below_scale=1",
    "average.kind=tight_swa",
    "average.last=2",
)
LINE = re.compile(
    r"^final_(\w+)_sums nats:(\S+) targets:(\d+) bytes:(\d+) ledger_sha256:(\w+) rules_broken:(\S+)$", re.M
)


def assert_as_staged(log: str, archive: bytes, reference, protocols: list[str]) -> None:
    assert archive == reference.archive
    assert f"sha256:{hashlib.sha256(archive).hexdigest()}" in log
    found = {name: values for name, *values in LINE.findall(log)}
    assert list(found) == protocols
    for name, (nats, targets, text_bytes, ledger, broken) in found.items():
        score = reference.scores[name]
        assert [float(nats), int(targets), int(text_bytes)] == [score["nats"], score["tokens"], score["bytes"]]
        assert ledger == score["ledger_sha256"]
        assert broken == (",".join(rule["rule"] for rule in score["rules_broken"]) or "-")
        exact = f"final_{name}_exact val_loss:{score['nats_per_token']:.8f} val_bpb:{score['bpb']:.8f}\n"
        assert exact in log


@pytest.fixture(scope="module")
def trained(packed, staged, alone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    file = packed(*TINY)
    return file, folder, alone(file, folder), staged(load_recipe(TINY[0], TINY[1], TINY[2:]).recipe)


def test_it_makes_the_stages_archive_and_score(trained):
    _, folder, log, reference = trained
    assert_as_staged(log, (folder / "final_model.fwy").read_bytes(), reference, ["ttt"])
    assert sorted(path.name for path in folder.iterdir()) == ["final_model.fwy", "train_gpt.py"]


def test_score_only_repeats_the_score_of_a_shipped_archive_in_another_folder(trained, alone, tmp_path):
    file, folder, _, reference = trained
    (tmp_path / "new").mkdir()
    shipped = tmp_path / "new" / "shipped.fwy"
    shipped.write_bytes((folder / "final_model.fwy").read_bytes())
    log = alone(file, tmp_path / "new", "--score-only", "shipped.fwy", PROTOCOL="roundtrip,sliding,ttt")
    assert_as_staged(log, shipped.read_bytes(), reference, ["roundtrip", "sliding", "ttt"])
    assert "step:" not in log


def test_the_log_has_the_challenges_lines(trained):
    file, folder, log, _ = trained
    code, model = len(file.read_bytes()), len((folder / "final_model.fwy").read_bytes())
    assert f"train_gpt.py sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}\n" in log
    assert f"Code size: {code} bytes\n" in log
    assert f"Serialized model: {model} bytes sha256:" in log
    assert f"Total submission size: {code + model} bytes\n" in log
    for step in range(1, 7):
        assert re.search(rf"^step:{step}/6 train_loss:\d\.\d{{4}} train_time:\d+ms step_avg:\d+\.\d\dms$", log, re.M)
    assert re.search(
        r"^step:6/6 val_loss:\d\.\d{4} val_bpb:\d\.\d{4} train_time:\d+ms step_avg:\d+\.\d\dms$", log, re.M
    )
    assert re.search(r"^final_ttt eval_time:\d+ms$", log, re.M)
    assert re.search(r"^model_params:\d+$", log, re.M)
    assert "seed:5\n" in log


def test_it_tells_its_size(trained, alone, tmp_path):
    file = trained[0]
    assert alone(file, tmp_path, "--code-bytes") == f"{len(file.read_bytes())}\n"


def test_an_error_says_what_is_missing_and_shows_its_source(trained, alone, tmp_path):
    error = alone(trained[0], tmp_path, DATA_PATH="/nowhere", fails=True)
    assert "token shards are /nowhere/fineweb_train_*.bin" in error
    assert 'File "packed", line' in error
    assert "token shards are {" in error


def test_it_compiles_as_any_python_file(trained, tmp_path):
    target = tmp_path / "train_gpt.pyc"
    command = "import py_compile, sys; py_compile.compile(sys.argv[1], sys.argv[2], doraise=True)"
    subprocess.run([sys.executable, "-I", "-c", command, str(trained[0]), str(target)], check=True)
    assert target.is_file()


def test_the_headline_is_the_furthest_protocol_that_breaks_no_rule():
    def named(recipe: str) -> str:
        return headline(bundled(load_recipe(recipe, "full").recipe)["evaluate"])

    assert named("pr1232") == "ttt"
    assert named("pr398") == "sliding"
    assert named("pr398-legal") == "ttt"


@pytest.mark.slow
@pytest.mark.parametrize("recipe", names("recipe"))
def test_every_recipe_at_smoke_makes_the_stages_archive_and_scores(recipe, packed, staged, alone, tmp_path):
    reference = staged(load_recipe(recipe, "smoke").recipe)
    protocols = list(reference.scores)
    log = alone(packed(recipe, "smoke"), tmp_path, PROTOCOL=",".join(protocols))
    assert_as_staged(log, (tmp_path / "final_model.fwy").read_bytes(), reference, protocols)


@pytest.mark.slow
def test_two_ranks_under_torchrun_make_one_archive_and_one_log(packed, alone, data, tmp_path):
    file = packed("pr714", "smoke", "train.microbatch_tokens=256")
    (tmp_path / "train_gpt.py").write_bytes(Path(file).read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train_gpt.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "DATA_PATH": str(data.data_path), "TOKENIZER_PATH": str(data.tokenizer_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "world_size:2 seed:1337" in done.stdout
    (ledger,) = [values[4] for values in LINE.findall(done.stdout)]
    scored = alone(file, tmp_path, "--score-only")
    assert LINE.search(scored)
    assert len(ledger) == 64
