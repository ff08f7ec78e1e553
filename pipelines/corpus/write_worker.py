"""Third step: write the unit's part of the corpus, without the duplicates."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from cluster.artifacts.folder import Folder
from pipelines.corpus.tables import REMOVED, Row, RowWriter, iter_rows, schema, text_bytes
from pipelines.corpus.work_files import WORK, documents_file, duplicates_file, removed_file


class WriteWorker:
    """Runs in an actor; a record has the files of the unit, and the documents and bytes of each split."""

    def __init__(
        self,
        target: Folder,
        work: Folder,
        ranges: int,
        units_read: str,
        conversations: bool,
        row_group_bytes: int,
    ) -> None:
        self._target, self._work = target, work
        self._ranges, self._units_read = ranges, units_read
        self._schema, self._row_group_bytes = schema(conversations), row_group_bytes

    def run(self, unit_id: str, payload: dict[str, Any]) -> dict[str, Any]:
        unit: str = payload["unit"]
        counts: Counter[str] = Counter()
        duplicates = self._duplicates(int(unit))
        with (
            self._target.writing() as part,
            self._work.writing() as work,
            RowWriter(part.path / f"part-{unit}.parquet", self._schema, self._row_group_bytes) as kept,
            RowWriter(work.path / removed_file(unit, "write"), REMOVED, self._row_group_bytes) as removed,
        ):
            for number, row in enumerate(self._documents(unit, payload["documents"])):
                if number in duplicates:
                    gone = {"id": row["id"], "source": row["source"], "reason": "duplicate"}
                    removed.add({**gone, "score": 1.0, "kept_id": row["id"]}, size=0)
                    continue
                size = text_bytes(row)
                kept.add(row, size)
                counts.update({f"{row['split']}_documents": 1, f"{row['split']}_bytes": size})
        return {"files": part.files | work.files_below(WORK), "counts": dict(counts)}

    def _documents(self, unit: str, count: int) -> Iterator[Row]:
        """The `count` rows of the unit; if all were removed there is no file."""
        if count:
            with self._work.open(documents_file(unit)) as source:
                yield from iter_rows(source)

    def _duplicates(self, unit: int) -> set[int]:
        """Rows of the unit to leave out."""
        rows: set[int] = set()
        for hash_range in range(self._ranges):
            with self._work.open(duplicates_file(hash_range, self._units_read)) as source:
                batch = pa.ipc.open_file(source).get_batch(0)
                rows.update(batch["row"].to_numpy()[batch["unit"].to_numpy() == unit].tolist())
        return rows
