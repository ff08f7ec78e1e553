"""The ledger of work units of an artifact in the making.

A record says under "files" what its unit wrote, by name below the artifact's folder, so that a run that
goes on can tell whether the unit's work is still there (`forget_damaged_units`).

One small JSON file a unit, created conditionally, so that it makes no difference how often or by how many
actors a unit is run: the first commit counts, and every other must say the same. Attempts are written down
before they are made, so that a unit that takes its actor down with it is counted too.
"""

import json
from collections.abc import Iterable
from typing import Any

from cluster.artifacts.folder import Folder
from cluster.artifacts.redact import redact

LEDGER = "ledger"
QUARANTINE = "quarantine.json"


class Ledger:
    """Records of finished units, by unit id. Cheap to pickle: actors commit from where they run."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def done(self) -> dict[str, dict[str, Any]]:
        """All committed records, by unit id. One listing, then one read a record."""
        return {unit: record for unit, record in self.records().items() if record is not None}

    def records(self) -> dict[str, dict[str, Any] | None]:
        """Like `done`; None for a record that is damaged."""
        names = [name for name in self.folder.files() if name.endswith(".json") and "/" not in name]
        names = [name for name in names if name != QUARANTINE]
        contents = self.folder.read_all(names)
        return {
            name.removesuffix(".json"): _parse(content) for name, content in zip(names, contents, strict=True)
        }

    def forget(self, unit_ids: Iterable[str]) -> None:
        """Remove records, so that their units are done again."""
        self.folder.delete([f"{unit_id}.json" for unit_id in unit_ids])

    def commit(self, unit_id: str, record: dict[str, Any]) -> None:
        """Record that a unit is finished; committing the same record again changes nothing.

        Raises:
            ValueError: another record was committed for this unit, so that the unit is not deterministic.
        """
        name = f"{unit_id}.json"
        data = json.dumps(record, sort_keys=True).encode()
        if not self.folder.create(name, data) and self.folder.read(name) != data:
            raise ValueError(
                f"{self.folder}/{name}: unit {unit_id} was already committed with another result; a unit's "
                f"output must depend on nothing but its input"
            )

    def attempt(self, run: str, unit_id: str, number: int) -> None:
        """Write down that attempt `number` at a unit begins, in the run `run` of the stage."""
        self.folder.create(f"attempts/{run}/{unit_id}.{number}", b"")

    def quarantine(self, errors: dict[str, str]) -> None:
        """Keep the errors of units that were given up in this run, over those of the run before."""
        self.folder.write(QUARANTINE, json.dumps(redact(errors), indent=2).encode() + b"\n")

    def attempts(self, run: str) -> dict[str, int]:
        """How many attempts at each unit have begun in the run `run`."""
        counts: dict[str, int] = {}
        for name in (self.folder / f"attempts/{run}").files():
            unit_id = name.rpartition(".")[0]
            counts[unit_id] = counts.get(unit_id, 0) + 1
        return counts


def _parse(content: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(content)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
