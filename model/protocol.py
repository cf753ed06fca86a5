"""How a network is scored, as plain data, and the parts of one scoring pass that are made from it.

`evaluate` checks a configuration and scores under it; `audit` replays it in other processes; a submission has it baked
in. All three read it here, from the same dictionary of fields (`stages/evaluate/config.py` says what each means).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch

from model.adapt import Adaptation, Adapter
from model.bytes import ByteTable
from model.compiler import compiled
from model.descent import Compute, FakeQuantise, LowRankSettings
from model.gpt import GPT
from model.hashed_ngram import HashedNGrams
from model.mixer import Blend, Gate, MayPermit, Mixer, PublishedMixer
from model.ngram import NGrams
from model.pre_eval import Phase, PreAdapter
from model.score import Scorer, autocast
from model.windows import Windows, target_count


@dataclass(frozen=True, kw_only=True)
class MixerSettings:
    """The expert and its weight; see `model/mixer.py`."""

    kind: Literal["off", "ngram", "ppm", "published_ngram"] = "off"
    max_order: int = 5
    discount: float = 0.75
    buckets: int = 4_194_304
    min_count: int = 2
    weight: float = 0.05
    weight_span: float = 0.0
    weight_center: float = 3.0
    active_after_tokens: int = 10_000
    chunk_tokens: int = 32_768


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Windows, adaptation and expert of one scoring pass."""

    protocol: Literal["roundtrip", "sliding", "ttt", "pre_eval"] = "roundtrip"
    context_tokens: int = 2048
    stride_tokens: int = 64
    batch_windows: int = 32
    chunk_tokens: int = 0  # targets between updates; 0 for a score that learns nothing
    adaptation: Adaptation | None = None  # of protocol ttt
    phases: tuple[Phase, ...] = ()  # of protocol pre_eval
    mixer: MixerSettings = MixerSettings()
    temperature: float = 1.0
    max_targets: int = 0  # 0 = all
    drop_partial_row: bool = False
    tail_rescore: bool = False
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Protocol:
        """From the fields of evaluate's configuration, groups nested; checked there. A field that is absent is off."""
        ttt, phases = values.get("ttt", {}), values.get("pre_eval", {})
        mixer = _settings(MixerSettings, values.get("mixer", {}))
        adaptation = _settings(Adaptation, ttt, **_groups(ttt)) if values.get("protocol") == "ttt" else None
        both = [phases.get(name, {}) for name in ("first", "second")]
        chunk = mixer.chunk_tokens if mixer.kind not in ("off", "") else 0
        return _settings(
            cls,
            values,
            chunk_tokens=ttt["chunk_tokens"] if adaptation else chunk,
            mixer=mixer,
            adaptation=adaptation,
            phases=tuple(_settings(Phase, phase, **_groups(phase)) for phase in both if phase.get("epochs")),
        )


def _groups(descent: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "low_rank": _settings(LowRankSettings, descent.get("lora", {})),
        "fake_quantise": _settings(FakeQuantise, descent.get("fake_quantise", {})),
    }


def _settings(kind: type[Any], values: Mapping[str, Any], **given: Any) -> Any:
    """A group of settings from those of `values` that it has."""
    found: dict[str, Any] = {}
    for field in fields(kind):
        off: Any = type(field.default)  # of 0.9: float, and so 0.0
        value = values.get(field.name, off())
        found[field.name] = tuple(value) if isinstance(value, list) else value
    return kind(**{**found, **given})


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


def make_scorer(protocol: Protocol, network: GPT, device: torch.device) -> tuple[Scorer, Callable[..., torch.Tensor]]:
    """The scorer, and the network as it is to be called: compiled where that is asked for."""
    compiles = protocol.compile == "on" or (protocol.compile == "auto" and device.type == "cuda")
    call = compiled(network) if compiles else network
    shape = (protocol.batch_windows, protocol.context_tokens)
    as_published = protocol.tail_rescore and not compiles
    return Scorer(call, device, compute_dtype(protocol, device), None if as_published else shape, compiles), call


def make_compute(
    protocol: Protocol, call: Callable[..., torch.Tensor], device: torch.device, rank: int = 0, world: int = 1
) -> Compute:
    """How adaptation calls the network, as this rank."""
    dtype = compute_dtype(protocol, device)
    return Compute(forward=call, autocast=lambda: autocast(device, dtype), rank=rank, world=world)


def make_adapter(protocol: Protocol, network: GPT, compute: Compute, table: ByteTable, bos: int) -> Adapter | None:
    """The adapter of protocol ttt; ValueError where a glob matches nothing that there is."""
    if protocol.adaptation is None:
        return None
    # Ids beyond the tokenizer stand for no text.
    bytes_V = np.pad(table.base, (0, max(network.config.vocab - table.vocab, 0))).astype(np.float32)
    weights_V = torch.from_numpy(bytes_V)
    return Adapter(network, protocol.adaptation, protocol.context_tokens, compute, weights_V, bos)


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


def make_pre_adapter(protocol: Protocol, network: GPT, compute: Compute, targets: int) -> PreAdapter | None:
    """The phases of protocol pre_eval; ValueError where a glob matches nothing, or a phase has no step to take."""
    if not protocol.phases:
        return None
    return PreAdapter(network, protocol.phases, protocol.context_tokens, targets, compute)
