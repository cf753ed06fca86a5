"""How a network is scored, as plain data: the one place that names the fields of a scoring pass.

`evaluate`'s configuration has these fields (`stages/evaluate/config.py`), `audit` reads them back with `from_dict`, and
a submission has them baked in under the same names. What they are made into is in `passes.py`.

No torch: who plans a run reads this. No pydantic: who scores reads it too. Pydantic takes a field's text and bounds
from its metadata, and reports what `__post_init__` refuses as it does any other error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Literal


def knob(default: Any, *, description: str, **bounds: float) -> Any:
    """A field with its text and, as pydantic names them, its bounds (`ge`, `gt`, `le`, `lt`)."""
    return field(default=default, metadata={"description": description, **bounds})


class Group:
    """A group of fields: what pydantic is to do with names and numbers that it does not know."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}


@dataclass(frozen=True, kw_only=True)
class LowRankSettings(Group):
    """Low-rank adapters: W + A B, of which A (normal, 0.01) and B (zero at first) learn and the weights W do not."""

    rank: int = knob(0, ge=0, description="Columns of A; 0 = no adapters, the weights themselves learn.")
    targets: tuple[str, ...] = knob(
        ("*.attn.q", "*.attn.v"), description="Globs of matrices that get an adapter, as blocks.<layer>.attn.q."
    )
    reset: Literal["never", "chunk", "document"] = knob(
        "never",
        description="When adapters and their optimizer forget: never, after each chunk, or at each document's BOS.",
    )


@dataclass(frozen=True, kw_only=True)
class FakeQuantise(Group):
    """Matrices on a grid while a training step computes its gradient; never in scoring.

    In the published runs this was on by accident. Scales are the rows' largest magnitudes.
    """

    bits: int = knob(0, ge=0, le=8, description="Bits of the grid; 0 = off.")
    scale_floor: float = knob(0.0, ge=0, description="Smallest scale of a row.")
    full_range: bool = knob(False, description="Use the code -2^(bits - 1) as well.")
    soft_temperature: float = knob(
        0.0,
        ge=0,
        description="0: rounded, the gradient passes straight through; above: nearest + tanh(r / T) / 2 with its own "
        "gradient, r the distance to the nearest code and T this (PR #1033). Unit: codes.",
    )
    allow_bits_mismatch: bool = knob(False, description="Use another grid than `quantize` has used.")
    targets: tuple[str, ...] = knob(
        ("*.attn.[qkvo]", "*.mlp.*"), description="Globs of the matrices that are put on the grid."
    )

    def __post_init__(self) -> None:
        if self.bits == 1:
            raise ValueError("fake_quantise.bits is 0 (off) or 2 to 8; got 1")


@dataclass(frozen=True, kw_only=True)
class Descent(Group):
    """What learns, and how one step changes it."""

    optimizer: Literal["sgd", "adamw"] = knob(
        "sgd", description="Optimizer of the adapted weights; adamw without weight decay is Adam."
    )
    lr: float = knob(0.002, ge=0, description="Learning rate before its schedule.")
    momentum: float = knob(0.9, ge=0, lt=1, description="SGD momentum, or AdamW's beta1.")
    beta2: float = knob(0.999, ge=0, lt=1, description="AdamW's decay of the second moment.")
    weight_decay: float = knob(0.0, ge=0, description="Decoupled weight decay.")
    batch_sequences: int = knob(32, ge=1, description="Sequences per optimizer step, all ranks together.")
    microbatch_sequences: int = knob(
        0, ge=0, description="Sequences per forward pass and rank, to bound memory; 0 = a rank's whole share."
    )
    clip_norm: float = knob(1.0, ge=0, description="Global gradient norm limit; 0 = no clipping.")
    adapt: tuple[str, ...] = knob(
        (),
        description="Globs of the parameters that learn, such as blocks.10.* or *.attn_scale; none = every parameter.",
    )
    freeze: tuple[str, ...] = knob(
        (), description="Globs of the parameters that do not adapt, even if `adapt` matches them."
    )
    fake_quantise: FakeQuantise = knob(FakeQuantise(), description="Rounding inside training.")


