"""The check of records folders: a right one passes, and each fault is found for what it is."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from pathlib import Path
from typing import Any

import pytest
from recordsfolder import CODE, LOSSES, MODEL_BYTES, bpb, claims, write

from flows.challenge.check import check_folder
from flows.challenge.check_scores import judge
from flows.challenge.findings import Report
from stages.contract import StageError

SCORES = {seed: bpb(loss) for seed, loss in LOSSES.items()}


def kinds(report: Report, *levels: str) -> set[str]:
    wanted = levels or ("error", "strict")
    return {finding.kind or finding.rule for finding in report.findings if finding.level in wanted}


def entry(seed: int, **changes: Any) -> dict[str, Any]:
    """Results in which one seed says something else."""
    results = claims()["seed_results"]
    return {"seed_results": {**results, str(seed): {**results[str(seed)], **changes}}}


def test_a_right_folder_passes_and_its_figures_are_those_of_its_logs(tmp_path: Path) -> None:
    report = check_folder(write(tmp_path))
    assert report.findings == ()
    assert report.strict
    assert report.board
    assert report.figures["statistics"]["std_ddof1"] == pytest.approx(statistics.stdev(SCORES.values()))
    assert [row["on_disk"] for row in report.figures["sizes"]] == [len(CODE) + MODEL_BYTES + seed for seed in LOSSES]
    json.dumps(report.to_dict(), allow_nan=False)


BROKEN: dict[str, tuple[dict[str, Any], set[str]]] = {
    "no readme": ({"README.md": None}, {"S4"}),
    "no script": ({"train_gpt.py": None}, {"S4"}),
    "no json": ({"submission.json": None}, {"S4"}),
    "json that is cut off": ({"submission.json": '{"val_bpb": 1.1'}, {"S4"}),
    "json that is a list": ({"submission.json": "[]"}, {"S4"}),
    "over the cap": (
        {"log1": {"model": 16_000_000}, "claims": entry(1, artifact_bytes=16_000_000 + len(CODE))
         | {"bytes_total": 16_000_000 + len(CODE)}},
        {"I32"},
    ),
    "over the cap with the helper that the script needs": (
        {"train_gpt.py": CODE + "import helper\n", "helper.py": "#" * 1_000_000},
        {"I33", "I41"},
    ),
    "a script that runs another file": (
        {"train_gpt.py": "exec(open('other.py').read())", "other.py": CODE},
        {"I33"},
    ),
    "a log of other code": ({"train_gpt.py": CODE + "x = 1\n"}, {"I41"}),
    "a log that names other code": ({"log1": {"extra": f"code_sha256:{'0' * 64}\n"}}, {"I41"}),
    "a seed without a log": ({"train_seed2.log": None}, {"I41"}),
    "an entry that is a copy": (
        {"claims": entry(2, **claims()["seed_results"]["1"])}, {"I41"},
    ),
    "a score that no log has": ({"claims": entry(2, val_bpb=1.05)}, {"I41"}),
    "a size that no log has": ({"claims": entry(2, artifact_bytes=15_999_999)}, {"I41"}),
    "steps that no log has": ({"claims": entry(2, steps=1)}, {"I41"}),
    "a code size that no log has": ({"claims": {"bytes_code": 1}}, {"I41"}),
    "a loss that is a BPB": ({"claims": {"val_loss": SCORES[1]}}, {"I40"}),
    "the best seed as the headline": ({"claims": {"val_bpb": min(SCORES.values())}}, {"I38"}),
    "the size of the mean": ({"claims": {"bytes_total": len(CODE) + MODEL_BYTES + 2}}, set()),
    "the population's deviation": (
        {"claims": {"val_bpb_std": round(statistics.pstdev(SCORES.values()), 8)}}, {"I39"},
    ),
    "a deviation from nowhere": ({"claims": {"val_bpb_std": 0.5}}, {"I39"}),
    "a p that its t does not give": (
        {"claims": {"p_value": 0.5, "t_statistic": 3.789, "welch_df": 2.614}}, {"I41"},
    ),
    "a run that is not reported": (
        {"claims": {"seeds": [1, 2], "seed_results": {s: claims()["seed_results"][s] for s in "12"},
                    "val_bpb": round((SCORES[1] + SCORES[2]) / 2, 8), "bytes_total": len(CODE) + MODEL_BYTES + 2,
                    "val_bpb_std": round(statistics.stdev([SCORES[1], SCORES[2]]), 8)}},
        {"I37", "I38"},
    ),
    "runs told of elsewhere": (
        {"claims": {"disclosure": {"all": {**{str(s): v for s, v in SCORES.items()}, "9": 1.2}}}}, {"I37"},
    ),
    "training over its time": ({"log1": {"train_ms": 601_153}}, {"I34"}),
    "calibration after training": (
        {"log1": {"train_ms": 599_590, "extra": "GPTQ:collected 67 Hessians in 4.7s\n"}}, {"I34"},
    ),
    "evaluation over its time": ({"log1": {"eval_ms": 895_000}}, {"I35"}),
    "validation documents in the train shards": ({"log1": {"shards": 1499}}, {"I29"}),
    "another seed under a log's name": ({"log1": {"ran_with": 7}}, {"I41"}),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_each_fault_is_found_for_what_it_is(name: str, tmp_path: Path) -> None:
    changes, expected = BROKEN[name]
    report = check_folder(write(tmp_path, **dict(changes)))
    assert expected <= kinds(report), report.findings
    assert report.strict == (not expected)


def test_bytes_that_are_counted_twice_show_in_the_denominator(tmp_path: Path) -> None:
    inflated = {"bytes": round(151_080_363 * 1.1671)}
    report = check_folder(write(tmp_path, log1=inflated, log2=inflated, log3=inflated))
    assert "I20-I25" in kinds(report, "error")


def test_the_tail_that_is_scored_again_is_told_but_no_fault_of_a_merged_row(tmp_path: Path) -> None:
    report = check_folder(
        write(tmp_path, log1={"bytes": 151_079_963}, claims=entry(1, val_bpb=bpb(LOSSES[1], 151_079_963)))
    )
    assert "I26" in kinds(report, "note")


def test_the_last_step_may_end_a_little_late(tmp_path: Path) -> None:
    report = check_folder(write(tmp_path, log1={"train_ms": 600_079}))
    assert report.strict
    assert kinds(report, "note") == {"I34"}


def test_a_submission_outside_the_record_track_may_take_its_time(tmp_path: Path) -> None:
    folder = write(tmp_path, log1={"train_ms": 14_400_000}, claims={"track": "non_record_16mb"})
    assert check_folder(folder).strict


def test_the_wrong_table_of_caseops_is_known_by_its_bytes() -> None:
    table = [{"name": "wrong", "targets": 10, "bytes": 1000, "sound": False, "class": "I23"},
             {"name": "right", "targets": 10, "bytes": 900, "sound": True}]  # fmt: skip
    assert judge(1000.4, 10, 2.0, table)[:2] == ("error", "I23")
    assert judge(900.4, 10, 2.0, table)[0] is None


def test_the_test_against_a_row_is_the_organisers(tmp_path: Path) -> None:
    scores = dict(zip("123", (1.07928348, 1.07996676, 1.08024795), strict=True))  # row 1514
    results = {seed: {"val_bpb": score} for seed, score in scores.items()}
    claimed = {"seed_results": results, "val_bpb": 1.07983273, "p_value": 0.02}
    folder = write(tmp_path, claims=claimed, **{f"train_seed{seed}.log": None for seed in LOSSES})
    report = check_folder(folder, against="1493")
    assert report.figures["against"]["readings"][0]["welch"]["p"] == pytest.approx(0.02042, abs=1e-5)
    assert not [finding for finding in report.findings if "p_value" in finding.text and finding.level == "error"]
    (folder / "submission.json").write_text(json.dumps(claims() | claimed | {"p_value": 0.001}), encoding="utf-8")
    assert "p_value 0.001 is none of" in "".join(f.text for f in check_folder(folder, against="1493").findings)


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="takes a records folder"):
        check_folder(tmp_path / "nowhere")


def test_anything_at_all_in_a_folder_ends_with_a_report(tmp_path: Path) -> None:
    odd = {"seeds": [True, None, {"x": 1}], "seed_results": {"1": {"val_bpb": "NaN"}, "x": 3}, "val_bpb_std": None,
           "bytes_total": "16 MB", "val_loss": {"a": []}, "p_value": "<0.001", "track": 7}  # fmt: skip
    folder = write(tmp_path, claims=odd, **{"train_gpt.py": b"\xff\xfe(", "x.log": b"\x00\xffval_loss:1 val_bpb:1\n"})
    assert not check_folder(folder).strict


@pytest.mark.parametrize("number", ["1e-999", "1e999", "-1e400", "0", "9" * 5000, "-0.0", "1e-29"])
def test_a_number_out_of_all_proportion_is_no_figure_and_no_crash(number: str, tmp_path: Path) -> None:
    text = json.dumps(claims() | {"val_bpb": "X", "bytes_total": "X", "val_bpb_std": "X", "val_loss": "X"})
    said = json.dumps(claims()["seed_results"]["1"] | {"val_bpb": "X", "artifact_bytes": "X", "steps": "X"})
    text = text.replace(json.dumps(claims()["seed_results"]["1"]), said).replace('"X"', number)
    lines = f"\nseed:{number}\ntrain_shards:{number}\nx val_loss:{number} val_bpb:{number} eval_time:1.2.3ms\n"
    folder = write(tmp_path, **{"submission.json": text, "train_seed9.log": lines + lines})
    json.dumps(check_folder(folder).to_dict(), allow_nan=False)


# The public records, where a git directory of the challenge's repository with its pull requests is at hand.


@pytest.fixture(scope="session")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkout = os.environ.get("CHALLENGE_CHECKOUT", "")
    if not checkout:
        pytest.skip(
            "CHALLENGE_CHECKOUT names no git directory of the challenge's repository: its records are unchecked"
        )
    root = tmp_path_factory.mktemp("public")
    for ref in ("main", *(f"refs/pull/{number}/head" for number in (398, 417, 714, 1033, 1232))):
        tar = subprocess.run(["git", "--git-dir", checkout, "archive", ref, "records"], check=True, capture_output=True)
        subprocess.run(["tar", "-x", "-C", str(root)], input=tar.stdout, check=True)
    return root / "records"


def of(public: Path, part: str) -> Report:
    (folder,) = public.glob(f"*/*{part}*")
    return check_folder(folder)


def test_no_public_records_folder_breaks_the_check(public: Path) -> None:
    folders = sorted(public.glob("track_*/*"))
    assert len(folders) > 60
    for folder in folders:
        json.dumps(check_folder(folder).to_dict(), allow_nan=False)


PUBLIC: dict[str, tuple[str, tuple[str, ...]]] = {
    "#398": ("11L_EMA_TTT20ep", ("equal steps, artifact_bytes", "bytes_code 71,770 is not 89,751", "best of 3 seeds",
                                 "15,461,179 is not", "of 89,751 bytes")),
    "#417": ("TwoPhase_TTT_NormRepair", ("val_loss is in nats per token; 1.1227 is a BPB",)),
    "#714": ("11L_RotaryFix_LegalTTT", ("16,064,457", "16,129,153", "16,064,549", "16,050,683", "ddof 0")),
    "#1412": ("HessianSDClip_Progressive", ("executes another file", "16,059,704")),
    "#1769": ("PhasedTTT_MLPClip12", ("2 of 7 runs are left out",)),
    "#1855": ("9HpStack", ("16,033,980", "the sample's (ddof 1) is 0.00110608", "calibration on train data")),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_known_of_a_public_folder_is_found(name: str, public: Path) -> None:
    part, texts = PUBLIC[name]
    report = of(public, part)
    found = "\n".join(finding.text for finding in report.findings)
    assert [text for text in texts if text not in found] == []
    assert not report.strict


def test_a_sound_merged_record_passes(public: Path) -> None:
    assert of(public, "2026-03-23_LeakyReLU_LegalTTT").strict
