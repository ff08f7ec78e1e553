"""Join a running Ray cluster, or start one on this machine for as long as it is needed."""

import logging
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cluster.addresses import join_where_it_listens
from cluster.auth import (
    enable_where_possible,
    ensure_token,
    has_token,
    refuses_our_token,
    requires_token,
    token_path,
)
from cluster.compute_threads import brief_waits
from cluster.errors import UserError
from cluster.one_process import node_memory
from cluster.placement import Node, Share, share
from cluster.shared_places import Places, require_seen
from cluster.waiting import Watch

# Stages run actors with fractional CPUs beside Ray Train's controller; fewer than two would never schedule.
_MINIMUM_CPUS = 2


class Cluster:
    """The Ray cluster that stages run on. It is joined or started when the first stage has work to do.

    A stage whose artifact exists never connects, so that it answers at once. While a command is connected,
    `announce` is told what it waits for where others have taken the cluster.

    places: what the stages read and write on a disk; all nodes of a cluster that is joined must see it.
    """

    def __init__(
        self,
        address: str | None = None,
        announce: Callable[[str], None] | None = None,
        places: Places | None = None,
    ) -> None:
        self._address = address
        self._announce = announce
        self._places = places
        self._connected = False
        self._watch: Watch | None = None
        self.joined = False
        """True if the cluster ran before this command and goes on after it."""

    def connect(self) -> "Cluster":
        """Connect to the address, else to a cluster on this machine (``ray start --head``), else start one.

        Does nothing if this process is connected already.

        Raises:
            UserError: nothing answers at the address, what answers refuses the token, or a node on another
                machine does not see the places.
        """
        if self._connected:
            return self
        _set_environment()
        import ray

        if not ray.is_initialized():
            address = self._address or os.environ.get("RAY_ADDRESS") or running_address()
            try:
                with _own_sigterm_handler():
                    if address:
                        _join(address)
                        self.joined = True
                    else:
                        start_local()
            except BaseException:
                ray.shutdown()  # Half a connection would abort the process when it exits.
                raise
        self._connected = True
        if self._announce is not None:
            self._announce(self.describe())
            self._watch = Watch(self._announce)
        if self._places is not None and self.joined:
            require_seen(self._places)
        return self

    def stop_watching(self) -> None:
        """Say no more of what is waited for."""
        if self._watch is not None:
            self._watch.stop()
            self._watch = None

    def close(self) -> None:
        """Leave the cluster; one that was started here stops."""
        self.stop_watching()
        if self._connected:
            import ray

            ray.shutdown()
            self._connected = False

    @property
    def cpus(self) -> float:
        """CPUs of all nodes."""
        return self._resources().get("CPU", 0.0)

    @property
    def gpus(self) -> float:
        """GPUs of all nodes."""
        return self._resources().get("GPU", 0.0)

    @property
    def nodes(self) -> list[Node]:
        """Machines that are alive."""
        import ray

        self.connect()
        resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return [Node(each.get("CPU", 0.0), int(each.get("GPU", 0))) for each in resources]

    def share(self, actors: int, use_gpus: bool = True) -> Share:
        """What each of `actors` equal ones that live at once may reserve, so that Ray can place them all.

        One GPU each if there are enough for all of them. An actor's device follows from that alone: see
        `assigned_device`.
        """
        return share(self.nodes, actors, use_gpus)

    @property
    def memory_bytes(self) -> int:
        """Memory of all nodes that Ray gives to tasks and actors."""
        return int(self._resources().get("memory", 0))

    @property
    def largest_memory_bytes(self) -> int:
        """The most memory that one node gives to tasks and actors: what a single process may reserve."""
        import ray

        self.connect()
        resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return int(max((each.get("memory", 0) for each in resources), default=0))

    def describe(self) -> str:
        """One line for the terminal."""
        gpus = f", {self.gpus:g} GPUs" if self.gpus else ""
        how = "joined a running Ray cluster" if self.joined else "started Ray on this machine"
        return f"{how}: {self.cpus:g} CPUs{gpus}, {self.memory_bytes / 2**30:.1f} GiB of memory"

    def _resources(self) -> dict[str, float]:
        import ray

        self.connect()
        resources: dict[str, float] = ray.cluster_resources()
        return resources


