"""Computing again changes no bit; what is computed again is what the mode says."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llm.models.decoder import Decoder
from llm.models.presets import model_config
from llm.training.activation_checkpointing import checkpoint_activations
from llm.training.loop import language_model_loss
from llm.training.loss import next_token_targets

CONFIG = model_config("tiny-100k", vocab_size=64, d_model=32, n_layers=3, d_ff=48)


def passes(kept, document_mask=False):
    """Gradients by name, FLOPs of matmuls and attention, and how often a norm of a block was computed."""
    model = Decoder(CONFIG)
    model.init_weights(seed=1)
    norms = 0

    def count(*_):
        nonlocal norms
        norms += 1

    for block in model.blocks:
        checkpoint_activations(block, kept)
        block.mlp_norm.register_forward_hook(count)
    tokens = torch.randint(64, (2, 12), generator=torch.Generator().manual_seed(0))
    loss_sum = language_model_loss(model, 3 if document_mask else None)
    with FlopCounterMode(display=False) as flops:
        loss_sum(tokens, next_token_targets(tokens)).backward()
    return {name: p.grad for name, p in model.named_parameters()}, flops.get_total_flops(), norms


@pytest.mark.parametrize("kept", ["selective", "full"])
def test_gradients_are_the_same_to_the_last_bit(kept):
    expected, actual = passes("none", document_mask=True)[0], passes(kept, document_mask=True)[0]
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_selective_repeats_no_matmul_and_full_repeats_all():
    (_, none, norms), (_, selective, norms_again), (_, full, _) = map(passes, ("none", "selective", "full"))
    assert selective == none < full
    assert norms_again == 2 * norms, "norms are computed again"
