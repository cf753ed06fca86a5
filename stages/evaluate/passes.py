"""One scoring pass, set up from the stage's configuration."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from model.adapt import Adaptation, Adapter
from model.bytes import ByteTable
from model.descent import Compute, FakeQuantise, LowRankSettings
from model.gpt import GPT
from model.hashed_ngram import HashedNGrams
from model.ledger import Excerpt, Ledger, bits_per_byte
from model.mixer import Blend, Gate, Mixer, PublishedMixer
from model.ngram import NGrams
from model.pre_eval import RULES, Phase, PreAdapter
from model.referee import Referee
from model.score import Scorer, autocast
from model.stream import TokenStream
from model.windows import Windows, target_count
from stages.contract import Runtime

if TYPE_CHECKING:
    from stages.evaluate.config import Config

_PROGRESS_S = 0.5


def windows_of(config: Config, stream_tokens: int) -> Windows:
    """The windows of a protocol over a stream; ValueError where not one fits."""
    row = config.context_tokens if config.drop_partial_row else 0
    stride = config.context_tokens if config.protocol == "roundtrip" else config.stride_tokens
    targets = target_count(stream_tokens, row, config.max_targets)
    return Windows(targets, config.context_tokens, stride, config.tail_rescore)


def make_referee(
    config: Config,
    stream: TokenStream,
    table: ByteTable,
    vocab: int,
    excerpts: Sequence[Excerpt],
    runtime: Runtime,
) -> Referee:
    """The referee of this rank, with an empty ledger."""
    windows = windows_of(config, len(stream))
    return Referee(
        stream,
        windows,
        Ledger(table, windows.context, windows.targets, excerpts),
        vocab=vocab,
        batch_windows=config.batch_windows,
        chunk=config.chunk_tokens,
        rank=runtime.rank,
        world=runtime.world,
    )


def make_scorer(config: Config, network: GPT, device: torch.device) -> tuple[Scorer, Callable[..., torch.Tensor]]:
    """The scorer, and the network as it is to be called: compiled where that is asked for."""
    compiled = config.compile == "on" or (config.compile == "auto" and device.type == "cuda")
    call = torch.compile(network, fullgraph=True, dynamic=False) if compiled else network
    shape = (config.batch_windows, config.context_tokens) if compiled else None
    return Scorer(call, device, compute_dtype(config, device), shape), call


def make_compute(config: Config, call: Callable[..., torch.Tensor], device: torch.device, runtime: Runtime) -> Compute:
    """How adaptation calls the network, as this rank."""
    dtype = compute_dtype(config, device)
    return Compute(forward=call, autocast=lambda: autocast(device, dtype), rank=runtime.rank, world=runtime.world)


def make_adapter(config: Config, network: GPT, compute: Compute, table: ByteTable, bos: int) -> Adapter | None:
    """The adapter of protocol ttt; ValueError where a glob matches nothing that there is."""
    if config.protocol != "ttt":
        return None
    settings = Adaptation(
        **config.ttt.model_dump(exclude={"chunk_tokens", "lora", "fake_quantise"}),
        low_rank=LowRankSettings(**config.ttt.lora.model_dump()),
        fake_quantise=FakeQuantise(**config.ttt.fake_quantise.model_dump()),
    )
    # Ids beyond the tokenizer stand for no text.
    bytes_V = np.pad(table.base, (0, max(network.config.vocab - table.vocab, 0))).astype(np.float32)
    return Adapter(network, settings, config.context_tokens, compute, torch.from_numpy(bytes_V), bos)


def make_mixer(config: Config, referee: Referee, vocab: int, device: torch.device, runtime: Runtime) -> Mixer | None:
    """The expert that is asked for, without counts; the published one asks the referee for its exception here."""
    mixer = config.mixer
    if mixer.kind == "off":
        return None
    gate = Gate(mixer.weight, mixer.weight_span, mixer.weight_center)
    options = {"active_after": mixer.active_after_tokens, "world": runtime.world}
    if mixer.kind == "published_ngram":
        hashed = HashedNGrams(vocab, mixer.max_order, mixer.buckets, mixer.min_count, device)
        return PublishedMixer(referee, hashed, gate, **options)
    smoothing = {"discount": 0.0, "escape": 1.0} if mixer.kind == "ppm" else {"discount": mixer.discount}
    return Blend(NGrams(vocab, mixer.max_order, device, **smoothing), gate, **options)


def make_pre_adapter(config: Config, network: GPT, compute: Compute, targets: int) -> PreAdapter | None:
    """The phases of protocol pre_eval; ValueError where a glob matches nothing, or a phase has no step to take."""
    if config.protocol != "pre_eval":
        return None
    phases = [
        Phase(
            **each.model_dump(exclude={"fake_quantise"}), fake_quantise=FakeQuantise(**each.fake_quantise.model_dump())
        )
        for each in (config.pre_eval.first, config.pre_eval.second)
        if each.epochs
    ]
    return PreAdapter(network, phases, config.context_tokens, targets, compute)


def adapt_first(referee: Referee, pre_adapter: PreAdapter, progress: Progress) -> list[dict[str, float]]:
    """Train on all of the stream before it is scored; the score carries every rule that this breaks."""
    (first, why), *also = RULES.items()
    return pre_adapter.run(referee.exception(first, why, **dict(also)), progress.epochs)


def compute_dtype(config: Config, device: torch.device) -> torch.dtype:
    """The dtype of matrix products."""
    if config.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if config.precision == "bfloat16" else torch.float32


class Progress:
    """Tells the flow how far this rank is and what the closed spans cost, a few times a second at most."""

    def __init__(self, runtime: Runtime, referee: Referee) -> None:
        self._runtime, self._referee, self._last_s = runtime, referee, -math.inf

    def epochs(self, done: int, total: int, loss: float) -> None:
        """Report epochs of adaptation before scoring."""
        self._runtime.report_progress(done, total, "epochs", loss=loss)

    def __call__(self, scored: int) -> None:
        """Report `scored` targets of this rank's share."""
        now_s, total = time.monotonic(), self._referee.windows.targets
        done = min(scored * self._runtime.world, total)
        if now_s - self._last_s < _PROGRESS_S and done < total:
            return
        self._last_s = now_s
        account = self._referee.ledger.account
        so_far = {"bpb": bits_per_byte(account.nats, account.bytes)} if account.bytes else {}
        self._runtime.report_progress(done, total, "targets", **so_far)
