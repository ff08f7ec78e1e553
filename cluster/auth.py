"""Token authentication of Ray: on wherever a token exists, and a token is made where Ray is started.

Seen with Ray 2.60: a cluster without authentication accepts a client that sends a token, but a cluster with
authentication drops a client that sends none, and joining never turns it on by itself. So Manta always sends
the token that it finds. The mode must be set before Ray is imported.
"""

import contextlib
import os
import secrets
import sys
from pathlib import Path


def token_path() -> Path:
    """Where Ray looks for the token."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def has_token() -> bool:
    """Whether Ray would find a token in the environment or on disk."""
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or token_path().exists()


def sent_token() -> str | None:
    """The token that Ray sends from here; None if it sends none."""
    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return None
    token = os.environ.get("RAY_AUTH_TOKEN")
    if not token:
        with contextlib.suppress(OSError):
            token = token_path().read_text().strip()
    return token or None


def ensure_token() -> None:
    """Make a token that only this user can read, unless there is one."""
    if has_token():
        return
    path = token_path()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "w") as stream:
        stream.write(secrets.token_hex(32))


def enable_where_possible() -> None:
    """Authenticate if there is a token and the user has not chosen a mode (``RAY_AUTH_MODE``)."""
    if has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if raylet := sys.modules.get("ray._raylet"):
            raylet.Config.initialize("")  # Ray was imported before (as tests do) and has read the old mode.


def requires_token(address: str) -> bool | None:
    """Whether a cluster refuses a call without a token; None if nothing answers."""
    return _refuses(address, None)


def refuses_our_token(address: str) -> bool:
    """Whether a cluster that wants a token refuses the one that we send: it is another cluster's."""
    token = sent_token()
    return bool(token and _refuses(address, token))


def _refuses(address: str, token: str | None) -> bool | None:
    import grpc
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(address) as channel:
        stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        try:
            stub.CheckAlive(gcs_service_pb2.CheckAliveRequest(), timeout=3, metadata=metadata)
        except grpc.RpcError as error:
            return True if error.code() == grpc.StatusCode.UNAUTHENTICATED else None
    return False
