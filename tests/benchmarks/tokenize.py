"""Encoding speed: our tokens path against bare SentencePiece, on the standard library's source.

    python -m tests.benchmarks.tokenize [--rounds 7]

Ours is what the tokens stage does with a unit: encode to arrays, cast, append <eos>, write and checksum the
shards. The peer is SentencePiece's own `encode` of the same texts with the same model, to arrays, on one
thread, and nothing else. They take turns; the last line is one JSON object.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import sentencepiece

from llm.data.shards import ShardWriter
from llm.text.normalise import normalise
from llm.text.python_stdlib import stdlib_files
from llm.tokenizer.load import Tokenizer
from llm.tokenizer.train import train_tokenizer

VOCAB_SIZE = 2048
BATCH = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds

    texts = [normalise(path.read_text(encoding="utf-8")) for path in stdlib_files()[1]]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    began = time.perf_counter()
    tokenizer = Tokenizer(train_tokenizer(texts, vocab_size=VOCAB_SIZE))
    training_seconds = time.perf_counter() - began
    peer = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    assert all(tokenizer.encode(text) == peer.encode(text) for text in texts[:50])

    with tempfile.TemporaryDirectory() as folder:
        contenders = {
            "ours": lambda: write_shards(tokenizer, texts, Path(folder)),
            "peer": lambda: bare_sentencepiece(peer, texts),
        }
        speeds = take_turns(contenders, megabytes, rounds)
    tokens = sum(map(len, peer.encode(texts)))
    print(f"{len(texts)} files, {megabytes:.1f} MB, {1e6 * megabytes / tokens:.3f} bytes per token")
    for name, values in speeds.items():
        print(f"{name}: median {statistics.median(values):.2f} MB/s, {min(values):.2f} to {max(values):.2f}")
    ours, theirs = (statistics.median(speeds[name]) for name in ("ours", "peer"))
    result = {
        "benchmark": "tokenize",
        "ours": round(ours, 3),
        "peer": round(theirs, 3),
        "ratio": round(ours / theirs, 3),
        "unit": "MB/s of text on one thread",
        "ours_spread": [round(min(speeds["ours"]), 3), round(max(speeds["ours"]), 3)],
        "peer_spread": [round(min(speeds["peer"]), 3), round(max(speeds["peer"]), 3)],
        "peer_name": f"sentencepiece {sentencepiece.__version__}",
        "bytes_per_token": round(1e6 * megabytes / tokens, 4),
        "training_seconds": round(training_seconds, 2),
    }
    print(json.dumps(result))


def write_shards(tokenizer: Tokenizer, texts: list[str], root: Path) -> None:
    """As pipelines/tokens/encode_worker.py does with the documents of a unit."""
    with ShardWriter(root, "train", "00000", tokenizer.vocab_size, tokenizer.eos_id) as writer:
        for start in range(0, len(texts), BATCH):
            batch = texts[start : start + BATCH]
            for text, ids in zip(batch, tokenizer.encode_arrays(batch), strict=True):
                writer.add(ids, text_bytes=len(text.encode()))


def bare_sentencepiece(peer: sentencepiece.SentencePieceProcessor, texts: list[str]) -> None:
    for start in range(0, len(texts), BATCH):
        peer.encode(texts[start : start + BATCH], out_type="numpy", num_threads=1)


def take_turns(
    contenders: dict[str, Callable[[], None]], megabytes: float, rounds: int
) -> dict[str, list[float]]:
    """MB/s of each in each round, after one round to warm up."""
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            began = time.perf_counter()
            run()
            if number:
                speeds[name].append(megabytes / (time.perf_counter() - began))
    return speeds


if __name__ == "__main__":
    main()