@dataclass(frozen=True, kw_only=True)
class Adaptation(Descent):
    """Score-first test-time training: each chunk is scored, then trained on, never scored again."""

    chunk_tokens: int = knob(32_768, ge=1, description="Targets per chunk, the unit of adaptation. Unit: tokens.")
    epochs: int = knob(3, ge=1, description="Passes over a scored chunk.")
    horizon_chunks: int = knob(
        0,
        ge=0,
        description="Declared length of the schedule, a constant and never the stream's length; 0 = constant lr. The "
        "rate falls as a cosine to 0 at the horizon's last chunk.",
    )
    warmup_share: float = knob(
        0.0, ge=0, lt=1, description="Linear warm-up over this share of the horizon, before the cosine."
    )
    ramp_gain: float = knob(
        0.0, ge=0, description="The rate is multiplied by 1 + ramp_gain min(chunk / (ramp_share horizon), 1)."
    )
    ramp_share: float = knob(0.3, gt=0, le=1, description="Share of the horizon over which the ramp rises.")
    polyak_decay: float = knob(
        0.0,
        ge=0,
        lt=1,
        description="Score with a shadow that follows the weights by 1 - decay per step; training goes on from the raw "
        "ones. 0 = none.",
    )
    byte_weighted: bool = knob(
        False, description="Weigh each target's loss by its bytes (without a leading space) over the batch's mean."
    )
    lora: LowRankSettings = knob(LowRankSettings(), description="Adapters in place of the weights.")

    def __post_init__(self) -> None:
        if (self.warmup_share or self.ramp_gain) and not self.horizon_chunks:
            raise ValueError(
                "ttt.warmup_share and ttt.ramp_gain are shares of a declared horizon; horizon_chunks is 0; set it, or "
                "leave them out"
            )
        if self.lora.rank and (self.adapt or self.freeze):
            raise ValueError(
                f"with adapters nothing else learns; ttt.lora.rank is {self.lora.rank} and ttt.adapt or ttt.freeze is "
                "set too; choose layers by ttt.lora.targets"
            )
        if self.lora.reset != "never" and not self.lora.rank:
            raise ValueError(
                f"only adapters forget; ttt.lora.reset is {self.lora.reset!r} and ttt.lora.rank is 0; set a rank"
            )
        if self.lora.reset != "never" and self.polyak_decay:
            raise ValueError(
                f"an average over adapters that forget (ttt.lora.reset {self.lora.reset!r}) means nothing; "
                f"ttt.polyak_decay is {self.polyak_decay}; drop one of them"
            )


@dataclass(frozen=True, kw_only=True)
class Phase(Descent):
    """One phase of adaptation before scoring."""

    epochs: int = knob(0, ge=0, description="Passes over the whole validation set; 0 = no such phase.")
    schedule: Literal["constant", "cosine"] = knob(
        "constant", description="The rate over the epochs: lr, or lr (1 + cos(pi epoch / epochs)) / 2."
    )
    order: Literal["stream", "permutation"] = knob(
        "stream", description="Rows in the stream's order, or in a new fixed permutation each epoch."
    )
    lanes: int = knob(
        1,
        ge=1,
        description="The stream in so many contiguous parts that each step takes side by side; published: one per GPU.",
    )
    drop_tail: bool = knob(False, description="Leave out the rows after the last whole step.")

    def __post_init__(self) -> None:
        if self.batch_sequences % self.lanes:
            raise ValueError(
                f"every lane gives a step the same number of sequences; batch_sequences is {self.batch_sequences}, "
                f"lanes is {self.lanes}; make one a multiple of the other"
            )
        if self.lanes > 1 and self.order == "permutation":
            raise ValueError(
                f"lanes are parts of the stream's order; order is 'permutation' and lanes is {self.lanes}; use 1"
            )


