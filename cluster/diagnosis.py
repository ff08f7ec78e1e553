"""What a machine has and whether Manta runs on it. Each finding is a fact with its consequence."""

import importlib.metadata
import importlib.util
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Literal

import psutil

from cluster.addresses import answers
from cluster.auth import has_token, refuses_our_token, requires_token, sent_token, token_path
from cluster.dashboard import find_dashboard, look_at
from cluster.errors import UserError
from cluster.head import running_head

_QUICKSTART_MEMORY = 8 * 2**30
_OURS = ("llm", "pipelines", "cluster")
_PORTS = {6379: "Ray clusters", 8265: "Ray's dashboard and jobs", 8000: "`manta serve`"}


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis."""

    level: Literal["ok", "warn", "bad"]
    text: str


def machine() -> Iterator[Finding]:
    """CPUs, memory and GPUs."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("ok" if cpus >= 2 else "warn", f"{cpus} CPUs (the quickstart is measured on 2)")
    total, free = psutil.virtual_memory().total, psutil.virtual_memory().available
    yield Finding(
        "ok" if total >= _QUICKSTART_MEMORY * 0.95 else "warn",
        f"{total / 2**30:.1f} GiB of memory, {free / 2**30:.1f} free (the quickstart wants 8)",
    )
    shared = Path("/dev/shm")
    if shared.exists() and shutil.disk_usage(shared).total < 2**30:
        yield Finding(
            "warn", "/dev/shm is under 1 GiB: Ray's object store falls back to disk (Docker: --shm-size=2g)"
        )
    yield from _gpus()


def _gpus() -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    if not torch.cuda.is_available():
        yield Finding(
            "ok",
            "no GPU that torch can use: training runs on the CPU with gloo, models of millions of parameters",
        )
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield Finding(
            "ok",
            f"GPU {index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB: trains with nccl",
        )


def python_packages() -> Iterator[Finding]:
    """Python, the pinned packages, and other packages that would hide ours."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding(
        "ok" if sys.version_info >= (3, 11) else "bad", f"Python {version} (3.11 or newer is needed)"
    )
    for package, wanted in {"ray": "2.60.", "torch": "2.13."}.items():
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield Finding("bad", f"{package} is not installed: run `make install`")
            continue
        fits = found.startswith(wanted)
        yield Finding(
            "ok" if fits else "bad",
            f"{package} {found}" + ("" if fits else f": Manta is pinned to {wanted}*"),
        )
    yield from _clashing_packages()


def _clashing_packages() -> Iterator[Finding]:
    """PyPI has another top-level package ``llm``; the first one that Python finds hides the other."""
    here = Path(__file__).resolve().parent.parent
    for package in _OURS:
        spec = importlib.util.find_spec(package)
        origin = _package_folder(spec) if spec else None
        if origin is not None and origin != here / package:
            yield Finding(
                "bad", f"package `{package}` comes from {origin}, not from Manta: uninstall the other one"
            )
    owners = importlib.metadata.packages_distributions()
    for package in _OURS:
        others = sorted(set(owners.get(package, [])) - {"manta-llm"})
        if others:
            yield Finding(
                "warn",
                f"{', '.join(others)} also installs a package `{package}`: use an environment of its own",
            )


def _package_folder(spec: ModuleSpec) -> Path | None:
    if spec.origin:
        return Path(spec.origin).resolve().parent
    places = list(spec.submodule_search_locations or [])
    return Path(places[0]).resolve() if places else None


def ray_cluster() -> Iterator[Finding]:
    """A running cluster, and whether its authentication and ours agree."""
    from cluster.connect import running_address

    mode = os.environ.get("RAY_AUTH_MODE")
    path = token_path()
    if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
        yield Finding("warn", f"{path} can be read by other users: chmod 600 {path}")
    ours = "token" if has_token() and mode in (None, "token") else "no"
    address = os.environ.get("RAY_ADDRESS") or running_address()
    if address is None:
        start = "no Ray cluster runs here: commands start one for their own duration"
        if mode in (None, "token"):
            yield Finding("ok", f"{start}, with token authentication")
        else:
            yield Finding("warn", f"{start}, without authentication (RAY_AUTH_MODE={mode}): unset it")
        return
    yield Finding(
        "ok", f"a Ray cluster runs at {address}: commands join it ({ours} authentication on our side)"
    )
    theirs = requires_token(address)
    if theirs is None:
        yield Finding("bad", f"nothing answers at {address}: unset RAY_ADDRESS or start the cluster again")
        return
    agreed = not theirs or (ours == "token" and not refuses_our_token(address))
    yield _agreement(address, open_to_all=not theirs, takes_us=agreed)
    if agreed:
        yield from _dashboard(address)


def _dashboard(address: str) -> Iterator[Finding]:
    """The dashboard of a cluster that takes us, which has an authentication of its own."""
    try:
        url = find_dashboard(address)
    except UserError as error:
        yield Finding("warn", f"no jobs can be submitted: {error}")
        return
    dashboard = look_at(url)
    if dashboard is None:
        yield Finding("warn", f"no jobs can be submitted: nothing answers at {url}, the cluster's dashboard")
        return
    yield _agreement(f"its dashboard, {url},", open_to_all=dashboard.open, takes_us=dashboard.takes_us)


def _agreement(place: str, *, open_to_all: bool, takes_us: bool) -> Finding:
    """Whether what a place wants is what we send."""
    mode, mend = os.environ.get("RAY_AUTH_MODE"), f"copy its token to {token_path()} (mode 0600)"
    if open_to_all:
        return Finding(
            "warn",
            f"{place} takes anyone's code (no token authentication): restart it with RAY_AUTH_MODE=token",
        )
    if takes_us:
        return Finding("ok", f"{place} wants a token and takes ours")
    if sent_token():
        return Finding("bad", f"{place} refuses our token, which is another cluster's: {mend}")
    if mode not in (None, "token"):
        return Finding("bad", f"{place} wants a token and RAY_AUTH_MODE={mode} sends none: unset it")
    return Finding("bad", f"{place} wants a token and we send none: {mend}")


def ports() -> Iterator[Finding]:
    """Ports that Manta and Ray use by default."""
    head = running_head()
    ours = {int(place.rpartition(":")[2]) for place in (head.address, head.dashboard)} if head else set()
    for port, use in _PORTS.items():
        if port in ours:
            yield Finding("ok", f"port {port} is that of `manta up` ({use})")
        elif answers("127.0.0.1", port):
            yield Finding("warn", f"port {port} is taken (by default {use} uses it)")
        else:
            yield Finding("ok", f"port {port} is free ({use})")
