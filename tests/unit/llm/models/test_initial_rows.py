"""A rank of a sharded model draws the rows that it holds, whatever the layout and however uneven."""

import pytest
import torch
from torch.distributed.tensor import distribute_tensor

from llm.models.initial import init_weights, initial_value
from llm.models.load import build
from llm.models.presets import model_config
from llm.training.parallel.dry_run import as_rank
from llm.training.parallel.layout import ParallelLayout
from llm.training.parallel.parallelize import parallelize
from llm.training.parallel.ranks import arrange

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("layout", "fields"),
    [
        (ParallelLayout(shard=5), {}),
        (ParallelLayout(shard=48), {}),  # more ranks than rows of some
        (ParallelLayout(replicate=2, shard=3), {}),
        (ParallelLayout(shard=3, tensor=2), {}),
        (ParallelLayout(shard=4, expert=2), {"n_experts": 4, "experts_per_token": 2}),
    ],
    ids=str,
)
def test_all_ranks_together_begin_as_one_process_does(layout, fields):
    config = model_config("tiny-100k", vocab_size=100, d_model=36, n_heads=2, d_ff=48, **fields)
    for rank in range(0, layout.ranks, max(1, layout.ranks // 6)):
        with as_rank(rank, layout.ranks):
            model = build(config)
            parallelize(model, arrange(layout, CPU), "fp32")
            model.to_empty(device=CPU)
            init_weights(model, seed=5)
            for name, parameter in model.named_parameters():
                if layout.tensor > 1 and (
                    "qkv" in name or "gate_up" in name
                ):  # whose rows tensor ranks have in another order
                    continue
                whole = initial_value(name, parameter.shape, config, seed=5)
                mine = distribute_tensor(
                    whole, parameter.device_mesh, parameter.placements, src_data_rank=None
                )
                assert torch.equal(parameter.to_local(), mine.to_local()), (rank, name)