@dataclass(frozen=True, kw_only=True)
class Phases(Group):
    """Adaptation on all of the validation set before it is scored, as published by #398 and #417. Not a legal score."""

    first: Phase = knob(Phase(), description="The first phase.")
    second: Phase = knob(Phase(), description="The second phase, with an optimizer of its own.")


@dataclass(frozen=True, kw_only=True)
class MixerSettings(Group):
    """An expert that counts each chunk once it is scored, blended with the network's prediction; see `mixer.py`."""

    kind: Literal["off", "ngram", "ppm", "published_ngram"] = knob(
        "off",
        description="Exact n-gram counts with absolute discounting, or with PPM-C's escapes; or #1033's hashed ratio, "
        "which is no probability: its score carries rule C2.",
    )
    max_order: int = knob(5, ge=2, le=32, description="Longest n-gram, its target included. Unit: tokens.")
    discount: float = knob(0.75, gt=0, lt=1, description="Taken from each count for shorter contexts (kind ngram).")
    buckets: int = knob(
        4_194_304, ge=1, description="Entries of each of the two hash tables per order (kind published_ngram)."
    )
    min_count: int = knob(2, ge=1, description="Least count of a context that is used (kind published_ngram).")
    weight: float = knob(0.05, ge=0, lt=1, description="Least weight of the expert.")
    weight_span: float = knob(
        0.0,
        ge=0,
        lt=1,
        description="Rise of the weight with the entropy H of the network's prediction: weight + weight_span * "
        "sigmoid(2 * (H - weight_center)); 0 = constant weight.",
    )
    weight_center: float = knob(3.0, ge=0, description="Entropy at half the rise. Unit: nats.")
    active_after_tokens: int = knob(
        10_000, ge=0, description="The expert is silent until it has counted this many. Unit: tokens."
    )
    chunk_tokens: int = knob(
        32_768, ge=1, description="Targets scored between updates; protocol ttt has its own chunks. Unit: tokens."
    )

    def __post_init__(self) -> None:
        if not 0 < self.weight + self.weight_span < 1:
            raise ValueError(
                "weight and weight_span add up to a number between 0 and 1, the expert's greatest weight; got "
                f"{self.weight} + {self.weight_span}; for no expert set kind = 'off'"
            )


