"""The network's shape as one frozen value. Standard library only: it travels inside the archive and the bundle.

Layer numbers are absolute and 0-based. Every feature beyond a plain GQA transformer is off by default.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Literal, get_type_hints


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
class InitConfig:
    """Initial weights."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    embed_std: float = 0.005
    """Standard deviation of the token embedding."""
    matrices: Literal["orthogonal", "torch"] = "orthogonal"
    """q, k, v and up matrices: orthogonal with gain 1, or torch's default for nn.Linear."""
    auxiliary_gain: float = 0.0
    """Gain of the orthogonal bigram projection; 0 means 1 / sqrt(2 * layers)."""
    auxiliary_zero: bool = False
    """Start the bigram projection at zero instead."""


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

    def __post_init__(self) -> None:
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
    return cls(**{k: _build(types[k], v) if is_dataclass(types[k]) else v for k, v in raw.items()})
