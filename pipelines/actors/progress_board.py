"""Where worker processes post what they measure and the driver takes it from.

Ray Train delivers ``ray.train.report`` at its own slow pace and makes every worker wait; this does neither.
"""

from typing import Any

import ray


@ray.remote(num_cpus=0)
class ProgressBoard:
    """Records in the order in which they were posted, until they are taken. Posts are fire-and-forget."""

    def __init__(self) -> None:
        self._posted: list[dict[str, Any]] = []

    def post(self, record: dict[str, Any]) -> None:
        """Add a record."""
        self._posted.append(record)

    def take(self) -> list[dict[str, Any]]:
        """Every record since the last call, each once."""
        taken, self._posted = self._posted, []
        return taken
