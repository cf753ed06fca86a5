"""The list of techniques follows from the fields: what is switched on appears, and nothing else does."""

from __future__ import annotations

import pytest

from configs.load import load_recipe, names
from configs.techniques import techniques


def listed(recipe: str, *overrides: str) -> set[str]:
    return set(techniques(load_recipe(recipe, "full", overrides).recipe))


@pytest.mark.parametrize(
    ("recipe", "on", "off"),
    [
        (
            "pr398",
            {"ema", "int6", "int8", "scale_floor", "zstd_22", "pre_eval_adaptation", "stride_64"},
            {"xsa", "int5"},
        ),
        ("pr417", {"xsa", "value_embedding", "swa", "pruning", "stride_32", "pre_eval_adaptation"}, {"ema", "int5"}),
        ("pr417-int5", {"int5", "int6", "swa", "pruning"}, {"int8", "scale_floor", "ln_scale", "ntk_rope", "xsa"}),
        ("pr714", {"xsa", "clip_search", "xz_6", "score_first_ttt"}, {"ntk_rope", "pre_eval_adaptation"}),
        ("pr714-fit", {"smallest_coder"}, {"xz_6"}),
        ("pr1033", {"value_residual_additive", "published_ngram_mixer", "polyak", "temperature"}, {"depth_recurrence"}),
        ("pr1033-legal", {"ngram_mixer"}, {"published_ngram_mixer", "pre_eval_adaptation"}),
        ("pr1033-recurrent", {"depth_recurrence", "lora_8"}, {"published_ngram_mixer"}),
        (
            "pr1232",
            {"gated_attention", "value_residual_mix", "bits_by_middle", "zstd_16"},
            {"refiner", "value_embedding"},
        ),
        ("pr1232-flow", {"refiner"}, set()),
    ],
)
def test_each_published_system_has_its_techniques_and_not_its_neighbours(recipe, on, off):
    assert on <= listed(recipe)
    assert not off & listed(recipe)


def test_a_legal_twin_adapts_before_scoring_nowhere():
    for recipe in names("recipe"):
        if recipe.endswith("-legal"):
            assert not {"pre_eval_adaptation", "published_ngram_mixer", "tail_rescore"} & listed(recipe)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["train.network.memory_tokens=4"], "memory_tokens"),
        (["train.network.activation=leaky_relu2"], "leaky_relu2"),
        (["train.schedule.decay=cosine"], "cosine_decay"),
        (["train.z_loss=1e-4"], "z_loss"),
        (["train.complement.alpha=0.5"], "complementary_loss"),
        (["train.muon.parallel=sharded"], "sharded_muon"),
        (["train.clip=before"], "clip_before_reduction"),
        (["train.qat.mode=declared_dead"], "qat_declared_dead"),
        (["quantize.matrices.prune=0.1"], "pruning"),
        (["quantize.fit.budget_bytes=15000000"], "bits_by_error"),
        (["compress.codec=rans"], "rans_coder"),
        (["evaluate.sliding.stride_tokens=32"], "stride_32"),
        (["evaluate.sliding.mixer.kind=ppm"], "ppm_mixer"),
    ],
)
def test_one_field_switches_one_name(overrides, name):
    before, after = listed("base11"), listed("base11", *overrides)
    assert after - before == {name}
