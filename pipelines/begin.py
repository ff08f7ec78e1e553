"""How every stage begins: the artifact if it exists, else a draft to fill."""

from typing import Any

from cluster.artifacts.draft import Draft
from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from pipelines.progress import console
from pipelines.stage_config import StageConfig


def begin(
    config: StageConfig,
    inputs: dict[str, Artifact],
    *,
    kind: str,
    stage: str,
    logic_version: int,
    what: dict[str, Any] | None = None,
) -> Artifact | Draft:
    """`ArtifactStore.begin` with all that a stage's configuration says.

    what: the identity of the result, where it is more than `config.what()`.
    """
    return ArtifactStore(config.root).begin(
        kind=kind,
        name=config.name,
        stage=stage,
        logic_version=logic_version,
        what=config.what() if what is None else what,
        inputs=inputs,
        how=config.how(),
        force=config.force,
        announce=console.print,
    )