@dataclass(frozen=True, kw_only=True)
class Protocol(Group):
    """Windows, adaptation and expert of one scoring pass."""

    protocol: Literal["roundtrip", "sliding", "ttt", "pre_eval"] = knob(
        "roundtrip",
        description="Non-overlapping rows, overlapping windows, windows with score-first adaptation, or windows after "
        "adaptation on all of the validation set, which breaks C1, C3 and C4 and says so.",
    )
    context_tokens: int = knob(2048, ge=2, description="Window length. Unit: tokens.")
    stride_tokens: int = knob(64, ge=1, description="Step between windows (all protocols but roundtrip). Unit: tokens.")
    batch_windows: int = knob(32, ge=1, description="Windows per forward pass and rank.")
    ttt: Adaptation = knob(Adaptation(), description="Adaptation; read by protocol 'ttt' only.")
    pre_eval: Phases = knob(Phases(), description="Adaptation before scoring; read by protocol 'pre_eval' only.")
    mixer: MixerSettings = knob(MixerSettings(), description="Blended expert, in all protocols but roundtrip.")
    temperature: float = knob(
        1.0, gt=0, description="Logits are divided by this before anything else; 1 = as they are."
    )
    max_targets: int = knob(
        0,
        ge=0,
        description="Score only the first targets, for smoke runs; 0 = all. A partial score is marked as one.",
    )
    drop_partial_row: bool = knob(
        False, description="Leave out the targets after the last whole row of context_tokens, as published; marked."
    )
    tail_rescore: bool = knob(
        False, description="Score the last targets again in truncated windows, as published; marked in every output."
    )
    precision: Literal["auto", "bfloat16", "float32"] = knob(
        "auto", description="Matrix arithmetic; auto is bfloat16 on a GPU and float32 on a CPU."
    )
    compile: Literal["auto", "on", "off"] = knob("auto", description="torch.compile; auto is on for a GPU.")

    def __post_init__(self) -> None:
        self._check_windows()
        self._check_phases()

    def _check_windows(self) -> None:
        if self.protocol != "roundtrip" and self.stride_tokens > self.context_tokens:
            raise ValueError(f"stride_tokens is at most context_tokens {self.context_tokens}; got {self.stride_tokens}")
        if self.protocol == "ttt" and self.ttt.chunk_tokens < self.context_tokens:
            raise ValueError(
                f"ttt.chunk_tokens holds at least one row of context_tokens {self.context_tokens}; got "
                f"{self.ttt.chunk_tokens}"
            )
        if self.tail_rescore and self.protocol == "roundtrip":
            raise ValueError("tail_rescore belongs to overlapping windows; use protocol sliding or ttt, or drop it")
        if self.mixer.kind != "off" and self.protocol == "roundtrip":
            raise ValueError(
                f"a mixer belongs to a protocol whose windows overlap, such as sliding; mixer.kind is "
                f"{self.mixer.kind!r} and protocol is 'roundtrip'; change one of them"
            )
        if self.mixer.kind != "off" and self.protocol != "ttt" and self.mixer.chunk_tokens < self.stride_tokens:
            raise ValueError(
                f"mixer.chunk_tokens holds at least one stride of {self.stride_tokens}; got {self.mixer.chunk_tokens}"
            )

    def _check_phases(self) -> None:
        first, second = self.pre_eval.first.epochs, self.pre_eval.second.epochs
        if self.protocol == "pre_eval" and not first:
            raise ValueError("protocol 'pre_eval' adapts before it scores; pre_eval.first.epochs is 0; set it")
        if self.protocol != "pre_eval" and (first or second):
            raise ValueError(
                f"pre_eval is read by protocol 'pre_eval' only; protocol is {self.protocol!r} and "
                f"pre_eval.{'first' if first else 'second'}.epochs is {first or second}; set it to 0"
            )


def from_dict(values: Mapping[str, Any]) -> Protocol:
    """From the fields of a recipe's protocol, groups nested; one that is absent has its default."""
    return _group(Protocol, values)


def _group(kind: type[Any], values: Mapping[str, Any]) -> Any:
    found: dict[str, Any] = {}
    for each in fields(kind):
        if each.name in values:
            value = values[each.name]
            group = type(each.default)
            found[each.name] = _group(group, value) if is_dataclass(group) else _plain(value)
    return kind(**found)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # JSON has no tuples


# Functions of plain fields: the same for a `Protocol` and for what a submission has in its place.


def chunk_targets(protocol: Protocol) -> int:
    """Targets between updates; 0 for a score that learns nothing."""
    if protocol.protocol == "ttt":
        return protocol.ttt.chunk_tokens
    return protocol.mixer.chunk_tokens if protocol.mixer.kind != "off" else 0


def phases_of(protocol: Protocol) -> dict[str, Phase]:
    """The phases of adaptation before scoring by their names, in their order; none where the protocol has none."""
    if protocol.protocol != "pre_eval":
        return {}
    both = {"first": protocol.pre_eval.first, "second": protocol.pre_eval.second}
    return {name: phase for name, phase in both.items() if phase.epochs}


def descents(protocol: Protocol) -> Iterator[tuple[str, Descent]]:
    """The trainings of a protocol, with the fields that hold them."""
    if protocol.protocol == "ttt":
        yield "ttt", protocol.ttt
    for name, phase in phases_of(protocol).items():
        yield f"pre_eval.{name}", phase


def selectors(protocol: Protocol) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The globs that a protocol reads, with the fields that hold them; each must match some parameter."""
    for name, part in descents(protocol):
        yield f"{name}.adapt", part.adapt
        yield f"{name}.freeze", part.freeze
        if part.fake_quantise.bits:
            yield f"{name}.fake_quantise.targets", part.fake_quantise.targets
        if isinstance(part, Adaptation) and part.lora.rank:
            yield f"{name}.lora.targets", part.lora.targets
