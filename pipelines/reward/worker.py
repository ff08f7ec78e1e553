"""One reward-model worker: the training loop of `llm.training.loop` over rankings."""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from llm.alignment.reward_model import pairwise_agreement, plackett_luce_loss
from llm.models.heads import DecoderWithScalar, last_token_scores
from llm.models.load import build, load_state, save_model
from llm.training.loop import TrainingRun, train
from llm.training.loss import IGNORE
from llm.training.parallel import data_mesh, gather_weights, scatter_weights, shard
from llm.training.precision import choose_precision
from llm.training.step import LossSum, MicroBatch
from pipelines.reward.config import RewardConfig
from pipelines.reward.rankings import Ranking, chosen, lengths_of, padded, read_rankings
from pipelines.training_launch import TrainingJob
from pipelines.training_worker import Claim, attachments, finish, my_share, training_worker


def reward_worker(arguments: dict[str, Any]) -> None:
    """Train from the newest checkpoint to the end, centre the scores, write the model, report the counts."""
    job: TrainingJob = arguments["job"]
    config = job.config
    assert isinstance(config, RewardConfig)
    with training_worker(job) as device:
        learned = read_rankings(job.inputs["preferences"], "train", job.model.max_seq_len)
        heldout = read_rankings(job.inputs["preferences"], "heldout", job.model.max_seq_len)
        steps = reward_steps(config, len(learned))
        model = scalar_model(job, device)

        def micro_batches(step: int) -> list[MicroBatch]:
            batch = chosen(learned, step * config.global_batch, config.global_batch, config.seed)
            first, count = my_share(config.global_batch)
            parts = padded(batch[first : first + count], config.micro_batch)
            return [(tokens.to(device), ranks.to(device)) for tokens, ranks in parts]

        train(
            TrainingRun(
                model=model,
                recipe=config.recipe(steps),
                folder=job.folder,
                micro_batches=micro_batches,
                data_state=lambda steps: {"rankings_consumed": steps * config.global_batch},
                check_data_state=lambda state: None,  # The artifact's version fixes rankings, seed and batch.
                evaluate=lambda: measure(model, heldout, config.micro_batch, device, "heldout"),
                attachments=attachments(job),
                watcher=lambda metrics: job.board.post.remote(without_token_speed(metrics)),
                may_write=Claim(job.folder).holds,
                loss_sum=ranking_loss(model),
            )
        )
        seen = measure(model, learned, config.micro_batch, device, "train")
        write_centred(job, model, seen["train_score_mean"])
        counts = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "steps": steps,
            "train_rankings": len(learned),
            "heldout_rankings": len(heldout),
            "precision": choose_precision(config.precision, device),
            **seen,
            **measure(model, heldout, config.micro_batch, device, "heldout"),
        }
        finish(job, counts)


def reward_steps(config: RewardConfig, rankings: int) -> int:
    """Whole batches in `config.epochs` epochs, at least one; a last part of a batch is left out."""
    return max(1, config.epochs * rankings // config.global_batch)


def scalar_model(job: TrainingJob, device: torch.device) -> DecoderWithScalar:
    """The chat model's trunk with a new scalar head, over all workers."""
    whole = DecoderWithScalar(job.model)
    whole.init_weights(job.config.seed)
    whole.load_trunk(load_state(job.inputs["model"]))
    model = build(job.model, "scalar")
    assert isinstance(model, DecoderWithScalar)
    shard(model, data_mesh(device), choose_precision(job.config.precision, device))
    model.to_empty(device=device)
    scatter_weights(model, whole.state_dict())
    return model


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
        mine = rankings[start : start + world * micro_batch][rank::world]
        # FSDP gathers in every forward pass, so a rank that has run out of rankings still makes one.
        ((tokens, ranks),) = padded(mine or rankings[:1], micro_batch)
        ranks = (ranks if mine else torch.full_like(ranks, IGNORE)).to(device)
        ranks = ranks.where(ranks != IGNORE, 0)
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


def write_centred(job: TrainingJob, model: DecoderWithScalar, mean: float) -> None:
    """Write the weights, with `mean` taken off the bias so that training responses score 0 on average.

    A ranking fixes scores up to a constant only, and PPO reads more into it: a response's worth against 0.
    """
    weights = gather_weights(model)
    if dist.get_rank() == 0:
        weights["scalar.bias"] -= mean
        save_model(job.folder, weights, job.model, "scalar")
    dist.barrier()


def without_token_speed(metrics: dict[str, Any]) -> dict[str, Any]:
    """What the loop counts as tokens are ranked responses here: show them under their name."""
    shown = {name: value for name, value in metrics.items() if name not in ("tokens", "tokens_per_s")}
    return shown | ({"responses_per_s": metrics["tokens_per_s"]} if "tokens_per_s" in metrics else {})
