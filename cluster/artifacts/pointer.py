"""A name's pointer to its newest version, moved by compare-and-swap."""

import json
from pathlib import Path

from cluster.artifacts.files import compare_and_swap

POINTER = "latest.json"


def read_pointer(folder: Path) -> str | None:
    """The version that ``KIND/NAME`` points to; None if it has no finished version."""
    path = folder / POINTER
    return json.loads(path.read_bytes())["version"] if path.exists() else None


def move_pointer(folder: Path, version: str) -> None:
    """Let ``KIND/NAME`` point to ``version``. Tries again when another process moved it in between."""
    path = folder / POINTER
    data = json.dumps({"version": version}).encode()
    while True:
        current = path.read_bytes() if path.exists() else None
        if current == data or compare_and_swap(path, current, data):
            return
