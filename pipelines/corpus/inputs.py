"""What a corpus is made from: which files, their identity by content, and the units of work.

Everything here is a pure function of the files' names below their root, and their bytes.
"""

import glob
import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cluster.artifacts.files import sha256_file
from cluster.errors import UserError
from llm.text.python_stdlib import stdlib_files
from llm.text.readers import format_of, is_compressed
from pipelines.corpus.config import CorpusConfig
from pipelines.corpus_pieces import corpus_pieces, unit_bytes
from pipelines.units import Unit

_HASHING_THREADS = 8


@dataclass(frozen=True)
class SourceFile:
    """A file to read."""

    path: Path
    source: str
    """Its name below the root it was found under: the same wherever the root lies."""
    format: str
    """ "text", "jsonl" or "parquet"."""
    bytes: int
    sha256: str = ""


def find_files(config: CorpusConfig) -> list[SourceFile]:
    """All files to read, sorted by source. Raises UserError if a path is missing or of an unknown kind."""
    if config.source == "python-stdlib":
        root, paths = stdlib_files()
        found = [(path, str(path.relative_to(root))) for path in paths]
    else:
        found = [each for argument in config.paths for each in _expand(argument, len(config.paths) > 1)]
    files = {
        path: SourceFile(path, source, _format(path, config), path.stat().st_size) for path, source in found
    }
    if not files:
        raise UserError(f"no readable file in {', '.join(config.paths)}; give .txt, .jsonl or .parquet files")
    return sorted(files.values(), key=lambda file: (file.source, str(file.path)))


def hash_files(files: list[SourceFile]) -> list[SourceFile]:
    """The same files with their SHA-256. Hashing frees the interpreter's lock, so threads share the work."""
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        digests = list(pool.map(_sha256, files))
    hashed = [
        SourceFile(file.path, file.source, file.format, file.bytes, digest)
        for file, digest in zip(files, digests, strict=True)
    ]
    return sorted(hashed, key=lambda file: (file.source, file.sha256))


def _sha256(file: SourceFile) -> str:
    """Every input is read here first: one that cannot be read is found before Ray starts."""
    try:
        return sha256_file(file.path)
    except OSError as error:
        raise UserError(
            f"{file.path}: cannot be read ({error.strerror}): mend that or leave it out of --paths"
        ) from error


def identity(files: list[SourceFile]) -> dict[str, Any]:
    """What the artifact's fingerprint knows of its raw inputs: names below the root and contents."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.source}\0{file.format}\0{file.sha256}\n".encode())
    return {"files": len(files), "bytes": sum(file.bytes for file in files), "sha256": digest.hexdigest()}


def plan_units(files: list[SourceFile]) -> list[Unit]:
    """Units of about `unit_bytes`, in the order of sources: several small files or a piece of a large one."""
    limit = unit_bytes(sum(file.bytes for file in files))
    groups: list[list[dict[str, Any]]] = [[]]
    room = limit
    for file in files:
        for piece, size in _pieces(file, limit):
            if groups[-1] and size > room:
                groups.append([])
                room = limit
            where = {"path": str(file.path), "source": file.source, "format": file.format, "bytes": size}
            groups[-1].append({**where, **piece})
            room -= size
    return [Unit(f"read-{number:05d}", {"pieces": pieces}) for number, pieces in enumerate(groups)]


def plan_corpus_units(corpus: Path) -> list[Unit]:
    """Units over the row groups of a text corpus, for python-functions."""
    pieces = [{**vars(piece), "path": str(corpus / piece.file)} for piece in corpus_pieces(corpus)]
    return [
        Unit(f"read-{number:05d}", {"pieces": [{**piece, "source": piece["file"], "format": "corpus"}]})
        for number, piece in enumerate(pieces)
    ]


def _pieces(file: SourceFile, limit: int) -> list[tuple[dict[str, Any], int]]:
    """Ranges of a file with their sizes in bytes; a file that cannot be cut is one."""
    if file.format == "parquet":
        try:
            metadata = pq.read_metadata(file.path)
        except Exception as error:  # pyarrow raises several kinds
            raise UserError(f"{file.path}: not a Parquet file: {error}") from error
        return [
            ({"first": group, "last": group + 1}, metadata.row_group(group).total_byte_size)
            for group in range(metadata.num_row_groups)
        ]
    if file.format == "jsonl" and not is_compressed(file.path):
        starts = range(0, max(file.bytes, 1), limit)
        return [({"start": start, "end": min(start + limit, file.bytes)}, limit) for start in starts]
    return [({}, file.bytes)]


def _format(path: Path, config: CorpusConfig) -> str:
    by_name = format_of(path)
    if config.format == "conversations":
        return "parquet" if by_name == "parquet" else "jsonl"
    if config.format != "auto":
        return config.format
    if by_name is None:
        raise UserError(f"{path}: the name does not say what it holds; add --format text, jsonl or parquet")
    return by_name


def _expand(argument: str, is_one_of_many: bool) -> list[tuple[Path, str]]:
    """(path, source) of a file, of what a folder holds, or of what a glob matches."""
    path = Path(argument).expanduser().absolute()
    if path.is_file():
        return [(path, path.name)]
    if path.is_dir():
        inside = [
            each
            for each in path.rglob("*")
            if each.is_file() and format_of(each) and not _is_hidden(each.relative_to(path))
        ]
        prefix = Path(path.name) if is_one_of_many else Path()  # folders may hold files of one name
        return [(each, str(prefix / each.relative_to(path))) for each in inside]
    matches = [Path(each) for each in glob.glob(str(path), recursive=True) if Path(each).is_file()]
    if not matches:
        raise UserError(f"--paths {argument}: there is no such file or folder, and the glob matches nothing")
    root = _fixed_part(path)
    return [(each, str(each.relative_to(root))) for each in matches]


def _fixed_part(pattern: Path) -> Path:
    """The folders before the first wildcard."""
    fixed = Path(pattern.anchor)
    for part in pattern.parts[1:-1]:
        if glob.has_magic(part):
            break
        fixed /= part
    return fixed


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
