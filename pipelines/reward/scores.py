"""Scores of rankings, their loss and their measures, over any number of ranks."""

import math

import torch
import torch.distributed as dist
from torch import Tensor

from llm.alignment.reward_model import pairwise_agreement, plackett_luce_loss
from llm.models.heads import DecoderWithScalar, last_token_scores
from llm.training.loss import IGNORE
from llm.training.step import LossSum
from pipelines.reward.rankings import FILLER, Ranking, lengths_of, padded


def scores_of(model: DecoderWithScalar, tokens: Tensor, rankings: int) -> Tensor:
    """Scores (rankings, K) fp32 of tokens (rankings · K, seq), at each sequence's last token.

    Responses to one prompt differ much in length. So sequences of similar length share a forward pass; how
    many passes there are depends on the number of rankings alone, for under FSDP all ranks must make equally
    many.
    """
    lengths = lengths_of(tokens)
    order = lengths.argsort(stable=True)
    parts = order.tensor_split(max(1, rankings // 2))
    scores = [
        last_token_scores(model(tokens[part, : lengths[part].max()]).float(), lengths[part]) for part in parts
    ]
    return torch.cat(scores)[order.argsort()].view(rankings, -1)


def ranking_loss(model: DecoderWithScalar) -> LossSum:
    """(tokens, ranks) -> summed Plackett-Luce loss; the step divides by the number of ranked responses."""

    def loss_sum(tokens: Tensor, ranks: Tensor) -> Tensor:
        scores = scores_of(model, tokens, len(ranks))
        return plackett_luce_loss(scores, ranks.where(ranks != IGNORE, 0), denominator=1.0)

    return loss_sum


@torch.no_grad()
def measure(
    model: DecoderWithScalar, rankings: list[Ranking], micro_batch: int, device: torch.device, split: str
) -> dict[str, float]:
    """Loss a response, pairwise accuracy and moments of the scores over `rankings`; the same on every
    rank.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    total = torch.zeros(6, dtype=torch.float64, device=device)
    for start in range(0, len(rankings), world * micro_batch):
        chunk = rankings[start : start + world * micro_batch]
        # FSDP gathers in every forward pass, so all ranks take equally many rankings through the model.
        mine = [*chunk, *[FILLER] * (-len(chunk) % world)][rank::world]
        ((tokens, ranks),) = padded(mine, micro_batch)
        ranks = ranks.where(ranks != IGNORE, 0).to(device)
        scores = scores_of(model, tokens.to(device), len(ranks))
        loss = plackett_luce_loss(scores, ranks, denominator=1.0)
        agreeing, pairs = pairwise_agreement(scores, ranks)
        valid = scores[ranks > 0].double()
        values = (loss, agreeing, pairs, (ranks > 0).sum(), valid.sum(), valid.square().sum())
        total += torch.stack([value.double() for value in values])
    dist.all_reduce(total)
    loss, agreeing, pairs, responses, scores_sum, squares = total.tolist()
    mean = scores_sum / responses
    return {
        f"{split}_loss": loss / responses,
        f"{split}_accuracy": agreeing / pairs if pairs else 0.5,
        f"{split}_pairs": pairs,
        f"{split}_score_mean": mean,
        f"{split}_score_std": math.sqrt(max(squares / responses - mean * mean, 0.0)),
    }
