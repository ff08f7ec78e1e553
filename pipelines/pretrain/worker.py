"""One pre-training worker: the training loop of `llm.training.loop` over token shards."""

from typing import Any

import torch
import torch.nn.functional as F

from llm.data.loader import TokenLoader
from llm.data.order import Order
from llm.data.shards import TokenShards
from llm.evaluation.bits_per_byte import bits_per_byte, unigram_bits_per_byte
from llm.tokenizer.load import load_tokenizer
from llm.training.loop import TrainingRun, train
from llm.training.loss import IGNORE, next_token_targets
from llm.training.step import MicroBatch
from pipelines.checkpoint_mirror import extended_checkpoint, mirror_of
from pipelines.model_folder import LOGS, TOKENIZER
from pipelines.pretrain.config import PretrainConfig
from pipelines.training_launch import TrainingJob
from pipelines.training_worker import (
    Claim,
    Watcher,
    finish,
    my_share,
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
        tokens = job.inputs["tokens"].fetch()
        shards = TokenShards.open(tokens, "train").check_files()
        heldout = TokenShards.open(tokens, "heldout").check_files()
        loader = TokenLoader(shards, Order(shards.shard_tokens, config.seq_len, config.seed))
        tokenizer = load_tokenizer(job.inputs["tokenizer"].fetch(TOKENIZER))
        model = sharded_model(job, device, precision, weights=None)

        def micro_batches(step: int) -> list[MicroBatch]:
            first, count, missing = my_share(config.global_batch)
            samples = loader.batch(step * config.global_batch + first, count)
            tokens = torch.from_numpy(samples).to(device)
            targets = next_token_targets(tokens)
            if missing:
                tokens = F.pad(tokens, (0, 0, 0, missing), value=shards.eos_id)
                targets = F.pad(targets, (0, 0, 0, missing), value=IGNORE)
            size = config.micro_batch
            return list(zip(tokens.split(size), targets.split(size), strict=True))

        def evaluate(limit: int | None = config.evaluate_windows) -> dict[str, float]:
            if not heldout.tokens:
                return {}
            value = bits_per_byte(model, heldout, config.seq_len, config.micro_batch, limit)
            return {"heldout_bits_per_byte": value}

        train(
            TrainingRun(
                model=model,
                precision=precision,
                recipe=config.recipe(config.steps),
                folder=job.workspace.path,
                mirror=mirror_of(job.workspace, LOGS),
                extended=lambda: extended_checkpoint(job.inputs.get("extends")),
                micro_batches=micro_batches,
                data_state=lambda steps: loader.state(steps * config.global_batch),
                check_data_state=loader.check_state,
                evaluate=evaluate,
                attachments=job.attachments,
                watcher=Watcher(job, device, precision, config.seq_len),
                may_write=Claim(job).holds,
            )
        )
        files = write_model(job, model, tokenizer, stop_id=tokenizer.eos_id)
        counts = {
            "parameters": job.model.parameter_count,
            "precision": precision,
            "steps": config.steps,
            "tokens": config.steps * config.global_batch * config.seq_len,
            "epochs": round(config.steps * config.global_batch / loader.order.samples_per_epoch, 4),
            **evaluate(limit=None),
        }
        if heldout.tokens:
            unigram = unigram_bits_per_byte(shards, heldout, job.model.vocab_size)
            counts["unigram_heldout_bits_per_byte"] = unigram
        finish(job, counts, files)
