"""Muon for matrices, AdamW for everything else, driven from outside: rates and momentum are set before every step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from stages.train.groups import parameter_groups
from stages.train.muon import Muon

if TYPE_CHECKING:
    from stages.train.config import Config


class Optimizers:
    """All optimizers of one model as one. State tensors are addressed by parameter name, for checkpoints."""

    def __init__(self, model: nn.Module, config: Config, device: torch.device) -> None:
        groups = parameter_groups(model, config.aux_matrices)
        muon = config.muon
        dtypes = {"auto": torch.float32 if device.type == "cpu" else torch.bfloat16}
        self._muon = Muon(
            [p for _, p in groups["matrix"]],
            lr=muon.lr,
            weight_decay=muon.weight_decay,
            nesterov=muon.nesterov,
            steps=muon.newton_schulz_steps,
            dtype=dtypes.get(muon.dtype) or getattr(torch, muon.dtype),
        )
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
        self._both = (self._muon, self._adam)
        for group in self._groups():
            group["peak_lr"] = group["lr"]
        self._names: dict[Tensor, str] = {p: name for named in groups.values() for name, p in named}

    def _groups(self) -> list[dict]:
        return [group for optimizer in self._both for group in optimizer.param_groups]

    def set(self, scale: float, momentum: float) -> None:
        """Use `scale` times every peak learning rate, and Muon's `momentum`, from the next step on."""
        for group in self._groups():
            group["lr"] = group["peak_lr"] * scale
        for group in self._muon.param_groups:
            group["momentum"] = momentum

    def step(self) -> None:
        """Update the parameters from their gradients and drop these."""
        for optimizer in self._both:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def reset(self) -> None:
        """Forget all state, as if no step had been made."""
        for optimizer in self._both:
            optimizer.state.clear()

    def state(self) -> dict[str, Tensor]:
        """Every state tensor as `<parameter>/<kind>`; references, not copies."""
        return {
            f"{self._names[parameter]}/{kind}": tensor
            for optimizer in self._both
            for parameter, kinds in optimizer.state.items()
            for kind, tensor in kinds.items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take copies of what `state` returned, on the parameters' device."""
        self.reset()
        parameters = {name: p for p, name in self._names.items()}
        matrices = {p for group in self._muon.param_groups for p in group["params"]}
        for key, tensor in state.items():
            name, kind = key.rsplit("/", 1)
            parameter = parameters[name]
            optimizer = self._muon if parameter in matrices else self._adam
            optimizer.state[parameter][kind] = tensor.to(parameter.device, copy=True)
