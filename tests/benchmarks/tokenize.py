"""Encoding speed on one core, and equality with SentencePiece, over any text.

    python -m tests.benchmarks.tokenize [--input FILES…] [--model-type bpe|unigram] [--lossless]

A tokenizer is trained on a sample of the input. Then all of it is encoded, some megabytes at a time, by each
in turn: ours as the text comes, remembering words from the first on ("ours"), and the same text again ("ours,
warm"); SentencePiece; and gigatoken where it is installed and knows the model (`pip install gigatoken`). Each
has its input in the form that it likes best: ours and gigatoken a column in Arrow's memory, SentencePiece a
list of str. The ids of every document are compared with SentencePiece's. The last line is one JSON object.

Input: JSON lines with "text", Parquet with a column "text", or plain text (a document per file, long ones cut
at a newline); also .gz and .zst. Without it, the source of Python's standard library.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as proto

from llm.text.normalise import normalise
from llm.text.python_stdlib import stdlib_files
from llm.text.readers import ReadError, format_of, read_bytes, read_jsonl, read_parquet
from llm.tokenizer.documents import utf8
from llm.tokenizer.encoder.encoder import Encoder
from llm.tokenizer.sentence_piece import SentencePieceTokenizer
from llm.tokenizer.train import TokenizerTrainingError, train_tokenizer

LONGEST_DOCUMENT = 100_000  # characters, of plain text
BATCH_BYTES = 8_000_000
SAMPLE_BYTES = 20_000_000
INT32 = np.dtype(np.int32)

Encode = Callable[[], tuple[np.ndarray, np.ndarray]]
"""Ids of a batch, one document after the other, and where each ends."""


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--input", type=Path, nargs="+", default=[], help="files")
    options.add_argument("--model-type", choices=("bpe", "unigram"), default="bpe")
    options.add_argument("--lossless", action="store_true", help="the preset for code, in place of nmt_nfkc")
    options.add_argument("--vocab-size", type=int, default=32_000)
    options.add_argument("--model", type=Path, help="a tokenizer.model to measure, in place of a new one")
    chosen = options.parse_args()
    files = chosen.input or stdlib_files()[1]
    try:
        model = chosen.model.read_bytes() if chosen.model else trained(files, chosen)
        result = measure(files, SentencePieceTokenizer(model))
    except (OSError, ReadError, TokenizerTrainingError) as error:
        sys.exit(f"error: {error}")
    print(json.dumps({"benchmark": "tokenize", **result}))


def documents(files: list[Path]) -> Iterator[str]:
    """Texts of the files, in order."""
    for file in files:
        form = format_of(file)
        if form == "jsonl":
            yield from (located.record["text"] for located in read_jsonl(file))
        elif form == "parquet":
            yield from (located.record["text"] for located in read_parquet(file, ["text"]))
        else:
            yield from _cut(normalise(read_bytes(file).decode(errors="replace")))


def _cut(text: str) -> Iterator[str]:
    while text:
        end = len(text)
        if end > LONGEST_DOCUMENT:
            end = text.rfind("\n", 0, LONGEST_DOCUMENT) + 1 or LONGEST_DOCUMENT
        yield text[:end]
        text = text[end:]


def batches(files: list[Path]) -> Iterator[list[str]]:
    """Documents of about BATCH_BYTES."""
    batch: list[str] = []
    size = 0
    for text in documents(files):
        batch.append(text)
        size += len(text)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def trained(files: list[Path], chosen: argparse.Namespace) -> bytes:
    """A tokenizer of documents spread evenly over the files."""
    size = sum(file.stat().st_size for file in files)
    every = max(1, size // SAMPLE_BYTES)
    print(f"training on every {every}. document of {size / 1e6:.0f} MB …", flush=True)
    return train_tokenizer(
        (text for number, text in enumerate(documents(files)) if number % every == 0),
        vocab_size=chosen.vocab_size,
        model_type=chosen.model_type,
        normalization="lossless" if chosen.lossless else "nmt_nfkc",
    )


def measure(files: list[Path], tokenizer: SentencePieceTokenizer) -> dict[str, object]:
    """Encode all of the files by all contenders."""
    spec = proto.ModelProto.FromString(tokenizer.model)
    ours = Encoder(spec, not tokenizer.is_lossless, INT32)
    ours.forget()
    gigatoken = load_gigatoken(tokenizer.model)
    seconds: dict[str, list[float]] = defaultdict(list)
    differing: dict[str, int] = defaultdict(int)
    megabytes: list[float] = []
    count = tokens = 0
    for batch in batches(files):
        column = pa.array(batch, pa.large_string())
        contenders: dict[str, Encode] = {
            "ours": lambda column=column: ours.encode(*utf8(column)),
            "ours, warm": lambda column=column: ours.encode(*utf8(column)),
            "sentencepiece": lambda batch=batch: with_sentencepiece(tokenizer, batch),
        }
        if gigatoken is not None:
            contenders["gigatoken"] = gigatoken(column)
        made = {}
        for name, encode in contenders.items():
            began = time.process_time()
            made[name] = encode()
            seconds[name].append(time.process_time() - began)
        expected, ends = made["sentencepiece"]
        for name in contenders:
            differing[name] += _differing(*made[name], expected, ends)
        megabytes.append(utf8(column)[1][-1] / 1e6)
        count, tokens = count + len(batch), tokens + len(expected)
        rates = ", ".join(f"{name} {megabytes[-1] / seconds[name][-1]:.1f}" for name in contenders)
        print(f"{sum(megabytes):.0f} MB: {rates} MB/s; differing: {dict(differing)}", flush=True)
    rates = {name: sum(megabytes) / sum(values) for name, values in seconds.items()}
    peers = {name: rate for name, rate in rates.items() if not name.startswith("ours")}
    by_batch = {
        name: sorted(mb / s for mb, s in zip(megabytes, values, strict=True))
        for name, values in seconds.items()
    }
    return {
        "ours": round(rates["ours"], 2),
        "ours_warm": round(rates["ours, warm"], 2),
        "peer": round(rates["sentencepiece"], 2),
        "peer_name": f"sentencepiece {sentencepiece.__version__}",
        "ratio": round(rates["ours"] / rates["sentencepiece"], 2),
        "unit": "MB/s of text on one core, by CPU time",
        "peers": {name: round(rate, 2) for name, rate in peers.items()},
        "ratios": {name: round(rates["ours"] / rate, 2) for name, rate in peers.items()},
        "lowest_median_highest_by_batch": {
            name: [round(values[at], 2) for at in (0, len(values) // 2, -1)]
            for name, values in by_batch.items()
        },
        "differing_documents": max(differing["ours"], differing["ours, warm"]),
        "differing_documents_of_peers": {name: differing[name] for name in peers if name != "sentencepiece"},
        "documents": count,
        "megabytes": round(sum(megabytes), 1),
        "model_type": proto.TrainerSpec.ModelType.Name(spec.trainer_spec.model_type).lower(),
        "lossless": tokenizer.is_lossless,
        "vocab_size": tokenizer.vocab_size,
        "bytes_per_token": round(1e6 * sum(megabytes) / tokens, 4),
    }


def with_sentencepiece(tokenizer: SentencePieceTokenizer, batch: list[str]) -> tuple[np.ndarray, np.ndarray]:
    arrays = tokenizer.encode_arrays(batch, threads=1)
    return np.concatenate(arrays), np.cumsum([len(ids) for ids in arrays])


def load_gigatoken(model: bytes) -> Callable[[pa.Array], Encode] | None:
    """gigatoken with this model, on one thread; None where there is none, or it does not know the model."""
    try:
        import awkward
        from gigatoken import Tokenizer as Gigatoken

        peer = Gigatoken.from_sentencepiece(model)
    except (ImportError, ValueError) as error:
        print(f"without gigatoken: {error}")
        return None

    def prepared(column: pa.Array) -> Encode:
        texts = awkward.from_arrow(column)

        def encode() -> tuple[np.ndarray, np.ndarray]:
            rows = peer.encode_batch(texts, parallel=False)
            return awkward.to_numpy(awkward.flatten(rows)), np.cumsum(awkward.to_numpy(awkward.num(rows)))

        return encode

    return prepared


def _differing(ids: np.ndarray, ends: np.ndarray, expected: np.ndarray, expected_ends: np.ndarray) -> int:
    """Documents whose ids are not those expected."""
    if np.array_equal(ids, expected) and np.array_equal(ends, expected_ends):
        return 0
    pairs = zip(np.split(ids, ends), np.split(expected, expected_ends), strict=True)
    return sum(not np.array_equal(found, wanted) for found, wanted in pairs)


if __name__ == "__main__":
    main()
