"""Ray's dashboard, which also takes jobs: where it is, and whether it and we agree on authentication."""

import os
from dataclasses import dataclass
from urllib.parse import urlsplit

import psutil

from cluster.addresses import is_loopback, is_this_machine
from cluster.auth import (
    enable_where_possible,
    refuses_our_token,
    requires_token,
    sent_token,
    token_path,
)
from cluster.errors import UserError

_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


@dataclass(frozen=True)
class Dashboard:
    """What answers at a dashboard's URL."""

    url: str
    open: bool
    """It takes requests without a token: anyone's code runs there."""
    takes_us: bool
    """It takes the token that we send, or wants none."""
    session: str | None
    """Name of the Ray session behind it, if it takes us."""


def find_dashboard(address: str | None) -> str:
    """URL of a cluster's dashboard, from `--address`, the environment, or the cluster on this machine.

    address: the dashboard itself (http://HOST:8265), or the cluster (HOST:PORT), which is asked for it.

    Raises:
        UserError: there is no cluster, or it has no dashboard that can be reached from here.
    """
    enable_where_possible()
    address = address or next(filter(None, map(os.environ.get, _VARIABLES)), None)
    if address is None:
        from cluster.connect import running_address

        address = running_address()
        if address is None:
            raise UserError(
                "no Ray cluster runs on this machine: start one with `manta up`, or give --address"
            )
    if address.startswith(("http://", "https://")):
        return address.rstrip("/")
    if "://" in address:
        raise UserError(f"--address {address}: give http://HOST:8265 (the dashboard) or HOST:PORT (Ray)")
    return _dashboard_of(address)


def look_at(url: str) -> Dashboard | None:
    """Ask a dashboard for its version, without and with our token; None if nothing answers."""
    stranger, token = _status(url, None), sent_token()
    if stranger is None:
        return None
    status, session = stranger
    if status != 200 and token:
        status, session = _status(url, token) or stranger
    return Dashboard(url, open=stranger[0] == 200, takes_us=status == 200, session=session)


def reach(url: str) -> Dashboard:
    """The dashboard at a URL.

    Raises:
        UserError: nothing answers there, or it refuses us.
    """
    dashboard = look_at(url)
    if dashboard is None:
        raise UserError(f"no Ray dashboard answers at {url}; is the cluster up, and the port right?")
    if not dashboard.takes_us:
        problem = "refuses our token" if sent_token() else "wants a token and we send none"
        raise UserError(f"{url} {problem}: copy the cluster's token to {token_path()} (mode 0600)")
    return dashboard


def runs_here(url: str) -> bool:
    """Whether the head behind a dashboard runs on this machine, and so sees the folders that we see.

    A forwarded port looks like this machine too: the head's process has to be here.

    Raises:
        UserError: this machine is meant, but nothing answers there, or it refuses us.
    """
    if not is_this_machine(urlsplit(url).hostname or ""):
        return False
    session = f"--session-name={reach(url).session}"
    return any(session in (process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))


def _status(url: str, token: str | None) -> tuple[int, str | None] | None:
    """HTTP status and, if it was answered, the session's name."""
    import httpx

    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        answer = httpx.get(f"{url}/api/version", headers=headers, timeout=5)
        return answer.status_code, answer.json()["session_name"] if answer.status_code == 200 else None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError):
        return None


def _dashboard_of(address: str) -> str:
    """Ask the cluster itself."""
    wanted = requires_token(address)
    if wanted is None:
        raise UserError(
            f"no Ray cluster answers at {address}; if that is its dashboard, write http://{address}"
        )
    if wanted and not sent_token():
        raise UserError(f"the Ray cluster at {address} wants a token; copy its token to {token_path()}")
    if wanted and refuses_our_token(address):
        raise UserError(f"the Ray cluster at {address} refuses our token; copy its token to {token_path()}")
    from ray._private.ray_constants import DASHBOARD_ADDRESS, KV_NAMESPACE_DASHBOARD
    from ray._raylet import GcsClient

    found = GcsClient(address=address).internal_kv_get(
        DASHBOARD_ADDRESS.encode(), namespace=KV_NAMESPACE_DASHBOARD, timeout=10
    )
    if not found:
        raise UserError(f"the cluster at {address} runs without a dashboard, which is what takes jobs")
    host = found.decode().rpartition(":")[0]
    if is_loopback(host) and not is_this_machine(address.rpartition(":")[0]):
        raise UserError(
            f"the dashboard of {address} listens on its own machine alone: forward its port here "
            f"(`ssh -L 8265:{found.decode()} …`) and give --address http://127.0.0.1:8265"
        )
    return f"http://{found.decode()}"
