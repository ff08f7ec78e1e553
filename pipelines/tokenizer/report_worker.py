"""Measures the tokenizer on some of the documents that were taken for the report."""

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from cluster.artifacts.folder import Folder
from llm.tokenizer.report import COUNTED, measure
from llm.tokenizer.tokenizer import Tokenizer
from pipelines.tokenizer.choice import nearest, top

UNKNOWN = "unknown"
"""The language of documents without one."""

_BATCH_DOCUMENTS = 256


class ReportWorker:
    """Runs in an actor, on one thread. A unit's record has the counts of `measure` by source and by language,
    and the ids that were used.

    names: sources that count as one each; any other document counts for the highest folder of its source.
    """

    def __init__(self, folder: Folder, tokenizer: Tokenizer, names: Collection[str]) -> None:
        self._folder, self._tokenizer, self._names = folder, tokenizer, names

    def run(self, unit_id: str, payload: dict[str, Any]) -> dict[str, Any]:
        sources: dict[str, np.ndarray] = {}
        languages: dict[str, np.ndarray] = {}
        used = np.zeros(self._tokenizer.vocab_size, dtype=bool)
        for name in payload["files"]:
            with self._folder.open(name) as file:
                for batch in pq.ParquetFile(file).iter_batches(_BATCH_DOCUMENTS):
                    counts, uses = measure(self._tokenizer, batch["text"].to_pylist())
                    add(sources, map(self._name, batch["source"].to_pylist()), counts)
                    add(languages, (each or UNKNOWN for each in batch["language"].to_pylist()), counts)
                    used |= uses > 0
        return {
            "sources": {name: counts.tolist() for name, counts in sorted(sources.items())},
            "languages": {name: counts.tolist() for name, counts in sorted(languages.items())},
            "used": np.flatnonzero(used).tolist(),
            "files": {},
        }

    def _name(self, source: str) -> str:
        name = nearest(source, self._names)
        return top(source) if name is None else name


def add(sums: dict[str, np.ndarray], names: Iterable[str], counts: np.ndarray) -> None:
    """Add rows of counts, (documents, len(COUNTED)), to the sums of their names."""
    for name, row in zip(names, counts, strict=True):
        sums[name] = sums.get(name, np.zeros(len(COUNTED), dtype=np.int64)) + row
