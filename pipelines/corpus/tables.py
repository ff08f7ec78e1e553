"""The corpus's tables: their columns, and Parquet files whose row groups end by bytes of text."""

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
_WRITTEN: Any = {
    "compression": "zstd",
    # A dictionary of texts holds none twice, and makes reading them a quarter slower.
    "use_dictionary": ["source", "split", "reason", "messages.list.element.role"],
}


def schema(conversations: bool) -> pa.Schema:
    return CONVERSATIONS if conversations else TEXT


def text_bytes(row: Row) -> int:
    """UTF-8 bytes of a document's text, or of all that is said in a conversation."""
    if "text" in row:
        return len(row["text"].encode())
    return sum(len(message["content"].encode()) for message in row["messages"])


def iter_rows(source: Path | pa.NativeFile) -> Iterator[Row]:
    """Rows of a Parquet file, a batch at a time."""
    for batch in pq.ParquetFile(source).iter_batches(batch_size=1024):
        yield from batch.to_pylist()


class RowWriter:
    """Writes rows as zstd Parquet; there is a file after the block if there were rows and no error."""

    def __init__(self, path: Path, table_schema: pa.Schema, row_group_bytes: int) -> None:
        self._path = path
        self._schema, self._row_group_bytes = table_schema, row_group_bytes
        self._rows: list[Row] = []
        self._bytes = self.written = 0
        path.parent.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "RowWriter":
        self._writer = pq.ParquetWriter(self._path, self._schema, **_WRITTEN)
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error_type is None:
            self._flush()
        self._writer.close()
        if error_type is not None or not self.written:
            self._path.unlink()

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


def concatenate(sources: Iterable[pa.NativeFile], target: Path, table_schema: pa.Schema) -> int:
    """Write the rows of all `sources` into one file, which may have none; returns their number."""
    rows = 0
    with pq.ParquetWriter(target, table_schema, **_WRITTEN) as writer:
        for source in sources:
            for batch in pq.ParquetFile(source).iter_batches():
                writer.write_batch(batch)
                rows += batch.num_rows
    return rows
