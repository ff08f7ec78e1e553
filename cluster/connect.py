"""Join a running Ray cluster, or start one on this machine for as long as it is needed."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cluster.auth import enable_where_possible, ensure_token, has_token
from cluster.errors import UserError

# Stages run actors with fractional CPUs beside Ray Train's controller; fewer than two would never schedule.
_MINIMUM_CPUS = 2


@dataclass(frozen=True)
class Cluster:
    """What the connected Ray cluster has in all."""

    cpus: float
    gpus: float
    memory_bytes: int
    joined: bool
    """True if it ran before this command and goes on after it."""

    def describe(self) -> str:
        """One line for the terminal."""
        gpus = f", {self.gpus:g} GPUs" if self.gpus else ""
        how = "joined a running Ray cluster" if self.joined else "started Ray on this machine"
        return f"{how}: {self.cpus:g} CPUs{gpus}, {self.memory_bytes / 2**30:.1f} GiB of memory"


@contextmanager
def connect(address: str | None = None) -> Iterator[Cluster]:
    """Connect to ``address``, or to a local cluster that runs (``ray start --head``), or start one.

    A cluster that is started here stops with the block; one that was joined keeps running.

    Raises:
        UserError: nothing answers at ``address``, or what answers refuses the token.
    """
    address = address or os.environ.get("RAY_ADDRESS") or running_address()
    if address:
        _join(address)
    else:
        start_local()
    import ray

    try:
        yield _describe(joined=address is not None)
    finally:
        ray.shutdown()


def start_local(**options: Any) -> None:
    """Start Ray on this machine, quiet, without the dashboard, with token authentication."""
    if os.environ.get("RAY_AUTH_MODE", "token") == "token":
        ensure_token()
    enable_where_possible()
    _quiet_environment()
    import ray

    settings: dict[str, Any] = {
        "address": "local",
        "num_cpus": max(_MINIMUM_CPUS, os.cpu_count() or 1),
        "include_dashboard": False,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
    ray.init(**{**settings, **options})
    _quiet_loggers()


def running_address() -> str | None:
    """Address of the cluster that ``ray start --head`` started on this machine, if it answers."""
    from ray._private import services

    address = services.find_bootstrap_address(None)
    return address if address in services.find_gcs_addresses() else None


def _join(address: str) -> None:
    enable_where_possible()
    _quiet_environment()
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        sent = "a token was sent" if has_token() else "no token was sent; the cluster may want one"
        raise UserError(
            f"cannot join the Ray cluster at {address}: {_first_line(error)} ({sent}); see `manta doctor`"
        ) from error
    _quiet_loggers()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _describe(joined: bool) -> Cluster:
    import ray

    resources = ray.cluster_resources()
    return Cluster(
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        memory_bytes=int(resources.get("memory", 0)),
        joined=joined,
    )


def _quiet_environment() -> None:
    """Settings that Ray reads when it is imported or started; what the user set stays."""
    for name, value in {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # Its default polls workers every 2 s.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_DEDUP_LOGS": "1",
        "RAY_usage_stats_enabled": "0",
    }.items():
        os.environ.setdefault(name, value)


def _quiet_loggers() -> None:
    for name in ("ray", "ray.data", "ray.train", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
