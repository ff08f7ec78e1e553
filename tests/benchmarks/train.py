"""Training speed: our step against the peers' models in a plain loop.

    python -m tests.benchmarks.train [--peer transformers|litgpt] [--compile]
    python -m tests.benchmarks.train --device cuda --preset llama-1b --vocab-size 128256 --seq-len 2048 \
        --micro-batch 8 --compile

All train a Llama of one shape, from random weights on random tokens, in one precision, with AdamW (fused) and
clipping (trainers.py); by default one of d_model 256, 8 layers, 8 heads, d_ff 688 and a vocabulary of 8,192.
Each has a process of its own, and they take turns: a round of ours, a round of a peer, and so on. On a GPU,
which has no room for all at once and no neighbours, one comes after the other. With --compile each is
measured compiled as well, and what counts is the better one of its two settings.

MFU is of the fastest matmul that was measured between the rounds, in the same precision on as many threads;
on a GPU that is known, also of its data sheet. Memory is what a process has held at most, its imports
included, and on a GPU what torch has held there. Without --peer all that are installed are measured. The last
line is one JSON object.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import statistics
from dataclasses import replace
from typing import Any, get_args

import torch

from llm.models.config import ModelConfig
from llm.models.parameters import parameter_count
from llm.models.presets import model_config
from llm.planning.flops import training_flops_per_token
from llm.planning.memory import Step, training_memory
from llm.planning.peak import data_sheet_flops, measured_matmul_flops
from llm.training.precision import choose_precision
from llm.training.recipe import Activations
from tests.benchmarks.trainers import TRAINERS, Contender, Round, Task

PEERS = [name for name in TRAINERS if name != "ours"]
SHAPE = {
    "d_model": 256,
    "n_layers": 8,
    "n_heads": 8,
    "n_kv_heads": 8,
    "head_dim": 32,
    "d_ff": 688,
    "tie_embeddings": False,
}
COMPILED = ", compiled"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", choices=PEERS, help="by default all that are installed")
    parser.add_argument("--compile", action="store_true", help="measure all of them compiled as well")
    parser.add_argument("--preset", help="a shape of `manta models`, in place of the one above")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=16, help="sequences in a step")
    parser.add_argument("--micro-batch", type=int, help="sequences in a forward pass; by default all")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--activation-checkpointing", choices=get_args(Activations), default="none", help="of ours"
    )
    parser.add_argument("--float8", action="store_true", help="measure ours in float8")
    parser.add_argument("--steps", type=int, default=2, help="steps in a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    task = Task(
        config=shape(options),
        batch=options.batch,
        micro_batch=options.micro_batch or options.batch,
        seq_len=options.seq_len,
        precision=choose_precision(options.precision, torch.device(options.device)),
        compile=False,
        threads=options.threads,
        device=options.device,
        activation_checkpointing=options.activation_checkpointing,
        float8=options.float8,
    )
    peers = [options.peer] if options.peer else [name for name in PEERS if importlib.util.find_spec(name)]
    tasks = {name: (name, task) for name in ("ours", *peers)}
    if options.compile:
        tasks |= {f"{name}{COMPILED}": (name, replace(task, compile=True)) for name in ("ours", *peers)}
    together = [tasks] if options.device == "cpu" else [{name: each} for name, each in tasks.items()]
    rounds: dict[str, list[Round]] = {}
    peak = 0.0
    for each in together:
        contenders = {label: Contender(*of) for label, of in each.items()}
        of_each, fastest = take_turns(contenders, task, options)
        rounds |= of_each
        peak = max(peak, fastest)
    print(json.dumps({"benchmark": "train", **summary(task, peers, rounds, peak), "rounds": options.rounds}))


def shape(options: argparse.Namespace) -> ModelConfig:
    if options.preset:
        return model_config(options.preset, options.vocab_size)
    return ModelConfig(vocab_size=options.vocab_size, max_seq_len=options.seq_len, **SHAPE)


def take_turns(
    contenders: dict[str, Contender], task: Task, options: argparse.Namespace
) -> tuple[dict[str, list[Round]], float]:
    """The rounds of each, without the first one, in which it warms up; and the peak matmul FLOP/s."""
    rounds: dict[str, list[Round]] = {name: [] for name in contenders}
    dtype = torch.bfloat16 if task.precision == "bf16" else torch.float32
    peak = 0.0
    for number in range(options.rounds + 1):
        for name, contender in contenders.items():
            size = 1024 if task.device == "cpu" else 8192
            peak = max(peak, measured_matmul_flops(torch.device(task.device), dtype, size, seconds=0.3))
            each = contender.take(options.steps)
            print(f"round {number}, {name}: {each}", flush=True)
            if number:
                rounds[name].append(each)
    for contender in contenders.values():
        contender.end()
    return rounds, peak


def summary(task: Task, peers: list[str], rounds: dict[str, list[Round]], peak: float) -> dict[str, Any]:
    """Each in its better setting, and what they are to each other."""
    speed = {name: statistics.median(each.tokens_per_second for each in of) for name, of in rounds.items()}
    flops = training_flops_per_token(task.config, task.seq_len)
    data_sheet = data_sheet_flops(torch.device(task.device)) if task.precision == "bf16" else None

    def best(names: list[str]) -> str:
        return max((name for name in speed if name.removesuffix(COMPILED) in names), key=lambda n: speed[n])

    def figures(name: str) -> dict[str, Any]:
        each = [one.tokens_per_second for one in rounds[name]]
        return {
            "tokens_per_second": round(speed[name]),
            "spread": [round(min(each)), round(max(each))],
            "mfu": round(speed[name] * flops / peak, 3),
            "mfu_of_data_sheet": round(speed[name] * flops / data_sheet, 3) if data_sheet else None,
            "peak_megabytes": round(max(one.peak_bytes for one in rounds[name]) / 1e6),
        }

    ours = best(["ours"])
    peer = best(peers) if peers else None
    step = Step(
        micro_batch=task.micro_batch,
        seq_len=task.seq_len,
        micro_batches=task.batch // task.micro_batch,
        precision=task.precision,
        checkpointing=task.activation_checkpointing == "full",
        on_gpu=task.device == "cuda",
    )
    return {
        "ours": round(speed[ours]),
        "peer": round(speed[peer]) if peer else None,
        "ratio": round(speed[ours] / speed[peer], 3) if peer else None,
        "unit": "tokens/s",
        "our_setting": ours,
        "peer_name": peer,
        "mfu": figures(ours)["mfu"],
        "all": {name: figures(name) for name in rounds},
        "estimated_megabytes": round(training_memory(task.config, step).peak / 1e6),
        "matmul_peak_gflops": round(peak / 1e9),
        "precision": task.precision,
        "parameters": parameter_count(task.config),
        "batch": [task.batch, task.seq_len],
        "threads": task.threads,
        "device": torch.cuda.get_device_name() if task.device == "cuda" else "cpu",
        "versions": {name: importlib.metadata.version(name) for name in ("torch", *peers)},
    }


if __name__ == "__main__":
    main()
