"""Memory of this machine that a process may use: what the kernel has, or less where a cgroup says so.

A container's limit is its cgroup's, which the machine's own figures know nothing of.
"""

from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class HostMemory:
    """Bytes."""

    total: int
    """All that processes here may ever have,"""
    free: int
    """and what is left of it now."""


def host_memory(root: Path = Path("/")) -> HostMemory:
    """Of the machine, or of the cgroup of this process that leaves least.

    root: where proc/ and sys/ are.
    """
    machine = psutil.virtual_memory()
    total, free = machine.total, machine.available
    for limit, used in _limits(root):
        total, free = min(total, limit), min(free, max(0, limit - used))
    return HostMemory(total, free)


def _limits(root: Path) -> list[tuple[int, int]]:
    """(limit, bytes in use) of this process's cgroup and of all above it, of either version."""
    found = []
    for version, names in (
        ("sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")),
        (
            "sys/fs/cgroup/memory",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ):
        mounted = root / version
        own = mounted / _group(root, "memory" if version.endswith("memory") else "")
        for folder in (own, *own.parents):
            if folder.is_relative_to(mounted):
                found += _limit(folder, *names)
    return found


def _group(root: Path, controller: str) -> str:
    """This process's cgroup, as a path below where they are mounted."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path.lstrip("/")
    return ""


def _limit(folder: Path, limit: str, used: str, cached: str) -> list[tuple[int, int]]:
    """None if there is no limit. Files that the kernel keeps in memory unasked are not in use."""
    try:
        most = (folder / limit).read_text().strip()
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        in_use = int((folder / used).read_text()) - int(statistics.get(cached, 0))
    except (OSError, ValueError):
        return []
    return [(int(most), in_use)] if most.isdigit() else []
