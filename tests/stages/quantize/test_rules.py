"""Overrides, pruning and budgets: which rule a matrix gets, what pruning takes, and where bits go."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from model.config import BigramConfig, GPTConfig
from model.names import parameter_shapes
from model.quantized import Coded, dequantize_all
from stages.contract import StageError
from stages.quantize.config import Config, FitConfig, GroupConfig
from stages.quantize.fit import Choice, entropy_bytes, from_the_middle, least_error
from stages.quantize.network import quantize_network
from stages.quantize.prune import prune
from stages.quantize.rules import Rule, rules_for

NETWORK = GPTConfig(
    vocab=64, layers=3, dim=16, heads=2, kv_heads=1, mlp_hidden=32, bigram=BigramConfig(buckets=32, dim=8), smear=True
)
INT5_MLP = {"*.mlp.*": GroupConfig(bits=5), "blocks.1.attn.k": GroupConfig(bits=16)}


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = parameter_shapes(NETWORK)
    return {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in sorted(shapes.items())}


def quantised(config: Config, tensors: dict[str, torch.Tensor] | None = None) -> tuple[dict, dict]:
    found = list(quantize_network(tensors or weights(), config, torch.device("cpu")))
    return {name: form for name, form, _ in found}, {name: row for name, _, row in found}


def test_an_override_speaks_for_what_it_matches_and_nothing_else():
    rules = rules_for(parameter_shapes(NETWORK), Config(small_weights=0, overrides=INT5_MLP))
    assert {rules[f"blocks.{layer}.mlp.{part}"].bits for layer in range(3) for part in ("up", "down")} == {5}
    assert [rules[f"blocks.{layer}.attn.k"].bits for layer in range(3)] == [6, 16, 6]
    assert (rules["bigram.proj"].bits, rules["embed.tokens"].bits) == (6, 8)
    assert "smear.gate" not in rules


def test_an_override_reaches_small_tensors_too():
    config = Config(small_weights=1 << 20, overrides={"bigram.proj": GroupConfig(bits=6)})
    assert rules_for(parameter_shapes(NETWORK), config)["bigram.proj"].bits == 6


def test_a_bank_with_one_rule_stays_whole_and_one_with_two_is_stored_by_layer():
    forms, rows = quantised(Config(small_weights=0, overrides=INT5_MLP))
    assert isinstance(forms["mlp.up"], Coded)
    assert forms["mlp.up"].bits == 5
    assert forms["mlp.up"].codes.shape == (3, 32, 16)
    assert "attn.k" not in forms
    assert forms["blocks.1.attn.k"].dtype == torch.float16
    assert (forms["blocks.0.attn.k"].bits, rows["blocks.0.attn.k"].matrices) == (6, 1)


def test_a_bank_stored_by_layer_is_read_as_the_same_bank():
    config = Config(small_weights=0, overrides={"blocks.1.attn.q": GroupConfig(bits=6, clip="search")})
    forms, _ = quantised(config)
    whole, _ = quantised(Config(small_weights=0))
    assert "blocks.2.attn.q" not in forms  # the override's rule is the group's: one rule, one bank
    forms, _ = quantised(Config(small_weights=0, overrides={"blocks.1.attn.q": GroupConfig(bits=32)}))
    assert "blocks.2.attn.q" in forms
    back, want = dequantize_all(forms), dequantize_all(whole)
    assert back.keys() == want.keys()
    assert torch.equal(back["attn.q"][[0, 2]], want["attn.q"][[0, 2]])
    assert torch.equal(back["attn.q"][1], weights()["attn.q"][1])


def test_a_bank_that_lacks_a_layer_is_refused():
    forms, _ = quantised(Config(small_weights=0, overrides=INT5_MLP))
    del forms["blocks.1.attn.k"]
    with pytest.raises(ValueError, match=r"attn\.k has \[0, 2\]"):
        dequantize_all(forms)


def test_an_override_that_matches_nothing_is_refused_with_the_nearest_names():
    with pytest.raises(StageError, match=r"quantize\.overrides .*'\*\.mpl\.\*' matches none; nearest: .*mlp"):
        quantised(Config(overrides={"*.mpl.*": GroupConfig(bits=5)}))


def test_two_overrides_for_one_matrix_are_refused():
    both = {"*.mlp.*": GroupConfig(bits=5), "blocks.1.*": GroupConfig(bits=7)}
    with pytest.raises(StageError, match=r"'\*\.mlp\.\*' and 'blocks\.1\.\*' both match 'blocks\.1\.mlp\.\w+'"):
        quantised(Config(overrides=both))


def test_the_published_int6_with_full_range_and_floor_comes_out_to_the_code():
    """PR #398: s = fp16(max(rowmax / 31, 1 / 31)), q = clamp(round(w / s), -32, 31)."""
    tensors = {name: tensor * 4.5 for name, tensor in weights(3).items()}
    config = Config(small_weights=0, matrices=GroupConfig(bits=6, scale_floor=1 / 31, full_range=True))
    forms, _ = quantised(config, tensors)
    w = tensors["mlp.down"]
    scale = torch.clamp(w.abs().amax(-1) / 31, min=1 / 31).half()
    codes = (w / scale.float()[..., None]).round().clamp(-32, 31).to(torch.int8)
    assert torch.equal(forms["mlp.down"].scales, scale)
    assert torch.equal(forms["mlp.down"].codes, codes)
    assert 0 < (scale == torch.tensor(1 / 31).half()).sum() < scale.numel()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), share=st.floats(0.001, 0.95), rows=st.integers(1, 9), columns=st.integers(1, 40))
