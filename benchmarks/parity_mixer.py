"""Does our copy of the n-gram mixer of pull request #1033 give the prices of its own code?

    python benchmarks/parity_mixer.py CHECKOUT [--freeze]    CHECKOUT: a git directory of the challenge's repository
                                                             (pull-request refs included), or the train_gpt.py itself

The published evaluation loop runs as it is, on a CPU, with the settings of its run and without training between chunks.
Both sides get the same tokens and the same logits from a table that stands for a network, in fp32. Every target's price
is compared. `--freeze` writes what the published code computed in the small case to tests/model/published_mixer.json,
and `make test` holds our code to that.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import subprocess
import sys
import types
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from model.bytes import ByteTable
from model.hashed_ngram import HashedNGrams
from model.ledger import Ledger
from model.mixer import Gate, PublishedMixer
from model.referee import Referee
from model.score import score
from model.stream import TokenStream
from model.windows import Windows

FROZEN = Path(__file__).resolve().parents[1] / "tests" / "model" / "published_mixer.json"
REF = "refs/pull/1033/head:records/track_10min_16mb/2026-03-28_ComplementaryBackoff_NgramMixer/train_gpt.py"
SHA256 = "496f561944ed7c1a392ab4250561585145489738839a0f78370b9aaa8e83c230"
CPU = torch.device("cpu")
TEMPERATURE = 0.98


@dataclass(frozen=True)
class Case:
    """Settings of one comparison. `full` has those of the published run, but for context and stream."""

    targets: int
    vocab: int
    context: int
    stride: int
    chunk: int
    buckets: int
    active_after: int
    max_order: int = 10
    batch_windows: int = 8


CASES = {
    "small": Case(targets=2048, vocab=64, context=32, stride=8, chunk=256, buckets=512, active_after=300),
    "full": Case(
        targets=131_072, vocab=1024, context=256, stride=64, chunk=32_768, buckets=4_194_304, active_after=10_000
    ),
}


def shared_tokens(case: Case) -> np.ndarray:
    """Skewed noise with passages that come back, so that every order is used; the same on every platform."""
    rng = np.random.Generator(np.random.PCG64(7))
    noise = (rng.random(case.targets + 1) ** 3 * case.vocab).astype(np.int64)
    for _ in range(case.targets // 64):
        begin, to = rng.integers(0, case.targets - 32, 2)
        noise[to : to + 24] = noise[begin : begin + 24]
    return noise


def shared_logits(case: Case) -> Tensor:
    """Logits after each token; rows differ in scale, so that entropies do."""
    rng = np.random.Generator(np.random.PCG64(11))
    table = rng.random((case.vocab, case.vocab)) - 0.5
    return torch.from_numpy((table * rng.integers(1, 40, (case.vocab, 1))).astype(np.float32))


def ours(case: Case) -> tuple[np.ndarray, Referee]:
    """Our price of each target once, in stream order, and the referee with the whole account."""
    windows = Windows(case.targets, case.context, case.stride, rescored_tail=True)
    table = ByteTable(np.ones(case.vocab, np.int32), np.zeros(case.vocab, bool), np.zeros(case.vocab, bool))
    ledger = Ledger(table, case.context, case.targets)
    referee = Referee(
        TokenStream([shared_tokens(case)]), windows, ledger, vocab=case.vocab, chunk=case.chunk,
        batch_windows=case.batch_windows,
    )  # fmt: skip
    hashed = HashedNGrams(case.vocab, case.max_order, case.buckets, 2, CPU)
    mixer = PublishedMixer(referee, hashed, Gate(0.20, 0.55, 3.0), active_after=case.active_after)
    logits_VV = shared_logits(case)
    prices: list[np.ndarray] = []
    enter = ledger.add

    def keep(nll_N: np.ndarray, *rest: Any) -> None:
        prices.append(nll_N.copy())
        enter(nll_N, *rest)

    with mock.patch.object(ledger, "add", keep):
        score(referee, lambda x_BT, scored: logits_VV[x_BT[:, -scored:]], mixer=mixer, temperature=TEMPERATURE)
    return np.concatenate(prices), referee


class Published:
    """The published script as a module; nothing of it but autocast is changed."""

    def __init__(self, source: str) -> None:
        source = source.replace('device_type="cuda", dtype=torch.bfloat16)', 'device_type="cpu", enabled=False)')
        sys.modules["flash_attn_interface"] = types.ModuleType("flash_attn_interface")
        sys.modules["flash_attn_interface"].__dict__["flash_attn_func"] = None
        self.module = types.ModuleType("published")
        exec(compile(source, "train_gpt.py", "exec"), self.module.__dict__)

    def run(self, case: Case) -> tuple[np.ndarray, float]:
        """The price of each target once, in stream order, and the mean over all terms that its loop returns."""
        tokens, logits_VV = torch.from_numpy(shared_tokens(case)), shared_logits(case)
        network = torch.nn.Module()
        network.blocks = torch.nn.ModuleList()
        network.scale = torch.nn.Parameter(torch.zeros(1))
        network.forward_logits = lambda x_BT: logits_VV[x_BT]
        args = types.SimpleNamespace(
            train_seq_len=case.context, ttt_chunk_tokens=case.chunk, ttt_max_chunks=0, ttt_freeze_blocks=2,
            ttt_lr=0.0, ttt_epochs=0, ttt_optimizer="sgd", ttt_momentum=0.9, use_polyak=False, polyak_decay=0.998,
            byte_weighted_ttt=True, adaptive_lr=True, adaptive_lr_max=3.0, ttt_temperature=TEMPERATURE,
            use_hedge_mixer=True, mixer_min_tokens=case.active_after, vocab_size=case.vocab,
        )  # fmt: skip
        prices = np.full(case.targets, np.nan)
        nll_of = self.module.__dict__["BackoffNgramMixer"].score
        entropy = self.module.__dict__["F"].cross_entropy
        at = {"window": 0}

        def keep(nll_BT: Tensor) -> Tensor:
            for row in nll_BT.view(-1, case.context):
                begin = at["window"] * case.stride
                at["window"] += 1
                length = min(case.context, case.targets - begin)
                new = 0 if begin == 0 else length - case.stride
                where = np.arange(begin + new, begin + length)
                once = np.isnan(prices[where])
                prices[where[once]] = row[new:length].numpy()[once]
            return nll_BT

        settings = {
            "NGRAM_ORDER": str(case.max_order), "NGRAM_BUCKETS": str(case.buckets), "MIN_COUNT": "2",
            "ALPHA_BASE": "0.20", "ALPHA_RANGE": "0.55", "ALPHA_CENTER": "3.0",
        }  # fmt: skip
        plain = types.SimpleNamespace(
            **{**vars(torch.nn.functional), "cross_entropy": lambda *a, **k: keep(entropy(*a, **k))}
        )
        zeros = torch.zeros(case.vocab, dtype=torch.int16)
        with contextlib.ExitStack() as patches:
            patches.enter_context(mock.patch.dict("os.environ", settings))
            patches.enter_context(mock.patch.dict(self.module.__dict__, {"F": plain}))
            mixer = self.module.__dict__["BackoffNgramMixer"]
            patches.enter_context(mock.patch.object(mixer, "score", lambda *a: keep(nll_of(*a))))
            mean, _ = self.module.__dict__["eval_val_sliding_ttt"](
                args, network, 0, 1, CPU, tokens, zeros + 1, zeros > 0, zeros > 0, case.stride,
                batch_seqs=case.batch_windows, log0=lambda _text: None,
            )  # fmt: skip
        return prices, mean


def source_of(checkout: Path) -> str:
    """The published script, verified."""
    if checkout.is_file():
        source = checkout.read_bytes()
    else:
        source = subprocess.run(["git", "-C", str(checkout), "show", REF], check=True, capture_output=True).stdout
    if hashlib.sha256(source).hexdigest() != SHA256:
        raise SystemExit(
            f"the published script has sha256 {SHA256}; this file is another; give a checkout with pull refs"
        )
    return source.decode()


def main() -> int:
    """Compare, print, and freeze if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--freeze", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(2)
    published = Published(source_of(asked.checkout))
    failed = False
    for name, case in CASES.items():
        theirs, mean = published.run(case)
        prices, referee = ours(case)
        account = referee.ledger.account + referee.ledger.again
        worst = float(np.abs(theirs - prices).max())
        failed |= not worst < 1e-4
        print(
            f"{name}: {len(prices)} targets, worst price differs by {worst:.1e} nats; mean over {account.targets} "
            f"terms {mean:.9f} published, {account.nats / account.targets:.9f} ours"
        )
        if asked.freeze and name == "small":
            frozen = {"sha256": SHA256, "case": asdict(case), "mean": mean, "prices": theirs[::7].tolist()}
            FROZEN.write_text(json.dumps(frozen, indent=1) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
