"""The network's shape as one frozen value. Standard library only: it travels inside the archive and the bundle.

Layer numbers are absolute and 0-based. Every feature beyond a plain GQA transformer is off by default.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Literal, cast, get_type_hints


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding on the first `dims` of each head."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    dims: int = 0
    """Rotated dimensions of each head, even; 0 rotates all of them."""
    base: float = 10_000.0
    """Base of the geometric frequencies."""
    reference_tokens: int = 0
    """Above this length the base grows by (T / reference)^(dims / (dims - 2)), the NTK rule; 0 never scales."""


@dataclass(frozen=True, kw_only=True)
class BigramConfig:
    """A hashed embedding of (previous token, token), projected to the model width."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    buckets: int = 0
    """Rows of the table; 0 turns the feature off."""
    dim: int = 128
    """Width of the table before its projection."""
    scale_init: float = 0.05
    """Initial value of the learned scalar that multiplies the projection."""


@dataclass(frozen=True, kw_only=True)
class ValueEmbeddingConfig:
    """One token table, shared by the listed layers, whose projection they add to their attention values."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    layers: tuple[int, ...] = ()
    """Layers that add it, each times a learned scalar of its own; none turns the feature off."""
    dim: int = 128
    """Width of the table before its projection."""
    scale_init: float = 0.1
    """Initial value of the learned scalar that multiplies the projection."""


@dataclass(frozen=True, kw_only=True)
class RecurrenceConfig:
    """Depth recurrence: blocks that run several times in a row with the same weights."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    layers: tuple[int, ...] = ()
    """Layers that repeat; none turns the feature off. A skip joins before the first pass, one leaves after the last."""
    passes: int = 2
    """How often each of them runs."""


