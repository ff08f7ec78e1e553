"""Takes one piece's share of the sample: documents of the training split, chosen by a hash of their id."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llm.text.identity import is_heldout

SAMPLE = pa.schema([("text", pa.string())])


class SampleWorker:
    """Runs in an actor; a unit's record counts the documents and bytes it chose."""

    def __init__(self, corpus: Path, target: Path, seed: int, fraction: float) -> None:
        self._corpus, self._target = corpus, target
        self._seed, self._fraction = seed, fraction

    def run(self, unit_id: str, payload: dict[str, Any]) -> dict[str, Any]:
        self._target.mkdir(parents=True, exist_ok=True)
        path = self._target / f"{unit_id}.parquet"
        partial = path.with_suffix(".partial")
        documents = size = 0
        source = pq.ParquetFile(self._corpus / payload["file"])
        groups = list(range(payload["first"], payload["last"]))
        with pq.ParquetWriter(partial, SAMPLE, compression="zstd") as writer:
            for batch in source.iter_batches(1024, row_groups=groups, columns=["id", "text", "split"]):
                texts = [row["text"] for row in batch.to_pylist() if self._takes(row)]
                writer.write_table(pa.table({"text": texts}, schema=SAMPLE))
                documents += len(texts)
                size += sum(len(text.encode()) for text in texts)
        os.replace(partial, path)
        return {"documents": documents, "bytes": size}

    def _takes(self, row: dict[str, str]) -> bool:
        # The same hash that holds documents out, under a key of its own.
        return row["split"] == "train" and is_heldout(f"sample/{row['id']}", self._seed, self._fraction)
