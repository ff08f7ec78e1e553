"""How evenly the experts of a mixture are used: a router that sends all to a few wastes the rest.

load of a layer = max_e (choices of e) / mean_e (choices of e)     1 is even; n_experts / k the worst
"""

import torch
import torch.distributed as dist

from llm.models.experts import Experts
from llm.models.stack import Stack


def expert_load(model: Stack) -> dict[str, float]:
    """The load of each layer, the greatest of them, and how many experts of all layers no token chose, over
    all passes on all ranks since the last call; rows without a target do not count. Every rank calls it.
    """
    config, device = model.config, next(model.parameters()).device
    counts = torch.zeros(config.n_layers, config.n_experts, dtype=torch.int64, device=device)
    for layer, experts in _experts(model).items():
        if experts.counts is not None:
            counts[layer] = experts.counts
    forget_load(model)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(counts)
    loads = (counts.amax(1) / counts.double().mean(1)).tolist()
    dead = int((counts == 0).sum())
    by_layer = {f"expert_load/{layer}": load for layer, load in enumerate(loads)}
    return {"expert_load": max(loads), "dead_experts": dead, **by_layer}


def forget_load(model: Stack) -> None:
    """Begin to count anew."""
    for experts in _experts(model).values():
        experts.counts = None


def _experts(model: Stack) -> dict[int, Experts]:
    """By number of their layer in the whole model, of the layers that are on this rank."""
    blocks = model.blocks.named_children()
    return {int(name): block.mlp for name, block in blocks if isinstance(block.mlp, Experts)}
