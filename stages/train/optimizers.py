"""Muon for matrices, AdamW for everything else, driven from outside: rates and momentum are set before every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from stages.train.groups import parameter_groups
from stages.train.muon import Muon
from stages.train.ranks import mean_over_ranks
from stages.train.sharded import ShardedMuon

if TYPE_CHECKING:
    from stages.train.config import Config


class Optimizers:
    """All optimizers of one model as one, on rank `rank` of `world`: every rank calls the same methods.

    State tensors are addressed by parameter name, for checkpoints.
    """

    def __init__(self, model: nn.Module, config: Config, device: torch.device, rank: int = 0, world: int = 1) -> None:
        groups = parameter_groups(model, config.aux_matrices)
        muon = config.muon
        dtypes = {"auto": torch.float32 if device.type == "cpu" else torch.bfloat16}
        matrices = [p for _, p in groups["matrix"]]
        settings = {
            "lr": muon.lr,
            "weight_decay": muon.weight_decay,
            "nesterov": muon.nesterov,
            "steps": muon.newton_schulz_steps,
            "dtype": dtypes.get(muon.dtype) or getattr(torch, muon.dtype),
            "momentum_dtype": torch.bfloat16 if muon.momentum_dtype == "bfloat16" else None,
        }
        self._sharded = (
            ShardedMuon(matrices, rank, world, **settings) if world > 1 and muon.parallel == "sharded" else None
        )
        self._muon = Muon(matrices, **settings) if self._sharded is None else self._sharded
        self._world = world
        adam_groups = [
            {
                "params": [p for _, p in groups[name]],
                "lr": adam.lr,
                "betas": (adam.beta1, adam.beta2),
                "eps": adam.eps,
                "weight_decay": adam.weight_decay,
            }
            for name, adam in (("embed", config.embed), ("scalar", config.scalar), ("head", config.head))
            if groups[name]
        ]
        self._adam = AdamW(adam_groups, fused=True)
        self._both = (self._adam, self._muon)  # AdamW's step runs while shares of gradients are still on their way
        for group in self._groups():
            group["peak_lr"] = group["lr"]
        names = {p: name for named in groups.values() for name, p in named}
        self._names: dict[Tensor, str] = {p: names[p] for p in model.parameters()}

    def _groups(self) -> list[dict]:
        return [group for optimizer in self._both for group in optimizer.param_groups]

    def set(self, scale: float, momentum: float) -> None:
        """Use `scale` times every peak learning rate, and Muon's `momentum`, from the next step on."""
        for group in self._groups():
            group["lr"] = group["peak_lr"] * scale
        for group in self._muon.param_groups:
            group["momentum"] = momentum

    def reduce(self, others: Sequence[Tensor] = ()) -> None:
        """Replace the gradients, and `others`, by their means over ranks.

        A sharded Muon's matrices keep this rank's own gradient; their mean is in `gradients`, one share per rank.
        """
        if self._sharded:
            self._sharded.start_reduce()
        mean_over_ranks([*self._whole_gradients(), *others], self._world)

    def _whole_gradients(self) -> list[Tensor]:
        """The gradients that every rank holds, in the model's order."""
        elsewhere = self._matrices() if self._sharded else set()
        return [p.grad for p in self._names if p.grad is not None and p not in elsewhere]

    def _matrices(self) -> set[Tensor]:
        return {p for group in self._muon.param_groups for p in group["params"]}

    def gradients(self) -> list[Tensor]:
        """What the next step descends along, as far as this rank holds it; scaling these clips."""
        return [*self._whole_gradients(), *(self._sharded.shares() if self._sharded else ())]

    def gradient_norms(self) -> Tensor:
        """The norm of every parameter's reduced gradient [P], in the model's order, equal on all ranks."""
        if not self._sharded:
            return norms(self._whole_gradients())
        elsewhere = self._sharded.gradient_norms()
        here = [p for p in self._names if p.grad is not None and p not in elsewhere]
        found = dict(zip(here, norms([p.grad for p in here if p.grad is not None]), strict=True)) | elsewhere
        return torch.stack([found[p] for p in self._names if p.grad is not None])

    def step(self) -> None:
        """Update the parameters from their gradients and drop these."""
        for optimizer in self._both:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def reset(self) -> None:
        """Forget all state, as if no step had been made."""
        for optimizer in self._both:
            optimizer.state.clear()
        if self._sharded:
            self._sharded.set_momenta({})

    def state(self) -> dict[str, Tensor]:
        """Every state tensor as `<parameter>/<kind>`; references, not copies, but for what ranks share."""
        found = {
            f"{self._names[parameter]}/{kind}": tensor
            for optimizer in self._both
            for parameter, kinds in optimizer.state.items()
            for kind, tensor in kinds.items()
        }
        if self._sharded:
            found |= {f"{self._names[p]}/momentum": tensor for p, tensor in self._sharded.momenta().items()}
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take copies of what `state` returned, on the parameters' device."""
        self.reset()
        parameters = {name: p for p, name in self._names.items()}
        matrices, momenta = self._matrices(), {}
        for key, tensor in state.items():
            name, kind = key.rsplit("/", 1)
            parameter = parameters[name]
            copied = tensor.to(parameter.device, copy=True)
            if parameter not in matrices:
                self._adam.state[parameter][kind] = copied
            elif self._sharded:
                momenta[parameter] = copied
            else:
                self._muon.state[parameter][kind] = copied
        if self._sharded:
            self._sharded.set_momenta(momenta)


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of each of P tensors, [P]."""
    return torch.stack(torch._foreach_norm(list(tensors)))  # pyright: ignore[reportPrivateImportUsage]


def clip(gradients: Sequence[Tensor], norms_P: Tensor, limit: float) -> None:
    """Scale gradients whose P norms are given so that their norm together is at most `limit`; 0 is no limit.

    The published rule (torch's): times limit / (norm + 1e-6), where that is below 1. No host synchronisation.
    """
    if limit:
        scale = (limit / (torch.linalg.vector_norm(norms_P) + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(list(gradients), scale)  # pyright: ignore[reportPrivateImportUsage]
