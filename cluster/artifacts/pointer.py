"""A name's pointer to its newest version, moved by compare-and-swap."""

import json

from cluster.artifacts.folder import Folder

POINTER = "latest.json"


def read_pointer(folder: Folder) -> str | None:
    """The version that ``KIND/NAME`` points to; None if it has no finished version, or points nowhere."""
    try:
        version = json.loads(_read(folder) or b"")["version"]
    except (ValueError, KeyError, TypeError):
        return None
    return version if isinstance(version, str) else None


def move_pointer(folder: Folder, version: str) -> None:
    """Let ``KIND/NAME`` point to ``version``. Tries again when another process moved it in between."""
    data = json.dumps({"version": version}).encode()
    while True:
        current = _read(folder)
        if current == data or folder.storage.swap(folder.key(POINTER), current, data):
            return


def _read(folder: Folder) -> bytes | None:
    try:
        return folder.read(POINTER)
    except FileNotFoundError:
        return None
