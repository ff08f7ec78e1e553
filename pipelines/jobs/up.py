"""``manta up``: a Ray cluster on this machine that stays, takes jobs and shows what they do."""

import os

from pydantic import Field

from cluster import head
from cluster.auth import token_path
from pipelines.progress import console
from pipelines.stage_config import Frozen


class UpConfig(Frozen):
    """Start a Ray head on this machine, with dashboard, jobs, metrics and token authentication.

    It listens on this machine alone. Commands join it and jobs are submitted to it until `manta down`.
    """

    port: int = Field(6379, ge=0, lt=65536)
    """Port that commands join at; 0 for any."""
    dashboard_port: int = Field(8265, ge=0, lt=65536)
    """Port of the dashboard, which takes jobs; 0 for any."""
    metrics_port: int = Field(8080, ge=0, lt=65536)
    """Port that Prometheus scrapes; 0 for any."""
    cpus: int | None = Field(None, gt=0)
    """CPUs to give to Ray; by default all."""


def run(config: UpConfig) -> None:
    """Start it, unless it runs, and say where it is."""
    running = head.running_head()
    cluster = running or head.start(
        port=config.port,
        dashboard_port=config.dashboard_port,
        metrics_port=config.metrics_port,
        cpus=config.cpus,
    )
    lines = [
        "Ray was up already:" if running else "Ray is up:",
        f"  cluster    {cluster.address}    (commands on this machine join it by themselves)",
        f"  dashboard  {cluster.dashboard}    (takes jobs: manta submit STAGE ...)",
        f"  metrics    {cluster.metrics}",
        f"  token      {token_path()}",
        "`manta down` stops it",
    ]
    if other := os.environ.get("RAY_ADDRESS"):
        lines.append(f"but RAY_ADDRESS={other} goes before it: unset that, and commands join this one")
    console.print("\n".join(lines), markup=False)
