"""One scoring pass: what a protocol, a network and a stream are made into, and how it runs.

`evaluate` scores with it, a deep `audit` repeats it in other processes, a submission carries it. A scorer that is
audited from outside is made of the same parts, without a referee.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from model.adapt import Adapter
from model.attention import choose_attention
from model.bytes import ByteTable
from model.compiler import compiled
from model.descent import Compute
from model.gpt import GPT
from model.hashed_ngram import HashedNGrams
from model.ledger import Excerpt, Ledger
from model.mixer import Blend, Gate, MayPermit, Mixer, PublishedMixer
from model.ngram import NGrams
from model.pre_eval import RULES, PreAdapter
from model.protocol import Protocol, chunk_targets, phases_of
from model.referee import Referee
from model.score import Scorer, autocast, score
from model.stream import TokenStream
from model.windows import Windows, target_count


def windows_of(protocol: Protocol, stream_tokens: int) -> Windows:
    """The windows of a protocol over a stream; ValueError where not one fits."""
    row = protocol.context_tokens if protocol.drop_partial_row else 0
    stride = protocol.context_tokens if protocol.protocol == "roundtrip" else protocol.stride_tokens
    targets = target_count(stream_tokens, row, protocol.max_targets)
    return Windows(targets, protocol.context_tokens, stride, protocol.tail_rescore)


def compute_dtype(protocol: Protocol, device: torch.device) -> torch.dtype:
    """The dtype of matrix products."""
    if protocol.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if protocol.precision == "bfloat16" else torch.float32


def put_in_place(network: GPT, protocol: Protocol, device: torch.device) -> str:
    """Move a network to its device and give it the best attention there is, whose name is returned."""
    network.to(device)
    choice = choose_attention(network.config, device, compute_dtype(protocol, device))
    network.attend = choice.attend
    return choice.name


def make_scorer(
    protocol: Protocol, network: GPT, device: torch.device, rank: int = 0, world: int = 1
) -> tuple[Scorer, Compute]:
    """What scores with a network that is in place, and what trains it as this rank: compiled at most once for both."""
    dtype = compute_dtype(protocol, device)
    compiles = protocol.compile == "on" or (protocol.compile == "auto" and device.type == "cuda")
    call = compiled(network) if compiles else network
    shape = (protocol.batch_windows, protocol.context_tokens)
    as_published = protocol.tail_rescore and not compiles
    scorer = Scorer(call, device, dtype, None if as_published else shape, compiles)
    return scorer, Compute(forward=call, autocast=lambda: autocast(device, dtype), rank=rank, world=world)


def make_adapter(protocol: Protocol, network: GPT, compute: Compute, table: ByteTable, bos: int) -> Adapter | None:
    """The adapter of protocol ttt; ValueError where a glob matches nothing that there is."""
    if protocol.protocol != "ttt":
        return None
    # Ids beyond the tokenizer stand for no text.
    bytes_V = np.pad(table.base, (0, max(network.config.vocab - table.vocab, 0))).astype(np.float32)
    return Adapter(network, protocol.ttt, protocol.context_tokens, compute, torch.from_numpy(bytes_V), bos)


def make_pre_adapter(protocol: Protocol, network: GPT, compute: Compute, targets: int) -> PreAdapter | None:
    """The phases of protocol pre_eval; ValueError where a glob matches nothing, or a phase has no step to take."""
    if protocol.protocol != "pre_eval":
        return None
    return PreAdapter(network, phases_of(protocol), protocol.context_tokens, targets, compute)


def make_mixer(
    protocol: Protocol, referee: MayPermit, vocab: int, device: torch.device, world: int = 1
) -> Mixer | None:
    """The expert that is asked for, without counts; the published one asks the referee for its exception here."""
    mixer = protocol.mixer
    if mixer.kind == "off":
        return None
    gate = Gate(mixer.weight, mixer.weight_span, mixer.weight_center)
    options = {"active_after": mixer.active_after_tokens, "world": world}
    if mixer.kind == "published_ngram":
        hashed = HashedNGrams(vocab, mixer.max_order, mixer.buckets, mixer.min_count, device)
        return PublishedMixer(referee, hashed, gate, **options)
    if mixer.kind in ("ngram", "ppm"):
        smoothing = {"discount": 0.0, "escape": 1.0} if mixer.kind == "ppm" else {"discount": mixer.discount}
        return Blend(NGrams(vocab, mixer.max_order, device, **smoothing), gate, **options)
    raise ValueError(f"a mixer is off, ngram, ppm or published_ngram; got {mixer.kind!r}; choose one of them")


class ScoringPass:
    """This rank's part in scoring one stream under one protocol, once. What came of it is in the referee's ledger.

    Args:
        protocol: what to do.
        network: what is scored; it is moved to `device`, and changed by the pass where the protocol adapts.
        stream: the tokens that are scored.
        table: bytes of each token.
        bos: id of the token that begins a document, -1 where there is none.
        device: this rank's.
        rank: of `world`, which share the windows and the training.
        world: how many take part; above 1 `run` needs a process group.
        excerpts: documents whose prices the ledger keeps one by one.

    Raises ValueError where protocol, network and stream do not go together.
    """

    def __init__(
        self,
        protocol: Protocol,
        network: GPT,
        stream: TokenStream,
        table: ByteTable,
        bos: int,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
        excerpts: Sequence[Excerpt] = (),
    ) -> None:
        windows, vocab = windows_of(protocol, len(stream)), network.config.vocab
        self.attention = put_in_place(network, protocol, device)  # name of the back end
        self.referee = Referee(
            stream,
            windows,
            Ledger(table, windows.context, windows.targets, excerpts),
            vocab=vocab,
            batch_windows=protocol.batch_windows,
            chunk=chunk_targets(protocol),
            rank=rank,
            world=world,
        )
        self._scorer, compute = make_scorer(protocol, network, device, rank, world)
        self.adapter = make_adapter(protocol, network, compute, table, bos)
        self.pre_adapter = make_pre_adapter(protocol, network, compute, windows.targets)
        self.mixer = make_mixer(protocol, self.referee, vocab, device, world)
        self._temperature = protocol.temperature

    def run(
        self,
        scored: Callable[[int], None] = lambda _targets: None,
        adapted: Callable[[int, int, float], None] = lambda _done, _total, _loss: None,
    ) -> list[dict[str, float]]:
        """Score the stream; returns what each phase of adaptation before scoring did.

        A score with such a phase carries every rule that this breaks. `scored` hears the targets that this rank has
        scored so far, `adapted` (epochs done, epochs, mean loss).

        Raises:
            RuleBroken: where the scorer does what a rule forbids.
            Diverged: where an adaptation leaves the numbers that floats can hold.
        """
        told: list[dict[str, float]] = []
        if self.pre_adapter:
            told = self.pre_adapter.run(self.referee.exception(**RULES), adapted)
        score(self.referee, self._scorer, self.adapter, scored, self.mixer, self._temperature)
        return told
