"""What a corpus is made from: which files, their identity by content, and the units of work.

Everything here is a pure function of the files' names below their root, and their bytes.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cluster.artifacts.files import sha256_file
from cluster.artifacts.manifest import Artifact
from cluster.artifacts.remote_file import ArtifactFile, RemoteFile
from cluster.errors import UserError
from llm.text.python_stdlib import stdlib_files
from llm.text.readers import format_of, is_compressed
from pipelines.corpus.config import CorpusConfig
from pipelines.corpus.local_files import find_local
from pipelines.corpus.s3_files import find_in_bucket
from pipelines.corpus_pieces import corpus_pieces, unit_bytes
from pipelines.units import Unit

_HASHING_THREADS = 8


@dataclass(frozen=True)
class SourceFile:
    """A file to read."""

    file: Path | RemoteFile
    source: str
    """Its name below the root it was found under: the same wherever the root lies."""
    format: str
    """ "text", "jsonl" or "parquet"."""
    bytes: int
    content: str = ""
    """What tells its content from any other: SHA-256, or the ETag of an object."""


def find_files(config: CorpusConfig) -> list[SourceFile]:
    """All files to read, sorted by source. Raises UserError if a path is missing or of an unknown kind."""
    files: dict[str, SourceFile] = {}
    for argument in config.paths:
        if argument.startswith("s3://"):
            for remote, source, size, etag in find_in_bucket(argument, len(config.paths) > 1):
                files[str(remote)] = SourceFile(remote, source, _format(remote, config), size, etag)
        else:
            for path, source in find_local(argument, len(config.paths) > 1):
                files[str(path)] = _local_file(path, source, config)
    if config.source == "python-stdlib":
        root, paths = stdlib_files()
        files = {str(path): _local_file(path, str(path.relative_to(root)), config) for path in paths}
    if not files:
        raise UserError(f"no readable file in {', '.join(config.paths)}; give .txt, .jsonl or .parquet files")
    return sorted(files.values(), key=lambda file: (file.source, str(file.file)))


def hash_files(files: list[SourceFile]) -> list[SourceFile]:
    """The same files with the identity of their contents. Hashing frees the interpreter's lock: threads
    share the work. Objects in a bucket have an ETag, which came with the listing.
    """

    def identified(file: SourceFile) -> SourceFile:
        return file if isinstance(file.file, RemoteFile) else replace(file, content=_sha256(file.file))

    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        hashed = list(pool.map(identified, files))
    return sorted(hashed, key=lambda file: (file.source, file.content))


def _sha256(path: Path) -> str:
    """Every input is read here first: one that cannot be read is found before Ray starts."""
    try:
        return sha256_file(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}): mend that or leave it out of --paths"
        ) from error


def identity(files: list[SourceFile]) -> dict[str, Any]:
    """What the artifact's fingerprint knows of its raw inputs: names below the root and contents."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.source}\0{file.format}\0{file.content}\n".encode())
    return {"files": len(files), "bytes": sum(file.bytes for file in files), "sha256": digest.hexdigest()}


def plan_units(files: list[SourceFile]) -> list[Unit]:
    """Units of about `unit_bytes`, in the order of sources: several small files or a piece of a large one.

    A piece names its file by its number among `files`.
    """
    limit = unit_bytes(sum(file.bytes for file in files))
    groups: list[list[dict[str, Any]]] = [[]]
    room = limit
    for number, file in enumerate(files):
        for piece, size in _pieces(file, limit):
            if groups[-1] and size > room:
                groups.append([])
                room = limit
            where = {"file": number, "source": file.source, "format": file.format, "bytes": size}
            groups[-1].append({**where, **piece})
            room -= size
    return [Unit(f"read-{number:05d}", {"pieces": pieces}) for number, pieces in enumerate(groups)]


def plan_corpus_units(corpus: Artifact) -> tuple[list[ArtifactFile], list[Unit]]:
    """The files of a text corpus, and units over their row groups, for python-functions."""
    pieces = corpus_pieces(corpus)
    names = sorted({piece.file for piece in pieces})
    files = [ArtifactFile(corpus, name) for name in names]
    units = [
        Unit(
            f"read-{number:05d}",
            {
                "pieces": [
                    {
                        **vars(piece),
                        "file": names.index(piece.file),
                        "source": piece.file,
                        "format": "corpus",
                    }
                ]
            },
        )
        for number, piece in enumerate(pieces)
    ]
    return files, units


def _pieces(file: SourceFile, limit: int) -> list[tuple[dict[str, Any], int]]:
    """Ranges of a file with their sizes in bytes; a file that cannot be cut is one."""
    if file.format == "parquet":
        try:
            with file.file.open("rb") as stream:
                metadata = pq.read_metadata(stream)
        except Exception as error:  # pyarrow raises several kinds
            raise UserError(f"{file.file}: not a Parquet file: {error}") from error
        return [
            ({"first": group, "last": group + 1}, metadata.row_group(group).total_byte_size)
            for group in range(metadata.num_row_groups)
        ]
    if file.format == "jsonl" and not is_compressed(file.file):
        starts = range(0, max(file.bytes, 1), limit)
        return [({"start": start, "end": min(start + limit, file.bytes)}, limit) for start in starts]
    return [({}, file.bytes)]


def _local_file(path: Path, source: str, config: CorpusConfig) -> SourceFile:
    return SourceFile(path, source, _format(path, config), path.stat().st_size)


def _format(file: Path | RemoteFile, config: CorpusConfig) -> str:
    by_name = format_of(file)
    if config.format == "conversations":
        return "parquet" if by_name == "parquet" else "jsonl"
    if config.format != "auto":
        return config.format
    if by_name is None:
        raise UserError(f"{file}: the name does not say what it holds; add --format text, jsonl or parquet")
    return by_name
