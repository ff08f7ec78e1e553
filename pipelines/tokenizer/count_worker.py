"""Counts one piece's documents and bytes of text by source: what the fractions of a weighted sample need."""

from collections import Counter
from collections.abc import Collection
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.artifacts.manifest import Artifact
from pipelines.corpus_texts import text_column, texts
from pipelines.tokenizer.choice import nearest, top

NAMES_TOLD = 20
"""At most this many sources are named to somebody who asks for one that is not there."""


class CountWorker:
    """Runs in an actor; a unit's record has the bytes of the training split that lie under each name."""

    def __init__(self, corpus: Artifact, names: Collection[str]) -> None:
        self._corpus, self._names = corpus, names

    def run(self, unit_id: str, payload: dict[str, Any]) -> dict[str, Any]:
        groups = list(range(payload["first"], payload["last"]))
        sizes: Counter[str] = Counter()
        with self._corpus.open(payload["file"]) as file:
            parquet = pq.ParquetFile(file)
            columns = ["source", "split", text_column(parquet.schema_arrow)]
            for batch in parquet.iter_batches(1024, row_groups=groups, columns=columns):
                batch = batch.filter(pc.equal(batch["split"], "train"))
                said, rows = texts(batch)
                table = pa.table({"source": batch["source"].take(rows), "bytes": pc.binary_length(said)})
                by_source = table.group_by("source").aggregate([("bytes", "sum")])
                sizes.update(
                    dict(
                        zip(by_source["source"].to_pylist(), by_source["bytes_sum"].to_pylist(), strict=True)
                    )
                )
        return {
            "bytes": bytes_by_name(sizes, self._names),
            "there": sorted({top(source) for source in sizes})[:NAMES_TOLD],
            "files": {},
        }


def bytes_by_name(sizes: Counter[str], names: Collection[str]) -> dict[str, int]:
    """Sums of the sources' sizes by the names that stand for them; sources without a name are left out."""
    sums: Counter[str] = Counter()
    for source, size in sizes.items():
        name = nearest(source, names)
        if name is not None:
            sums[name] += size
    return dict(sorted(sums.items()))