@contextmanager
def connect(
    address: str | None = None,
    announce: Callable[[str], None] | None = None,
    places: Places | None = None,
) -> Iterator[Cluster]:
    """A cluster for the length of the block; `announce` is told when it is joined or started, and when it is
    so busy that this command has to wait.

    All nodes must see the `places`; see `Cluster`.

    When the block is interrupted, the process is about to end and Ray ends with it. Leaving first would take
    seconds that a job which is stopped does not have, and Ray ends a process with exit code 1, and without a
    word, when a thread still uses it.
    """
    cluster = Cluster(address, announce, places)
    try:
        yield cluster
    except (KeyboardInterrupt, SystemExit):
        cluster.stop_watching()
        raise
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # They hold what still runs on Ray, such as an iterator.
        lost = _lost_process(error)
        cluster.close()
        if lost is not None:
            raise UserError(f"{lost}; run the same command again, and it goes on from here") from None
        raise
    else:
        cluster.close()


def start_local(**options: Any) -> None:
    """Start Ray on this machine, quiet, without the dashboard, with token authentication."""
    if os.environ.get("RAY_AUTH_MODE", "token") == "token":
        ensure_token()
    _set_environment()
    import ray

    settings: dict[str, Any] = {
        "address": "local",
        "num_cpus": max(_MINIMUM_CPUS, os.cpu_count() or 1),
        "include_dashboard": False,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
    # It prints the whole log of a dashboard that was slow to start, and here there is none.
    logging.getLogger("ray._private.services").setLevel(logging.CRITICAL)
    try:
        ray.init(**{**settings, **options})
    except Exception as error:  # Ray has no class of its own for it.
        if "timed out" not in str(error):
            raise
        raise UserError(
            f"Ray did not start on this machine: {_first_line(error)} If the machine is only busy, run again"
        ) from error
    _quiet_loggers()


def running_address() -> str | None:
    """Address of the cluster that ``ray start --head`` started on this machine, if it answers."""
    from ray._private import services

    address = services.find_bootstrap_address(None)
    return address if address in services.find_gcs_addresses() else None


def _join(address: str) -> None:
    _set_environment()
    wanted = requires_token(address)
    if wanted is None:
        raise UserError(f"no Ray cluster answers at {address}; start one, or leave out the address")
    if wanted and not has_token():
        raise UserError(f"the Ray cluster at {address} wants a token; copy its token to {token_path()}")
    if wanted and refuses_our_token(address):
        raise UserError(
            f"the Ray cluster at {address} refuses our token, which is another cluster's; "
            f"copy its token to {token_path()}"
        )
    join_where_it_listens(address)
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"cannot join the Ray cluster at {address}: {_first_line(error)}; see `manta doctor`"
        ) from error
    _quiet_loggers()


@contextmanager
def _own_sigterm_handler() -> Iterator[None]:
    """Keep the handler of SIGTERM that the command has set.

    Ray puts another in its place, and below Python's one that prints a C++ stack before it calls that.
    """
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _lost_process(error: BaseException) -> str | None:
    """What died, if an error says that a process or a node of the cluster did, which is nobody's bug."""
    from ray.exceptions import (
        NodeDiedError,
        ObjectLostError,
        OutOfMemoryError,
        RayActorError,
        WorkerCrashedError,
    )

    if isinstance(error, OutOfMemoryError):
        return (
            f"a process was killed because its node ran out of memory{node_memory(error)}; have fewer "
            "of them (--workers, --engines, --replicas) or smaller ones (--max-batch, --micro-batch)"
        )
    lost = (RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError)
    return f"a process on the cluster was lost: {_first_line(error)}" if isinstance(error, lost) else None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _set_environment() -> None:
    """Settings that Ray reads when it is imported or started, or hands on; what the user set stays."""
    enable_where_possible()
    for name, value in {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # Its default polls workers every 2 s.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_DEDUP_LOGS": "1",
        "RAY_usage_stats_enabled": "0",
        **brief_waits(),
    }.items():
        os.environ.setdefault(name, value)


def _quiet_loggers() -> None:
    for name in ("ray", "ray.data", "ray.train", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
