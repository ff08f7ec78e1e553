"""What `manta pretrain` costs beside the bare training step, and what a second process brings.

    python -m tests.benchmarks.train_stage [--steps 8] [--rounds 3] [--threads 1]
    python -m tests.benchmarks.train_stage --device cuda --preset llama-350m --steps 60 --compile

A decoder, by default of d_model 256 and 8 layers, is trained in turns:

  bare        our step in a loop, in one process with all threads, on random tokens in memory
  stage       `manta pretrain` with one worker and as many threads: Ray Train, loader, metrics, watcher. Its
              clock runs from one written line of metrics.jsonl to the last one, so that all is in it that
              happens between steps.
  apart       as many bare loops as there are threads, each in a process of one thread with its share of the
              batch, at once, which do not know of each other: what perfect processes would do here
  sharded     the same processes with one model between them: FSDP over gloo
  together    `manta pretrain` with as many workers of one thread: the same, through Ray Train

On a GPU, and with one thread, there are the first two alone. With fewer threads than cores, Ray's own
processes have a core to themselves, as on the nodes of a cluster: `stage` then shows what is added to a step,
and not also what they take from its cores.

`outside` is the share of the stage's clock in which it was in no forward or backward pass and not in the
optimizer: waiting for data, metrics, and also clipping, which the bare loop does as well. Unlike the rates,
it does not hang on how fast the machine happens to be in this minute or that.

The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.artifacts.draft import Draft
from cluster.artifacts.store import ArtifactStore
from llm.data.shards import SHARDS_FILE, ShardWriter, shards_json
from llm.models.presets import model_config
from llm.tokenizer.sentence_piece import MODEL_FILE, SentencePieceTokenizer
from llm.tokenizer.train import train_tokenizer
from llm.training.metrics_log import read_records
from llm.training.precision import choose_precision
from tests.benchmarks.trainers import Contender, Task

NAME, VOCAB_SIZE, SEQ_LEN = "benchmark", 512, 512
PRESET = "quickstart-1m"
SHAPE = {"d_model": 256, "n_layers": 8, "n_heads": 8, "n_kv_heads": 8, "d_ff": 688}
LOG_EVERY = 2
_POLL_SECONDS = 0.05  # More often would cost the runs some per cent of two CPUs.
_LIMIT_SECONDS = 600


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--preset", help="a shape of `manta models`, in place of the one above")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--batch", type=int, default=16, help="sequences in a step")
    parser.add_argument("--steps", type=int, default=8, help="steps in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    threads = options.threads
    fields = {} if options.preset else SHAPE
    config = model_config(options.preset or PRESET, VOCAB_SIZE, max_seq_len=SEQ_LEN, **fields)
    precision = choose_precision("auto", torch.device(options.device))
    whole = Task(
        config, options.batch, options.batch, SEQ_LEN, precision, options.compile, threads, options.device
    )
    share = replace(whole, batch=options.batch // threads, micro_batch=options.batch // threads, threads=1)
    bare = Contender("ours", whole)
    rates: dict[str, list[float]] = defaultdict(list)
    outsides: list[float] = []
    with tempfile.TemporaryDirectory(prefix="manta-") as folder:
        apart, sharded = [], []
        if options.device == "cpu" and threads > 1:
            one_model = replace(share, ranks=threads, store=str(Path(folder) / "store"))
            apart = [Contender("ours", share) for _ in range(threads)]
            sharded = [Contender("ours", replace(one_model, rank=rank)) for rank in range(threads)]
        os.environ["RAY_TMPDIR"] = folder  # where a command looks for a Ray that runs already
        make_tokens(ArtifactStore(folder), options.batch * SEQ_LEN * (options.steps + LOG_EVERY))
        for group in ([bare], apart, sharded):
            take_at_once(group, 1)
        for number in range(options.rounds):
            one = f"one-{number}", options.batch, 1, threads
            several = f"several-{number}", options.batch // threads, threads, 1
            rates["bare"].append(bare.take(options.steps).tokens_per_second)
            rate, outside = stage_rate(Path(folder), options, *one)
            rates["stage"].append(rate)
            outsides.append(outside)
            if apart:
                rates["apart"].append(take_at_once(apart, options.steps))
                rates["sharded"].append(take_at_once(sharded, options.steps))
                rates["together"].append(stage_rate(Path(folder), options, *several)[0])
            print(
                f"round {number + 1}: " + ", ".join(f"{n} {r[-1]:,.0f}" for n, r in rates.items()),
                f"outside {outside:.2%}",
                flush=True,
            )
        for contender in (bare, *apart, *sharded):
            contender.end()
    how = {"precision": precision, "threads": threads, "rounds": options.rounds, "device": options.device}
    print(json.dumps(summary(rates) | {"outside": round(statistics.median(outsides), 4)} | how))


def take_at_once(contenders: list[Contender], steps: int) -> float:
    """Tokens a second of all together."""
    for each in contenders:
        each.begin(steps)
    return sum(each.finish().tokens_per_second for each in contenders)


def summary(rates: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, in tokens a second, and what matters of them."""
    median = {name: statistics.median(each) for name, each in rates.items()}
    shares = {"stage_of_bare": round(median["stage"] / median["bare"], 3)}
    if "apart" in median:
        shares["sharded_of_apart"] = round(median["sharded"] / median["apart"], 3)
        shares["together_of_apart"] = round(median["together"] / median["apart"], 3)
    return {
        "benchmark": "train_stage",
        "unit": "tokens/s",
        **{name: round(each) for name, each in median.items()},
        **shares,
        **{f"{name}_spread": [round(min(each)), round(max(each))] for name, each in rates.items()},
    }