def test_pruning_takes_what_lies_below_torchs_quantile_of_each_matrix(seed, share, rows, columns):
    w_NRC = torch.randn(2, rows, columns, generator=torch.Generator().manual_seed(seed))
    pruned_NRC, count = prune(w_NRC, share)
    want_NRC = w_NRC.clone()
    for w_RC in want_NRC:  # as published, matrix by matrix
        w_RC[w_RC.abs() < torch.quantile(w_RC.abs(), share)] = 0.0
    assert torch.equal(pruned_NRC, want_NRC)
    assert count == int((want_NRC == 0).sum())


def test_pruning_comes_before_rounding_and_is_counted():
    tensors = weights(1)
    kept, _ = quantised(Config(small_weights=0), tensors)
    config = Config(small_weights=0, matrices=GroupConfig(bits=8, prune=0.5))
    forms, rows = quantised(config, tensors)
    assert rows["attn.q"].pruned == 3 * 16 * 16 // 2
    assert rows["embed.tokens"].pruned == 0
    assert int((forms["attn.q"].codes == 0).sum()) >= rows["attn.q"].pruned > 3 * int((kept["attn.q"].codes == 0).sum())
    assert rows["attn.q"].squared_error > 0.05 * rows["attn.q"].squared_norm  # the table sees what pruning cost


def test_a_pruned_table_of_floats_keeps_its_other_weights():
    """#417's second system prunes its fp16 token table as well."""
    forms, rows = quantised(Config(small_weights=0, overrides={"embed.tokens": GroupConfig(bits=32, prune=0.25)}))
    kept, trained = forms["embed.tokens"], weights()["embed.tokens"]
    assert rows["embed.tokens"].pruned == int((kept == 0).sum()) == 64 * 16 // 4
    assert torch.equal(kept[kept != 0], trained[kept != 0])


