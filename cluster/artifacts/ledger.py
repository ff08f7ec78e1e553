"""The ledger of committed work units of an artifact in the making.

One small JSON file a unit, created conditionally, so that it makes no difference how often or by how many
actors a unit is run: the first commit counts, and every other must say the same.
"""

import json
from pathlib import Path
from typing import Any

from cluster.artifacts.files import create


class Ledger:
    """Records of finished units, by unit id. Cheap to pickle: actors commit from where they run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def done(self) -> dict[str, dict[str, Any]]:
        """All committed records, by unit id."""
        paths = sorted(self.directory.glob("*.json"))
        return {path.stem: json.loads(path.read_bytes()) for path in paths}

    def commit(self, unit_id: str, record: dict[str, Any]) -> None:
        """Record that a unit is finished; committing the same record again changes nothing.

        Raises:
            ValueError: another record was committed for this unit, so that the unit is not deterministic.
        """
        path = self.directory / f"{unit_id}.json"
        data = json.dumps(record, sort_keys=True).encode()
        if not create(path, data) and path.read_bytes() != data:
            raise ValueError(
                f"{path}: unit {unit_id} was already committed with another result; a unit's output must "
                f"depend on nothing but its input"
            )
