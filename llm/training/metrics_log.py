"""`metrics.jsonl`: one line a step, holding only what a repeated run would repeat bit for bit.

Clock readings go elsewhere (`timing.jsonl`), so that two runs can be compared with `diff`.
"""

import json
import os
from pathlib import Path
from typing import Any


class JsonLines:
    """Append records with a `step` to a file; after a resume, records of steps that are run again are cut
    off.
    """

    def __init__(self, path: Path, resumed_step: int) -> None:
        self._path = path
        self._pending: list[str] = []
        kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= resumed_step]
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text("".join(kept))
        os.replace(partial, path)

    def append(self, record: dict[str, Any]) -> None:
        """Remember one record; it is on disk after the next `flush`."""
        self._pending.append(json.dumps(record) + "\n")

    def flush(self, durable: bool = False) -> None:
        """Write what is pending; `durable` also waits for the disk, as before a checkpoint."""
        with open(self._path, "a") as stream:
            stream.write("".join(self._pending))
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        self._pending.clear()


def read_records(path: Path) -> list[dict[str, Any]]:
    """All whole records of a log."""
    return [json.loads(line) for line in _whole_lines(path)]


def _whole_lines(path: Path) -> list[str]:
    """Lines that end in a newline; a process killed in the middle of a write leaves a last one that does
    not.
    """
    if not path.exists():
        return []
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