def make_tokens(store: ArtifactStore, count: int) -> None:
    """A tokenizer and random tokens, as their stages leave them."""
    choice = np.random.default_rng(0)
    words = ["".join(chr(97 + letter) for letter in choice.integers(0, 26, 6)) for _ in range(3000)]
    model = train_tokenizer([" ".join(words)], vocab_size=VOCAB_SIZE)
    tokenizer = SentencePieceTokenizer(model)
    draft = begin(store, "tokenizers")
    draft.write(MODEL_FILE, model)
    made = draft.commit({"vocab_size": VOCAB_SIZE})
    draft = begin(store, "tokens", {"tokenizer": made})
    splits = {}
    for split, size in (("train", count), ("heldout", 64 * SEQ_LEN)):
        with (
            draft.writing() as writing,
            ShardWriter(writing.path, split, "00000", VOCAB_SIZE, tokenizer.eos_id) as writer,
        ):
            for _ in range(size // SEQ_LEN):
                writer.add(choice.integers(4, VOCAB_SIZE, SEQ_LEN), text_bytes=4 * SEQ_LEN)
        splits[split] = writer.shards
    draft.write(SHARDS_FILE, shards_json(VOCAB_SIZE, made.fingerprint, tokenizer.eos_id, splits))
    draft.commit({"tokens": sum(shard.tokens for shard in splits["train"])})


def begin(store: ArtifactStore, kind: str, inputs: Any = None) -> Draft:
    draft = store.begin(
        kind=kind, name=NAME, stage="benchmark", logic_version=1, what={}, inputs=inputs or {}
    )
    assert isinstance(draft, Draft)
    return draft


def stage_rate(
    root: Path, options: argparse.Namespace, name: str, micro_batch: int, workers: int, threads: int
) -> tuple[float, float]:
    """Tokens a second of `manta pretrain`, by when its lines of metrics appear, and the share `outside`."""
    numbers = {
        "seq-len": SEQ_LEN,
        "steps": options.steps + LOG_EVERY,
        "global-batch": options.batch,
        "micro-batch": micro_batch,
        "workers": workers,
        "threads-per-worker": threads,
        "log-every": LOG_EVERY,
        "evaluate-every": 0,
        "checkpoint-every": 10 * options.steps,
    }
    if not options.preset:
        numbers |= {f"model.{field.replace('_', '-')}": value for field, value in SHAPE.items()}
    command = [sys.executable, "-m", "pipelines.cli", "pretrain", "--root", str(root), "--name", name]
    command += ["--tokens", NAME, "--model.preset", options.preset or PRESET]
    command += ["--model.max-seq-len", str(SEQ_LEN), *(["--compile"] if options.compile else [])]
    command += ["--wandb", "disabled", *(part for k, v in numbers.items() for part in (f"--{k}", str(v)))]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    first, last = times_of_lines(root, name, LOG_EVERY, options.steps + LOG_EVERY, running)
    output, _ = running.communicate()
    if running.returncode:
        sys.exit(f"error: manta pretrain ended with {running.returncode}:\n{output}")
    [timing] = root.glob(f"models/{name}/*/timing.jsonl")
    parts = ("forward_seconds", "backward_seconds", "optimizer_seconds")
    later = (line for line in read_records(timing) if line["step"] > LOG_EVERY)
    inside = sum(line.get(part, 0.0) for line in later for part in parts)
    return options.batch * SEQ_LEN * options.steps / (last - first), 1 - inside / (last - first)


def times_of_lines(
    root: Path, name: str, first: int, last: int, running: "subprocess.Popen[str]"
) -> tuple[float, float]:
    """When the metrics of two steps, of the run `name`, were on disk."""
    found: dict[int, float] = {}
    deadline = time.monotonic() + _LIMIT_SECONDS
    while last not in found and running.poll() is None and time.monotonic() < deadline:
        for path in root.glob(f"models/{name}/*/metrics.jsonl"):
            lines = path.read_bytes().count(b"\n")
            found.setdefault(lines, time.perf_counter())
        time.sleep(_POLL_SECONDS)
    if first not in found or last not in found:
        running.terminate()
        sys.exit(f"error: manta pretrain wrote no metrics:\n{running.communicate()[0]}")
    return found[first], found[last]


if __name__ == "__main__":
    main()
