"""The undisturbed run that all others are compared with."""

import subprocess
import sys
from pathlib import Path

from cluster.artifacts.store import ArtifactStore
from pipelines.quickstart.chain import chain
from pipelines.quickstart.config import QuickstartConfig
from tests.faults.driver import step_of
from tests.faults.killing import KINDS, Reference


def prepare(root: Path) -> Reference:
    """A finished smoke quickstart under `root`, made by the same programs as the disturbed ones."""
    steps = chain(QuickstartConfig(root=str(root), scale="smoke"))
    for index in range(len(steps)):
        command = [sys.executable, "-m", "tests.faults.driver", str(root), str(index)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return reference(root)


def reference(root: Path) -> Reference:
    """One that `prepare` has made."""
    store = ArtifactStore(root)
    seconds = {}
    for index, step in enumerate(chain(QuickstartConfig(root=str(root), scale="smoke"))):
        if step.stage in KINDS:
            artifact = store.resolve(KINDS[step.stage], step_of(str(root), index).config.name)
            seconds[index] = float(artifact.run()["seconds"])
    return Reference(root, seconds)


def index_of(stage: str) -> int:
    """The place of the first step of a stage."""
    steps = chain(QuickstartConfig(scale="smoke"))
    return next(index for index, step in enumerate(steps) if step.stage == stage)
