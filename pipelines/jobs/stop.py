"""``manta stop ID``: end a job."""

from typing import Annotated

import tyro

from cluster.dashboard import find_dashboard
from cluster.jobs import Jobs
from pipelines.progress import console
from pipelines.stage_config import Frozen


class StopConfig(Frozen):
    """Stop a job: it is asked to end (SIGTERM) and killed after 3 seconds. Submitted again, it continues."""

    job: Annotated[str, tyro.conf.Positional]
    """The job's id, or the beginning of it."""
    address: str | None = None
    """The cluster: http://HOST:8265 (its dashboard) or HOST:PORT; by default the one on this machine."""


def run(config: StopConfig) -> None:
    """Stop it and wait until it has ended."""
    jobs = Jobs(find_dashboard(config.address))
    job = jobs.find(config.job)
    if job.finished:
        console.print(f"{job.id} had ended already: {job.status.lower()}")
        return
    ended = jobs.stop(job.id)
    hint = "; submit the same again and it continues" if ended.status == "STOPPED" else ""
    console.print(f"{ended.id}: {ended.status.lower()}{hint}")
