"""The training loop: fp32 master weights, one compiled static graph on a GPU, no host synchronisation inside a step.

A checkpoint's state is always that of a whole number of steps: whatever stops the loop, does so between micro-steps,
where parameters are as the last finished step left them.

Letters: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from model.attention import choose_attention
from model.batches import Batch, Spans, stream_batches
from model.compiler import compiled
from model.config import GPTConfig, to_dict
from model.gpt import GPT
from model.init import initialise
from stages.contract import Runtime, StageError
from stages.train.checkpoint import Checkpoints, Progress
from stages.train.complement import BigramWeights
from stages.train.ema import Ema
from stages.train.interrupts import Interrupted, Interrupts
from stages.train.objective import Objective, token_nats
from stages.train.optimizers import Optimizers, clip, norms
from stages.train.qat import OnGrid
from stages.train.ranks import from_all_ranks, from_first_rank
from stages.train.schedule import Schedule
from stages.train.stopwatch import Stopwatch
from stages.train.telemetry import Measured, Telemetry
from stages.train.validation import Validation

if TYPE_CHECKING:
    from stages.train.config import Config

WARM_UP_STEPS = 3  # before the clock starts; enough to compile every graph and to fill every cache
MEASURED_STEPS = 3
PROGRESS_EVERY_S = 0.5


class Decision(NamedTuple):
    """What depends on a clock or a signal, and so is decided by rank 0 for all, before every step."""

    scale: float  # learning-rate multiplier of the next update
    share: float  # of the run that is done
    stop: bool
    checkpoint: bool


class Trainer:
    """One rank's model, optimizers, averages and progress. After `run`, read `model`, `ema` and `progress`."""

    def __init__(
        self,
        config: Config,
        spans: Spans,
        validation: Validation | None,
        runtime: Runtime,
        device: torch.device,
        checkpoints: Checkpoints,
        seed: int,
    ) -> None:
        self.config = config
        self.spans, self.validation = spans, validation
        self.runtime, self.device = runtime, device
        self.checkpoints = checkpoints
        self.interrupts = Interrupts()
        self.clock = Stopwatch(device)
        self.progress = Progress(expected_steps=config.expected_steps or config.steps)
        self.schedule = Schedule(config, self.progress.expected_steps)
        self.resumed = Progress()  # where this process took over
        on_gpu = device.type == "cuda"
        self.bfloat16 = on_gpu if config.precision == "auto" else config.precision == "bfloat16"
        if on_gpu and self.bfloat16:  # the few matrix products that stay in fp32 need not be exact either
            torch.set_float32_matmul_precision("high")
        dtype = torch.bfloat16 if self.bfloat16 else torch.float32
        self.attention = choose_attention(config.network, device, dtype)
        torch.manual_seed(seed)
        self.model = GPT(config.network, self.attention.attend)
        initialise(self.model, seed)
        self.model.to(device)
        self.parameters = list(self.model.parameters())
        self.optimizers = Optimizers(self.model, config, device, spans.rank, spans.world)
        weighted = config.complement.alpha > 0
        self.complement = BigramWeights(config.network.vocab, config.complement, device) if weighted else None
        self.ema = Ema(self.model.state_dict()) if config.ema.enabled else None
        self.telemetry = Telemetry([name for name, _ in self.model.named_parameters()], device)
        self.compiled = on_gpu if config.compile == "auto" else config.compile == "on"
        self._objective = Objective(config)
        self._token_nats, self._losses = token_nats, self._objective.losses
        if self.compiled:
            self._token_nats, self._losses = compiled(self._token_nats), compiled(self._losses)
        self._has_terms = weighted or config.z_loss > 0  # so that loss and objective differ
        self._hardness = torch.ones((), device=device)  # filled in place: a number would be compiled into the graph
        self._checkpoint_at = self._shown_at = time.monotonic()
        self._checkpointed = 0  # the step of the last checkpoint, or of the one that was resumed from

    # ---- the run

    def run(self) -> str:
        """Train to the end and return why it ended: "steps" or "budget".

        Raises StageError when a value is not finite, and SystemExit, with a checkpoint left, when a signal came.
        """
        with self.interrupts:
            try:
                self._warm_up()
                self._resume()
                self.schedule = Schedule(self.config, self.progress.expected_steps)
                return self._steps()
            except Interrupted as interrupted:
                if self.complement:
                    self.complement.rewind()
                if self.interrupts.patient and self.progress.step:
                    self._checkpoint()
                raise SystemExit(128 + interrupted.number) from interrupted
            finally:
                self.checkpoints.close()

    def _steps(self) -> str:
        batches = stream_batches(self.spans, self.device, first_step=self.progress.step)
        self.interrupts.patient = True
        self._checkpoint_at = time.monotonic()
        self.clock.start(self.progress.train_s)
        while True:
            decision = self._decide()
            if decision.checkpoint:
                self._checkpoint()
            if decision.stop or self._validation_is_due():
                self._validate()
            if decision.stop:
                self.progress.train_s = self.clock.stop()
                return "budget" if self.progress.step < self.config.steps else "steps"
            self._train_step(batches, decision)

    def _decide(self) -> Decision:
        """What rank 0 decides about the next step."""
        config, step, elapsed_s = self.config, self.progress.step, self.clock.elapsed_s()
        stop = step >= config.steps or (config.budget_s > 0 and elapsed_s >= config.budget_s)
        due = time.monotonic() - self._checkpoint_at >= self.runtime.checkpoint_every_s
        mine = Decision(
            scale=self.schedule.scale(step, elapsed_s),
            share=self.schedule.share(step, elapsed_s),
            stop=stop,
            checkpoint=due and step > self._checkpointed,
        )
        scale, share, stop, due, number = from_first_rank([*mine, float(self.interrupts.number)], self.spans.world)
        if number:
            raise Interrupted(int(number))
        return Decision(scale, share, bool(stop), bool(due))

    def _train_step(self, batches: Iterator[Batch], decision: Decision) -> None:
        scale, share = decision.scale, decision.share
        on_grid = self.config.qat.live and (
            self.progress.qat_steps > 0 or self.schedule.qat_is_due(self.progress.step, scale, share)
        )
        if on_grid:
            self._hardness.fill_(self.schedule.qat_hardness(scale, share))
        losses, parameter_norms, gradient_norms = self.update(batches, self.progress.step, scale, on_grid)
        if self.ema:
            self.ema.update(self.schedule.ema_decay)
        self.progress.qat_steps += on_grid
        self.progress.step = step = self.progress.step + 1
        self.telemetry.push(step, scale, losses, parameter_norms, gradient_norms)
        for measured in self.telemetry.ready():
            self._record(measured)
        if self.runtime.rank == 0 and self.schedule.snapshot_is_due(step, scale):
            self._settle()  # nothing that is not finite may be kept
            self.checkpoints.save_snapshot(step, self.model.state_dict(), weights_metadata(self.config.network))
            self.progress.snapshots.append(step)
        self._show()

    def update(
        self, batches: Iterator[Batch], step: int, scale: float, on_grid: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One optimizer step; `on_grid`: with quantised weights.

        Returns (mean nats, objective) [2], and the norms of parameters (before) and of unclipped gradients, [P] each.
        """
        config, accumulation = self.config, self.spans.accumulation
        losses = torch.zeros(2, device=self.device)
        fake = self._objective.fake
        quantised = OnGrid(fake.scales(self.model), self._hardness) if fake and on_grid else None
        for _ in range(accumulation):
            self._stop_if_alone()
            inputs_BT, targets_BT = _next(batches)
            losses += self._backward(inputs_BT, targets_BT, quantised) / accumulation
            if self.complement:
                self.complement.count(inputs_BT, targets_BT)
        parameter_norms = norms([p.detach() for p in self.parameters])
        if config.clip == "before":
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            gradient_norms = norms(gradients)
            clip(gradients, gradient_norms, config.clip_norm)
            self.optimizers.reduce([losses, gradient_norms])
        else:
            self.optimizers.reduce([losses])
            gradient_norms = self.optimizers.gradient_norms()
            clip(self.optimizers.gradients(), gradient_norms, config.clip_norm)
        self.optimizers.set(scale, self.schedule.momentum(step))
        self.optimizers.step()
        if self.complement:
            self.complement.finish_step()
        return losses, parameter_norms, gradient_norms

    def _backward(self, inputs_BT: Tensor, targets_BT: Tensor, on_grid: OnGrid | None) -> Tensor:
        """Add a micro-batch's share to the gradients; returns (mean nats, objective) [2]."""
        weights_BT = self.complement.weights(inputs_BT, targets_BT) if self.complement else None
        with self._autocast():
            objective, nats = self._losses(self.model, inputs_BT, targets_BT, weights_BT, on_grid)
        (objective / self.spans.accumulation).backward()
        return torch.stack((nats, objective.detach()))

    def _nats(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        with self._autocast():
            return self._token_nats(self.model, inputs_BT, targets_BT)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)

    def _stop_if_alone(self) -> None:
        """React to a signal inside a step; several ranks stop together, between steps."""
        if self.spans.world == 1:
            self.interrupts.check()

    # ---- checkpoints

    def _warm_up(self) -> None:
        """Compile every graph on real batches before the clock starts, and measure a step where the plan needs it.

        What that changed is undone.
        """
        config = self.config
        measured = config.schedule.clock == "wall" and not config.expected_steps
        if not self.compiled and not measured:
            return
        initial = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        batches = stream_batches(self.spans, self.device)
        for on_grid in (False, True) if config.qat.live else (False,):
            for step in range(WARM_UP_STEPS):
                self.update(batches, step, scale=1.0, on_grid=on_grid)
        if self.validation is not None:
            with torch.no_grad():
                self._nats(*_next(batches))
        if measured:
            allowed = config.budget_s / self._step_s(batches)
            self.progress.expected_steps = int(from_first_rank([min(allowed, config.steps)], self.spans.world)[0]) or 1
        self.model.load_state_dict(initial)
        self.optimizers.reset()
        if self.complement:
            self.complement.reset()

    def _step_s(self, batches: Iterator[Batch]) -> float:
        watch = Stopwatch(self.device)
        watch.stop()  # what is in the queue is not part of it
        watch.start(0.0)
        for step in range(MEASURED_STEPS):
            self.update(batches, step, scale=1.0)
        return watch.stop() / MEASURED_STEPS

    def _resume(self) -> None:
        step = int(from_first_rank([self.checkpoints.newest_step()], self.spans.world)[0])
        if step:
            self.progress, tensors = self.checkpoints.load(step)
            self.resumed = replace(self.progress)
            self.model.load_state_dict(_below("model/", tensors))
            self.optimizers.load(_below("optimizer/", tensors))
            if self.ema:
                self.ema.load(_below("ema/", tensors))
            if self.complement:
                self.complement.load(tensors[f"complement/{self.spans.rank}"])
            self._checkpointed = step
            torch.set_rng_state(tensors["rng/cpu"].clone())  # a view into a file may lie where torch cannot read it
        if self.runtime.rank == 0:
            self.checkpoints.forget_all_but(step)

    def _checkpoint(self) -> None:
        """Keep the state after the last whole step; the writing goes on beside the next steps. All ranks take part."""
        self._settle()
        optimizers = self.optimizers.state()
        complements = from_all_ranks(self.complement.counts_VV, self.spans.world) if self.complement else []
        self._checkpoint_at, self._checkpointed = time.monotonic(), self.progress.step
        if self.runtime.rank:
            return
        self.progress.train_s = self.clock.elapsed_s()
        tensors = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"optimizer/{name}": tensor for name, tensor in optimizers.items()}
        tensors |= {f"complement/{rank}": counts_VV for rank, counts_VV in enumerate(complements)}
        if self.ema:
            tensors |= {f"ema/{name}": tensor for name, tensor in self.ema.state().items()}
        tensors["rng/cpu"] = torch.get_rng_state()
        self.checkpoints.save(self.progress, tensors)

    # ---- validation, curve, progress

    def _validation_is_due(self) -> bool:
        every, step = self.schedule.validate_every, self.progress.step
        return every > 0 and step % every == 0

    def _validate(self) -> None:
        self._settle()
        if self.progress.last:
            self._line(self.progress.step).update(self.progress.last)
        if self.validation is None or "val_loss" in self._line(self.progress.step):
            return
        self.clock.stop()  # as published: validation is not training time
        spans = self.spans
        score = self.validation.measure(self._nats, self.device, spans.rank, spans.world, self._stop_if_alone)
        self._line(self.progress.step).update(val_loss=round(score.loss, 6), val_bpb=round(score.bpb, 6))
        self.clock.start(self.clock.elapsed_s())

    def _settle(self) -> None:
        """Take in every measurement in flight; raises StageError if one is not finite."""
        for measured in self.telemetry.ready(everything=True):
            self._record(measured)

    def _record(self, measured: Measured) -> None:
        self.progress.last = {
            "step": measured.step,
            "train_loss": round(measured.loss, 6),
            **({"objective": round(measured.objective, 6)} if self._has_terms else {}),
            "lr_scale": round(measured.scale, 8),
            "gradient_norm": round(measured.gradient_norm, 6),
        }
        if measured.step == 1 or measured.step % self.config.log_every == 0:
            self._line(measured.step).update(self.progress.last)

    def _line(self, step: int) -> dict[str, float]:
        """The curve's line of `step`, made if need be; lines are asked for in order."""
        curve = self.progress.curve
        if not curve or curve[-1]["step"] != step:
            curve.append({"step": step})
        return curve[-1]

    def _show(self) -> None:
        if time.monotonic() - self._shown_at < PROGRESS_EVERY_S:
            return
        self._shown_at = time.monotonic()
        config, step, elapsed_s = self.config, self.progress.step, self.clock.elapsed_s()
        rate = (step - self.resumed.step) * config.batch_tokens / (elapsed_s - self.resumed.train_s)
        measures = {"tokens_per_s": rate, "train_loss": self.progress.last.get("train_loss", 0.0)}
        if config.budget_s and elapsed_s / config.budget_s > step / config.steps:
            self.runtime.report_progress(elapsed_s, config.budget_s, "s", step=step, **measures)
        else:
            self.runtime.report_progress(step, config.steps, "steps", **measures)


def weights_metadata(network: GPTConfig) -> dict[str, str]:
    """What every weights file says about itself: the network that its tensors belong to."""
    return {"network": json.dumps(to_dict(network), sort_keys=True)}


def _next(batches: Iterator[Batch]) -> Batch:
    try:
        return next(batches)
    except ValueError as error:  # a shard whose ids are read now for the first time
        raise StageError(str(error)) from error


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
