"""What people read about runs in lists: names, the one score, hours, and that pictures stay small."""

from __future__ import annotations

import base64
import io
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flows import panels
from flows.headline import best_score, says
from flows.naming import changes, run_title, with_reason
from flows.rundoc import RunDocument, gpu_hours, hours_text, lost_gpu_hours


def test_a_runs_name_says_what_was_changed_by_the_end_of_each_path():
    changed = ["train.muon.lr=0.02", "quantize.matrices.bits = 5", " "]
    assert run_title("pr714", "full", 42, overrides=changed) == "pr714 full seed 42 muon.lr=0.02 matrices.bits=5"
    assert run_title("pr714", "full", seeds=[1, 2]) == "pr714 full seeds 1 2"


def test_changes_that_have_no_room_are_counted():
    said = changes([f"train.field_number_{i}={i}" for i in range(9)])
    assert said.endswith("and 7 more changes")
    assert len(said) < 90


def test_a_failed_runs_name_has_the_rule_in_one_short_line():
    name = with_reason("toy smoke", "train.lr is no field\nsecond line" + "x" * 500)
    assert name == "toy smoke: train.lr is no field"
    assert len(with_reason("toy smoke", "x" * 500)) < 120


def run_of(**scores: dict[str, Any]) -> dict[str, Any]:
    evaluate = {name: {"of": "raw" if name == "raw" else "archive"} for name in scores}
    return {
        "resolved": {"evaluate": evaluate},
        "scores": scores,
        "bytes": {"code": 1, "model": 2, "total": 3, "cap": 16},
    }


def test_the_one_score_of_a_run_is_the_lowest_of_the_archive_that_breaks_no_rule():
    run = run_of(
        raw={"bpb": 0.5},
        roundtrip={"bpb": 1.3},
        sliding={"bpb": 1.2, "verdict": {"strict": "unknown", "board": "legal"}},
        cheat={"bpb": 0.4, "rules_broken": ["C1"]},
        judged={"bpb": 0.3, "verdict": {"strict": "not_legal", "board": "not_legal"}},
    )
    assert best_score(run) == ("sliding", run["scores"]["sliding"])
    assert says(run) == "1.20000 BPB (sliding), strict: unknown, board: legal, 3 bytes"
    del run["scores"]["sliding"], run["scores"]["roundtrip"]
    assert "breaks" not in says(run)
    assert says(run).startswith("0.30000 BPB (judged), not legal")
    assert best_score({"scores": {}}) is None


class Memory:
    """A store that keeps the last document."""

    def __init__(self) -> None:
        self.written: dict[str, Any] = {}

    def write_run(self, run: dict[str, Any]) -> None:
        self.written = run

    def read_run(self, run_id: str) -> dict[str, Any]:
        return self.written


def test_attempts_without_a_result_count_as_gpu_hours_and_are_told_apart():
    document = RunDocument(Memory(), {})
    document.step("train", "", state="ran", gpu_s=3600.0)
    document.lose("train", "", 180.0, gpus=8)
    document.lose("train", "", 270.0, gpus=8)
    document.lose("average", "", 100.0, gpus=0)
    found = document.snapshot()
    assert lost_gpu_hours(found) == pytest.approx(1.0)
    assert gpu_hours(found) == pytest.approx(2.0)
    assert hours_text(found) == "GPU hours 2.00, of which 1.00 lost"
    assert next(step for step in found["steps"] if step["stage"] == "average")["lost_s"] == 100.0
    assert hours_text({"steps": []}) == ""


def test_losses_are_counted_from_several_threads(tmp_path: Path):
    document = RunDocument(Memory(), {})
    threads = [threading.Thread(target=document.lose, args=("train", "", 1.0, 1)) for _ in range(20)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert lost_gpu_hours(document.snapshot()) == pytest.approx(20 / 3600)


@pytest.mark.parametrize("noise", [False, True])
def test_a_picture_fits_the_servers_database_or_is_left_out(tmp_path: Path, noise: bool):
    whole = Image.effect_noise((1800, 1200), 90) if noise else Image.new("RGB", (1800, 1200), "white")
    whole.save(tmp_path / "p.png")
    address = panels.picture(tmp_path / "p.png", 900)
    if noise:
        assert address == ""
    else:
        raw = base64.b64decode(address.removeprefix("data:image/png;base64,"))
        assert len(raw) <= panels.PICTURE_LIMIT
        assert Image.open(io.BytesIO(raw)).size == (900, 600)
