"""``manta logs ID [-f]``: what a job printed."""

from typing import Annotated

import tyro

from cluster.dashboard import find_dashboard
from cluster.jobs import Jobs
from pipelines.stage_config import Frozen


class LogsConfig(Frozen):
    """Print what a job has printed; with --follow until it has ended."""

    job: Annotated[str, tyro.conf.Positional]
    """The job's id, or the beginning of it."""
    follow: Annotated[bool, tyro.conf.arg(aliases=["-f"])] = False
    """Go on printing until the job has ended. Ctrl-C ends the printing, not the job."""
    address: str | None = None
    """The cluster: http://HOST:8265 (its dashboard) or HOST:PORT; by default the one on this machine."""


def run(config: LogsConfig) -> None:
    """Print the log."""
    jobs = Jobs(find_dashboard(config.address))
    job = jobs.find(config.job)
    if not config.follow:
        print(jobs.logs(job.id), end="")
        return
    for text in jobs.follow(job.id):
        print(text, end="", flush=True)
