"""One reward-model worker: the training loop of `llm.training.loop` over rankings."""

from typing import Any

import torch
import torch.distributed as dist

from cluster.artifacts.folder import FileEntry
from llm.models.heads import DecoderWithScalar
from llm.models.load import build, load_state, save_model
from llm.training.float8 import use_float8
from llm.training.loop import TrainingRun, train
from llm.training.parallel.fsdp import data_mesh, shard
from llm.training.parallel.weights import gather_weights, scatter_weights
from llm.training.precision import Precision
from llm.training.step import MicroBatch
from pipelines.checkpoint_mirror import mirror_of
from pipelines.model_folder import LOGS, WEIGHTS
from pipelines.reward.config import RewardConfig
from pipelines.reward.rankings import FILLER, chosen, padded, read_rankings
from pipelines.reward.scores import measure, ranking_loss
from pipelines.training_launch import TrainingJob
from pipelines.training_observer import observer
from pipelines.training_worker import Claim, finish, my_share, run_precision, training_worker


def reward_worker(arguments: dict[str, Any]) -> None:
    """Train from the newest checkpoint to the end, centre the scores, write the model, report the counts."""
    job: TrainingJob = arguments["job"]
    config = job.config
    assert isinstance(config, RewardConfig)
    with training_worker(job) as device:
        precision = run_precision(job, device)
        preferences = job.inputs["preferences"].fetch()
        learned = read_rankings(preferences, "train", job.model.max_seq_len)
        heldout = read_rankings(preferences, "heldout", job.model.max_seq_len)
        steps = reward_steps(config, len(learned))
        model = scalar_model(job, device, precision)

        def micro_batches(step: int) -> list[MicroBatch]:
            batch = chosen(learned, step * config.global_batch, config.global_batch, config.seed)
            first, count, missing = my_share(config.global_batch)
            parts = padded([*batch[first : first + count], *[FILLER] * missing], config.micro_batch)
            return [(tokens.to(device), ranks.to(device)) for tokens, ranks in parts]

        train(
            TrainingRun(
                model=model,
                precision=precision,
                recipe=config.recipe(steps),
                folder=job.workspace.path,
                mirror=mirror_of(job.workspace, LOGS),
                micro_batches=micro_batches,
                samples_per_step=config.global_batch,
                data_state=lambda steps: {"rankings_consumed": steps * config.global_batch},
                check_data_state=lambda state: None,  # The artifact's version fixes rankings, seed and batch.
                evaluate=lambda: measure(model, heldout, config.micro_batch, device, "heldout"),
                attachments=job.attachments,
                watcher=lambda metrics: job.board.post.remote(without_token_speed(metrics)),
                may_write=Claim(job).holds,
                observer=observer(job),
                loss_sum=ranking_loss(model),
            )
        )
        seen = measure(model, learned, config.micro_batch, device, "train")
        files = write_centred(job, model, seen["train_score_mean"])
        counts = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "steps": steps,
            "train_rankings": len(learned),
            "heldout_rankings": len(heldout),
            "precision": precision,
            **seen,
            **measure(model, heldout, config.micro_batch, device, "heldout"),
        }
        finish(job, counts, files)


def reward_steps(config: RewardConfig, rankings: int) -> int:
    """Whole batches in `config.epochs` epochs, at least one; a last part of a batch is left out."""
    return max(1, config.epochs * rankings // config.global_batch)


def scalar_model(job: TrainingJob, device: torch.device, precision: Precision) -> DecoderWithScalar:
    """The chat model's trunk with a new scalar head, over all workers."""
    whole = DecoderWithScalar(job.model)
    whole.init_weights(job.config.seed)
    whole.load_trunk(load_state(job.inputs["model"].fetch(WEIGHTS)))
    model = build(job.model, "scalar")
    assert isinstance(model, DecoderWithScalar)
    if job.config.float8:
        use_float8(model, device)
    shard(model, data_mesh(device), precision)
    model.to_empty(device=device)
    scatter_weights(model, whole.state_dict())
    return model


def write_centred(job: TrainingJob, model: DecoderWithScalar, mean: float) -> dict[str, FileEntry]:
    """Write the weights, with `mean` taken off the bias so that training responses score 0 on average.

    A ranking fixes scores up to a constant only, and PPO reads more into it: a response's worth against 0.
    """
    weights = gather_weights(model)
    files: dict[str, FileEntry] = {}
    if dist.get_rank() == 0:
        weights["scalar.bias"] -= mean
        save_model(job.workspace.path, weights, job.model, "scalar")
        files = job.workspace.publish([WEIGHTS])
    dist.barrier()
    return files


def without_token_speed(metrics: dict[str, Any]) -> dict[str, Any]:
    """What the loop counts as tokens are ranked responses here: show them under their name."""
    shown = {name: value for name, value in metrics.items() if name not in ("tokens", "tokens_per_s")}
    return shown | ({"responses_per_s": metrics["tokens_per_s"]} if "tokens_per_s" in metrics else {})
