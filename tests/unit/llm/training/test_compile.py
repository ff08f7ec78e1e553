"""Compiled blocks are traced once, although every forward pass makes a new attention pattern."""

import torch
from torch._dynamo.utils import counters

from llm.models.decoder import Decoder
from llm.models.presets import model_config
from llm.training.activation_checkpointing import checkpoint_activations
from llm.training.loop import language_model_loss
from llm.training.loss import next_token_targets

CONFIG = model_config("tiny-100k", vocab_size=64, d_model=32, n_layers=10, d_ff=48)


def test_ten_blocks_and_three_steps_are_one_graph():
    torch._dynamo.reset()
    counters.clear()
    model = Decoder(CONFIG)
    model.init_weights(seed=1)
    for block in model.blocks:
        checkpoint_activations(block, "selective")
        block.compile(backend="eager")
    for step in range(3):
        tokens = torch.randint(64, (2, 10), generator=torch.Generator().manual_seed(step))
        language_model_loss(model)(tokens, next_token_targets(tokens)).backward()
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
