"""``manta verify``: read every file of artifacts and compare it with the manifest."""

from typing import Annotated

import tyro

from cluster.artifacts.manifest import DamagedManifest, verify
from cluster.artifacts.store import ArtifactStore, Survey
from pipelines.inspect.format import format_bytes
from pipelines.inspect.show import find
from pipelines.progress import console, stage_progress
from pipelines.stage_config import Frozen


class VerifyConfig(Frozen):
    """Check that every file of the artifacts is as its manifest says; exit code 1 if one is not."""

    artifacts: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """KIND/NAME or KIND/NAME/VERSION; all artifacts under the root by default."""
    root: str = "runs/default"
    """Where the artifacts are."""


def run(config: VerifyConfig) -> int:
    """Print what is wrong, file by file; 0 if nothing is."""
    store = ArtifactStore(config.root)
    there = _named(store, config.artifacts) if config.artifacts else store.survey()
    artifacts, problems = there.artifacts, [str(each) for each in there.damaged]
    with stage_progress("verify", total=len(artifacts), unit="artifact") as progress:
        for done, artifact in enumerate(artifacts, 1):
            problems += verify(artifact)
            progress.update(done)
    for problem in problems:
        console.print(problem, markup=False)
    total = format_bytes(sum(artifact.bytes for artifact in artifacts))
    verdict = f"{len(problems)} problems" if problems else "all as their manifests say"
    console.print(f"{len(artifacts) + len(there.damaged)} artifacts, {total}: {verdict}")
    return 1 if problems else 0


def _named(store: ArtifactStore, references: tuple[str, ...]) -> Survey:
    there = Survey([], [])
    for reference in references:
        try:
            there.artifacts.append(find(store, reference))
        except DamagedManifest as damaged:
            there.damaged.append(damaged)
    return there
