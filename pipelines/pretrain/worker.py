"""One pre-training worker: the training loop of `llm.training.loop` over token shards."""

from typing import Any

from llm.models.parameters import parameter_count
from llm.tokenizer.load import load_tokenizer
from llm.training.loop import TrainingRun, language_model_loss, train
from pipelines.checkpoint_mirror import extended_checkpoint, mirror_of
from pipelines.model_folder import LOGS, TOKENIZER
from pipelines.pretrain.batches import GlobalBatches, objective_of
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.heldout import held_out
from pipelines.pretrain.token_source import TokenSource, open_source
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


def pretrain_worker(arguments: dict[str, Any]) -> None:
    """Train from the newest checkpoint to the end, write the model, and report the manifest's counts."""
    job: TrainingJob = arguments["job"]
    config = job.config
    assert isinstance(config, PretrainConfig)
    with training_worker(job) as device:
        precision = run_precision(job, device)
        source = open_source(config, job.inputs)
        loader = source.loader
        tokenizer = load_tokenizer(job.inputs["tokenizer"].fetch(TOKENIZER))
        objective = objective_of(config, loader.shards.vocab_size, config.seed)
        opening_id = loader.shards.eos_id if config.document_mask else None
        model = sharded_model(job, device, precision, weights=None)
        heldout = held_out(model, source, config, opening_id)
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
                loss_sum=language_model_loss(model, opening_id, config.optimizer.z_loss),
                attachments=job.attachments,
                watcher=Watcher(job, device, precision, config.seq_len),
                may_write=Claim(job).holds,
            )
        )
        files = write_model(job, model, tokenizer, stop_id=tokenizer.eos_id)
        counts = {
            "parameters": parameter_count(job.model),
            "precision": precision,
            "steps": config.steps,
            "tokens": config.steps * config.global_batch * config.window,
            "epochs": epochs_of(config, source),
            **heldout.at_the_end(),
        }
        finish(job, counts, files)


def epochs_of(config: PretrainConfig, source: TokenSource) -> float | dict[str, float]:
    """How often the run went through its tokens; of a mixture, by name."""
    epochs = [round(each, 4) for each in source.loader.order.epochs(config.steps * config.global_batch)]
    return dict(zip(config.sources.names, epochs, strict=True)) if config.sources.stages else epochs[0]
