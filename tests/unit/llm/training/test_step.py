"""The step against a plain loop written here: one big batch, torch's own loss, AdamW and clipping."""

import copy

import pytest
import torch
import torch.nn.functional as F

from llm.models.decoder import Decoder
from llm.models.presets import model_config
from llm.training.loop import language_model_loss
from llm.training.loss import IGNORE, next_token_targets
from llm.training.optimizer import adamw
from llm.training.step import NonFiniteError, train_step

CONFIG = model_config("tiny-100k", vocab_size=100, d_model=32, d_ff=48)


@pytest.fixture
def model():
    torch.set_num_threads(1)
    model = Decoder(CONFIG)
    model.init_weights(seed=3)
    return model


def uneven_batch(step: int):
    """Six sequences of which 1, 2, … tokens are learned: a mean of means would be far off."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(CONFIG.vocab_size, (6, 12), generator=generator)
    learned = torch.arange(12) < torch.tensor([2, 3, 4, 5, 9, 12]).unsqueeze(1)
    return tokens, next_token_targets(tokens, learned)


def reference_steps(model, count, learning_rate, clip):
    """Returns the losses and gradient norms of `count` steps of the plainest loop."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=learning_rate,
        betas=(0.9, 0.95),
        fused=False,
    )
    seen = []
    for step in range(count):
        tokens, targets = uneven_batch(step)
        logits = model(tokens)[..., : CONFIG.vocab_size]
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        seen.append((loss.item(), norm.item()))
    return seen


@pytest.mark.parametrize("sizes", [[6], [1, 2, 3], [1] * 6])
def test_accumulation_equals_one_big_batch(model, sizes):
    twin = copy.deepcopy(model)
    expected = reference_steps(twin, 5, learning_rate=1e-2, clip=0.5)
    optimizer = adamw(model, 1e-2, weight_decay=0.1, betas=(0.9, 0.95))
    for step, (loss, norm) in enumerate(expected):
        tokens, targets = uneven_batch(step)
        micro_batches = list(zip(tokens.split(sizes), targets.split(sizes), strict=True))
        result = train_step(model, optimizer, micro_batches, language_model_loss(model), 1e-2, clip_norm=0.5)
        assert result.loss == pytest.approx(loss, rel=2e-5)
        assert result.grad_norm == pytest.approx(norm, rel=2e-4)
        assert result.tokens == (targets != IGNORE).sum()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("poisoned", ["loss", "gradient"])
def test_a_bad_number_halts_before_the_weights_move(model, poisoned):
    optimizer = adamw(model, 1e-2, weight_decay=0.1, betas=(0.9, 0.95))
    before = copy.deepcopy(model.state_dict())

    def loss_sum(tokens, targets):
        loss = language_model_loss(model)(tokens, targets)
        if poisoned == "loss":
            return loss * float("nan")
        return loss + torch.sqrt(model.norm.weight.sum() * 0)  # Finite, with an infinite slope.

    with pytest.raises(NonFiniteError, match=f"the {poisoned}.* is (nan|inf)"):
        train_step(model, optimizer, [uneven_batch(0)], loss_sum, 1e-2, clip_norm=1.0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.grad is None for p in model.parameters())


def test_a_batch_with_nothing_to_learn_is_refused(model):
    tokens, targets = uneven_batch(0)
    optimizer = adamw(model, 1e-2, weight_decay=0.1, betas=(0.9, 0.95))
    with pytest.raises(ValueError, match="every target is masked"):
        train_step(
            model,
            optimizer,
            [(tokens, torch.full_like(targets, IGNORE))],
            language_model_loss(model),
            1e-2,
            1.0,
        )


def test_only_matrices_decay(model):
    optimizer = adamw(model, 1e-2, weight_decay=0.1, betas=(0.9, 0.95))
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.0 if "norm" in name else 0.1), name


def test_tables_learn_at_a_rate_of_their_own():
    """Adam's first step moves every weight by its learning rate, whatever the size of its gradient."""
    model = Decoder(CONFIG.model_copy(update={"tie_embeddings": False}))
    model.init_weights(seed=3)
    optimizer = adamw(model, 1e-2, weight_decay=0.0, betas=(0.9, 0.95), embedding_scale=5.0, head_scale=2.0)
    before = copy.deepcopy(model.state_dict())
    train_step(model, optimizer, [uneven_batch(0)], language_model_loss(model), 1e-3, clip_norm=0.0)
    for name, value in model.state_dict().items():
        scale = {"embed.weight": 5.0, "head.weight": 2.0}.get(name, 1.0)
        moved = (value - before[name]).abs().max().item()
        assert moved == pytest.approx(1e-3 * scale, rel=1e-3), name
