"""This worker's share of each global batch of the stream."""

import torch
import torch.nn.functional as F
from torch import Tensor

from llm.data.loader import TokenLoader
from llm.training.loss import IGNORE
from llm.training.objectives import Objective
from llm.training.step import MicroBatch
from pipelines.pretrain.config import PretrainConfig
from pipelines.training_worker import my_share

STEPS_AHEAD = 3


def objective_of(config: PretrainConfig, text_ids: int, seed: int) -> Objective:
    """What models of the family of `config.model` learn; text_ids, seed: as of `ObjectiveOptions.of`."""
    return config.objective.of(config.family, text_ids, seed, config.parallel.row_multiple)


class GlobalBatches:
    """Step s is taken with samples s · global_batch … (s + 1) · global_batch − 1, split over all workers;
    those that divide a model or a row between them read the same ones."""

    def __init__(
        self, loader: TokenLoader, objective: Objective, config: PretrainConfig, device: torch.device
    ):
        self._loader, self._objective, self._config, self._device = loader, objective, config, device

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """What is made of this worker's part of the step's samples, `config.micro_batch` of them in each.

        The samples of the next steps are sent for, if they come over a network: of more than one, so that a
        request that takes longer than a step keeps none waiting.
        """
        loader, config = self._loader, self._config
        first, count, missing = my_share(config.global_batch, config.parallel)
        if config.parallel.pipeline > 1:  # whose micro-batches are all of one size
            missing += -(count + missing) % config.micro_batch
        start = step * config.global_batch + first
        samples = loader.batch(start, count)
        for ahead in range(1, min(STEPS_AHEAD, config.steps - step - 1) + 1):
            loader.expect(start + ahead * config.global_batch, count)
        *given, targets = self._objective(samples, start)
        tensors = [_lengthened(each, missing, loader.shards.eos_id) for each in given]
        tensors.append(_lengthened(targets, missing, IGNORE))
        parts = [each.to(self._device).split(config.micro_batch) for each in tensors]
        return list(zip(*parts, strict=True))


def _lengthened(rows: Tensor, missing: int, value: int) -> Tensor:
    """(rows, length) int64 with so many rows more, full of `value`."""
    return F.pad(rows, (0, 0, 0, missing), value=value) if missing else rows
