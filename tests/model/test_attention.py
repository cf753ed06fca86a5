from __future__ import annotations

import math

import pytest
import torch

from model.attention import (
    attention_candidates,
    attention_error,
    choose_attention,
    exclude_self,
    reference_attention,
    torch_attention,
)
from model.config import GPTConfig

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
CONFIG = GPTConfig(dim=64, heads=4, kv_heads=2)


def test_the_reference_is_the_definition_written_out():
    q, k, v = (torch.randn(1, 5, heads, 3, dtype=torch.float64) for heads in (4, 2, 2))
    got = reference_attention(q, k, v)
    for head in range(4):
        for t in range(5):
            scores = [math.exp(float(q[0, t, head] @ k[0, s, head // 2]) / math.sqrt(3)) for s in range(t + 1)]
            want = sum(p * v[0, s, head // 2] for s, p in enumerate(scores)) / sum(scores)
            torch.testing.assert_close(got[0, t, head], want)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_kernel_agrees_with_the_reference(kv_heads, dtype):
    config = GPTConfig(dim=64, heads=4, kv_heads=kv_heads)
    assert attention_error(torch_attention, config, CPU, dtype) < {torch.float32: 2e-6, torch.bfloat16: 1e-2}[dtype]


def test_on_a_cpu_the_fused_kernel_is_chosen():
    choice = choose_attention(CONFIG, CPU, torch.float32)
    assert (choice.name, choice.refused) == ("torch", {})


def no_mask(q, k, v):
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(*heads_first, enable_gqa=True).transpose(1, 2)


def wrong_heads(q, k, v):
    return torch_attention(q, k.flip(2), v.flip(2))


def right_forward_wrong_backward(q, k, v):
    return torch_attention(q, k.detach(), v) + 0.0 * k.sum()


def broken(q, k, v):
    raise RuntimeError("no kernel image")


@pytest.mark.parametrize("wrong", [no_mask, wrong_heads, right_forward_wrong_backward, broken])
def test_a_wrong_back_end_is_refused_and_the_next_is_taken(wrong):
    choice = choose_attention(CONFIG, CPU, torch.float32, {"wrong": wrong, "torch": torch_attention})
    assert choice.name == "torch"
    assert ("no kernel image" if wrong is broken else "relative error") in choice.refused["wrong"]


def test_no_sound_back_end_is_an_error_that_says_why():
    with pytest.raises(RuntimeError, match=r"all were refused.*no kernel image"):
        choose_attention(CONFIG, CPU, torch.float32, {"broken": broken})


def test_packages_for_gpus_are_never_tried_on_a_cpu():
    assert list(attention_candidates(CPU, torch.bfloat16)) == ["torch", "reference"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_every_installed_back_end_agrees_with_the_reference():
    cuda = torch.device("cuda")
    config = GPTConfig()
    for name, attend in attention_candidates(cuda, torch.bfloat16).items():
        assert attention_error(attend, config, cuda, torch.bfloat16) < 1e-2, name


def test_exclusive_attention_leaves_nothing_along_the_own_value():
    y, v = torch.randn(2, 5, 4, 8, dtype=torch.float64), torch.randn(2, 5, 2, 8, dtype=torch.float64)
    left = exclude_self(y, v)
    for head in range(4):
        along = (left[:, :, head] * v[:, :, head // 2]).sum(-1)
        torch.testing.assert_close(along, torch.zeros_like(along), atol=1e-12, rtol=0)
        removed = y[:, :, head] - left[:, :, head]  # all of it lies along the value
        cosine = torch.cosine_similarity(removed, v[:, :, head // 2], dim=-1).abs()
        torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_exclusive_attention_passes_what_has_no_own_value():
    y = torch.randn(1, 3, 4, 8)
    assert torch.equal(exclude_self(y, torch.zeros(1, 3, 2, 8)), y)


def test_exclusive_attention_computes_in_fp32_and_keeps_the_dtype():
    y, v = torch.randn(1, 64, 4, 8), torch.randn(1, 64, 2, 8)
    got = exclude_self(y.bfloat16(), v.bfloat16())
    assert got.dtype == torch.bfloat16
    want = exclude_self(y.bfloat16().float(), v.bfloat16().float())
    assert torch.equal(got, want.bfloat16())
