"""`manta up` and `manta down`: a Ray head on this machine, with dashboard, jobs, metrics and a token.

It listens on loopback alone. What was started is written down (process and its time of creation), so that
`down` ends that and nothing else: `ray stop` would end every Ray process of the machine.
"""

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from cluster.addresses import KEEP_TO_LOOPBACK, answers
from cluster.auth import enable_where_possible, ensure_token, token_path
from cluster.compute_threads import brief_waits
from cluster.dashboard import look_at
from cluster.errors import UserError

_HOST = "127.0.0.1"
_START_SECONDS = 90.0
_STOP_SECONDS = 10.0


@dataclass(frozen=True)
class Head:
    """A head that `manta up` started."""

    pid: int
    created: float
    """When the process was created, in seconds since the epoch: the number alone may be used again."""
    address: str
    """HOST:PORT that commands join."""
    dashboard: str
    """URL that takes jobs."""
    metrics: str
    """URL that Prometheus scrapes."""


def running_head() -> Head | None:
    """The head that `manta up` started, if it still runs."""
    try:
        head = Head(**json.loads(_state().read_bytes()))
        process = psutil.Process(head.pid)
        ours = abs(process.create_time() - head.created) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, TypeError, psutil.Error):
        return None
    return head if ours else None


def start(*, port: int, dashboard_port: int, metrics_port: int, cpus: int | None) -> Head:
    """Start a head, unless one runs already, and wait until it takes jobs. Ports of 0 are chosen.

    Raises:
        UserError: another cluster runs here, a port is taken, or Ray does not start.
    """
    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        raise UserError(
            f"RAY_AUTH_MODE={os.environ['RAY_AUTH_MODE']}: `manta up` starts with token authentication only, "
            "for whoever reaches the cluster runs code on it; unset the variable"
        )
    _state().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _only_one_at_a_time():
        running = running_head()
        if running is not None:
            return running
        _check_no_other_cluster()
        port = _free_port("--port", port)
        dashboard_port = _free_port("--dashboard-port", dashboard_port)
        metrics_port = _free_port("--metrics-port", metrics_port)
        ensure_token()
        with contextlib.suppress(OSError):  # A mounted secret may belong to somebody else.
            token_path().chmod(0o600)
        enable_where_possible()
        process = _start_ray(port, dashboard_port, metrics_port, cpus)
        head = Head(
            pid=process.pid,
            created=psutil.Process(process.pid).create_time(),
            address=f"{_HOST}:{port}",
            dashboard=f"http://{_HOST}:{dashboard_port}",
            metrics=f"http://{_HOST}:{metrics_port}/metrics",
        )
        _state().write_text(json.dumps(asdict(head), indent=2) + "\n")
        try:
            _wait_until_it_takes_jobs(head, process)
        except BaseException:
            stop(head)
            raise
    return head


def stop(head: Head) -> None:
    """End the head's processes: politely, and after some seconds without asking."""
    with contextlib.suppress(psutil.NoSuchProcess):
        main = psutil.Process(head.pid)
        processes = [main, *main.children(recursive=True)]
        main.terminate()
        _, alive = psutil.wait_procs(processes, timeout=_STOP_SECONDS)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=_STOP_SECONDS)
    _state().unlink(missing_ok=True)


def log_path() -> Path:
    """What `ray start` printed."""
    return _folder() / "head.log"


def _folder() -> Path:
    return Path.home() / ".manta"


def _state() -> Path:
    return _folder() / "head.json"


@contextlib.contextmanager
def _only_one_at_a_time() -> Iterator[None]:
    with (_folder() / "head.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _check_no_other_cluster() -> None:
    from cluster.connect import running_address

    address = running_address()
    if address is not None:
        raise UserError(
            f"a Ray cluster that `manta up` did not start runs at {address}, and commands join it already; "
            "to have another, stop it first (`ray stop`)"
        )


def _free_port(flag: str, port: int) -> int:
    """The port if nobody has it, or one that nobody has for 0."""
    if port and answers(_HOST, port):
        raise UserError(f"{flag} {port} is taken; choose another one, or 0 for any")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise UserError(f"{flag} {port}: {error.strerror}; choose another one, or 0 for any") from error
        chosen: int = probe.getsockname()[1]
        return chosen


def _start_ray(
    port: int, dashboard_port: int, metrics_port: int, cpus: int | None
) -> subprocess.Popen[bytes]:
    options = {
        "port": port,
        "include-dashboard": "true",
        "dashboard-host": _HOST,
        "dashboard-port": dashboard_port,
        "metrics-export-port": metrics_port,
        # The rest is chosen, so that a second cluster (of tests, say) finds its ports free.
        "dashboard-agent-listen-port": _free_port("", 0),
        "ray-client-server-port": _free_port("", 0),
        "min-worker-port": 0,
        "max-worker-port": 0,
    }
    if cpus is not None:
        options["num-cpus"] = cpus
    arguments = [f"--{name}={value}" for name, value in options.items()]
    python = Path(sys.executable)
    environment = {
        **os.environ,
        **KEEP_TO_LOOPBACK,
        **brief_waits(),
        "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",  # Jobs say `python`.
        "RAY_AUTH_MODE": "token",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # Nobody takes over from a single node.
        "RAY_usage_stats_enabled": "0",
    }
    with log_path().open("wb") as log:
        return subprocess.Popen(
            [str(python), "-m", "ray.scripts.scripts", "start", "--head", "--block", *arguments],
            env=environment,
            cwd=_folder(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in this terminal is not meant for it.
        )


def _wait_until_it_takes_jobs(head: Head, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise UserError(f"Ray did not start: {_last_line(log_path())} (all of it is in {log_path()})")
        # The agent, which starts last, serves the metrics and runs the jobs.
        if answers(_HOST, urlsplit(head.metrics).port or 0):
            dashboard = look_at(head.dashboard)
            if dashboard is not None and dashboard.takes_us and not dashboard.open:
                return
        time.sleep(0.2)
    raise UserError(f"Ray did not take jobs within {_START_SECONDS:.0f} s; see {log_path()}")


def _last_line(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
