"""The load of experts, counted by hand from what the routers say."""

import pytest
import torch
import torch.nn.functional as F

from llm.models.decoder import Decoder
from llm.models.presets import model_config
from llm.training.activation_checkpointing import checkpoint_activations
from llm.training.expert_load import expert_load
from llm.training.loop import language_model_loss
from llm.training.loss import IGNORE, next_token_targets

CONFIG = model_config("tiny-100k", 100, d_model=32, n_experts=8, experts_per_token=2)


def test_load_of_each_layer_by_hand():
    model = Decoder(CONFIG)
    model.init_weights(seed=0)
    chosen = [torch.zeros(8), torch.zeros(8)]

    def count(layer):
        def hook(_, args, logits):
            for token in logits.flatten(0, 1):
                chosen[layer][token.argsort(descending=True)[:2]] += 1

        return hook

    hooks = [block.mlp.router.register_forward_hook(count(n)) for n, block in enumerate(model.blocks)]
    tokens = torch.randint(100, (4, 1, 3), generator=torch.Generator().manual_seed(1))
    for rows in tokens[:3]:
        model(rows)
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        model(tokens[3])  # an evaluation does not count

    loads = [(counts.max() / counts.mean()).item() for counts in chosen]
    measured = expert_load(model)
    assert [measured[f"expert_load/{layer}"] for layer in (0, 1)] == pytest.approx(loads)
    assert measured["expert_load"] == pytest.approx(max(loads))
    assert measured["dead_experts"] == sum((counts == 0).sum() for counts in chosen) > 0

    model(tokens[3])
    assert expert_load(model)["expert_load/0"] != measured["expert_load/0"], "each step is counted anew"


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_rows_that_fill_up_a_share_do_not_count(checkpointing):
    """Their tokens, all <eos>, would go to the same experts."""
    model = Decoder(CONFIG)
    model.init_weights(seed=0)
    for block in model.blocks:
        checkpoint_activations(block, checkpointing)
    tokens = torch.randint(100, (3, 16), generator=torch.Generator().manual_seed(1))
    targets = next_token_targets(tokens)
    loss_sum = language_model_loss(model)
    loss_sum(tokens, targets).backward()
    expected = expert_load(model)

    filled = F.pad(tokens, (0, 0, 0, 2), value=3), F.pad(targets, (0, 0, 0, 2), value=IGNORE)
    loss_sum(*(each[:2] for each in filled)).backward()
    loss_sum(*(each[2:] for each in filled)).backward()
    assert expert_load(model) == expected
