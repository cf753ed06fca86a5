"""Knobs of `train`: the network, the optimizers, the schedule, and what is kept for `average`."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from model.config import GPTConfig
from stages.config import StageConfig, Strict
from stages.contract import StageSpec

MAX_PAIRED_VOCAB = 16_384  # 2 GiB of counts


class Horizon(Strict):
    """A span of `steps` in a run of `of` steps. It scales with the run: a run half as long gets half the span."""

    steps: float = Field(ge=0, description="Length of the span. Unit: steps of a run of `of` steps.")
    of: float = Field(gt=0, description="Expected length of the run that `steps` was chosen for. Unit: steps.")


class MuonConfig(Strict):
    """Muon for the matrices."""

    lr: float = Field(default=0.025, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(default=0.04, ge=0, description="Decoupled decay, times the scheduled learning rate.")
    momentum: float = Field(default=0.99, ge=0, lt=1, description="Momentum after its ramp.")
    momentum_start: float = Field(default=0.92, ge=0, lt=1, description="Momentum at step 0.")
    momentum_ramp: Horizon = Field(
        default=Horizon(steps=1500, of=7400), description="Span of the linear momentum ramp."
    )
    newton_schulz_steps: int = Field(default=5, ge=1, le=20, description="Newton-Schulz iterations per update.")
    nesterov: bool = Field(default=True, description="Use the look-ahead gradient g + momentum * buffer.")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        default="auto", description="Arithmetic of Newton-Schulz; auto is bfloat16 on a GPU and float32 on a CPU."
    )
    momentum_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Momentum, and gradients on their way into it and, if sharded, between ranks."
    )
    parallel: Literal["replicated", "sharded"] = Field(
        default="replicated",
        description="Several ranks: all take every update, or each orthogonalises its share of the matrices.",
    )


class AdamConfig(Strict):
    """AdamW for one parameter group."""

    lr: float = Field(gt=0, description="Peak learning rate.")
    weight_decay: float = Field(default=0.04, ge=0, description="Decoupled decay, times the scheduled learning rate.")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="Decay of the first moment.")
    beta2: float = Field(default=0.95, ge=0, lt=1, description="Decay of the second moment.")
    eps: float = Field(default=1e-8, gt=0, description="Added to the root of the second moment.")


class ScheduleConfig(Strict):
    """Learning-rate multiplier, common to all groups."""

    clock: Literal["steps", "wall"] = Field(
        default="steps", description="Progress is counted in steps, or in seconds of the budget."
    )
    warmup: Horizon = Field(
        default=Horizon(steps=0, of=7400), description="Linear rise from 0; the published runs have none."
    )
    warmdown: Horizon = Field(default=Horizon(steps=3000, of=7400), description="Fall to 0 at the end of the run.")
    decay: Literal["linear", "cosine"] = Field(default="linear", description="Shape of the fall.")


class QatGrid(Strict):
    """The grid of one group of matrices, as the quantiser will choose it: a scale per row from its largest weight."""

    bits: int = Field(default=0, ge=0, le=8, description="Bits per weight; 0 leaves the group as it is.")
    scale_floor: float = Field(default=0.0, ge=0, description="Smallest scale of a row; the published one is 1/31.")
    full_range: bool = Field(default=False, description="Also use the code -2^(bits - 1), as the published QAT does.")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.bits == 1:
            raise ValueError("bits are 2 to 8, or 0 to leave the group as it is; got 1")
        return self


class SoftRoundConfig(Strict):
    """Rounding with a gradient of its own (qat.mode soft). From `start` at the flip to `end` at the end of the run."""

    form: Literal["sigmoid", "residual"] = Field(
        default="sigmoid",
        description="sigmoid: floor + 1/2 + tanh(a (frac - 1/2)) / (2 tanh(a / 2)), a linear in progress, PR #1232; "
        "residual: nearest + tanh(r / T) / 2 with r the distance to it, T geometric, PR #1033: as T falls that goes "
        "to the middle between two codes, not to a code.",
    )
    start: float = Field(default=1.0, gt=0, description="a or T when QAT begins.")
    end: float = Field(default=16.0, gt=0, description="a or T at the end of the run.")


class QatConfig(Strict):
    """Quantisation-aware training: matrices are on their grid in the forward pass of training, and nowhere else."""

    mode: Literal["off", "ste", "soft", "declared_dead"] = Field(
        default="off",
        description="ste: straight-through gradient; soft: soft rounding; declared_dead: keeps a published setting on "
        "record and does nothing, as in the published runs, whose flag was a constant of the compiled graph.",
    )
    attention: QatGrid = Field(default=QatGrid(), description="attn.q, attn.k, attn.v, attn.o.")
    mlp: QatGrid = Field(default=QatGrid(), description="mlp.up, mlp.down.")
    auxiliary: QatGrid = Field(default=QatGrid(), description="bigram.proj, ve.proj.")
    below_scale: float = Field(
        default=0.0, ge=0, le=1, description="Begin when the learning-rate multiplier falls below this; 0 = not by it."
    )
    after_share: float = Field(
        default=0.0, ge=0, lt=1, description="Begin after this share of the run; unread where below_scale is set."
    )
    soft: SoftRoundConfig = Field(default=SoftRoundConfig(), description="How soft rounding hardens.")
    allow_bits_mismatch: bool = Field(
        default=False, description="Train for another grid than the one that `quantize` will use."
    )

    @property
    def live(self) -> bool:
        """Whether it does anything."""
        return self.mode in {"ste", "soft"}

    @model_validator(mode="after")
    def _has_a_grid(self) -> Self:
        if self.live and not (self.attention.bits or self.mlp.bits or self.auxiliary.bits):
            raise ValueError(
                f"qat.mode {self.mode!r} needs a grid; set qat.attention.bits, qat.mlp.bits or qat.auxiliary.bits"
            )
        return self


class ComplementConfig(Strict):
    """Complementary weighting (PR #1033): what bigrams of the tokens seen so far predict counts less in the loss.

    weight = max(floor, 1 - alpha C[x, y] / (N[x] + 1)), with counts C, N of what this rank has trained on.
    """

    alpha: float = Field(default=0.0, ge=0, le=1, description="Strength; 0 = off, all weights 1.")
    floor: float = Field(default=0.1, ge=0, le=1, description="Smallest weight.")
    renormalise: bool = Field(default=False, description="Divide by the mean weight; the published loss does not.")


class EmaConfig(Strict):
    """Exponential moving average of the weights, in fp32, updated after every step."""

    enabled: bool = Field(default=True, description="Keep the average at all.")
    time_constant: Horizon = Field(
        default=Horizon(steps=1000 / 3, of=7400),
        description="1 / (1 - decay): a decay of 0.997 is a time constant of 333.3 steps.",
    )


class SnapshotConfig(Strict):
    """Copies of the weights during the warmdown, for `average` to combine."""

    every: Horizon = Field(
        default=Horizon(steps=0, of=7400), description="Interval between copies; 0 steps takes none."
    )
    below_scale: float = Field(
        default=0.2, gt=0, le=1, description="Start when the learning-rate multiplier is below this."
    )


class Config(StageConfig):
    """Token shards -> raw weights, EMA weights, warmdown snapshots, curve."""

    SPEC: ClassVar[StageSpec] = StageSpec(
        name="train",
        inputs=("shards", "tokenizer"),
        outputs=("raw", "ema", "snapshots", "curve"),
        libraries=("torch",),
        seeded=True,
        accelerated=True,
    )

    network: GPTConfig = Field(default=GPTConfig(), description="The network's shape.")
    steps: int = Field(default=9000, ge=1, description="Optimizer steps, at most.")
    expected_steps: int = Field(
        default=0,
        ge=0,
        description="Steps that the run is expected to take: what horizons scale to; 0 = `steps`, or with clock wall "
        "what the budget allows at the speed measured before it starts.",
    )
    budget_s: float = Field(
        default=0.0, ge=0, description="Wall-clock budget of the training loop; 0 = none. Unit: seconds."
    )
    sequence_tokens: int = Field(default=2048, ge=2, description="Inputs per sequence. Unit: tokens.")
    batch_tokens: int = Field(
        default=786_432, ge=1, description="Inputs per optimizer step over all ranks. Unit: tokens."
    )
    microbatch_tokens: int = Field(
        default=98_304, ge=1, description="Inputs per forward pass; the rest is gradient accumulation. Unit: tokens."
    )
    muon: MuonConfig = Field(default=MuonConfig(), description="Matrices.")
    aux_matrices: Literal["muon", "adamw"] = Field(
        default="muon",
        description="What trains the projections of bigram and value embeddings: Muon, or the scalars' AdamW.",
    )
    embed: AdamConfig = Field(default=AdamConfig(lr=0.035), description="Embedding tables.")
    scalar: AdamConfig = Field(default=AdamConfig(lr=0.025), description="Gains, scales, gates and other vectors.")
    head: AdamConfig = Field(default=AdamConfig(lr=0.008), description="An untied output matrix.")
    clip_norm: float = Field(default=0.3, ge=0, description="Global gradient norm limit; 0 = no clipping.")
    clip: Literal["after", "before"] = Field(
        default="after", description="Clip the ranks' mean gradient, or each rank's own before the mean is taken."
    )
    z_loss: float = Field(default=0.0, ge=0, description="Weight of the mean squared log-partition in the loss.")
    complement: ComplementConfig = Field(default=ComplementConfig(), description="Weights of targets in the loss.")
    qat: QatConfig = Field(default=QatConfig(), description="Quantisation-aware training.")
    schedule: ScheduleConfig = Field(default=ScheduleConfig(), description="Learning-rate multiplier.")
    ema: EmaConfig = Field(default=EmaConfig(), description="Moving average of the weights.")
    snapshots: SnapshotConfig = Field(default=SnapshotConfig(), description="Warmdown snapshots.")
    validation_tokens: int = Field(
        default=1 << 20, ge=0, description="Held-out tokens at the end of the last train shard; 0 = no validation."
    )
    validate_every: Horizon = Field(default=Horizon(steps=1000, of=7400), description="Interval between validations.")
    log_every: int = Field(default=1, ge=1, description="Interval between points of the curve. Unit: steps.")
    precision: Literal["auto", "bfloat16", "float32"] = Field(
        default="auto",
        description="Matrix arithmetic of the forward pass; auto is bfloat16 on a GPU and float32 on a CPU.",
    )
    compile: Literal["auto", "on", "off"] = Field(default="auto", description="torch.compile; auto is on for a GPU.")

    @model_validator(mode="after")
    def _whole_sequences(self) -> Self:
        if self.microbatch_tokens % self.sequence_tokens:
            raise ValueError(
                f"microbatch_tokens is a multiple of sequence_tokens {self.sequence_tokens}; "
                f"got {self.microbatch_tokens}"
            )
        if self.batch_tokens % self.microbatch_tokens:
            raise ValueError(
                f"batch_tokens is a multiple of microbatch_tokens {self.microbatch_tokens}; got {self.batch_tokens}"
            )
        if self.network.memory_tokens >= self.sequence_tokens:
            raise ValueError(
                f"network.memory_tokens leaves room in a sequence, so it is below sequence_tokens "
                f"{self.sequence_tokens}; got {self.network.memory_tokens}"
            )
        if self.complement.alpha and self.network.vocab > MAX_PAIRED_VOCAB:
            raise ValueError(
                f"complement counts vocab^2 pairs, so network.vocab is at most {MAX_PAIRED_VOCAB}; got "
                f"{self.network.vocab}; set complement.alpha to 0, or use a smaller vocabulary"
            )
        if self.schedule.clock == "wall" and not self.budget_s:
            raise ValueError("schedule.clock 'wall' needs budget_s > 0; set train.budget_s or use clock 'steps'")
        return self
