"""``manta jobs``: the jobs of a cluster."""

import time
from datetime import datetime

from rich.table import Table

from cluster.dashboard import find_dashboard
from cluster.jobs import Job, Jobs
from pipelines.inspect.format import format_seconds
from pipelines.progress import console
from pipelines.stage_config import Frozen


class JobsConfig(Frozen):
    """List the jobs that were submitted to a cluster, oldest first."""

    address: str | None = None
    """The cluster: http://HOST:8265 (its dashboard) or HOST:PORT; by default the one on this machine."""


def run(config: JobsConfig) -> None:
    """Print one line a job."""
    jobs = Jobs(find_dashboard(config.address))
    found = jobs.all()
    if not found:
        console.print(f"no jobs at {jobs.url} yet")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("job", "makes", "status", "started", "took"):
        table.add_column(column, justify="right" if column == "took" else "left", overflow="fold")
    for job in found:
        table.add_row(*_row(job))
    console.print(table)
    for job in found:
        if job.last_error:
            console.print(f"{job.id}: {job.last_error}", markup=False)


def _row(job: Job) -> tuple[str, ...]:
    code = f" ({job.exit_code})" if job.status == "FAILED" else ""
    return (
        job.id,
        job.metadata.get("makes", ""),
        job.status.lower() + code,
        f"{datetime.fromtimestamp(job.started):%Y-%m-%d %H:%M}",
        format_seconds((job.ended or time.time()) - job.started),
    )
