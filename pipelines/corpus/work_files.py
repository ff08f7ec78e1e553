"""Names of the files between the corpus's three steps: in the draft, removed once it is committed."""

WORK = "work"
REMOVED_FOLDER = "removed"


def documents_file(unit: str) -> str:
    """Parquet: rows of the unit before duplicates are removed."""
    return f"documents/{unit}.parquet"


def index_file(unit: str) -> str:
    """Arrow: per hash range, in one batch each, the unit's ids and their row numbers."""
    return f"index/{unit}.arrow"


def removed_file(unit: str, step: str) -> str:
    """Parquet: what a step ("read" or "write") removed from the unit."""
    return f"{REMOVED_FOLDER}/{unit}-{step}.parquet"


def duplicates_file(hash_range: int, units_read: str) -> str:
    """Arrow: (unit, row) of each duplicate of the hash range, sorted; `units_read` says among which units."""
    return f"duplicates/{units_read}/{hash_range:05d}.arrow"
