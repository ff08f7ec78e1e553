"""Training speed: our step against transformers in a plain loop.

    python -m tests.benchmarks.train

Both train a Llama of the quickstart's shape from random weights on the same random tokens, with AdamW (fused)
and clipping, in turn within one process: a round of ours, a round of theirs, and so on. Ours is what the
pre-training worker runs: FSDP2 at degree one where it is bf16, accumulation, chunked loss. Theirs is
`LlamaForCausalLM` with its own loss, under autocast where it is bf16. The last line is one JSON object.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from llm.models.config import ModelConfig
from llm.models.load import build
from llm.models.parameters import parameter_count
from llm.models.presets import model_config
from llm.training.loop import language_model_loss
from llm.training.loss import next_token_targets
from llm.training.optimizer import adamw
from llm.training.parallel.fsdp import data_mesh, shard
from llm.training.precision import Precision, choose_precision
from llm.training.step import train_step

LEARNING_RATE, WEIGHT_DECAY, BETAS, CLIP_NORM = 1e-3, 0.1, (0.9, 0.95), 1.0
Step = Callable[[Tensor], float]
"""tokens (batch, seq) -> the loss of a step on them."""


def ours(config: ModelConfig, micro_batch: int, precision: Precision) -> Step:
    """A step as the pre-training worker takes it."""
    model = build(config)
    shard(model, data_mesh(torch.device("cpu")), precision)
    model.to_empty(device="cpu")
    model.init_weights(seed=0)
    optimizer = adamw(model, LEARNING_RATE, WEIGHT_DECAY, BETAS)

    def step(tokens: Tensor) -> float:
        parts = [(part, next_token_targets(part)) for part in tokens.split(micro_batch)]
        return train_step(model, optimizer, parts, language_model_loss(model), LEARNING_RATE, CLIP_NORM).loss

    return step


def theirs(config: ModelConfig, micro_batch: int, precision: Precision) -> Step:
    """A step of the usual loop over transformers' model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.padded_vocab_size,
            hidden_size=config.d_model,
            intermediate_size=config.d_ff,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            max_position_embeddings=config.max_seq_len,
            rms_norm_eps=config.norm_eps,
            tie_word_embeddings=config.tie_embeddings,
            use_cache=False,
        )
    )
    assert sum(p.numel() for p in model.parameters()) == parameter_count(config)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, betas=BETAS, fused=True
    )

    def step(tokens: Tensor) -> float:
        parts, total = tokens.split(micro_batch), 0.0
        for part in parts:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
                loss = model(input_ids=part, labels=part).loss / len(parts)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    return step


def tokens_per_second(step: Step, batches: list[Tensor]) -> float:
    """Speed over one round."""
    started = time.perf_counter()
    for tokens in batches:
        step(tokens)
    return sum(tokens.numel() for tokens in batches) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="quickstart-1m")
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=16, help="sequences in a step")
    parser.add_argument("--micro-batch", type=int, default=16, help="sequences in a forward pass")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--steps", type=int, default=6, help="steps in a round")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    config = model_config(options.preset, options.vocab_size)
    precision = choose_precision(options.precision, torch.device("cpu"))
    steps = {
        "ours": ours(config, options.micro_batch, precision),
        "peer": theirs(config, options.micro_batch, precision),
    }
    batches = [
        torch.randint(options.vocab_size, (options.batch, options.seq_len)) for _ in range(options.steps)
    ]
    speeds: dict[str, list[float]] = {name: [] for name in steps}
    for name, step in steps.items():
        first_loss, speed = step(batches[0]), tokens_per_second(step, batches)
        print(f"{name}: first loss {first_loss:.3f}, {speed:,.0f} tokens/s warm-up")
    for round_number in range(options.rounds):
        for name, step in steps.items():
            speeds[name].append(tokens_per_second(step, batches))
        print(f"round {round_number + 1}: " + ", ".join(f"{n} {s[-1]:,.0f}" for n, s in speeds.items()))
    dist.destroy_process_group()
    print(json.dumps(summary(options, config, precision, speeds)))


def summary(
    options: argparse.Namespace, config: ModelConfig, precision: Precision, speeds: dict[str, list[float]]
) -> dict[str, Any]:
    """Medians, their ratio, and the range of each."""
    median = {name: statistics.median(values) for name, values in speeds.items()}
    return {
        "benchmark": "train",
        "ours": round(median["ours"]),
        "peer": round(median["peer"]),
        "ratio": round(median["ours"] / median["peer"], 3),
        "unit": "tokens/s",
        "peer_name": "transformers LlamaForCausalLM, fused AdamW",
        **{f"{name}_spread": [round(min(each)), round(max(each))] for name, each in speeds.items()},
        "precision": precision,
        "rounds": options.rounds,
        "parameters": parameter_count(config),
        "batch": [options.batch, options.seq_len],
        "threads": options.threads,
    }


if __name__ == "__main__":
    main()
