"""Runs one of the steps (steps.py) in a process of its own, to be killed.

    python -m tests.faults.driver ROOT STEP [--nodes | --two-workers]

With `--nodes` it runs on a cluster of several nodes on this machine, whose process ids it prints; with
`--two-workers` on two workers.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from cluster.auth import enable_where_possible, ensure_token
from cluster.errors import UserError
from pipelines.cli import run_stage
from tests.faults.steps import steps

NODE_CPUS = 2


def ray_folder(pid: int) -> Path:
    """Where the driver with this process id keeps its Ray. There Ray looks for a running cluster, so that
    drivers that run beside each other do not join each other's.
    """
    return Path(tempfile.gettempdir(), f"manta-ray-{pid}")


def main(root: str, index: int, nodes: bool, two_workers: bool) -> int:
    import importlib

    os.environ["RAY_TMPDIR"] = str(ray_folder(os.getpid()))
    step = steps(root)[index]
    config: Any = step.config
    if nodes:
        config = config.model_copy(update={"address": start_nodes()})
    if two_workers:
        config = config.model_copy(update={"workers": 2, "threads_per_worker": 1})
    try:
        return run_stage(importlib.import_module(f"pipelines.{step.stage}.stage"), config)
    except UserError as error:
        print(f"manta: error: {error}", file=sys.stderr)
        return 2


def start_nodes() -> str:
    """A head without CPUs and two nodes; prints the process ids of the nodes' raylets."""
    from ray.cluster_utils import Cluster as SimulatedCluster

    ensure_token()
    enable_where_possible()
    simulated = SimulatedCluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    for _ in range(2):
        node = simulated.add_node(num_cpus=NODE_CPUS)
        print("node", node.all_processes["raylet"][0].process.pid, flush=True)
    simulated.wait_for_nodes()
    address: str = simulated.address
    return address


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), "--nodes" in sys.argv[3:], "--two-workers" in sys.argv[3:]))
