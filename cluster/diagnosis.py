"""What a machine has and whether Manta runs on it. Each finding is a fact with its consequence."""

import importlib.metadata
import importlib.util
import os
import shutil
import socket
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Literal

import psutil

from cluster.auth import has_token, requires_token, token_path

_QUICKSTART_MEMORY = 8 * 2**30
_QUICKSTART_DISK = 2 * 2**30
_OURS = ("llm", "pipelines", "cluster")
_PORTS = {6379: "`ray start --head`", 8265: "Ray's dashboard and jobs", 8000: "`manta serve`"}


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis."""

    level: Literal["ok", "warn", "bad"]
    text: str


def machine(root: str) -> Iterator[Finding]:
    """CPUs, memory, disk and GPUs."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("ok" if cpus >= 2 else "warn", f"{cpus} CPUs (the quickstart is measured on 2)")
    total, free = psutil.virtual_memory().total, psutil.virtual_memory().available
    yield Finding(
        "ok" if total >= _QUICKSTART_MEMORY * 0.95 else "warn",
        f"{total / 2**30:.1f} GiB of memory, {free / 2**30:.1f} free (the quickstart wants 8)",
    )
    folder = Path(root).expanduser().absolute()
    while not folder.exists():
        folder = folder.parent
    disk = shutil.disk_usage(folder)
    yield Finding(
        "ok" if disk.free >= _QUICKSTART_DISK else "bad",
        f"{disk.free / 2**30:.1f} GiB free on the disk of {root} (the quickstart writes less than 1)",
    )
    if not os.access(folder, os.W_OK):
        yield Finding("bad", f"{folder} is not writable: choose another --root")
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
    elif theirs and ours == "no":
        yield Finding(
            "bad", f"{address} wants a token and we send none: copy its token to {path} (mode 0600)"
        )
    elif not theirs:
        yield Finding(
            "warn",
            f"{address} takes anyone's code (no token authentication): restart it with RAY_AUTH_MODE=token",
        )


def ports() -> Iterator[Finding]:
    """Ports that Manta and Ray use by default."""
    for port, use in _PORTS.items():
        with socket.socket() as probe:
            taken = probe.connect_ex(("127.0.0.1", port)) == 0
        if taken:
            yield Finding("warn", f"port {port} is taken (by default {use} uses it)")
        else:
            yield Finding("ok", f"port {port} is free ({use})")
