"""The token loader: opening 15 trillion tokens, seeking among them, and reading batches.

    python -m tests.benchmarks.loader [--rounds 7]

  open   a dataset of 15 trillion tokens, described by its shards.json and without its shards: seconds, and
         what the process grew by at most
  seek   from the number of a sample to the place of its tokens, anywhere in that dataset
  read   batches in training order out of the page cache, in GB/s of tokens as they lie on disk. The peer is
         the loop of many small trainers, torch.stack over slices of a memory map at random places; it knows
         no epochs, and cannot resume.

The last line is one JSON object.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from llm.data.loader import TokenLoader
from llm.data.order import Order
from llm.data.shards import SHARD_BYTES, SHARDS_FILE, Shard, ShardWriter, TokenShards, shards_json

TOKENS = 15 * 10**12
VOCAB_SIZE, EOS_ID, SEQ_LEN, BATCH = 50_000, 3, 2048, 64
READ_BYTES = 2 * SHARD_BYTES
SEEKS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.open is not None:
        print(json.dumps(opened_and_sought(chosen.open)))
        return
    with tempfile.TemporaryDirectory() as folder:
        describe_large_dataset(Path(folder))
        command = [sys.executable, "-m", "tests.benchmarks.loader", "--open", folder]
        large = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(f"opened {TOKENS / 1e12:.0f} trillion tokens: {large}")
    with tempfile.TemporaryDirectory() as folder:
        speeds = read_in_turns(Path(folder), chosen.rounds)
    for name, values in speeds.items():
        print(f"{name}: median {statistics.median(values):.2f} GB/s, {min(values):.2f} to {max(values):.2f}")
    ours, peer = (statistics.median(speeds[name]) for name in ("ours", "peer"))
    result = {
        "benchmark": "loader",
        "ours": round(ours, 3),
        "peer": round(peer, 3),
        "ratio": round(ours / peer, 3),
        "unit": f"GB/s of tokens in batches of {BATCH} x {SEQ_LEN}",
        "peer_name": "torch.stack over slices of a numpy memory map",
        "ours_spread": [round(min(speeds["ours"]), 3), round(max(speeds["ours"]), 3)],
        "peer_spread": [round(min(speeds["peer"]), 3), round(max(speeds["peer"]), 3)],
        **large,
    }
    print(json.dumps(result))


def describe_large_dataset(root: Path) -> None:
    """A shards.json of TOKENS tokens in shards of 512 MiB, none of the same size."""
    tokens = SHARD_BYTES // 2
    shards = [
        Shard(f"train/part-{number:05d}-0.tok", tokens - number % 1000, 250_000, 4 * tokens, f"{number:064x}")
        for number in range(-(-TOKENS // tokens))
    ]
    (root / SHARDS_FILE).write_bytes(shards_json(VOCAB_SIZE, "0" * 64, EOS_ID, {"train": shards}))


def opened_and_sought(root: Path) -> dict[str, float]:
    """In a process of its own, whose memory shows what opening takes."""
    before = megabytes("VmRSS")
    began = time.perf_counter()
    shards = TokenShards.open(root, "train")
    order = Order(shards.shard_tokens, SEQ_LEN, seed=0)
    seconds = time.perf_counter() - began
    grown = megabytes("VmHWM") - before
    samples = np.random.default_rng(0).integers(0, 3 * order.samples_per_epoch, SEEKS)
    microseconds = []
    for sample in samples.tolist():
        began = time.perf_counter()
        order.locate(sample)
        microseconds.append(1e6 * (time.perf_counter() - began))
    return {
        "open_shards": len(shards),
        "open_tokens": shards.tokens,
        "open_seconds": round(seconds, 3),
        "open_megabytes": round(grown, 1),
        "seek_median_us": round(statistics.median(microseconds), 1),
        "seek_p99_us": round(sorted(microseconds)[int(0.99 * SEEKS)], 1),
        "seek_most_us": round(max(microseconds), 1),
    }


def megabytes(kind: str) -> float:
    """Memory of this process: VmRSS what it has, VmHWM the most that it has had."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{kind}:")[1].split()[0]) / 1000


def read_in_turns(root: Path, rounds: int) -> dict[str, list[float]]:
    """GB/s of each in each round, after one to fill the page cache."""
    shards = write_shards(root)
    loader = TokenLoader(shards, Order(shards.shard_tokens, SEQ_LEN, seed=0))
    maps = [np.memmap(root / file, dtype=shards.dtype, mode="r") for file in shards.names]
    batches = loader.order.samples_per_epoch // BATCH
    choice = np.random.default_rng(1)

    def ours(number: int) -> torch.Tensor:
        return torch.from_numpy(loader.batch(number * BATCH, BATCH))

    def peer(number: int) -> torch.Tensor:
        data = maps[number % len(maps)]
        places = choice.integers(0, len(data) - SEQ_LEN, BATCH)
        return torch.stack([torch.from_numpy(data[i : i + SEQ_LEN].astype(np.int64)) for i in places])

    speeds: dict[str, list[float]] = {"ours": [], "peer": []}
    for number in range(rounds + 1):
        for name, read in (("ours", ours), ("peer", peer)):
            began = time.perf_counter()
            for batch in range(batches):
                read(batch)
            if number:
                size = batches * BATCH * SEQ_LEN * shards.dtype.itemsize
                speeds[name].append(size / 1e9 / (time.perf_counter() - began))
    return speeds


def write_shards(root: Path) -> TokenShards:
    choice = np.random.default_rng(2)
    with ShardWriter(root, "train", "00000", VOCAB_SIZE, EOS_ID) as writer:
        for _ in range(READ_BYTES // 2 // 2**20):
            writer.add(choice.integers(4, VOCAB_SIZE, 2**20 - 1, dtype=np.uint16), text_bytes=2**22)
    (root / SHARDS_FILE).write_bytes(shards_json(VOCAB_SIZE, "0" * 64, EOS_ID, {"train": writer.shards}))
    return TokenShards.open(root, "train")


if __name__ == "__main__":
    main()