def test_the_entropy_of_codes_is_shannons():
    assert entropy_bytes(torch.tensor([[-1, 0, 1, 2]], dtype=torch.int8)) == pytest.approx(1.0)
    assert entropy_bytes(torch.zeros(8, 8, dtype=torch.int8)) == 0.0
    codes = torch.randint(-31, 32, (64, 64), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    shares = np.unique(codes.numpy(), return_counts=True)[1] / codes.numel()
    assert entropy_bytes(codes) == pytest.approx(-(shares * np.log2(shares)).sum() * 64 * 64 / 8)


def test_a_floor_moves_with_the_bits_so_that_its_clip_stays():
    rule = Rule(bits=6, scale_floor=1 / 31)
    assert rule.with_bits(5).scale_floor == pytest.approx(1 / 15)
    assert rule.with_bits(7).scale_floor == pytest.approx(1 / 63)
    assert rule.with_bits(6) == rule


CHOICES = st.lists(
    st.tuples(st.floats(1, 50), st.floats(1, 50), st.floats(0.01, 1), st.floats(0.01, 1)), min_size=1, max_size=5
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(raw=CHOICES, slack=st.floats(0, 120))
def test_bits_by_error_keep_the_budget_and_leave_no_affordable_gain(raw, slack):
    choices = {f"m{i}": [Choice(5, a, e + f), Choice(6, a + b, e)] for i, (a, b, e, f) in enumerate(raw)}
    budget = sum(options[0].bytes for options in choices.values()) + slack
    chosen = least_error(choices, budget)
    spent = sum(choices[name][bits - 5].bytes for name, bits in chosen.items())
    assert spent <= budget + 1e-6
    for name, bits in chosen.items():
        if bits == 5:
            assert choices[name][1].bytes - choices[name][0].bytes > budget - spent - 1e-6


def test_bits_go_first_where_they_pay_most():
    choices = {"a": [Choice(5, 10, 0.4), Choice(6, 20, 0.1)], "b": [Choice(5, 10, 0.4), Choice(6, 20, 0.3)]}
    assert least_error(choices, 30) == {"a": 6, "b": 5}
    assert least_error(choices, 40) == {"a": 6, "b": 6}


def test_the_published_fallback_lowers_whole_layers_from_the_middle():
    """PR #1232: with 11 layers 5, 6, 4, 7, 3 ..., one at a time until it fits."""
    choices = {f"blocks.{layer}.{part}": [Choice(5, 5, 0), Choice(6, 6, 0)] for layer in range(11) for part in "qo"}
    layers = {name: int(name.split(".")[1]) for name in choices}

    def lowered(budget: float) -> set[int]:
        return {layers[name] for name, bits in from_the_middle(choices, layers, budget).items() if bits == 5}

    assert lowered(132) == set()
    assert [lowered(132 - 2 * n) for n in (1, 2, 3, 4, 5)] == [{5}, {5, 6}, {4, 5, 6}, {4, 5, 6, 7}, {3, 4, 5, 6, 7}]
    assert lowered(110) == set(range(11))


def network_bytes(config: Config) -> float:
    forms, _ = quantised(config)
    coded = [form for form in forms.values() if isinstance(form, Coded)]
    matrices = [m for form in coded for m in form.codes.reshape(-1, *form.codes.shape[-2:])]
    floats = sum(form.numel() * form.itemsize for form in forms.values() if not isinstance(form, Coded))
    return sum(map(entropy_bytes, matrices)) + sum(2 * form.scales.numel() for form in coded) + floats


@pytest.mark.parametrize("order", ["error", "middle"])
def test_a_budget_is_kept_and_used(order):
    plain = {bits: network_bytes(Config(small_weights=0, matrices=GroupConfig(bits=bits))) for bits in (5, 7)}
    budget = int((plain[5] + plain[7]) / 2)
    config = Config(
        small_weights=0, matrices=GroupConfig(bits=6), fit=FitConfig(budget_bytes=budget, order=order, bits=(5, 6, 7))
    )
    forms, rows = quantised(config)
    if order == "middle":
        assert {row.bits for row in rows.values() if row.group == "matrices"} == {5, 7}  # whole layers, either or
    assert network_bytes(config) <= budget
    assert network_bytes(config) > budget - (plain[7] - plain[5]) / 3
    assert dequantize_all(forms).keys() == weights().keys()


def test_bits_by_error_lose_less_than_the_published_fallback_at_the_same_budget():
    tensors = {name: t * (1 + 3 * ("attn" in name)) for name, t in weights(5).items()}
    tensors["mlp.up"][0] **= 3
    losses = {}
    for order in ("error", "middle"):
        fit = FitConfig(budget_bytes=5600, order=order, bits=(5, 6, 7))
        _, rows = quantised(Config(small_weights=0, matrices=GroupConfig(bits=6), fit=fit), tensors)
        matrices = [row for row in rows.values() if row.group == "matrices"]
        losses[order] = sum(row.squared_error / row.squared_norm for row in matrices)
    assert losses["error"] < losses["middle"]


def test_a_budget_that_nothing_fits_is_refused_with_both_sizes():
    with pytest.raises(StageError, match=r"predicted to take [\d,]+ bytes and the budget is 1,000"):
        quantised(Config(small_weights=0, fit=FitConfig(budget_bytes=1000)))


def test_bits_to_choose_from_ascend():
    with pytest.raises(ValidationError, match=r"ascending; got \[6, 5\]"):
        FitConfig(bits=(6, 5))
