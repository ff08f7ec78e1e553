"""The undisturbed run that all others are compared with."""

import subprocess
import sys
from pathlib import Path

from cluster.artifacts.store import ArtifactStore
from tests.faults.killing import Reference
from tests.faults.steps import kind_of, steps


def prepare(root: Path) -> Reference:
    """All steps finished under `root`, made by the same programs as the disturbed ones."""
    for index in range(len(steps(str(root)))):
        command = [sys.executable, "-m", "tests.faults.driver", str(root), str(index)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return reference(root)


def reference(root: Path) -> Reference:
    """One that `prepare` has made."""
    store = ArtifactStore(root)
    seconds = {}
    for index, step in enumerate(steps(str(root))):
        if kind := kind_of(step):
            artifact = store.resolve(kind, step.config.name)
            seconds[index] = float(artifact.run()["seconds"])
    return Reference(root, seconds)


def is_whole(root: Path) -> bool:
    """Whether `prepare` has made all of it."""
    last = steps(str(root))[-1]
    return ArtifactStore(root).newest("models", last.config.name) is not None
