"""Names of the files between the corpus's three steps: in the draft, gone before it is committed."""

from pathlib import Path

WORK = "work"


def documents_file(work: Path, unit: str) -> Path:
    """Parquet: rows of the unit before duplicates are removed."""
    return work / "documents" / f"{unit}.parquet"


def index_file(work: Path, unit: str) -> Path:
    """Arrow: per hash range, in one batch each, the unit's ids and their row numbers."""
    return work / "index" / f"{unit}.arrow"


def removed_file(work: Path, unit: str, step: str) -> Path:
    """Parquet: what a step ("read" or "write") removed from the unit."""
    return work / "removed" / f"{unit}-{step}.parquet"


def duplicates_file(work: Path, hash_range: int) -> Path:
    """Arrow: (unit, row) of each duplicate of the hash range, sorted."""
    return work / "duplicates" / f"{hash_range:05d}.arrow"
