"""What a pipeline would do: which of its artifacts exist, and whether what it reads will be there."""

import importlib
from dataclasses import dataclass
from typing import Any

from cluster.artifacts.fingerprint import VERSION_LENGTH, fingerprint
from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from cluster.errors import UserError
from pipelines.run.read import Pipeline, Step

_ROLES = {("corpus", "from_corpus"): "corpus"}
"""Inputs that a stage calls otherwise than its configuration does."""


@dataclass(frozen=True)
class Planned:
    """A step, and the artifact that it makes if it exists already."""

    step: Step
    artifact: Artifact | None


def check(pipeline: Pipeline, store: ArtifactStore) -> None:
    """Check all that can be known before anything is made.

    Raises:
        UserError: a step reads what no step makes and what does not exist, or the inputs of one whose inputs
            all exist do not fit it.
    """
    for step in pipeline.steps:
        try:
            outside = [name for name in step.reads.values() if pipeline.made_by(name) is None]
            for name in outside:
                _resolve(store, name)
            if len(outside) == len(step.reads):
                _module(step).resolve_inputs(step.config, store)
        except UserError as error:
            raise UserError(f"{step.place}: {error}") from error


def plan(pipeline: Pipeline, store: ArtifactStore) -> list[Planned]:
    """Each step with its artifact, if the version that it would make is there."""
    planned: dict[str, Planned] = {}
    for step in pipeline.steps:
        inputs: dict[str, Artifact | None] = {}
        for field, name in step.reads.items():
            inputs[field] = planned[name].artifact if name in planned else _resolve(store, name)
        planned[step.makes] = Planned(step, _existing(step, inputs, store))
    return list(planned.values())


def _existing(step: Step, inputs: dict[str, Artifact | None], store: ArtifactStore) -> Artifact | None:
    """The artifact of this very configuration and these inputs."""
    if None in inputs.values():
        return None
    kind, _, name = step.makes.partition("/")
    version = _version(step, {field: artifact for field, artifact in inputs.items() if artifact is not None})
    return next(
        (each for each in store.artifacts(kind) if (each.name, each.version) == (name, version)), None
    )


def _version(step: Step, inputs: dict[str, Artifact]) -> str:
    """The version that the stage would make: the same as `ArtifactStore.begin` computes for it."""
    what: dict[str, Any] = step.config.what()
    if step.stage == "corpus" and not inputs:
        files = importlib.import_module("pipelines.corpus.inputs")
        what["raw"] = files.identity(files.hash_files(files.find_files(step.config)))
    roles = {_ROLES.get((step.stage, field), field): artifact for field, artifact in inputs.items()}
    fingerprints = {role: artifact.fingerprint for role, artifact in roles.items()}
    return fingerprint(step.stage, _module(step).LOGIC_VERSION, what, fingerprints)[:VERSION_LENGTH]


def _resolve(store: ArtifactStore, reference: str) -> Artifact:
    kind, _, rest = reference.partition("/")
    return store.resolve(kind, rest)


def _module(step: Step) -> Any:
    return importlib.import_module(f"pipelines.{step.stage}.stage")
