"""Padding changes nothing, and a model's view of responses equals one forward pass a rollout."""

import torch

from llm.alignment.rollouts import Rollout, pad, response_log_probs, response_values
from llm.models.decoder import Decoder
from llm.models.heads import DecoderWithScalar
from llm.models.presets import model_config

CONFIG = model_config("tiny-100k", vocab_size=100, max_seq_len=64)


def rollout(prompt, response):
    return Rollout("id", prompt, response, [0.0] * len(response), 0, "stop", 0)


ROLLOUTS = [
    rollout([2, 5, 50, 51, 6], [60, 61, 7]),
    rollout([2, 5, 6], [70, 71, 72, 73, 74, 7]),
    rollout([2, 5, 80, 81, 82, 83, 84, 85, 6], [7]),
]


def test_the_mask_marks_the_predictions_of_response_tokens():
    batch = pad(ROLLOUTS, pad_id=0)
    assert [batch.targets[row][batch.mask[row]].tolist() for row in range(3)] == [
        each.response_ids for each in ROLLOUTS
    ]
    assert batch.lengths.tolist() == [8, 9, 10]
    shorter = batch.rows(torch.tensor([1, 0]))
    assert shorter.tokens.shape == (2, 9)
    assert shorter.targets[1][shorter.mask[1]].tolist() == ROLLOUTS[0].response_ids


def test_log_probs_and_values_are_those_of_each_rollout_alone():
    policy, critic = Decoder(CONFIG), DecoderWithScalar(CONFIG)
    policy.init_weights(0)
    critic.init_weights(1)
    batch = pad(ROLLOUTS, pad_id=0)
    log_probs, entropy = response_log_probs(policy, batch, 0.8, CONFIG.vocab_size)
    values = response_values(critic, batch)
    for row, each in enumerate(ROLLOUTS):
        tokens = torch.tensor([each.prompt_ids + each.response_ids])
        before = slice(len(each.prompt_ids) - 1, -1)
        logits = policy(tokens)[0, before, : CONFIG.vocab_size] / 0.8
        expected = torch.distributions.Categorical(logits=logits)
        mask = batch.mask[row]
        torch.testing.assert_close(
            log_probs[row][mask], expected.log_prob(torch.tensor(each.response_ids)), rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(entropy[row][mask], expected.entropy(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(values[row][mask], critic(tokens)[0, before], rtol=1e-4, atol=1e-5)
        assert not log_probs[row][~mask].any()
        assert not values[row][~mask].any()
    log_probs.sum().backward()
    assert policy.embed.weight.grad.isfinite().all()
