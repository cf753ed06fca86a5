"""Knobs of `train`: the network, the optimizers, the schedule, and what is kept for `average`."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from model.config import GPTConfig
from stages.config import StageConfig, Strict
from stages.contract import StageSpec


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
    warmdown: Horizon = Field(
        default=Horizon(steps=3000, of=7400), description="Linear fall to 0 at the end of the run."
    )


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
        if self.schedule.clock == "wall" and not self.budget_s:
            raise ValueError("schedule.clock 'wall' needs budget_s > 0; set train.budget_s or use clock 'steps'")
        return self
