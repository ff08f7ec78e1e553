"""The corpus's tables: their columns, and Parquet files whose row groups end by bytes of text."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])

TEXT = pa.schema(
    [("id", pa.string()), ("text", pa.string()), ("source", pa.string()), ("split", pa.string())]
)
CONVERSATIONS = pa.schema(
    [
        ("id", pa.string()),
        ("messages", pa.list_(MESSAGE)),
        ("source", pa.string()),
        ("group", pa.string()),
        ("split", pa.string()),
    ]
)
REMOVED = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("reason", pa.string()),
        ("score", pa.float64()),
        ("kept_id", pa.string()),
    ]
)

Row = dict[str, Any]

_FLUSH_ROWS = 65_536


def schema(conversations: bool) -> pa.Schema:
    return CONVERSATIONS if conversations else TEXT


def text_bytes(row: Row) -> int:
    """UTF-8 bytes of a document's text, or of all that is said in a conversation."""
    if "text" in row:
        return len(row["text"].encode())
    return sum(len(message["content"].encode()) for message in row["messages"])


def iter_rows(path: Path) -> Iterator[Row]:
    """Rows of a Parquet file, a batch at a time."""
    for batch in pq.ParquetFile(path).iter_batches(batch_size=1024):
        yield from batch.to_pylist()


class RowWriter:
    """Writes rows as zstd Parquet; the file appears under its name when the block ends, if it has rows."""

    def __init__(self, path: Path, table_schema: pa.Schema, row_group_bytes: int) -> None:
        self._path, self._partial = path, path.with_name(path.name + ".partial")
        self._schema, self._row_group_bytes = table_schema, row_group_bytes
        self._rows: list[Row] = []
        self._bytes = self.written = 0
        path.parent.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "RowWriter":
        self._writer = pq.ParquetWriter(self._partial, self._schema, compression="zstd")
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error_type is None:
            self._flush()
        self._writer.close()
        if error_type is None and self.written:
            os.replace(self._partial, self._path)
        else:
            self._partial.unlink()

    def add(self, row: Row, size: int) -> None:
        """Append a row whose text has `size` bytes."""
        self._rows.append(row)
        self._bytes += size
        if self._bytes >= self._row_group_bytes or len(self._rows) >= _FLUSH_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self.written += len(self._rows)
        self._rows, self._bytes = [], 0


def concatenate(paths: Iterable[Path], target: Path, table_schema: pa.Schema) -> int:
    """Write the rows of those `paths` that exist into one file, which may have none; returns their number."""
    partial = target.with_name(target.name + ".partial")
    rows = 0
    with pq.ParquetWriter(partial, table_schema, compression="zstd") as writer:
        for path in paths:
            if path.exists():
                for batch in pq.ParquetFile(path).iter_batches():
                    writer.write_batch(batch)
                    rows += batch.num_rows
    os.replace(partial, target)
    return rows
