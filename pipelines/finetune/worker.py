"""One fine-tuning worker: the training loop of `llm.training.loop` over conversations."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from llm.models.load import LanguageModel
from llm.models.lora import adapter_count
from llm.models.parameters import parameter_count
from llm.tokenizer.special import EOS_ID, PAD_ID
from llm.training.loop import TrainingRun, language_model_loss, train
from llm.training.loss import IGNORE
from llm.training.parallel.layout import ParallelLayout, Place
from llm.training.parallel.pipeline import Pipeline, Stage
from llm.training.parallel.ranks import arrange
from llm.training.step import MicroBatch
from pipelines.checkpoint_mirror import mirror_of
from pipelines.finetune.config import FinetuneConfig
from pipelines.finetune.lessons import Lessons, read_lessons
from pipelines.memory_check import say_memory
from pipelines.model_folder import LOGS, WEIGHTS
from pipelines.tokenizer_artifact import load_tokenizer
from pipelines.training_launch import TrainingJob
from pipelines.training_observer import observer
from pipelines.training_worker import (
    Claim,
    Watcher,
    finish,
    run_precision,
    sharded_model,
    training_worker,
    write_model,
)


def finetune_worker(arguments: dict[str, Any]) -> None:
    """Train from the newest checkpoint to the end, write the model, and report the manifest's counts."""
    job: TrainingJob = arguments["job"]
    config = job.config
    assert isinstance(config, FinetuneConfig)
    with training_worker(job) as device:
        precision = run_precision(job, device)
        tokenizer = load_tokenizer(job.inputs["tokenizer"])
        trained = adapter_count(job.model, config.adapters) if config.adapters is not None else None
        seq_len, input_len = config.max_seq_len, None
        if job.model.family == "encoder-decoder":
            seq_len, input_len = config.longest_target, config.max_seq_len
        say_memory(job, device, precision, seq_len, input_len, trained, config.parallel)
        ranks = arrange(config.parallel.layout(dist.get_world_size()), device)
        layout, place = ranks.layout, ranks.place
        lessons = read_lessons(config, job.model, job.inputs["corpus"].fetch(), tokenizer)
        base = job.inputs.get("base")
        weights = None if base is None else base.fetch(WEIGHTS)
        model = sharded_model(job, device, precision, weights=weights, ranks=ranks, lora=config.adapters)
        (opening_id, _), z_loss, pipeline = lessons.opening_ids, config.optimizer.z_loss, None
        if isinstance(model, Stage):
            pipeline = Pipeline(model, ranks, device, opening_id, z_loss, config.compile)

        def micro_batches(step: int) -> list[MicroBatch]:
            rows = lengthened(lessons.batch(step, place.data, layout.data), layout, config.micro_batch)
            parts = [each.to(device).split(config.micro_batch) for each in rows]
            return list(zip(*parts, strict=True))

        def evaluate(limit: int | None = config.evaluate_conversations) -> dict[str, float]:
            return {"heldout_loss": response_loss(model, lessons, config.micro_batch, limit, layout, place)}

        before = {} if base is None else {"base_heldout_loss": evaluate(limit=None)["heldout_loss"]}
        batches = lessons.batches
        steps = config.epochs * batches.batches_per_epoch
        train(
            TrainingRun(
                model=model,
                precision=precision,
                recipe=config.recipe(steps),
                folder=job.workspace.path,
                mirror=mirror_of(job.workspace, LOGS),
                micro_batches=micro_batches,
                samples_per_step=config.global_batch,
                data_state=lambda steps: {"examples_consumed": steps * config.global_batch},
                check_data_state=lambda state: None,  # The artifact's version fixes corpus, batch and seed.
                evaluate=evaluate,
                loss_sum=language_model_loss(model, opening_id, ranks, z_loss, config.compile),
                backward=pipeline.backward if pipeline else None,
                copies=layout.copies,
                attachments=job.attachments,
                watcher=Watcher(job, device, precision, lessons.flops_per_token),
                may_write=Claim(job).holds,
                observer=observer(job),
            )
        )
        files = write_model(
            job, model, tokenizer, chats=job.model.family == "decoder", lora=config.adapters, ranks=ranks
        )
        counts: dict[str, Any] = {
            "parameters": parameter_count(job.model),
            "precision": precision,
            "steps": steps,
            "train_conversations": len(batches),
            "too_long_conversations": batches.too_long,
            "unanswered_conversations": batches.unanswered,
            "heldout_conversations": len(lessons.heldout),
            "too_long_heldout_conversations": lessons.too_long_heldout,
            **before,
            **evaluate(limit=None),
        }
        if trained is not None:
            counts["adapter_parameters"] = trained
        finish(job, counts, files)


def lengthened(rows: MicroBatch, layout: ParallelLayout, micro_batch: int) -> MicroBatch:
    """The rows of a step, with as much padding at their ends as ranks need that divide them, and as many rows
    of padding more as fill the micro-batches of a pipeline, which are all of one size.
    """
    more = -len(rows[-1]) % micro_batch if layout.pipeline > 1 else 0
    # What a decoder with an encoder is given is filled up with <eos>: <pad> would open a pair there.
    values = (PAD_ID, IGNORE) if len(rows) == 2 else (PAD_ID, EOS_ID, IGNORE)

    def padded(each: Tensor, value: int) -> Tensor:
        longer = -each.shape[1] % layout.row_multiple
        return F.pad(each, (0, longer, 0, more), value=value) if longer or more else each

    return tuple(padded(each, value) for each, value in zip(rows, values, strict=True))


@torch.no_grad()
def response_loss(
    model: LanguageModel,
    lessons: Lessons,
    batch_size: int,
    limit: int | None = None,
    layout: ParallelLayout | None = None,
    place: Place | None = None,
) -> float:
    """Mean loss per learned token over what is held out, in nats, or over the first `limit` of it; every rank
    gets the same answer.

    layout, place: how ranks divide the model, and where this one stands; by default it is sharded.
    """
    layout = layout or ParallelLayout(shard=dist.get_world_size())
    place = place or layout.place(dist.get_rank())
    rank, world = place.data, layout.data
    device = next(model.parameters()).device
    loss_sum = language_model_loss(model, lessons.opening_ids[1])
    total = torch.zeros(2, dtype=torch.float64, device=device)
    examples = lessons.heldout[:limit]
    for start in range(0, len(examples), world * batch_size):
        mine = examples[start + rank : start + world * batch_size : world]
        # FSDP gathers in every forward pass, so a rank that has run out of examples still makes one.
        *given, targets = lengthened(lessons.padded(mine or examples[:1]), layout, batch_size)
        targets = targets if mine else torch.full_like(targets, IGNORE)
        loss = loss_sum(*(each.to(device) for each in given), targets.to(device))
        total += torch.stack((loss.double(), (targets != IGNORE).sum().to(device)))
    dist.all_reduce(total)
    return (total[0] / total[1]).item()
