"""``manta down``: stop the cluster that ``manta up`` started, and no other."""

from cluster import head
from cluster.errors import UserError
from cluster.jobs import Job, Jobs
from pipelines.progress import console
from pipelines.stage_config import Frozen


class DownConfig(Frozen):
    """Stop the cluster that `manta up` started. Its jobs end first, and continue when submitted again."""


def run(config: DownConfig) -> None:
    """Stop it if it runs."""
    cluster = head.running_head()
    if cluster is None:
        console.print("nothing to stop: `manta up` started no cluster that still runs")
        return
    stopped = _stop_jobs(cluster.dashboard)
    head.stop(cluster)
    console.print(f"stopped Ray at {cluster.address}")
    if stopped:
        names = ", ".join(job.id for job in stopped)
        console.print(f"stopped with it: {names}; submit the same again and it continues")


def _stop_jobs(url: str) -> list[Job]:
    """Give running jobs their time to end. A dashboard that does not answer any more has none to speak of."""
    try:
        jobs = Jobs(url)
        return [jobs.stop(job.id) for job in jobs.all() if not job.finished]
    except UserError:
        return []
