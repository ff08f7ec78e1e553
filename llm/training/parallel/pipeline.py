"""Pipeline parallelism: consecutive blocks on different ranks (Huang et al., 2019, arXiv:1811.06965).

The embedding belongs to the first stage, the final norm and the head to the last. Micro-batches follow one
another through the stages, one forward and one backward at a time once the pipeline is full (1F1B: Narayanan
et al., 2021, arXiv:2104.04473). Every stage is given the same tokens: all but the first need them only for
positions and masks.

A table that is embedding and head is on both the first stage and the last. They begin with the same values
and exchange their gradients, so that both take the same steps.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor import DTensor

from llm.models.attention import Pattern, Scoring
from llm.models.config import ModelConfig
from llm.models.decoder import Decoder, Readout, Trunk
from llm.models.experts import with_router_losses
from llm.models.masked_lm import MaskedLM
from llm.training.expert_load import forget_load
from llm.training.loss import IGNORE, with_z_loss
from llm.training.parallel.layout import LayoutError
from llm.training.parallel.norm import held_by_stages
from llm.training.parallel.ranks import Ranks
from llm.training.parallel.rows import own_part
from llm.training.parallel.tensor import whole_rows


class Stage(Trunk):
    """The blocks of one stage, under the names that they have in the whole model. Built on the meta device.

    What a `Pipeline` gives it are micro-batches to learn from. Called as a model is that is not divided, by
    all stages at a time, it is the whole model, for passes without gradients.
    """

    of_head: tuple[str, ...]
    """Modules and parameters that only the last stage has, besides the final norm."""
    read: Callable[[Tensor, Readout], Any]

    def __init__(self, config: ModelConfig, ranks: Ranks) -> None:
        super().__init__(config)
        stage, stages = ranks.place.pipeline, ranks.layout.pipeline
        blocks, of_a_stage = self.blocks, config.n_layers // stages
        self.first, self.last = stage == 0, stage == stages - 1
        self.blocks = nn.ModuleList()
        for layer in range(stage * of_a_stage, (stage + 1) * of_a_stage):
            self.blocks.add_module(str(layer), blocks[layer])
        if not self.first:
            self.positions = self.token_types = self.embed_norm = None
            if not (self.last and config.tie_embeddings):
                del self.embed
        if not self.last:
            for name in ("norm", *self.of_head):
                setattr(self, name, None)
        self.ranks = ranks
        self.opening_id: int | None = None
        self.z_loss, self.compiled = 0.0, False
        self.tokens = 1
        """Of the global batch: what losses are divided by."""

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        tokens: Tensor | None = None,
        targets: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        pattern: Pattern | None = None,
        readout: Readout | None = None,
    ) -> Tensor:
        """Of a micro-batch of the tokens and targets (batch, seq), hidden states; of the last stage (2,): the
        summed loss, with its z-loss in it, and the z-loss. x is the tokens or what the stage before gives.

        Without tokens and targets, what `readout` makes of the whole model on x (batch, seq), on all stages.
        """
        if tokens is None or targets is None:
            assert readout is not None
            return self._whole(x, positions, pattern, readout)
        row_weights = (targets != IGNORE).sum(1)
        encoder = self.config.family == "encoder"
        tokens, targets, inputs = own_part(tokens, targets, self.opening_id, self.ranks, both_ways=encoder)
        router_losses: list[Tensor] = []
        inputs["row_weights"] = row_weights
        hidden = self._blocks(tokens if self.first else x, tokens.shape[1], inputs, router_losses)
        if not self.last:
            if router_losses:
                losses = with_router_losses(
                    hidden.new_zeros((), dtype=torch.float32), router_losses, row_weights
                )
                hidden = _AndLoss.apply(hidden, losses / self.tokens)
            return hidden

        def loss_of(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
            predicted = targets
            if encoder:  # as in `language_model_loss`
                masked = targets != IGNORE
                hidden, predicted = hidden[masked], targets[masked]
            vocab_size, z = self.config.vocab_size, self.z_loss
            return with_z_loss(hidden, weight, predicted, vocab_size, bias, self.compiled, coefficient=z)

        loss, z_loss = self.read(hidden, loss_of)
        if router_losses:
            loss = with_router_losses(loss, router_losses, row_weights)
        return torch.stack((loss, z_loss))

    def _blocks(
        self, x: Tensor, row: int, inputs: dict[str, Any], router_losses: list[Tensor] | None = None
    ) -> Tensor:
        """x: tokens on the first stage, else hidden states, of rows of which attention sees `row` tokens."""
        self._row = row
        if self.first:
            return self.hidden(x, **inputs, router_losses=router_losses)
        positions, pattern, row_weights = map(inputs.get, ("positions", "pattern", "row_weights"))
        if positions is None:
            positions = torch.arange(row, device=x.device).unsqueeze(0)
        return self.run(
            x, positions, pattern or self.pattern, router_losses=router_losses, row_weights=row_weights
        )

    def scoring(self, seq_len: int, device: torch.device) -> Scoring:
        """In rows of as many tokens as attention sees, of which `x` is a part under tensor parallelism."""
        return super().scoring(self._row, device)

    @torch.no_grad()
    def _whole(
        self, tokens: Tensor, positions: Tensor | None, pattern: Pattern | None, readout: Readout
    ) -> Tensor:
        """Stage by stage. Between them hidden states are fp32, which holds whatever they are computed in."""
        batch, seq_len = tokens.shape
        place, tensor = self.ranks.place, self.ranks.layout.tensor
        group, stage = self.ranks.pipeline, place.pipeline
        x = tokens
        if not self.first:
            shape = (batch, seq_len // tensor, self.config.d_model)
            x = torch.empty(shape, dtype=torch.float32, device=tokens.device)
            dist.recv(x, group=group, group_src=stage - 1)
        hidden = self._blocks(x, seq_len, {"positions": positions, "pattern": pattern})
        found: list[Any] = [None]
        if self.last:
            hidden = whole_rows(hidden, self.ranks.tensor) if tensor > 1 else hidden
            found = [self.read(hidden, readout).cpu()]
        else:
            dist.send(hidden.float().contiguous(), group=group, group_dst=stage + 1)
        dist.broadcast_object_list(found, group=group, group_src=self.ranks.layout.pipeline - 1)
        result: Tensor = found[0]
        return result.to(tokens.device)


class DecoderStage(Stage, Decoder):  # type: ignore[misc]
    """Of a causal language model."""

    of_head = ("head",)


class EncoderStage(Stage, MaskedLM):  # type: ignore[misc]
    """Of an encoder with the masked-LM head."""

    of_head = ("transform", "transform_norm", "head_bias")


def stage_of(config: ModelConfig, ranks: Ranks) -> Stage:
    """This rank's stage of a model. Built on the meta device."""
    return EncoderStage(config, ranks) if config.family == "encoder" else DecoderStage(config, ranks)


