"""One pre-training worker: the training loop of `llm.training.loop` over token shards."""

import math
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from llm.data.shards import TokenShards
from llm.evaluation.bits_per_byte import bits_per_byte, unigram_bits_per_byte
from llm.models.parameters import parameter_count
from llm.tokenizer.load import load_tokenizer
from llm.training.loop import TrainingRun, language_model_loss, train
from pipelines.checkpoint_mirror import extended_checkpoint, mirror_of
from pipelines.model_folder import LOGS, TOKENIZER
from pipelines.pretrain.batches import GlobalBatches
from pipelines.pretrain.config import PretrainConfig
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
        opening_id = loader.shards.eos_id if config.document_mask else None
        tokenizer = load_tokenizer(job.inputs["tokenizer"].fetch(TOKENIZER))
        model = sharded_model(job, device, precision, weights=None)

        def score(heldout: TokenShards, windows: int | None) -> float:
            size = config.micro_batch
            return bits_per_byte(model, heldout, config.seq_len, size, windows, opening_id)

        def evaluate() -> dict[str, float]:
            if not source.heldout:
                return {}
            joined = TokenShards.join(list(source.heldout.values()))
            return {"heldout_bits_per_byte": score(joined, config.evaluate_windows)}

        train(
            TrainingRun(
                model=model,
                precision=precision,
                recipe=config.recipe(config.steps),
                folder=job.workspace.path,
                mirror=mirror_of(job.workspace, LOGS),
                extended=lambda: extended_checkpoint(job.inputs.get("extends")),
                micro_batches=GlobalBatches(loader, config, device).micro_batches,
                data_state=lambda steps: loader.state(steps * config.global_batch),
                check_data_state=loader.check_state,
                evaluate=evaluate,
                loss_sum=language_model_loss(model, opening_id),
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
            "tokens": config.steps * config.global_batch * config.seq_len,
            "epochs": epochs_of(config, source),
            **heldout_measures(source, lambda heldout: score(heldout, None)),
        }
        finish(job, counts, files)


def epochs_of(config: PretrainConfig, source: TokenSource) -> float | dict[str, float]:
    """How often the run went through its tokens; of a mixture, by name."""
    epochs = [round(each, 4) for each in source.loader.order.epochs(config.steps * config.global_batch)]
    return dict(zip(config.sources.names, epochs, strict=True)) if config.sources.stages else epochs[0]


def heldout_measures(source: TokenSource, score: Callable[[TokenShards], float]) -> dict[str, Any]:
    """Bits per byte of all held-out text, of each source's if there are several, and of the unigram model.

    Those of all are the sources', weighted by their bytes: every token is scored once in either case.
    """
    if not source.heldout:
        return {}
    by_name = {name: score(heldout) for name, heldout in source.heldout.items()}
    joined = TokenShards.join(list(source.heldout.values()))
    bits = math.fsum(by_name[name] * heldout.bytes for name, heldout in source.heldout.items())
    shards = source.loader.shards
    first = dist.get_rank() == 0  # whose measures count, and the others need not read so much for nothing
    unigram = unigram_bits_per_byte(shards, joined, shards.vocab_size) if first else math.nan
    return {
        "heldout_bits_per_byte": bits / joined.bytes,
        **({"heldout_bits_per_byte_of": by_name} if len(by_name) > 1 else {}),
        "unigram_heldout_bits_per_byte": unigram,
    }