@dataclass(frozen=True, kw_only=True)
class RefinerConfig:
    """A gated low-rank correction of the stream before the head (published as FlowRefiner, without any flow in it)."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    latent: int = 0
    """Width of its bottleneck; 0 turns the feature off."""
    hidden: int = 256
    """Hidden width of the two layers inside the bottleneck."""
    gate_init: float = -5.0
    """Initial gate; its sigmoid multiplies the correction."""


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """Initial weights."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    embed_std: float = 0.005
    """Standard deviation of the token embedding."""
    matrices: Literal["orthogonal", "torch"] = "orthogonal"
    """q, k, v and up matrices: orthogonal with gain 1, or torch's default for nn.Linear."""
    auxiliary_gain: float = 0.0
    """Gain of the orthogonal bigram and value-embedding projections; 0 means 1 / sqrt(2 * layers)."""
    auxiliary_zero: bool = False
    """Start these projections at zero instead."""
    value_embed_std: float = 0.01
    """Standard deviation of the value embedding."""
    attention_gate_bias: float = 4.0
    """Bias of the attention gates: sigmoid(4) leaves 98.2 % of each head."""
    memory_std: float = 0.02
    """Standard deviation of memory tokens."""


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """A causal transformer language model over `vocab` tokens."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    vocab: int = 1024
    """Token ids are 0 .. vocab - 1."""
    layers: int = 11
    """Transformer blocks."""
    dim: int = 512
    """Width of the residual stream."""
    heads: int = 8
    """Query heads."""
    kv_heads: int = 4
    """Key and value heads; divides `heads`."""
    mlp_hidden: int = 1536
    """Hidden width of the feed-forward part."""
    activation: Literal["relu2", "leaky_relu2"] = "relu2"
    """Feed-forward nonlinearity: relu(z)^2 or leaky_relu(z, leaky_slope)^2."""
    leaky_slope: float = 0.5
    """Slope below zero of leaky_relu2."""
    rope: RopeConfig = field(default_factory=RopeConfig)
    bigram: BigramConfig = field(default_factory=BigramConfig)
    smear: bool = False
    """SmearGate: mix each position's stem embedding with the previous one's, per channel."""
    unet_skips: bool = False
    """Add outputs of the first half of the blocks to inputs of the second half, last in first out."""
    residual_mix: bool = False
    """Before each block, mix the stream with the stem's output, per channel."""
    ln_scale: bool = False
    """Multiply each block's normalised input by 1 / sqrt(layer + 1)."""
    qk_gain: float = 1.5
    """Initial gain per query head, applied after QK normalisation."""
    xsa_layers: tuple[int, ...] = ()
    """Layers of exclusive self-attention: each head's output loses its part along the position's own value."""
    value_embedding: ValueEmbeddingConfig = field(default_factory=ValueEmbeddingConfig)
    value_residual: Literal["", "additive", "mix"] = ""
    """How later layers see layer 0's value v0: not at all, v + r v0 (r starts at 0), or a v0 + b v (both at 1/2)."""
    gated_attention: bool = False
    """Multiply each head's output by sigmoid(W z + b), z being what attention reads."""
    recurrence: RecurrenceConfig = field(default_factory=RecurrenceConfig)
    memory_tokens: int = 0
    """Learned vectors that replace the stem at the first positions of every sequence; 0 turns the feature off."""
    refiner: RefinerConfig = field(default_factory=RefinerConfig)
    softcap: float = 30.0
    """Logits become softcap * tanh(logits / softcap); 0 leaves them as they are."""
    tied_head: bool = True
    """The output matrix is the token embedding."""
    init: InitConfig = field(default_factory=InitConfig)

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.dim // self.heads

    @property
    def kv_dim(self) -> int:
        """Width of all key (or value) heads together."""
        return self.kv_heads * self.head_dim

    def passes(self, layer: int) -> int:
        """How often a block runs in one forward pass."""
        return self.recurrence.passes if layer in self.recurrence.layers else 1

    def __post_init__(self) -> None:
        self._check_shape()
        self._check_features()

    def _check_shape(self) -> None:
        for name in ("vocab", "layers", "dim", "heads", "kv_heads", "mlp_hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is a count of at least 1; got {getattr(self, name)}")
        if self.dim % self.heads:
            raise ValueError(f"heads must divide dim; got dim {self.dim}, heads {self.heads}")
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads must divide heads; got heads {self.heads}, kv_heads {self.kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"the head width dim / heads must be even for RoPE; got {self.head_dim}")
        if self.rope.dims % 2 or not 0 <= self.rope.dims <= self.head_dim:
            raise ValueError(f"rope.dims is even and at most the head width {self.head_dim}; got {self.rope.dims}")
        if self.vocab > 65_536:
            raise ValueError(f"token shards hold uint16, so vocab is at most 65536; got {self.vocab}")
        if self.softcap < 0:
            raise ValueError(f"softcap is positive, or 0 for none; got {self.softcap}")
        if self.bigram.buckets == 1 or self.bigram.buckets < 0:
            raise ValueError(f"bigram.buckets is 0 (off) or at least 2; got {self.bigram.buckets}")

    def _check_features(self) -> None:
        repeating = self.recurrence.layers
        self._check_layers("xsa_layers", self.xsa_layers)
        self._check_layers("value_embedding.layers", self.value_embedding.layers)
        self._check_layers("recurrence.layers", repeating)
        for name, value, least in (
            ("bigram.dim", self.bigram.dim, 1),
            ("value_embedding.dim", self.value_embedding.dim, 1),
            ("recurrence.passes", self.recurrence.passes, 2),
            ("refiner.latent", self.refiner.latent, 0),
            ("refiner.hidden", self.refiner.hidden, 1),
            ("memory_tokens", self.memory_tokens, 0),
        ):
            if value < least:
                raise ValueError(f"{name} is at least {least}; got {value}")
        if self.value_residual and self.layers < 2:
            raise ValueError(
                f"value_residual hands layer 0's value to later layers; got {self.value_residual!r} with layers 1; "
                "have at least 2 layers, or leave it out"
            )
        if self.value_residual and 0 in repeating:
            raise ValueError(
                f"value_residual keeps the one value of layer 0, so layer 0 runs once; got {self.value_residual!r} "
                f"with recurrence.layers {list(repeating)}; repeat layers of 1 .. {self.layers - 1} only"
            )

    def _check_layers(self, name: str, listed: tuple[int, ...]) -> None:
        if missing := [layer for layer in listed if not 0 <= layer < self.layers]:
            raise ValueError(
                f"{name} lists layers of this network, 0 .. {self.layers - 1}; got {list(listed)}, "
                f"where {missing[0]} is none"
            )
        if len(set(listed)) < len(listed):
            raise ValueError(f"{name} lists each layer once; got {list(listed)}")


def to_dict(config: GPTConfig) -> dict[str, Any]:
    """A JSON-able dict with every field, defaults included: an archive must not depend on later defaults."""
    return asdict(config)


def from_dict(raw: dict[str, Any]) -> GPTConfig:
    """The inverse of `to_dict`; an unknown field raises ValueError."""
    return _build(GPTConfig, raw)


def _build(cls: type[Any], raw: dict[str, Any]) -> Any:
    known = {f.name for f in fields(cls)}
    if unknown := sorted(set(raw) - known):
        raise ValueError(f"{cls.__name__} has no field {unknown[0]!r}; known fields: {', '.join(sorted(known))}")
    types = get_type_hints(cls)
    return cls(**{name: _value(types[name], value) for name, value in raw.items()})


def _value(kind: Any, value: Any) -> Any:
    if is_dataclass(kind):
        return _build(cast("type[Any]", kind), value)
    return tuple(value) if isinstance(value, list) else value  # JSON has no tuples
