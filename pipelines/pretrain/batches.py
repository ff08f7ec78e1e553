"""This worker's share of each global batch of the stream."""

import torch
import torch.nn.functional as F

from llm.data.loader import TokenLoader
from llm.training.loss import IGNORE, next_token_targets
from llm.training.step import MicroBatch
from pipelines.pretrain.config import PretrainConfig
from pipelines.training_worker import my_share

_STEPS_AHEAD = 3


class GlobalBatches:
    """Step s is taken with samples s · global_batch … (s + 1) · global_batch − 1, split over all workers."""

    def __init__(self, loader: TokenLoader, config: PretrainConfig, device: torch.device):
        self._loader, self._config, self._device = loader, config, device

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """This worker's part of the step's samples, `config.micro_batch` of them in each.

        The samples of the next steps are sent for, if they come over a network: of more than one, so that a
        request that takes longer than a step keeps none waiting.
        """
        loader, config = self._loader, self._config
        first, count, missing = my_share(config.global_batch)
        start = step * config.global_batch + first
        samples = loader.batch(start, count)
        for ahead in range(1, min(_STEPS_AHEAD, config.steps - step - 1) + 1):
            loader.expect(start + ahead * config.global_batch, count)
        tokens = torch.from_numpy(samples).to(self._device)
        targets = next_token_targets(tokens)
        if missing:
            tokens = F.pad(tokens, (0, 0, 0, missing), value=loader.shards.eos_id)
            targets = F.pad(targets, (0, 0, 0, missing), value=IGNORE)
        size = config.micro_batch
        return list(zip(tokens.split(size), targets.split(size), strict=True))
