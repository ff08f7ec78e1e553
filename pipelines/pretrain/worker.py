"""One pre-training worker: the training loop of `llm.training.loop` over token shards."""

from typing import Any

import torch.distributed as dist

from llm.models.config import ModelConfig
from llm.models.parameters import parameter_count
from llm.planning.flops import training_flops_per_token
from llm.training.loop import TrainingRun, language_model_loss, train
from llm.training.parallel.pipeline import Pipeline, Stage
from llm.training.parallel.ranks import arrange
from pipelines.checkpoint_mirror import extended_checkpoint, mirror_of
from pipelines.memory_check import say_memory
from pipelines.model_folder import LOGS
from pipelines.pretrain.batches import GlobalBatches, objective_of
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.heldout import held_out
from pipelines.pretrain.token_source import TokenSource, open_source
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


def pretrain_worker(arguments: dict[str, Any]) -> None:
    """Train from the newest checkpoint to the end, write the model, and report the manifest's counts."""
    job: TrainingJob = arguments["job"]
    config = job.config
    assert isinstance(config, PretrainConfig)
    with training_worker(job) as device:
        precision = run_precision(job, device)
        source = open_source(config, job.inputs)
        loader = source.loader
        tokenizer = load_tokenizer(job.inputs["tokenizer"])
        objective = objective_of(config, loader.shards.vocab_size, config.seed)
        opening_id = loader.shards.eos_id if config.document_mask else None
        input_len, target_len = lengths(config)
        say_memory(job, device, precision, target_len, input_len, parallel=config.parallel)
        ranks = arrange(config.parallel.layout(dist.get_world_size()), device)
        model = sharded_model(job, device, precision, weights=None, ranks=ranks)
        z_loss, pipeline = config.optimizer.z_loss, None
        if isinstance(model, Stage):
            pipeline = Pipeline(model, ranks, device, opening_id, z_loss, config.compile)
        heldout = held_out(model, source, config, opening_id, (ranks.place.data, ranks.layout.data))
        train(
            TrainingRun(
                model=model,
                precision=precision,
                recipe=config.recipe(config.steps),
                folder=job.workspace.path,
                mirror=mirror_of(job.workspace, LOGS),
                extended=lambda: extended_checkpoint(job.inputs.get("extends")),
                micro_batches=GlobalBatches(loader, objective, config, device).micro_batches,
                samples_per_step=config.global_batch,
                data_state=lambda steps: loader.state(steps * config.global_batch),
                check_data_state=loader.check_state,
                evaluate=heldout.in_training,
                loss_sum=language_model_loss(model, opening_id, ranks, z_loss, config.compile),
                backward=pipeline.backward if pipeline else None,
                copies=ranks.layout.copies,
                attachments=job.attachments,
                watcher=Watcher(job, device, precision, flops_per_predicted_token(config, job.model)),
                may_write=Claim(job).holds,
                observer=observer(job),
            )
        )
        files = write_model(job, model, tokenizer, chats=False, ranks=ranks)
        counts = {
            "parameters": parameter_count(job.model),
            "precision": precision,
            "steps": config.steps,
            "tokens": config.steps * config.global_batch * config.window,
            "epochs": epochs_of(config, source),
            **heldout.at_the_end(),
        }
        finish(job, counts, files)


def lengths(config: PretrainConfig) -> tuple[int | None, int]:
    """(tokens of a sequence that an encoder reads for a decoder, tokens of one that has targets)."""
    return (
        config.corruption.lengths(config.window)
        if config.family == "encoder-decoder"
        else (None, config.seq_len)
    )


def flops_per_predicted_token(config: PretrainConfig, model: ModelConfig) -> float:
    """Training FLOPs of one: an encoder's bears those of the tokens that are only read."""
    input_len, target_len = lengths(config)
    predicted = config.objective.mask_rate if config.family == "encoder" else 1.0
    return training_flops_per_token(model, target_len, input_len, predicted)


def epochs_of(config: PretrainConfig, source: TokenSource) -> float | dict[str, float]:
    """How often the run went through its tokens; of a mixture, by name."""
    epochs = [round(each, 4) for each in source.loader.order.epochs(config.steps * config.global_batch)]
    return dict(zip(config.sources.names, epochs, strict=True)) if config.sources.stages else epochs[0]
