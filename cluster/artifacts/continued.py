"""What a run that goes on may rely on: finished units whose files are there, as they were written."""

from typing import Any

from cluster.artifacts.folder import FileEntry, Folder, describe
from cluster.artifacts.ledger import Ledger


def forget_damaged_units(folder: Folder, ledger: Ledger, hashed_bytes: int) -> dict[str, str]:
    """Take units out of the ledger whose files are missing or changed; what is wrong with each, by unit id.

    Sizes come from one listing. On a disk, up to `hashed_bytes` in all, the SHA-256 is compared too; object
    storage checks what it keeps by itself.
    """
    records = ledger.records()
    if not records:
        return {}
    found = folder.files()
    written = sum(entry["bytes"] for record in records.values() for entry in _files(record).values())
    hashed = folder.local is not None and written <= hashed_bytes
    damaged: dict[str, str] = {}
    for unit, record in records.items():
        problem = "its record is damaged" if "files" not in (record or {}) else None
        for name, entry in _files(record).items():
            problem = problem or _problem(folder, name, entry, found.get(name), hashed)
        if problem:
            damaged[unit] = problem
    ledger.forget(damaged)
    return damaged


def _files(record: dict[str, Any] | None) -> dict[str, FileEntry]:
    return (record or {}).get("files", {})


def _problem(folder: Folder, name: str, entry: FileEntry, size: int | None, hashed: bool) -> str | None:
    if size is None:
        return f"{name} is missing"
    if size != entry["bytes"]:
        return f"{name} has {size} bytes and had {entry['bytes']}"
    if hashed and describe(folder.local / name) != entry:  # type: ignore[operator]
        return f"{name} has changed"
    return None
