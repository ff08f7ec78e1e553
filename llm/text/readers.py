"""Documents out of files: plain text, JSON lines (also .gz and .zst), Parquet. Pure iterators over a piece.

A piece of a file is a byte range (JSON lines: the lines that *start* in it) or a range of row groups
(Parquet). Compressed files and plain text files are one piece each. Errors are ReadError and name the file
and the line or row.
"""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from llm.text.source import Source, suffixes

Format = Literal["text", "jsonl", "parquet"]

TEXT_SUFFIXES = {
    ".txt",
    ".md",
    ".rst",
    ".py",
    ".text",
    ".c",
    ".h",
    ".cpp",
    ".java",
    ".js",
    ".ts",
    ".go",
    ".rs",
}
JSONL_SUFFIXES = {".jsonl", ".ndjson", ".json"}
COMPRESSION_SUFFIXES = {".gz", ".zst"}

Record = dict[str, Any]


class ReadError(ValueError):
    """A file that is not what it should be; the message names the file and the line or row."""


@dataclass(frozen=True)
class Located:
    """A record and where it is from."""

    record: Record
    source: Source
    number: int
    """The line in its piece, from 1 (JSON lines); the row in its file, from 0 (Parquet)."""
    piece_start: int | None
    """The first byte of the piece; None for Parquet."""

    @property
    def place(self) -> str:
        """ "FILE:LINE" or "FILE row N". Counts lines from the start of the file: for error messages only."""
        if self.piece_start is None:
            return f"{self.source} row {self.number}"
        return f"{self.source}:{_lines_before(self.source, self.piece_start) + self.number}"


def format_of(source: Source) -> Format | None:
    """The format that the file's name says, None if it says none that we read."""
    uncompressed = [suffix for suffix in suffixes(source) if suffix not in COMPRESSION_SUFFIXES]
    suffix = uncompressed[-1] if uncompressed else ""
    if suffix == ".parquet":
        return "parquet"
    if suffix in JSONL_SUFFIXES:
        return "jsonl"
    return "text" if suffix in TEXT_SUFFIXES else None


def is_compressed(source: Source) -> bool:
    return suffixes(source)[-1:] in ([suffix] for suffix in COMPRESSION_SUFFIXES)


def read_bytes(source: Source) -> bytes:
    """All bytes of a file, decompressed by its suffix."""
    with _open(source) as stream:
        try:
            return stream.read()
        except Exception as error:
            raise ReadError(f"{source}: cannot be decompressed: {error}") from error


def read_jsonl(source: Source, start: int = 0, end: int | None = None) -> Iterator[Located]:
    """Records of the lines that start in bytes start … end - 1 of a file; blank lines are skipped.

    A range of a compressed file cannot be read: leave `start` and `end` as they are.
    """
    with _open(source) as stream:
        if start:
            stream.seek(start - 1)
            stream.readline()  # the line that began before `start` belongs to the piece before
        position, number = stream.tell() if start else 0, 0
        while end is None or position < end:
            line = _read_line(stream, source)
            if not line:
                return
            position += len(line)
            number += 1
            if line.isspace():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                place = Located({}, source, number, start).place
                raise ReadError(f"{place}: not a JSON value: {error}") from error
            located = Located(record, source, number, start)
            if not isinstance(record, dict):
                raise ReadError(f"{located.place}: a {type(record).__name__}, where a JSON object is needed")
            yield located


def read_parquet(
    source: Source, columns: list[str] | None = None, first: int = 0, last: int | None = None
) -> Iterator[Located]:
    """Records of row groups first … last - 1, streamed: `ParquetFile.iter_batches` holds one batch."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(source if isinstance(source, Path) else source.open("rb"))
    except (pa.ArrowInvalid, OSError) as error:
        raise ReadError(f"{source}: not a Parquet file: {error}") from error
    missing = [name for name in columns or [] if name not in file.schema_arrow.names]
    if missing:
        raise ReadError(
            f"{source}: no column {', '.join(missing)}; there is {', '.join(file.schema_arrow.names)}"
        )
    groups = range(first, file.num_row_groups if last is None else last)
    row = sum(file.metadata.row_group(group).num_rows for group in range(first))
    for batch in file.iter_batches(batch_size=1024, row_groups=list(groups), columns=columns):
        for record in batch.to_pylist():
            yield Located(record, source, row, None)
            row += 1


def _open(source: Source) -> BinaryIO:
    compression = suffixes(source)[-1:]
    if compression == [".gz"]:
        return cast(BinaryIO, gzip.open(source.open("rb"), "rb"))
    if compression == [".zst"]:
        from llm.text.zstd import open_zstd

        return cast(BinaryIO, open_zstd(source))
    return source.open("rb")


def _read_line(stream: BinaryIO, source: Source) -> bytes:
    try:
        return stream.readline()
    except Exception as error:  # gzip, zlib and zstandard have errors of their own
        raise ReadError(f"{source}: cannot be decompressed: {error}") from error


def _lines_before(source: Source, start: int) -> int:
    """Lines of a file that start before byte `start`."""
    if not start:
        return 0
    with source.open("rb") as stream:
        return 1 + stream.read(start - 1).count(b"\n")
