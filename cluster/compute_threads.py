"""How the threads of a torch process wait for each other.

At the end of every parallel loop, OpenMP's threads (libgomp, which torch brings along on Linux) wait for the
last one in a loop of their own, which keeps their cores. Where something else wants those cores, such as
another worker, Ray's own processes or the CPU limit of a container, the thread that all wait for is the one
that does not run: a small model's forward pass on two busy cores took up to 30 times as long. When the wait
is brief and then a sleep, it takes 1.4 times as long, and on idle cores hardly longer than before.
"""

import os
from collections.abc import Mapping

_SPINS = "1000"
"""Turns of the loop; libgomp's default is 300,000."""


def brief_waits(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables for processes that are about to be started; none if the user chose how threads wait."""
    if environment.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        return {}
    return {"GOMP_SPINCOUNT": _SPINS}
