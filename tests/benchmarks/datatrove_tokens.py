"""datatrove's DocumentTokenizer over Parquet, one worker on one thread: the peer of tokens_stage.

    python -m tests.benchmarks.datatrove_tokens SOURCE TARGET TOKENIZER LOGS

SOURCE, TARGET: folders, here or `s3://`; the environment says where S3 is. TOKENIZER: a tokenizer.json. The
last line is one JSON object.

It is spared what ours does not do either, or not in the time that is measured: documents are not shuffled,
their metadata are not read, and the tokenizer is loaded before the clock starts.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from cluster.artifacts.manifest import Artifact
from cluster.artifacts.storage import open_storage
from llm.data.shards import TokenShards, document_ends
from llm.models.hugging_face.tokenizer import export_tokenizer
from llm.tokenizer.special import EOS, EOS_ID
from pipelines.corpus_pieces import part_files
from pipelines.tokens.encode_worker import SPLITS

TOKENS_FILE = "00000_unshuffled.ds"
INDEX_FILE = f"{TOKENS_FILE}.index"
BATCH_DOCUMENTS = 1000  # of its 10,000, when they are long, the ids alone take gigabytes


def tokenizer_json(model_file: Path, scratch: Path) -> Path:
    """Our export to Hugging Face, which gives the same ids."""
    export_tokenizer(model_file.read_bytes(), scratch, {"eos_token_id": EOS_ID}, max_length=10**9)
    return scratch / "tokenizer.json"


def encode(source: str, target: str, tokenizer_file: Path, logs: Path) -> tuple[float, float]:
    """In a process of its own; the seconds that it took by the clock, and of CPU time."""
    arguments = [source, target, str(tokenizer_file), str(logs)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.datatrove_tokens", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
    )
    if done.returncode:
        sys.exit(f"error: datatrove ended with {done.returncode}:\n{done.stderr[-3000:]}")
    seconds, cpu_seconds = json.loads(done.stdout.splitlines()[-1]).values()
    return seconds, cpu_seconds


def differing_documents(target: str, tokens: Artifact, corpus: Artifact) -> int:
    """Documents to which the peer, which wrote into `target`, gave other ids than ours."""
    folder, written = tokens.fetch(), open_storage(target)
    ids = np.frombuffer(written.read(TOKENS_FILE), dtype=TokenShards.open(folder, SPLITS[0]).dtype)
    ends = np.frombuffer(written.read(INDEX_FILE), dtype=np.uint64).astype(np.int64)
    rows = np.split(ids, ends[:-1])
    row_splits = np.concatenate([splits_of(corpus, file) for file in part_files(corpus)])
    differing = 0
    for split in SPLITS:
        theirs = (row for row, row_split in zip(rows, row_splits, strict=True) if row_split == split)
        ours = documents_of(folder, TokenShards.open(folder, split))
        differing += sum(not np.array_equal(*pair) for pair in zip(ours, theirs, strict=True))
    return differing


def splits_of(corpus: Artifact, file: str) -> np.ndarray:
    with corpus.open(file) as source:
        return pq.read_table(source, columns=["split"])["split"].to_numpy()


def documents_of(folder: Path, shards: TokenShards) -> Iterator[np.ndarray]:
    """Ids of each document."""
    for shard, tokens in enumerate(shards.shard_tokens.tolist()):
        ends = document_ends(folder, shards.names[shard]).astype(np.int64)
        yield from np.split(shards.read(shard, 0, tokens), ends[:-1])


def main(source: str, target: str, tokenizer_file: str, logs: str) -> None:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    reader = ParquetReader(source, glob_pattern="part-*.parquet", read_metadata=False)
    tokenizer = DocumentTokenizer(
        target, tokenizer_file, eos_token=EOS, shuffle_documents=False, batch_size=BATCH_DOCUMENTS
    )
    assert tokenizer.tokenizer.token_to_id(EOS) == EOS_ID  # which also loads it
    executor = LocalPipelineExecutor([reader, tokenizer], tasks=1, workers=1, logging_dir=logs)
    began, cpu = time.perf_counter(), time.process_time()
    executor.run()
    print(json.dumps({"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}))


if __name__ == "__main__":
    main(*sys.argv[1:])
