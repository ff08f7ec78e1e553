"""Jobs: Manta's command lines on a cluster, through Ray's job API.

What a job is told is readable by everybody who may look at the cluster: so neither its metadata nor its
command line nor its environment carry a secret. Values of variables come from the environment of the
cluster's nodes; a job is given names alone.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.auth import enable_where_possible
from cluster.dashboard import reach
from cluster.errors import UserError
from cluster.job_package import Package

_ERROR_PREFIX = "manta: error: "
_STOPPED_CODE = 128 + signal.SIGTERM
_STOP_SECONDS = 30.0
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Job:
    """A job of a cluster, as it is now."""

    id: str
    status: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    metadata: dict[str, str]
    message: str
    started: float
    """In seconds since the epoch."""
    ended: float | None
    driver_exit_code: int | None

    @property
    def finished(self) -> bool:
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")

    @property
    def exit_code(self) -> int:
        """The code that its command ended with, as a shell would report it."""
        if self.status == "SUCCEEDED":
            return 0
        if self.status == "STOPPED":
            return _STOPPED_CODE
        code = self.driver_exit_code or 1
        return code if code > 0 else 128 - code

    @property
    def last_error(self) -> str:
        """The line that says why it failed; empty if it did not."""
        return last_error_line(self.message) if self.status == "FAILED" else ""


def last_error_line(text: str) -> str:
    """The last error that a command printed, else the last line that is not empty."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(_ERROR_PREFIX)]
    return (errors or lines or [""])[-1].removeprefix(_ERROR_PREFIX)


class Jobs:
    """The jobs of one cluster, which is reached at its dashboard's URL.

    Raises:
        UserError: nothing answers at the URL, or it refuses us.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        reach(url)
        enable_where_possible()
        os.environ["RAY_API_SERVER_ADDRESS"] = url  # The client prefers RAY_ADDRESS to its argument.
        from ray.job_submission import JobSubmissionClient

        for name in ("job.sdk", "dashboard_sdk"):  # They tell of uploads and connections.
            logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
        self._client = JobSubmissionClient(url)

    def submit(
        self,
        entrypoint: str,
        package: Package,
        *,
        name: str,
        metadata: dict[str, str],
        requirements: list[str],
        cpus: float,
    ) -> str:
        """Start a job and return its id, which begins with `name`.

        entrypoint: shell command, run in the unpacked package.
        requirements: what pip shall install where the cluster lacks it.
        cpus: reserved for the command itself; with 0 it runs on the head.
        """
        with tempfile.TemporaryDirectory(prefix="manta-") as folder:
            archive = Path(folder, "package.zip")
            archive.write_bytes(package.content)
            runtime_env: dict[str, Any] = {"working_dir": str(archive)}
            if requirements:
                runtime_env["pip"] = {"packages": requirements, "pip_check": False}
            job: str = self._ask(
                self._client.submit_job,
                entrypoint=entrypoint,
                submission_id=f"{name}-{secrets.token_hex(3)}",
                runtime_env=runtime_env,
                metadata=metadata,
                entrypoint_num_cpus=cpus or None,
            )
        return job

    def all(self) -> list[Job]:
        """Every job that was submitted to the cluster, oldest first."""
        details = [each for each in self._ask(self._client.list_jobs) if each.submission_id]
        return sorted(map(_job, details), key=lambda job: job.started)

    def find(self, reference: str) -> Job:
        """The job with this id, or the only one whose id begins so.

        Raises:
            UserError: there is none, or more than one.
        """
        jobs = self.all()
        found = [job for job in jobs if job.id == reference]
        found = found or [job for job in jobs if job.id.startswith(reference)]
        if len(found) != 1:
            problem = "is ambiguous" if found else "does not exist"
            known = ", ".join(job.id for job in (found or jobs)[-5:])
            there = f"the newest are {known}" if known else "none was submitted yet"
            raise UserError(f"job {reference!r} {problem} at {self.url}; {there}")
        return found[0]

    def get(self, job: str) -> Job:
        """The job with this very id, as it is now."""
        return _job(self._ask(self._client.get_job_info, job))

    def logs(self, job: str) -> str:
        """Everything that a job has printed so far."""
        text: str = self._ask(self._client.get_job_logs, job)
        return text

    def follow(self, job: str) -> Iterator[str]:
        """What a job prints, from its beginning until it has ended. Survives a broken connection."""
        from aiohttp import ClientError

        seen = 0
        while not self.get(job).finished:
            skip = seen
            with contextlib.suppress(RuntimeError, OSError, ClientError):
                for text in self._tail(job):
                    new = text[skip:]
                    skip -= len(text) - len(new)
                    seen += len(new)
                    if new:
                        yield new
        with contextlib.suppress(UserError):  # The node that kept the log may be gone.
            yield self.logs(job)[seen:]

    def stop(self, job: str) -> Job:
        """Ask a job to end (Ray kills it after 3 seconds) and wait until it has."""
        self._ask(self._client.stop_job, job)
        deadline = time.monotonic() + _STOP_SECONDS
        while not (found := self.get(job)).finished:
            if time.monotonic() > deadline:
                raise UserError(f"{job} has not ended {_STOP_SECONDS:.0f} s after it was asked to")
            time.sleep(0.2)
        return found

    def _tail(self, job: str) -> Iterator[str]:
        """A job's output from its beginning until the job has ended or the connection closes.

        Ray itself goes on listening for some seconds after a job has ended.
        """
        pieces = self._client.tail_job_logs(job)

        async def next_piece() -> str | None:
            piece = asyncio.ensure_future(anext(pieces, None))
            while not (await asyncio.wait({piece}, timeout=_POLL_SECONDS))[0]:
                if (await asyncio.to_thread(self.get, job)).finished:
                    piece.cancel()
                    return None
            return piece.result()

        with asyncio.Runner() as runner:
            while (text := runner.run(next_piece())) is not None:
                yield text

    def _ask(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        from ray.exceptions import AuthenticationError

        try:
            return call(*arguments, **options)
        except (RuntimeError, OSError, AuthenticationError) as error:
            raise UserError(f"{self.url}: {last_error_line(str(error))}") from error


def _job(details: Any) -> Job:
    return Job(
        id=details.submission_id,
        status=details.status.value,
        metadata=dict(details.metadata or {}),
        message=details.message or "",
        started=(details.start_time or 0) / 1000,
        ended=details.end_time / 1000 if details.end_time else None,
        driver_exit_code=details.driver_exit_code,
    )
