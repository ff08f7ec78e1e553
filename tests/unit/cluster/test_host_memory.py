"""A container has what its cgroup lets it have, whatever the machine has."""

from pathlib import Path

import psutil
import pytest

from cluster.host_memory import host_memory

GIB = 2**30


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = psutil.virtual_memory()._replace(total=64 * GIB, available=40 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: seen)


def group(folder: Path, limit: str, used: int, cached: str, names: tuple[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{cached} {GIB}\n")


def test_the_machine_s_own(tmp_path: Path) -> None:
    assert (host_memory(tmp_path).total, host_memory(tmp_path).free) == (64 * GIB, 40 * GIB)
    assert 0 < host_memory().free <= host_memory().total


def test_the_least_of_a_cgroup_and_those_above_it(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/pods/mine\n")
    mounted, names = tmp_path / "sys/fs/cgroup", ("memory.max", "memory.current")
    group(mounted / "pods/mine", "max", 3 * GIB, "inactive_file", names)
    assert host_memory(tmp_path).total == 64 * GIB
    group(mounted / "pods/mine", str(8 * GIB), 3 * GIB, "inactive_file", names)
    assert (host_memory(tmp_path).total, host_memory(tmp_path).free) == (8 * GIB, 6 * GIB)
    group(mounted / "pods", str(6 * GIB), 6 * GIB, "inactive_file", names)
    assert (host_memory(tmp_path).total, host_memory(tmp_path).free) == (6 * GIB, 1 * GIB)


def test_the_older_version(tmp_path: Path) -> None:
    """Inside a container, where its own folder is what is mounted and another path is told."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("5:cpu,cpuacct:/docker/a\n4:memory:/docker/a\n")
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    group(tmp_path / "sys/fs/cgroup/memory", str(4 * GIB), 2 * GIB, "total_inactive_file", names)
    assert (host_memory(tmp_path).total, host_memory(tmp_path).free) == (4 * GIB, 3 * GIB)
    group(tmp_path / "sys/fs/cgroup/memory", str(2**63 - 4096), 2 * GIB, "total_inactive_file", names)
    assert host_memory(tmp_path).total == 64 * GIB
