"""Takes one piece's documents of the sample to train on, and of those that the report measures."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.artifacts.folder import Folder
from cluster.artifacts.manifest import Artifact
from pipelines.corpus_texts import text_column, texts
from pipelines.tokenizer.choice import Choice

SAMPLE_FOLDER = "sample"
SAMPLE = pa.schema([("text", pa.string()), ("source", pa.string()), ("language", pa.string())])
"""The language is null where the corpus has none."""

_BATCH_DOCUMENTS = 1024


class SampleWorker:
    """Runs in an actor. A unit's record has, for each choice, the documents and bytes by the name that they
    were chosen for; they are in CHOICE/UNIT.parquet, if there are any.
    """

    def __init__(self, corpus: Artifact, target: Folder, choices: Mapping[str, Choice]) -> None:
        self._corpus, self._target, self._choices = corpus, target, choices

    def run(self, unit_id: str, payload: dict[str, Any]) -> dict[str, Any]:
        with (
            self._corpus.open(payload["file"]) as source,
            self._target.writing() as writing,
            ExitStack() as stack,
        ):
            file = pq.ParquetFile(source)
            chosen = {
                name: stack.enter_context(_Chosen(writing.path / name / f"{unit_id}.parquet"))
                for name in self._choices
            }
            for group in range(payload["first"], payload["last"]):
                self._take(file, group, chosen)
            stack.close()
        taken = {name: each.counts() for name, each in chosen.items()}
        return {"taken": taken, "files": writing.files_below(SAMPLE_FOLDER)}

    def _take(self, file: pq.ParquetFile, group: int, chosen: dict[str, "_Chosen"]) -> None:
        """Documents of a row group. Its text is read only if some are taken: a small sample of a large corpus
        lies in few row groups.
        """
        keys = file.read_row_group(group, columns=["id", "split", "source"])
        rows = list(zip(*(keys[name].to_pylist() for name in ("id", "split", "source")), strict=True))
        names = {name: [choice.source_of(*row) for row in rows] for name, choice in self._choices.items()}
        if all(name is None for each in names.values() for name in each):
            return
        for of_rows, documents in _documents(file, group):
            for choice, each in names.items():
                chosen[choice].add(documents, [each[row] for row in of_rows])


class _Chosen:
    """A file in the making; after the block there is one if there were documents."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._documents: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()

    def __enter__(self) -> "_Chosen":
        self._path.parent.mkdir()
        self._writer = pq.ParquetWriter(self._path, SAMPLE, compression="zstd")
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()
        if not self._documents:
            self._path.unlink()

    def add(self, documents: pa.Table, names: list[str | None]) -> None:
        """Those of the documents that have a name."""
        chosen = [name for name in names if name is not None]
        if not chosen:
            return
        taken = documents.filter(pa.array([name is not None for name in names]))
        self._writer.write_table(taken)
        for name, size in zip(chosen, pc.binary_length(taken["text"]).to_pylist(), strict=True):
            self._documents[name] += 1
            self._bytes[name] += size

    def counts(self) -> dict[str, list[int]]:
        """Documents and bytes by name."""
        return {name: [self._documents[name], self._bytes[name]] for name in sorted(self._documents)}


def _documents(file: pq.ParquetFile, group: int) -> Iterator[tuple[list[int], pa.Table]]:
    """Texts of a row group, some at a time, as SAMPLE; each time with the rows that they are of."""
    has_language = "language" in file.schema_arrow.names
    columns = [text_column(file.schema_arrow), "source", *(["language"] if has_language else [])]
    first = 0
    for batch in file.iter_batches(_BATCH_DOCUMENTS, row_groups=[group], columns=columns):
        language = batch["language"] if has_language else pa.nulls(len(batch), pa.string())
        said, rows = texts(batch)
        table = pa.table([said, batch["source"].take(rows), language.take(rows)], schema=SAMPLE)
        yield pc.add(rows, first).to_pylist(), table
        first += len(batch)