class Pipeline:
    """What takes micro-batches through the stages, and gradients back.

    Args:
        opening_id: the token with which each document of a row begins, if they are not to see each other.
        z_loss: coefficient of the z-loss.
        compiled: as of `summed_cross_entropy`.
    """

    def __init__(
        self,
        model: Stage,
        ranks: Ranks,
        device: torch.device,
        opening_id: int | None = None,
        z_loss: float = 0.0,
        compiled: bool = False,
    ) -> None:
        self._model, self._ranks = model, ranks
        model.opening_id, model.z_loss, model.compiled = opening_id, z_loss, compiled
        place, stages = ranks.place, ranks.layout.pipeline
        self._stage = _Stage(model, place.pipeline, stages, device, group=ranks.pipeline)
        self._schedules: dict[int, Schedule1F1B] = {}

    def backward(self, micro_batches: Sequence[tuple[Tensor, ...]], tokens: int) -> Tensor:
        """Add the gradient of Σ loss / tokens to this stage's parameters; returns (2,): the summed loss and
        the z-loss in it, which are 0 on all stages but the last.

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
        self._model.tokens = tokens
        rows, targets = (torch.cat(each) for each in zip(*micro_batches, strict=True))
        first = (rows,) if self._model.first else ()
        schedule = self._schedules[count]
        sums = schedule.step(*first, tokens=rows, targets=targets, target=targets)
        if self._model.config.tie_embeddings and (self._model.first or self._model.last):
            self._exchange_gradients_of_the_table()
        return torch.zeros(2, device=rows.device) if sums is None else sums.detach().view(-1, 2).sum(0)

    def _mean(self, sums: Tensor, _: Tensor) -> Tensor:
        return sums[0] / self._model.tokens

    def _exchange_gradients_of_the_table(self) -> None:
        """Between the first stage and the last; a + b = b + a, so that both have the same sum."""
        gradient = self._model.embed.weight.grad
        assert isinstance(gradient, DTensor)
        own, group = gradient.to_local(), self._ranks.pipeline
        other = self._stage.num_stages - 1 if self._model.first else 0
        theirs = torch.empty_like(own)
        operations = [
            dist.P2POp(dist.isend, own.contiguous(), group=group, group_peer=other),
            dist.P2POp(dist.irecv, theirs, group=group, group_peer=other),
        ]
        for work in dist.batch_isend_irecv(operations):
            work.wait()
        own += theirs
        held_by_stages(gradient, 2)


class _Stage(PipelineStage):
    """torch tries a stage once, on tensors without meaning, to see what comes out: no token chose experts."""

    def forward_one_chunk(self, fwd_chunk_id: int, *arguments: Any, **more: Any) -> Any:
        if fwd_chunk_id == 0 and self.submod.config.n_experts:
            forget_load(self.submod)
        return super().forward_one_chunk(fwd_chunk_id, *arguments, **more)


class _AndLoss(torch.autograd.Function):
    """Hidden states as they are, and a loss whose gradient is taken when theirs is."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, loss: Tensor) -> Tensor:
        return hidden.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return grad, torch.ones((), device=grad.device)
