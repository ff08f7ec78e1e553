"""Pipeline parallelism: consecutive blocks on different ranks (Huang et al., 2019, arXiv:1811.06965).

The embedding belongs to the first stage, the final norm and the head to the last. Micro-batches follow one
another through the stages, one forward and one backward at a time once the pipeline is full (1F1B: Narayanan
et al., 2021, arXiv:2104.04473). Every stage is given the same tokens: all but the first need them only for
positions and masks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from llm.models.attention import Scoring
from llm.models.config import ModelConfig
from llm.models.decoder import Decoder
from llm.training.loss import summed_cross_entropy
from llm.training.parallel.layout import LayoutError
from llm.training.parallel.ranks import Ranks
from llm.training.parallel.rows import own_part


class DecoderStage(Decoder):
    """The blocks of one stage, under the names that they have in the whole model. Built on the meta device.

    opening_id: the token with which each document of a row begins, if they are not to see each other.
    """

    def __init__(self, config: ModelConfig, ranks: Ranks, opening_id: int | None = None) -> None:
        super().__init__(config)
        stage, stages = ranks.place.pipeline, ranks.layout.pipeline
        blocks, of_a_stage = self.blocks, config.n_layers // stages
        self.first, self.last = stage == 0, stage == stages - 1
        self.blocks = nn.ModuleList()
        for layer in range(stage * of_a_stage, (stage + 1) * of_a_stage):
            self.blocks.add_module(str(layer), blocks[layer])
        if not self.first:
            del self.embed
            self.positions = None
        if not self.last:
            self.norm = self.head = None
        self.opening_id, self.ranks = opening_id, ranks

    def forward(self, x: Tensor, tokens: Tensor, targets: Tensor) -> Tensor:  # type: ignore[override]
        """x: of the first stage the tokens, else what the one before gives. tokens and targets (batch, seq).

        Returns hidden states, of the last stage the summed loss (1,).
        """
        tokens, targets, inputs = own_part(tokens, targets, self.opening_id, self.ranks)
        self._row = tokens.shape[1]
        if self.first:
            hidden = self.hidden(tokens, **inputs)
        else:
            positions = inputs.get("positions")
            if positions is None:
                positions = torch.arange(self._row, device=x.device).unsqueeze(0)
            hidden = self.run(x, positions, inputs.get("pattern", self.pattern))
        if not self.last:
            return hidden
        hidden = hidden * self.config.logit_scale
        return torch.stack([summed_cross_entropy(hidden, self.head_weight, targets, self.config.vocab_size)])

    def scoring(self, seq_len: int, device: torch.device) -> Scoring:
        """In rows of as many tokens as attention sees, of which `x` is a part under tensor parallelism."""
        return super().scoring(self._row, device)


class Pipeline:
    """What takes micro-batches through the stages, and gradients back."""

    def __init__(self, model: DecoderStage, ranks: Ranks, device: torch.device) -> None:
        layout, place = ranks.layout, ranks.place
        self._first = model.first
        self._stage = PipelineStage(model, place.pipeline, layout.pipeline, device, group=ranks.pipeline)
        self._schedules: dict[int, Schedule1F1B] = {}
        self._tokens = 1

    def backward(self, micro_batches: Sequence[tuple[Tensor, Tensor]], tokens: int) -> Tensor:
        """Add the gradient of Σ loss / tokens to this stage's parameters; returns (2,): the summed loss,
        which is 0 on all stages but the last, and 0.

        micro_batches: equally long ones, at least as many as stages; the same on all stages.

        Raises:
            LayoutError: they are fewer.
        """
        count, stages = len(micro_batches), self._stage.num_stages
        if count < stages:
            raise LayoutError(
                f"pipeline={stages} keeps as many micro-batches under way, but there are {count}: lower "
                "micro_batch or raise the batch"
            )
        if count not in self._schedules:
            self._schedules[count] = Schedule1F1B(self._stage, count, self._mean, scale_grads=False)
        self._tokens = tokens
        rows, targets = (torch.cat(each) for each in zip(*micro_batches, strict=True))
        first, losses = (rows,) if self._first else (), []  # type: tuple[Tensor, ...], list[Tensor]
        schedule = self._schedules[count]
        schedule.step(
            *first, tokens=rows, targets=targets, target=targets, losses=losses, return_outputs=False
        )
        if not losses:
            return torch.zeros(2, device=rows.device)
        total = torch.stack(losses).sum().detach() * tokens
        return torch.stack((total, torch.zeros_like(total)))

    def _mean(self, loss: Tensor, _: Tensor) -> Tensor:
        return loss.sum() / self._tokens
