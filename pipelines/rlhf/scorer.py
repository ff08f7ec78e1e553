"""The scorer: what the reward model says of a response, and how likely the frozen chat model finds it."""

import ray
import torch

from cluster.artifacts.manifest import Artifact
from llm.alignment.rollouts import Rollout, Scored, pad, response_log_probs
from llm.models.heads import last_token_scores
from llm.models.load import load_model
from llm.tokenizer.special import PAD_ID
from pipelines.model_folder import CONFIG, WEIGHTS


# It holds no state but its two files: Ray may restart it and ask again.
@ray.remote(max_restarts=3, max_task_retries=3)
class Scorer:
    """Holds the reward model and the reference policy, both frozen."""

    def __init__(
        self, reward_model: Artifact, reference: Artifact, temperature: float, micro_batch: int, threads: int
    ):
        torch.set_num_threads(threads)
        self._reward_model, _ = load_model(reward_model.fetch(CONFIG, WEIGHTS))
        self._reference, self._config = load_model(reference.fetch(CONFIG, WEIGHTS))
        self._temperature, self._micro_batch = temperature, micro_batch

    @torch.inference_mode()
    def score(self, rollouts: list[Rollout]) -> Scored:
        """Scores and reference log-probabilities of all rollouts."""
        batch = pad(rollouts, PAD_ID)
        scores = torch.zeros(len(rollouts))
        log_probs = torch.zeros(batch.mask.shape)
        # Rollouts of similar length share a forward pass, so that little of it is padding.
        for index in batch.lengths.argsort(stable=True).split(self._micro_batch):
            some = batch.rows(index)
            scores[index] = last_token_scores(self._reward_model(some.tokens), some.lengths)
            own, _ = response_log_probs(self._reference, some, self._temperature, self._config.vocab_size)
            log_probs[index, : own.shape[1]] = own
        return Scored(scores, log_probs)
