"""Logs of the challenge in their many shapes."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recordsfolder import LOSSES, TARGETS, TEXT_BYTES, bpb, log

from flows.challenge.log import read_log
from stages.audit.denominators import divided_by

LATER = """\
Hyperparameters:
  seed: 42
train_shards: 128
val_tokens: 40540160
4986/20000 val_loss: 2.8178 val_bpb: 1.0909
stopping_early: wallclock_cap train_time: 588136ms step: 4986/20000
pre-quantization post-ema val_loss:2.81543002 val_bpb:1.08994070 eval_time:6006ms
Serialized model: 135426937 bytes
Code size (uncompressed): 121884 bytes
Code size (compressed): 27310 bytes
GPTQ:collected 67 Hessians in 11.3s
Serialized model quantized+brotli: 15969354 bytes
Total submission size quantized+brotli: 15996664 bytes
quantized_ttt_lora val_loss:2.77059090 val_bpb:1.07258208 eval_time:338190ms
total_eval_time:338.2s
artifact_production_wallclock: 825.352s (must be < 600.0)
"""
ABBREVIATED = """\
train:fineweb10B_sp1024 shards:80
val:./data/fineweb_val_*.bin n:62021632
s:42
s:6979/20000 vl:1.9223 bpb:1.1385 tt:600057ms sa:85.98ms
stop tt:600057ms s:6979/20000
diag vl:1.9205 bpb:1.1375 t:2003ms
model:106181533B
code:94053B
q:15868788B
total:15962841B
ttt_x vl:0.72782858 bpb:0.43106222
"""


def test_a_log_of_the_baselines_shape_gives_every_fact() -> None:
    (run,) = read_log("train.log", log(2)).runs
    assert (run.seed, run.val_tokens, run.train_shards, run.steps, run.train_s) == (2, TARGETS, 80, 7002, 599.0)
    assert (run.code_bytes, run.counted_model_bytes, run.counted_total_bytes) == (
        run.code_bytes, 15_000_002, 15_000_002 + (run.code_bytes or 0),
    )  # fmt: skip
    rounded, exact = run.final_scores  # the curve's line is no score
    assert (rounded.seconds, exact.decimals, rounded.decimals) == (90.0, 8, 4)
    assert exact.val_bpb == Decimal(f"{bpb(LOSSES[2]):.8f}")


def test_later_logs_count_packed_code_and_say_what_read_train_data_after_training() -> None:
    (run,) = read_log("train.log", LATER).runs
    assert (run.seed, run.train_shards, run.code_bytes, run.counted_code_bytes) == (42, 128, 121884, 27310)
    assert run.after_train_s == {"calibration": 11.3}
    assert (run.production_s, run.eval_s) == (825.352, 338.2)
    assert [score.label for score in run.final_scores] == ["quantized_ttt_lora"]  # the post-ema line is a diagnostic


def test_private_abbreviations_are_understood() -> None:
    (run,) = read_log("seed42.txt", ABBREVIATED).runs
    assert (run.seed, run.val_tokens, run.train_shards, run.train_s, run.steps) == (42, 62021632, 80, 600.057, 6979)
    assert (run.code_bytes, run.model_bytes, run.counted_total_bytes) == (94053, 15868788, 15962841)
    assert [str(score.val_bpb) for score in run.final_scores] == ["0.43106222"]


OURS = """\
Running Python 3.13.1
train_gpt.py sha256:{sha}
Code size: 31415 bytes
device:NVIDIA H100 80GB HBM3 world_size:8 seed:42
train_loader:dataset:fineweb10B_sp1024 train_shards:80 tokens:8000000000
model_params:27124828
step:200/9000 train_loss:3.1000 train_time:17000ms step_avg:85.00ms
stopping_early: wallclock_cap train_time:598010ms step:6990/9000
Serialized model: 15900000 bytes sha256:{sha}
Total submission size: 15931415 bytes
val_loader:dataset:fineweb10B_sp1024 val_shards:1 tokens:62021846
final_ttt_exact val_loss:1.88899865 val_bpb:1.11877140
final_ttt_sums nats:117158778.1 targets:62021632 bytes:151080363 ledger_sha256:{sha} rules_broken:-
final_ttt eval_time:421000ms
"""


def test_what_our_own_script_prints_is_understood() -> None:
    (run,) = read_log("train_seed42.log", OURS.format(sha="ab" * 32)).runs
    assert (run.seed, run.steps, run.train_s, run.train_shards) == (42, 6990, 598.01, 80)
    assert (run.code_bytes, run.model_bytes, run.total_bytes) == (31415, 15_900_000, 15_931_415)
    assert run.code_sha256 == "ab" * 32
    assert run.targets == {"ttt": (62_021_632, 151_080_363)}  # the loader's tokens are more than the targets
    assert run.eval_times_s == {"ttt": 421.0}
    assert [score.name for score in run.final_scores] == ["ttt"]


def test_a_clock_before_each_line_changes_nothing() -> None:
    stamped = "".join(f"1776144151.926 {line}\n" for line in log(1).splitlines())
    assert read_log("x", stamped).runs[0] == read_log("x", log(1)).runs[0]


def test_two_runs_in_one_file_stay_two() -> None:
    runs = read_log("train.log", log(1) + log(3)).runs
    assert [run.seed for run in runs] == [1, 3]
    assert [len(run.final_scores) for run in runs] == [2, 2]


def test_the_source_in_a_log_is_no_part_of_its_facts() -> None:
    source = "".join(f"def f{i}(seed=9):\n    return 'val_loss:9.9 val_bpb:9.9'\n" for i in range(30))
    told = read_log("train.log", source + "=" * 100 + "\n" + log(1))
    assert told.runs[0].seed == 1
    assert len(told.runs[0].final_scores) == 2
    assert told.sources == (source.rstrip(),)


def test_the_denominator_comes_back_from_eight_decimals_to_about_a_byte() -> None:
    for loss in LOSSES.values():
        assert divided_by(loss, bpb(loss), TARGETS) == pytest.approx(TEXT_BYTES, abs=2)


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=300))
def test_no_text_breaks_the_reader(text: str) -> None:
    read_log("x", text + "\nval_loss:nan val_bpb:inf\nval_loss:1e400 val_bpb:1\n" + text)
