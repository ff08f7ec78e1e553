"""The training loops that benchmarks compare: ours, and what users would write with a peer.

Each runs in a process of its own, told what to do line by line: a line is a number of steps, the answer one
line of JSON. All train a Llama from random weights on random tokens, with AdamW (fused) and clipping.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llm.models.config import ModelConfig
from llm.models.load import build
from llm.models.parameters import parameter_count
from llm.training.activation_checkpointing import checkpoint_activations
from llm.training.cpu_memory import keep_freed_memory
from llm.training.float8 import use_float8
from llm.training.loop import language_model_loss
from llm.training.loss import next_token_targets
from llm.training.optimizer import adamw
from llm.training.parallel.fsdp import data_mesh, shard
from llm.training.precision import Precision
from llm.training.recipe import Activations
from llm.training.step import train_step

LEARNING_RATE, WEIGHT_DECAY, BETAS, CLIP_NORM = 1e-3, 0.1, (0.9, 0.95), 1.0
Step = Callable[[Tensor], float]
"""tokens (batch, seq) -> the loss of a step on them."""


@dataclass(frozen=True)
class Task:
    """What is trained, and how."""

    config: ModelConfig
    batch: int
    """Sequences in a step."""
    micro_batch: int
    """Sequences in a forward pass."""
    seq_len: int
    precision: Precision
    compile: bool
    threads: int
    device: str = "cpu"
    """Or "cuda"."""
    activation_checkpointing: Activations = "none"
    """Of ours,"""
    float8: bool = False
    """and whether its blocks multiply in float8."""
    rank: int = 0
    ranks: int = 1
    """Processes that shard the model of ours, of which this is one,"""
    store: str | None = None
    """and a file in which they find each other."""


@dataclass(frozen=True)
class Round:
    """Some steps of one trainer."""

    tokens_per_second: float
    loss: float
    """Of the last step."""
    peak_bytes: int
    """The most memory that the process, or on a GPU torch, has held by then."""


def ours(task: Task) -> Step:
    """A step as the pre-training worker takes it: FSDP2, at degree one where it is bf16; chunked loss."""
    device = torch.device(task.device)
    if device.type == "cuda":
        torch.cuda.set_device(0)
    else:
        keep_freed_memory()
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store = dist.FileStore(task.store, task.ranks) if task.store else dist.HashStore()
    dist.init_process_group(backend, store=store, rank=task.rank, world_size=task.ranks)
    model = build(task.config)
    if task.float8:
        use_float8(model, device)
    shard(model, data_mesh(device), task.precision)
    model.to_empty(device=device)
    model.init_weights(seed=0)
    optimizer = adamw(model, LEARNING_RATE, WEIGHT_DECAY, BETAS)
    for block in model.blocks:
        checkpoint_activations(block, task.activation_checkpointing)
        if task.compile:
            block.compile()
    loss = language_model_loss(model, compiled=task.compile)

    def step(tokens: Tensor) -> float:
        parts = [(part, next_token_targets(part)) for part in tokens.split(task.micro_batch)]
        return train_step(model, optimizer, parts, loss, LEARNING_RATE, CLIP_NORM).loss

    return step


def transformers(task: Task) -> Step:
    """The usual loop over transformers' `LlamaForCausalLM`, with its own loss."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = task.config
    shape = LlamaConfig(
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
    with torch.device(task.device):
        model = LlamaForCausalLM(shape)
    return _usual_loop(task, model, lambda forward, tokens: forward(input_ids=tokens, labels=tokens).loss)


def litgpt(task: Task) -> Step:
    """A loop over litgpt's `GPT` with its chunked loss, as its own pre-training script has it."""
    from litgpt import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    config = task.config
    shape = Config(
        block_size=config.max_seq_len,
        padded_vocab_size=config.padded_vocab_size,
        n_layer=config.n_layers,
        n_head=config.n_heads,
        n_query_groups=config.n_kv_heads,
        n_embd=config.d_model,
        intermediate_size=config.d_ff,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=config.norm_eps,
        mlp_class_name="LLaMAMLP",
    )
    with torch.device(task.device):
        model = GPT(shape)
    model.max_seq_length = task.seq_len
    if config.tie_embeddings:
        model.lm_head.weight = model.transformer.wte.weight

    def loss(forward: Callable[..., Any], tokens: Tensor) -> Tensor:
        return chunked_cross_entropy(forward(tokens)[:, :-1], tokens[:, 1:], chunk_size=0)

    return _usual_loop(task, model, loss)


def _usual_loop(task: Task, model: nn.Module, loss_of: Callable[[Any, Tensor], Tensor]) -> Step:
    assert sum(p.numel() for p in model.parameters()) == parameter_count(task.config)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, betas=BETAS, fused=True
    )
    forward = torch.compile(model) if task.compile else model

    def step(tokens: Tensor) -> float:
        parts, total = tokens.split(task.micro_batch), 0.0
        for part in parts:
            with torch.autocast(task.device, dtype=torch.bfloat16, enabled=task.precision == "bf16"):
                loss = loss_of(forward, part) / len(parts)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    return step


TRAINERS = {"ours": ours, "transformers": transformers, "litgpt": litgpt}


def serve(name: str, task: Task) -> None:
    """Take as many steps as each line of the input says."""
    torch.set_num_threads(task.threads)
    torch.manual_seed(0)
    step = TRAINERS[name](task)
    for line in sys.stdin:
        shape = (task.batch, task.seq_len)
        batches = [torch.randint(task.config.vocab_size, shape, device=task.device) for _ in range(int(line))]
        _wait_for(task.device)
        began = time.perf_counter()
        losses = [step(tokens) for tokens in batches]
        _wait_for(task.device)
        rate = sum(tokens.numel() for tokens in batches) / (time.perf_counter() - began)
        if task.device == "cuda":
            peak = torch.cuda.max_memory_allocated()
        else:
            peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps(asdict(Round(rate, losses[-1], peak))), flush=True)


def _wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


class Contender:
    """A trainer in its process."""

    def __init__(self, name: str, task: Task) -> None:
        what = json.dumps(asdict(task) | {"config": task.config.model_dump()})
        command = [sys.executable, "-m", "tests.benchmarks.trainers", name, what]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._name = name

    def take(self, steps: int) -> Round:
        """Take so many steps."""
        self.begin(steps)
        return self.finish()

    def begin(self, steps: int) -> None:
        """Take so many steps, until `finish`; others may go on meanwhile."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()

    def finish(self) -> Round:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            sys.exit(f"error: {self._name} ended with {self._process.wait()}")
        return Round(**json.loads(answer))

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=TRAINERS)
    parser.add_argument("task", type=json.loads)
    chosen = parser.parse_args()
    serve(chosen.name, Task(**chosen.task | {"config": ModelConfig(**chosen.task["config"])}))
