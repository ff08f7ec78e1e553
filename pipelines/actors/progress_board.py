"""Where worker processes post their latest numbers and the driver reads them.

Ray Train delivers ``ray.train.report`` at its own slow pace and makes every worker wait; this does neither.
"""

from typing import Any

import ray


@ray.remote(num_cpus=0)
class ProgressBoard:
    """The latest value of each posted field; posts are fire-and-forget."""

    def __init__(self) -> None:
        self._latest: dict[str, Any] = {}

    def post(self, fields: dict[str, Any]) -> None:
        """Merge ``fields`` into the latest values."""
        self._latest.update(fields)

    def latest(self) -> dict[str, Any]:
        """Everything posted so far, newest value a field."""
        return dict(self._latest)
