"""Ranks of `test_sharded.py`: several steps by sharded Muon, with a checkpoint in between; rank 0 writes the end."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from model.weights import load_weights, save_weights
from stages.contract import leave
from stages.train.config import Config
from stages.train.optimizers import Optimizers, clip
from stages.train.ranks import from_first_rank


def main() -> None:
    """Arguments: a folder with start.safetensors, gradients-<rank>-<step>.safetensors and case.json."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    case = json.loads((folder / "case.json").read_text())
    model, config = Bank(load_weights(folder / "start.safetensors")[0]), Config.model_validate(case["config"])
    optimizers = Optimizers(model, config, torch.device("cpu"), rank, world)
    norms = []
    for step in range(case["steps"]):
        gradients = load_weights(folder / f"gradients-{rank}-{step}.safetensors")[0]
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name].clone()
        optimizers.reduce()
        norms.append(optimizers.gradient_norms())
        clip(optimizers.gradients(), norms[-1], config.clip_norm)
        optimizers.set(1.0, 0.9)
        optimizers.step()
        if step == 1:  # as after a restart
            state = {name: tensor.clone() for name, tensor in optimizers.state().items()}
            optimizers = Optimizers(model, config, torch.device("cpu"), rank, world)
            optimizers.load(state)
    told = from_first_rank([10.5 + rank, float(rank)], world)  # as ranks do with clocks of their own
    assert told == [10.5, 0.0], told
    whole = optimizers.state()
    if rank == 0:
        save_weights(folder / "end.safetensors", dict(model.named_parameters()) | {"norms": torch.stack(norms)})
        save_weights(folder / "state.safetensors", whole)
    dist.barrier()  # gloo aborts a rank whose peer goes away while it still listens
    dist.destroy_process_group()


class Bank(torch.nn.Module):
    """Parameters under the network's names, without a network."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            group, _, leaf = name.partition(".")
            if not hasattr(self, group):
                setattr(self, group, torch.nn.Module())
            getattr(self, group).register_parameter(leaf, torch.nn.Parameter(tensor.detach().clone()))


if __name__ == "__main__":
    main()
    leave(0)
