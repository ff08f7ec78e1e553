"""One fine-tuning worker: the training loop of `llm.training.loop` over conversations."""

from typing import Any

import torch
import torch.distributed as dist

from llm.models.decoder import Decoder
from llm.models.lora import adapter_count
from llm.models.parameters import parameter_count
from llm.planning.flops import training_flops_per_token
from llm.tokenizer.load import load_tokenizer
from llm.training.loop import TrainingRun, language_model_loss, train
from llm.training.loss import IGNORE, next_token_targets
from llm.training.step import MicroBatch
from pipelines.checkpoint_mirror import mirror_of
from pipelines.finetune.config import FinetuneConfig
from pipelines.finetune.conversations import Example, heldout_examples, right_padded, training_batches
from pipelines.memory_check import say_memory
from pipelines.model_folder import LOGS, TOKENIZER, WEIGHTS
from pipelines.training_launch import TrainingJob
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
        tokenizer = load_tokenizer(job.inputs["tokenizer"].fetch(TOKENIZER))
        corpus = job.inputs["corpus"].fetch()
        batches = training_batches(config, corpus, tokenizer)
        heldout, too_long_heldout = heldout_examples(config, corpus, tokenizer)
        trained = adapter_count(job.model, config.adapters) if config.adapters is not None else None
        say_memory(job, device, precision, config.max_seq_len, trained=trained)
        model = sharded_model(
            job, device, precision, weights=job.inputs["base"].fetch(WEIGHTS), lora=config.adapters
        )

        def micro_batches(step: int) -> list[MicroBatch]:
            batch = batches.batch(step, dist.get_rank(), dist.get_world_size())
            tokens = torch.from_numpy(batch.ids).to(device)
            targets = next_token_targets(tokens, torch.from_numpy(batch.loss_mask).to(device))
            size = config.micro_batch
            return list(zip(tokens.split(size), targets.split(size), strict=True))

        def evaluate(limit: int | None = config.evaluate_conversations) -> dict[str, float]:
            return {
                "heldout_loss": response_loss(model, heldout[:limit], tokenizer.pad_id, config.micro_batch)
            }

        before = evaluate(limit=None)["heldout_loss"]
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
                loss_sum=language_model_loss(
                    model,
                    tokenizer.bos_id if config.packing else None,
                    z_loss=config.optimizer.z_loss,
                ),
                attachments=job.attachments,
                watcher=Watcher(
                    job, device, precision, training_flops_per_token(job.model, config.max_seq_len)
                ),
                may_write=Claim(job).holds,
            )
        )
        files = write_model(job, model, tokenizer, stop_id=tokenizer.end_id, lora=config.adapters)
        counts = {
            "parameters": parameter_count(job.model),
            "precision": precision,
            "steps": steps,
            "train_conversations": len(batches),
            "too_long_conversations": batches.too_long,
            "unanswered_conversations": batches.unanswered,
            "heldout_conversations": len(heldout),
            "too_long_heldout_conversations": too_long_heldout,
            "base_heldout_loss": before,
            **evaluate(limit=None),
        }
        if trained is not None:
            counts["adapter_parameters"] = trained
        finish(job, counts, files)


@torch.no_grad()
def response_loss(model: Decoder, examples: list[Example], pad_id: int, batch_size: int) -> float:
    """Mean loss per learned token over `examples`, in nats; every rank gets the same answer."""
    rank, world = dist.get_rank(), dist.get_world_size()
    device = next(model.parameters()).device
    loss_sum, total = language_model_loss(model), torch.zeros(2, dtype=torch.float64, device=device)
    for start in range(0, len(examples), world * batch_size):
        mine = examples[start + rank : start + world * batch_size : world]
        # FSDP gathers in every forward pass, so a rank that has run out of examples still makes one.
        tokens, targets = right_padded(mine or examples[:1], pad_id)
        targets = targets if mine else torch.full_like(targets, IGNORE)
        loss = loss_sum(tokens.to(device), targets.to(device))
        total += torch.stack((loss.double(), (targets != IGNORE).sum().to(device)))
    dist.all_reduce(total)
    return (total[0] / total[1]).item()
