"""Recipes that cannot work are refused before anything runs, with the field, the value and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.checks import _QAT_MEMBERS, least_archive_bytes, snapshots_taken
from configs.load import load_recipe, names
from flows.cli import main
from stages.train.qat import MEMBERS

NETWORK = "train.network."
QAT = ["train.qat.mode=ste", "train.qat.below_scale=0.1"]


@pytest.mark.parametrize(
    ("recipe", "overrides", "expected"),
    [
        # The network.
        ("pr417", [f"{NETWORK}xsa_layers=[7, 11]"], ["xsa_layers", "0 .. 10", "[7, 11]", "11 is none"]),
        ("pr417", [f"{NETWORK}value_embedding.layers=[9, 9]"], ["value_embedding.layers", "once", "[9, 9]"]),
        ("pr398", [f"{NETWORK}heads=7"], ["heads must divide dim", "dim 512", "heads 7"]),
        ("pr398", [f"{NETWORK}kv_heads=3"], ["kv_heads must divide heads", "kv_heads 3"]),
        ("pr398", [f"{NETWORK}rope.dims=80"], ["rope.dims", "at most the head width 64", "80"]),
        ("pr1033-recurrent", [f"{NETWORK}recurrence.layers=[4, 12]"], ["recurrence.layers", "0 .. 10", "12 is none"]),
        ("pr1232", [f"{NETWORK}recurrence.layers=[0]"], ["value_residual", "recurrence.layers [0]"]),
        # Bits and codecs.
        ("pr398", ["quantize.matrices.bits=9"], ["quantize.matrices.bits", "4, 5, 6, 7, 8, 16 or 32", "9"]),
        ("pr398", ["quantize.small.bits=8"], ["small.bits is 16 or 32", "8"]),
        ("pr398", ["compress.codec=xz"], ["compress", "'xz' has levels 0 to 9", "22"]),
        (
            "base11",
            ["compress.codec=rans", "quantize.matrices.bits=16", "quantize.embeddings.bits=16"],
            ["compress.codec 'rans' holds integer codes", "quantize.matrices.bits is 16"],
        ),
        ("pr1232", ["quantize.fit.bits=[6, 5]"], ["fit.bits", "ascending", "[6, 5]"]),
        # Globs.
        ("pr398", ['quantize.overrides={ "*.mpl.up" = { bits = 5 } }'], ["'*.mpl.up'", "nearest", "mlp.up"]),
        (
            "pr417-int5",
            ['quantize.overrides={ "blocks.3.*" = { bits = 5 } }'],
            ["'*.mlp.*'", "'blocks.3.*'", "both match 'blocks.3.mlp"],
        ),
        ("pr1232", ["evaluate.ttt.ttt.freeze=['blok.0.*']"], ["evaluate.ttt.ttt.freeze", "'blok.0.*'", "nearest"]),
        # Averages.
        ("pr398", ["train.ema.enabled=false"], ["average.kind 'ema'", "train.ema.enabled is false", "raw, swa"]),
        ("pr417", ["average.kind=ema"], ["average.kind 'ema'", "train.ema.enabled is false"]),
        (
            "pr398",
            ["train.ema.time_constant={ steps = 9000, of = 7400 }"],
            ["train.ema.time_constant", "at most the run's length, 7400 steps", "9000"],
        ),
        (
            "pr417",
            ["train.snapshots.every={ steps = 8000, of = 7090 }"],
            ["train.snapshots.every", "at most the run's length, 7090 steps", "8000"],
        ),
        ("pr398", ["average.kind=swa"], ["average.kind 'swa'", "train.snapshots.every.steps is 0"]),
        (
            "pr417",
            ["average.kind=tight_swa", "average.last=13"],
            ["needs 13 snapshots (average.last)", "takes 12", "below 0.2"],
        ),
        ("pr417", ["train.snapshots.below_scale=0.001"], ["average.kind 'swa' needs 1", "takes 0"]),
        # QAT.
        (
            "pr398",
            [*QAT, "train.qat.mlp.bits=5"],
            ["train.qat.mlp has bits 5", "blocks.0.mlp.up is stored with bits 6", "allow_bits_mismatch"],
        ),
        (
            "pr398",
            [*QAT, "train.qat.attention.bits=6"],
            ["train.qat.attention", "scale_floor 0,", "scale_floor 0.0322581"],
        ),
        ("pr417-int5", ["train.qat.allow_bits_mismatch=false"], ["blocks.8.attn.k is stored with bits 16"]),
        ("pr398", [*QAT, "train.qat.auxiliary.bits=6"], ["train.qat.auxiliary", "bigram.proj is stored with bits 16"]),
        (
            "pr1033",
            ["evaluate.published.ttt.fake_quantise.allow_bits_mismatch=false"],
            [
                "evaluate.published.ttt.fake_quantise trains for the grid",
                "has bits 6 and scale_floor 0.0322581, and bigram.proj is stored with bits 16",
                "evaluate.published.ttt.fake_quantise.allow_bits_mismatch = true",
            ],
        ),
        (
            "pr398",
            ["evaluate.published.pre_eval.first.fake_quantise.bits=5"],
            ["pre_eval.first.fake_quantise", "bits 5 and scale_floor 0,", "blocks.0.attn.k is stored with bits 6"],
        ),
        # Size.
        (
            "pr398",
            [f"{NETWORK}dim=2048", f"{NETWORK}mlp_hidden=6144"],
            ["weigh.cap_bytes 16,000,000", "parameters takes", "1 bit per coded weight", "allow_oversize"],
        ),
        # Evaluation.
        (
            "pr398-legal",
            ["evaluate.ttt.ttt.chunk_tokens=32"],
            ["ttt.chunk_tokens", "at least one row of context_tokens 2048", "got 32"],
        ),
        ("pr714", ["evaluate.ttt.ttt.chunk_tokens=1024"], ["ttt.chunk_tokens", "context_tokens 2048", "1024"]),
        ("pr714", ["evaluate.sliding.stride_tokens=4096"], ["stride_tokens is at most", "2048", "4096"]),
        # Techniques that exclude each other.
        ("pr714", ["evaluate.ttt.ttt.lora.rank=8", "evaluate.ttt.ttt.freeze=['blocks.0.*']"], ["adapters", "freeze"]),
        ("pr714", ["evaluate.roundtrip.mixer.kind=ngram"], ["mixer", "'roundtrip'"]),
        ("pr398", ["average.seeds=[1, 2]"], ["average.seeds", "kind 'ema'", "[1, 2]"]),
    ],
)
def test_what_cannot_work_is_refused_by_name_before_anything_runs(recipe, overrides, expected, tmp_path, capsys):
    """As a person types it: exit code 3, one message, no store."""
    words = [word for override in overrides for word in ("--set", override)]
    assert main(["run", recipe, *words, "--store", str(tmp_path / "store")]) == 3
    message = capsys.readouterr().err
    assert message.startswith("fairway: ")
    assert "Traceback" not in message
    for part in expected:
        assert part in message, (part, message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("pr417-int5", ["train.qat.mlp={ bits = 5, full_range = true }"]),
        ("pr398", ["train.qat.mlp={ bits = 6, scale_floor = 0.03225806451612903 }"]),
        ("pr1232", ["train.qat.mlp={ bits = 5, scale_floor = 0.06666666666666667 }"]),  # the budget may choose 5
        ("pr398", ["train.qat.mlp.bits=4", "train.qat.allow_bits_mismatch=true"]),
        ("pr398", ["train.qat.mode=declared_dead", "train.qat.mlp.bits=4"]),
    ],
)
def test_quantisation_aware_training_on_the_quantisers_grid_is_accepted(recipe, overrides):
    assert load_recipe(recipe, "full", [*QAT, *overrides]).recipe.train.qat.mlp.bits


def test_adaptation_on_the_grid_of_the_archive_needs_no_permission():
    grid = '{ bits = 6, scale_floor = 0.03225806451612903, targets = ["*.mlp.up", "*.attn.q"] }'
    overrides = [f"evaluate.ttt.ttt.fake_quantise={grid}"]
    assert load_recipe("pr398-legal", "full", overrides).recipe.evaluate["ttt"].ttt.fake_quantise.bits == 6


def test_the_names_of_quantisation_aware_groups_are_those_of_training():
    assert _QAT_MEMBERS == MEMBERS


def test_the_snapshots_of_published_runs_are_foretold():
    """Logged: 12 at steps 6500 .. 7050, and 23 at 5400 .. 6500."""
    assert snapshots_taken(load_recipe("pr417").recipe.train) == 12
    assert snapshots_taken(load_recipe("pr417-int5").recipe.train) == 23


def test_a_run_whose_speed_is_not_known_is_not_judged():
    assert snapshots_taken(load_recipe("pr417", "one-gpu").recipe.train) is None


def test_the_floor_of_the_size_lies_well_below_every_published_archive():
    for name in names("recipe"):
        recipe = load_recipe(name).recipe
        published = recipe.published.get("total_bytes", [])
        for total in published if isinstance(published, list) else [published]:
            assert 0.1 * total < least_archive_bytes(recipe) < 0.4 * total, name


def test_more_floats_raise_the_floor_by_half_their_bytes(tmp_path: Path):
    coded = load_recipe("pr398", "full", ["weigh.allow_oversize=true"]).recipe
    floats = load_recipe("pr398", "full", ["quantize.matrices.bits=16", "weigh.allow_oversize=true"]).recipe
    assert least_archive_bytes(floats) - least_archive_bytes(coded) == 25_952_256 * 7 // 8


def test_what_is_over_the_cap_by_intent_is_not_refused():
    overrides = [f"{NETWORK}dim=2048", f"{NETWORK}mlp_hidden=6144", "weigh.allow_oversize=true"]
    assert load_recipe("pr398", "full", overrides).recipe.train.network.dim == 2048
