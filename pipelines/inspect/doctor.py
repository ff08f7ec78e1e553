"""``manta doctor``: what this machine has, and what will and won't run on it."""

from collections.abc import Callable, Iterator

from cluster.diagnosis import Finding, machine, ports, python_packages, ray_cluster
from cluster.root_diagnosis import root_of_artifacts
from pipelines.progress import console
from pipelines.stage_config import Frozen

_SIGNS = {"ok": "[green]ok[/green]  ", "warn": "[yellow]warn[/yellow]", "bad": "[red]bad[/red] "}


class DoctorConfig(Frozen):
    """Say what this machine has (CPUs, GPUs, memory, disk, Ray, ports) and what will and won't run."""

    root: str = "runs/default"
    """Where artifacts would be written: of a folder the disk is looked at, a bucket is tried out."""


def run(config: DoctorConfig) -> int:
    """Print one line a finding; exit code 1 if something keeps Manta from running."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        machine,
        lambda: root_of_artifacts(config.root),
        python_packages,
        ray_cluster,
        ports,
    )
    findings = [finding for check in checks for finding in check()]
    for finding in findings:
        console.print(f"{_SIGNS[finding.level]} {finding.text}")
    bad = [finding for finding in findings if finding.level == "bad"]
    console.print(
        f"\n{len(bad)} thing{'s' if len(bad) > 1 else ''} to mend before Manta runs"
        if bad
        else "\nManta runs here"
    )
    return 1 if bad else 0
