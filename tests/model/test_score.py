from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from model.adapt import Adapter
from model.bytes import ByteTable
from model.config import BigramConfig, GPTConfig, RopeConfig
from model.descent import Compute
from model.gpt import GPT
from model.init import initialise
from model.ledger import Ledger, bits_per_byte
from model.protocol import Adaptation
from model.referee import Referee
from model.score import Scorer, score
from model.stream import TokenStream
from model.windows import Windows

CPU = torch.device("cpu")
CONFIG = GPTConfig(
    vocab=32, layers=3, dim=16, heads=2, kv_heads=1, mlp_hidden=32, bigram=BigramConfig(buckets=16, dim=8),
    smear=True, unet_skips=True, residual_mix=True, ln_scale=True,
)  # fmt: skip
TABLE = ByteTable(np.full(32, 2, np.int32), np.arange(32) % 2 == 0, np.arange(32) < 2)
TOKENS = np.random.default_rng(0).integers(0, 32, 301).astype(np.uint16)


def network(seed=0):
    model = GPT(CONFIG)
    initialise(model, seed)
    with torch.no_grad():  # initial weights predict nothing; these differ from token to token
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1)
    return model


def run(tokens=TOKENS, context=16, stride=4, chunk=0, batch=6, model=None, fixed=None, rank=0, world=1, **adaptation):
    model = model or network()
    windows = Windows(len(tokens) - 1, context, stride)
    ledger = Ledger(TABLE, context, windows.targets)
    shares = {"rank": rank, "world": world}
    referee = Referee(TokenStream([tokens]), windows, ledger, vocab=32, batch_windows=batch, chunk=chunk, **shares)
    adapter = (
        Adapter(model, Adaptation(**adaptation), context, Compute(forward=model, **shares)) if adaptation else None
    )
    score(referee, Scorer(model, CPU, torch.float32, fixed, True), adapter)
    return referee


def prices(referee):
    """Costs of all targets: streams here are short enough for every row to be sampled, up to 256, or for a recount."""
    rows = torch.from_numpy(np.stack([referee.ledger.rows[t] for t in sorted(referee.ledger.rows)]))
    targets = torch.from_numpy(referee._stream.read(1, referee.windows.targets + 1))[sorted(referee.ledger.rows)]
    return functional.cross_entropy(rows, targets, reduction="none").numpy()


@torch.no_grad()
def naive_nats(model, tokens, context, stride):
    """A scorer of a few lines, target by target, from nothing but the tokens before it."""
    nats = 0.0
    for target in range(1, len(tokens)):
        start = 0 if target <= context else math.ceil((target - context) / stride) * stride
        logits = model(torch.tensor(tokens[start:target].astype(np.int64))[None])[0, -1].double()
        nats += float(torch.logsumexp(logits, 0) - logits[int(tokens[target])])
    return nats


@pytest.mark.parametrize(("context", "stride"), [(16, 16), (16, 4), (24, 5), (32, 1)])
def test_a_naive_scorer_that_never_sees_a_later_token_agrees(context, stride):
    tokens = TOKENS[:160]
    ledger = run(tokens, context, stride).ledger
    nats = naive_nats(network(), tokens, context, stride)
    text_bytes = sum(
        2 + int(y % 2 == 0 and x >= 2) for x, y in zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True)
    )
    assert ledger.account.bytes == text_bytes
    bpb = bits_per_byte(ledger.account.nats, ledger.account.bytes)
    assert bpb == pytest.approx(nats / math.log(2) / text_bytes, abs=1e-5)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(1, 250), st.sampled_from([(16, 16), (16, 4)]))
def test_changing_later_tokens_changes_no_earlier_price(cut, layout):
    other = TOKENS[:257].copy()
    other[cut:] = (other[cut:] + 7) % 32
    before, after = (prices(run(t, *layout)) for t in (TOKENS[:257], other))
    # Target i is token i + 1: tokens from `cut` on are targets from cut - 1 on.
    np.testing.assert_array_equal(before[: cut - 1], after[: cut - 1])
    assert not np.array_equal(before[cut - 1 :], after[cut - 1 :])


@pytest.mark.parametrize("corrupted", [1, 2, 4])
def test_with_adaptation_on_corrupting_a_chunk_changes_no_price_before_it(corrupted):
    other = TOKENS[:257].copy()
    other[48 * corrupted + 1 :] = 5
    runs = [prices(run(t, chunk=48, lr=0.05, epochs=2)) for t in (TOKENS[:257], other)]
    np.testing.assert_array_equal(runs[0][: 48 * corrupted], runs[1][: 48 * corrupted])
    assert (runs[0][48 * corrupted :] != runs[1][48 * corrupted :]).mean() > 0.9


def test_a_chunk_changes_the_prices_of_the_chunks_after_it():
    """Else the test above would hold for an adaptation that does nothing."""
    other = TOKENS[:257].copy()
    other[:48] = (other[:48] + 7) % 32
    runs = [prices(run(t, chunk=48, lr=0.05, epochs=2)) for t in (TOKENS[:257], other)]
    assert (runs[0][96:] != runs[1][96:]).mean() > 0.9


