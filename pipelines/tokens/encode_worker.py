"""Encodes one piece of the corpus into shards of its own, one set per split.

One thread encodes. A second one reads ahead of it, and writes what was encoded: both let the interpreter go
while they decompress, hash and copy. Two units are under way: while the shards of one travel to the bucket,
the next one is encoded.
"""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.artifacts.folder import Folder
from cluster.artifacts.manifest import Artifact
from llm.data.shards import ShardWriter, token_dtype
from llm.tokenizer.documents import document_encoder
from pipelines.tokenizer_artifact import load_tokenizer
from pipelines.tokens.reuse import PREFIX

SPLITS = ("train", "heldout")
AT_ONCE = 2
"""Units: one that is encoded, and one that is read or published."""
_BATCH_DOCUMENTS = 256


class EncodeWorker:
    """Runs in an actor, for several threads; a unit's record lists its shards by split."""

    def __init__(self, corpus: Artifact, tokenizer: Artifact, target: Folder, text_bytes: int) -> None:
        """text_bytes: how much text this actor is likely to get."""
        self._corpus, self._target = corpus, target
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there are as many actors as CPUs
        self._tokenizer = load_tokenizer(tokenizer)
        self._dtype = token_dtype(self._tokenizer.vocab_size)
        self._encoder = document_encoder(self._tokenizer, self._dtype, expected=text_bytes)
        self._turn = threading.Lock()
        """Whose documents are encoded: the encoder is for one thread at a time."""

    def run(self, unit_id: str, payload: dict[str, Any]) -> dict[str, Any]:
        unit = unit_id.removeprefix(PREFIX)
        tokenizer = self._tokenizer
        groups = list(range(payload["first"], payload["last"]))
        with self._target.writing() as writing:
            with ExitStack() as stack:
                source = pq.ParquetFile(stack.enter_context(self._corpus.open(payload["file"])))
                writers = {
                    split: stack.enter_context(
                        ShardWriter(writing.path, split, unit, tokenizer.vocab_size, tokenizer.eos_id)
                    )
                    for split in SPLITS
                }
                batches = source.iter_batches(_BATCH_DOCUMENTS, row_groups=groups, columns=["text", "split"])
                self._encode(batches, writers)
            shards = {split: [asdict(shard) for shard in writer.shards] for split, writer in writers.items()}
            for shard in (shard for of_split in shards.values() for shard in of_split):
                size = shard["tokens"] * self._dtype.itemsize
                writing.files[shard["file"]] = {"bytes": size, "sha256": shard["sha256"]}
        return {"files": writing.files, "shards": shards}

    def _encode(self, batches: Iterator[pa.RecordBatch], writers: dict[str, ShardWriter]) -> None:
        written: Future[None] | None = None
        with ThreadPoolExecutor(1) as other:
            ahead = other.submit(next, batches, None)
            with self._turn:
                while (batch := ahead.result()) is not None:
                    ahead = other.submit(next, batches, None)
                    ids, ends = self._encoder.encode(batch["text"])
                    if written is not None:
                        written.result()
                    written = other.submit(_write, batch, ids, ends, writers)
            if written is not None:
                written.result()


def _write(batch: pa.RecordBatch, ids: np.ndarray, ends: np.ndarray, writers: dict[str, ShardWriter]) -> None:
    """Give each writer the documents of its split."""
    starts = np.concatenate([[0], ends])[:-1]
    text_bytes = pc.binary_length(batch["text"]).to_numpy()
    for split, writer in writers.items():
        chosen = pc.equal(batch["split"], split).to_numpy(zero_copy_only=False)
        spans = zip(starts[chosen].tolist(), ends[chosen].tolist(), strict=True)
        documents = [ids[start:end] for start, end in spans]
        if documents:
            lengths = (ends - starts)[chosen]
            writer.add_documents(np.concatenate(documents), np.cumsum(lengths), text_bytes[chosen])
