"""Expert parallelism: the experts of a block divided among ranks, to which tokens travel and come back
(Lepikhin et al., 2020, arXiv:2006.16668).

    rank 0's tokens ─ router ─ sort ─┐ all-to-all ┌─ experts 0, 1 ─┐ all-to-all ┌─ back in place, add up
    rank 1's tokens ─ router ─ sort ─┘            └─ experts 2, 3 ─┘            └─ back in place, add up

The ranks are no further ones: each has its tokens in any case, and everything else of a block is sharded or
divided as it was. Only the experts' matrices lie otherwise: N ranks have 1/N of the experts each, and the
F = shard · context · tensor / N ranks that have the same ones shard them (FSDP), inside of each matrix, since
there may be more ranks than experts. Gradients need no factor: an expert meets all tokens of its N ranks, the
loss was divided by the tokens of the global batch, and the sum over F is FSDP's.

How many copies go where is known only when the router has chosen. No expert has a capacity, so none is
dropped; in the worst case one rank gets all.
"""

from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_to_all_single
from torch.distributed.tensor import Shard, distribute_tensor

from llm.models.decoder import Trunk
from llm.models.experts import Experts, Networks, expert_matrices
from llm.training.parallel.ranks import Ranks


def divide_experts(model: Trunk, ranks: Ranks) -> None:
    """Divide the experts of each block of `model` in place, and tell routers of rows that ranks divide. Call
    it before sharding.
    """
    parts = ranks.layout.context * ranks.layout.tensor
    for block in model.blocks:
        experts = block.mlp
        assert isinstance(experts, Experts)
        if ranks.expert is not None:
            for matrices in expert_matrices(block):
                whole = distribute_tensor(matrices.weight, ranks.expert, [Shard(0)], src_data_rank=None)
                matrices.weight = nn.Parameter(whole, matrices.weight.requires_grad)
            experts.exchange = partial(exchange, ranks.expert.get_group())
        if parts > 1:
            experts.row_parts, experts.sum_over_row = parts, partial(_sum, ranks.rows)


def exchange(group: dist.ProcessGroup, networks: Networks, x: Tensor, counts: Tensor) -> Tensor:
    """Send x (copies, d_model), sorted by expert, `counts` (n_experts,) int64 of each, to the ranks of their
    experts, and what these make of them back: like x.

    Rank r of N has the experts from r · n_experts / N on. Copies reach it sorted by sender, then by expert;
    its networks take them sorted by expert, then by sender.
    """
    ranks = dist.get_world_size(group)
    arriving = torch.empty_like(counts)
    dist.all_to_all_single(arriving, counts, group=group)
    leaving, arriving = counts.view(ranks, -1), arriving.view(ranks, -1)  # by rank and expert
    sent, received = leaving.sum(1).tolist(), arriving.sum(1).tolist()
    experts = torch.arange(arriving.shape[1], device=x.device).repeat(ranks)
    order = experts.repeat_interleave(arriving.flatten()).argsort(stable=True)
    here = all_to_all_single(x, received, sent, group)
    y = networks(here[order], arriving.sum(0))
    return all_to_all_single(y[order.argsort()], sent, received, group)


def _sum(group: dist.ProcessGroup, choices: Tensor) -> Tensor:
    total = choices.clone()
    dist.all_reduce(total, group=group)
    return total