def test_adaptation_at_learning_rate_zero_equals_sliding_exactly():
    still = run(chunk=48, batch=4, lr=0.0, epochs=2)
    assert still.ledger.sha256 == run(chunk=48, batch=4).ledger.sha256
    assert still.ledger.account.nats == pytest.approx(run(batch=4).ledger.account.nats, rel=1e-7)


@pytest.mark.parametrize("optimizer", [{"optimizer": "sgd", "lr": 0.2}, {"optimizer": "adamw", "lr": 0.01}])
def test_adaptation_improves_the_score_of_a_stream_that_repeats_itself(optimizer):
    tokens = np.tile(TOKENS[:50], 10)
    without, adapted = run(tokens), run(tokens, chunk=64, epochs=3, **optimizer)
    assert adapted.ledger.account.nats < without.ledger.account.nats - 50


def test_the_last_chunk_is_never_trained_on():
    model = network()
    adapter = Adapter(model, Adaptation(epochs=1, batch_sequences=1), 16)
    windows = Windows(160, 16, 4)
    referee = Referee(TokenStream([TOKENS]), windows, Ledger(TABLE, 16, 160), vocab=32, chunk=48)
    score(referee, Scorer(model, CPU, torch.float32), adapter)
    assert adapter.steps == 3 * 3  # 48 + 48 + 48 targets in rows of 16; the last 16 are not trained on


def test_padding_to_one_shape_changes_no_price_beyond_rounding():
    reference, padded = run(stride=5), run(stride=5, fixed=(6, 16))
    np.testing.assert_allclose(prices(reference), prices(padded), atol=1e-5)


def test_a_compiled_network_would_see_two_shapes_of_call_only():
    calls = set()
    model = network()

    def record(inputs, last):
        calls.add((tuple(inputs.shape), last))
        return model(inputs, last=last)

    windows = Windows(300, 16, 4, rescored_tail=True)
    referee = Referee(TokenStream([TOKENS]), windows, Ledger(TABLE, 16, 300), vocab=32, batch_windows=6, chunk=50)
    score(referee, Scorer(record, CPU, torch.float32, (6, 16), True))
    assert calls == {((6, 16), 4), ((6, 16), 16)}


def test_the_price_of_a_prefix_does_not_depend_on_what_follows():
    whole, prefix = prices(run(TOKENS[:257], batch=1)), prices(run(TOKENS[:120], batch=1))
    np.testing.assert_allclose(whole[:119], prefix, atol=1e-5)


def test_a_base_that_grows_with_the_window_does_not_tell_where_the_stream_ends():
    """By the NTK rule a truncated last window would turn by other angles: then its prices know the stream's length."""

    def ntk():
        model = GPT(replace(CONFIG, rope=RopeConfig(reference_tokens=8)))
        model.load_state_dict(network().state_dict())
        return model

    def tail(shape):
        prices_of = []
        for tokens in (TOKENS[:257], TOKENS[:119]):
            windows = Windows(len(tokens) - 1, 16, 8)
            ledger = Ledger(TABLE, 16, windows.targets)
            referee = Referee(TokenStream([tokens]), windows, ledger, vocab=32, batch_windows=1)
            score(referee, Scorer(ntk(), CPU, torch.float32, shape))
            prices_of.append(ledger.head_N2[112:118, 0])  # of the last window, 14 inputs long where the stream ends
        return np.abs(prices_of[0] - prices_of[1]).max()

    assert tail((1, 16)) < 1e-5
    assert tail(None) > 1e-4  # as the published code has it


def test_progress_ends_at_the_number_of_targets():
    seen = []
    windows = Windows(300, 16, 4)
    referee = Referee(TokenStream([TOKENS]), windows, Ledger(TABLE, 16, 300), vocab=32)
    score(referee, Scorer(network(), CPU, torch.float32), report=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 300


def test_bits_per_byte_of_the_hand_example():
    """legality.md 6.5: BOS H ello ▁world BOS ▁ <0xC3> <0xA9>; 7 targets, 14 nats, 13 bytes."""
    base = np.array([0, 1, 4, 5, 0, 1, 1], dtype=np.int32)  # BOS H ello ▁world ▁ <0xC3> <0xA9>
    table = ByteTable(base, np.array([0, 0, 0, 1, 1, 0, 0], bool), np.array([1, 0, 0, 0, 0, 0, 0], bool))
    tokens = np.array([0, 1, 2, 3, 0, 4, 5, 6])
    ledger = Ledger(table, 7, 7)
    ledger.add(np.full(7, 2, np.float32), np.zeros(7, np.float32), tokens, np.arange(7))
    assert (ledger.account.targets, ledger.account.bytes, ledger.account.nats) == (7, 13, 14.0)
    assert bits_per_byte(ledger.account.nats, ledger.account.bytes) == pytest.approx(1.5537, abs=5e-5)


def test_a_stream_without_text_has_no_bits_per_byte():
    with pytest.raises(ValueError, match="need text; the scored targets stand for 0 bytes"):
        bits_per_byte(1.0, 0)
