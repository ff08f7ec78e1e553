"""A text corpus cut into pieces of work: row groups of its files, planned from their footers alone."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.artifacts.cache import damaged_file
from cluster.artifacts.manifest import Artifact
from cluster.errors import UserError

UNIT_BYTES = tuple(size * 2**20 for size in (2, 8, 32, 256))
"""Few sizes, so that a corpus that grows keeps the pieces that it had, and what was made from them, until it
grows past a step.
"""
_FEWEST_UNITS = 8
_THREADS = 16
_TAIL_BYTES = 64 * 2**10
"""Read at once: most footers are shorter."""


@dataclass(frozen=True)
class CorpusPiece:
    """Row groups first … last - 1 of one file of a corpus."""

    file: str
    first: int
    last: int
    bytes: int
    """Uncompressed."""


def unit_bytes(total_bytes: int) -> int:
    """Aim of a unit's size: many units even for a small corpus, bounded memory and effort for a large one."""
    return max(size for size in UNIT_BYTES if size * _FEWEST_UNITS <= total_bytes or size == UNIT_BYTES[0])


def corpus_pieces(corpus: Artifact) -> list[CorpusPiece]:
    """The pieces of a corpus in order, each of about `unit_bytes` and at least one row group."""
    names = part_files(corpus)
    with ThreadPoolExecutor(_THREADS) as pool:
        footers = dict(zip(names, pool.map(lambda name: _footer(corpus, name), names), strict=True))
    _check_rows(corpus, list(footers.values()))
    groups = [
        (name, group, footer.row_group(group).total_byte_size)
        for name, footer in footers.items()
        for group in range(footer.num_row_groups)
    ]
    # Row groups are a little more than a quarter of it: four are to be one piece, not three and one.
    limit = unit_bytes(sum(size for _, _, size in groups))
    pieces: list[CorpusPiece] = []
    for name, group, size in groups:
        last = pieces[-1] if pieces else None
        if last is not None and last.file == name and last.bytes + size <= limit + limit // 8:
            pieces[-1] = CorpusPiece(name, last.first, group + 1, last.bytes + size)
        else:
            pieces.append(CorpusPiece(name, group, group + 1, size))
    return pieces


def part_files(corpus: Artifact) -> list[str]:
    """Names of the files that hold its documents, in order."""
    return sorted(name for name in corpus.files if name.startswith("part-"))


def _footer(corpus: Artifact, name: str) -> pq.FileMetaData:
    """What is wrong with the bytes is the file's fault; what keeps us from reading them is the storage's."""
    with corpus.peek(name) as source:
        tail = _footer_bytes(source)
    try:
        return pq.read_metadata(pa.BufferReader(tail))
    except Exception as error:  # pyarrow raises several kinds, OSError among them
        raise damaged_file(corpus.folder, name, f"not a Parquet file ({error})") from error


def _footer_bytes(source: pa.NativeFile) -> bytes:
    """The end of a Parquet file: metadata, their length in four bytes, and PAR1."""
    size = source.size()
    length = min(size, _TAIL_BYTES)
    tail: bytes = source.read_at(length, size - length)
    needed = min(size, int.from_bytes(tail[-8:-4], "little") + 8)
    if tail.endswith(b"PAR1") and needed > length:
        tail = source.read_at(needed, size - needed)
    return tail


def _check_rows(corpus: Artifact, footers: list[pq.FileMetaData]) -> None:
    """Raise UserError if a footer hides rows: then no worker would read them, and none find it damaged."""
    rows = sum(each.row_group(group).num_rows for each in footers for group in range(each.num_row_groups))
    expected = corpus.counts.get("documents", rows)
    if rows != expected:
        raise UserError(
            f"{corpus.folder}: its files have {rows} documents, its manifest says {expected}; `manta verify` "
            "finds the damaged one, and the command that made it, with --force, makes it again"
        )


def check_text(corpus: Artifact, needed_for: str) -> None:
    """Raise UserError unless `corpus` holds plain text."""
    if corpus.manifest["counts"].get("format") != "text":
        raise UserError(f"{corpus.ref} holds conversations; {needed_for} needs a corpus of plain text")
