"""Collectives beside the computing change no bit of what is learned, and let ranks be a block apart."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from llm.models.load import build
from llm.models.presets import model_config
from llm.training.activation_checkpointing import checkpoint_activations
from llm.training.loop import language_model_loss
from llm.training.loss import next_token_targets
from llm.training.optimizer import adamw
from llm.training.parallel import fsdp
from llm.training.step import train_step
from tests.unit.llm.training.on_ranks import on_ranks

RANKS, STEPS, BATCH = 2, 3, (4, 12)


def learned(preset: str, experts: int, checkpointing: str, frozen: bool, overlap: bool):
    """What a rank has learned: losses, gradient norms and its own part of the weights."""
    if not overlap:
        fsdp.overlap_collectives = lambda model: None
    model = build(model_config(preset, 100, 16, n_experts=experts, experts_per_token=experts // 2))
    model.embed.requires_grad_(not frozen)  # Then nothing that is given to the first block has a gradient.
    fsdp.shard(model, init_device_mesh("cpu", (RANKS,), mesh_dim_names=("data",)), "fp32")
    model.to_empty(device="cpu")
    model.init_weights(seed=3)
    for block in model.blocks:
        checkpoint_activations(block, checkpointing)
    optimizer = adamw(model, 1e-2, weight_decay=0.1, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(dist.get_rank())
    seen = []
    for _ in range(STEPS):
        parts = [torch.randint(100, BATCH, generator=generator) for _ in range(2)]
        micro_batches = [inputs(preset, part) for part in parts]
        with torch.no_grad():
            model(*micro_batches[0][:-1])  # An evaluation between steps fetches weights too.
        result = train_step(model, optimizer, micro_batches, language_model_loss(model), 1e-2, clip_norm=0.5)
        seen.append((result.loss, result.grad_norm))
    return seen, {name: value.to_local().detach().numpy() for name, value in model.named_parameters()}


def inputs(preset: str, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A micro-batch of the preset's family; an encoder-decoder answers with the tokens that it is given."""
    if preset == "t5-tiny":
        return tokens, tokens[:, :8], torch.ones_like(tokens, dtype=torch.bool), tokens[:, 1:9]
    return tokens, next_token_targets(tokens)


@pytest.mark.parametrize(
    ("preset", "experts", "checkpointing", "frozen"),
    [
        ("tiny-100k", 0, "none", False),
        ("tiny-100k", 0, "selective", True),
        ("tiny-100k", 4, "full", False),
        ("t5-tiny", 0, "selective", False),
        ("bert-tiny", 0, "none", False),
    ],
)
def test_the_same_is_learned_bit_for_bit(preset, experts, checkpointing, frozen):
    beside = on_ranks(RANKS, learned, preset, experts, checkpointing, frozen, True)
    waited_for = on_ranks(RANKS, learned, preset, experts, checkpointing, frozen, False)
    for (seen, weights), (expected, expected_weights) in zip(beside, waited_for, strict=True):
        assert seen == expected
        assert all((weights[name] == value).all() for name, value in expected_weights.items())


def a_block_ahead() -> bool:
    """Rank 1 goes on with its second-last block only when rank 0 is in its last one, in both passes."""
    model = build(model_config("tiny-100k", vocab_size=100, max_seq_len=16))
    fsdp.shard(model, init_device_mesh("cpu", (RANKS,), mesh_dim_names=("data",)), "fp32")
    model.to_empty(device="cpu")
    model.init_weights(seed=3)
    store, first = dist.distributed_c10d._get_default_store(), dist.get_rank() == 0

    def meet(which: str):
        def hook(*_):
            if first:
                store.set(which, "here")
            else:
                store.wait([which], timedelta(seconds=20))

        return hook

    earlier, later = (block.mlp for block in model.blocks)
    (later if first else earlier).register_forward_hook(meet("forward"))
    (earlier if first else later).register_full_backward_hook(meet("backward"))
    tokens = torch.randint(100, BATCH)
    language_model_loss(model)(tokens, next_token_targets(tokens)).backward()
    return True


def test_ranks_may_be_a_block_apart():
    assert all(on_ranks(RANKS, a_block_ahead))
