"""Takes one piece's share of the sample: documents of the training split, chosen by a hash of their id."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.artifacts.folder import Folder
from cluster.artifacts.manifest import Artifact
from llm.text.identity import is_heldout

SAMPLE_FOLDER = "sample"
SAMPLE = pa.schema([("text", pa.string())])


class SampleWorker:
    """Runs in an actor; a unit's record counts the documents and bytes it chose."""

    def __init__(self, corpus: Artifact, target: Folder, seed: int, fraction: float) -> None:
        self._corpus, self._target = corpus, target
        self._seed, self._fraction = seed, fraction

    def run(self, unit_id: str, payload: dict[str, Any]) -> dict[str, Any]:
        documents = size = 0
        groups = list(range(payload["first"], payload["last"]))
        with (
            self._corpus.open(payload["file"]) as source,
            self._target.writing() as writing,
            pq.ParquetWriter(writing.path / f"{unit_id}.parquet", SAMPLE, compression="zstd") as writer,
        ):
            columns = ["id", "text", "split"]
            for batch in pq.ParquetFile(source).iter_batches(1024, row_groups=groups, columns=columns):
                texts = [row["text"] for row in batch.to_pylist() if self._takes(row)]
                writer.write_table(pa.table({"text": texts}, schema=SAMPLE))
                documents += len(texts)
                size += sum(len(text.encode()) for text in texts)
        return {"documents": documents, "bytes": size, "files": writing.files_below(SAMPLE_FOLDER)}

    def _takes(self, row: dict[str, str]) -> bool:
        # The same hash that holds documents out, under a key of its own.
        return row["split"] == "train" and is_heldout(f"sample/{row['id']}", self._seed, self._fraction)
