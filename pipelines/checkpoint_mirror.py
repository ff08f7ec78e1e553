"""Checkpoints of a run whose root is in object storage: written on the workers' machines, kept there."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cluster.artifacts.folder import Folder
from cluster.artifacts.manifest import Artifact
from cluster.artifacts.workspace import Workspace
from cluster.errors import UserError
from llm.training.checkpoint import newest_checkpoint
from llm.training.checkpoint_manifest import checkpoints_in, step_of

MANIFEST = "manifest.json"
_THREADS = 8


@dataclass(frozen=True)
class RootMirror:
    """Implements `llm.training.checkpoint_mirror.CheckpointMirror` in the artifact's own folder."""

    workspace: Workspace
    logs: tuple[str, ...]
    """Files of the workspace that must not be older than a checkpoint: the metrics of the steps before it."""

    def names(self) -> list[str]:
        files = self._checkpoints.files()
        return sorted(
            (name.removesuffix(f"/{MANIFEST}") for name in files if name.endswith(f"/{MANIFEST}")),
            reverse=True,
        )

    def manifest(self, name: str) -> bytes:
        return self._checkpoints.read(f"{name}/{MANIFEST}")

    def download(self, name: str, files: list[str], folder: Path) -> None:
        source = self._checkpoints / name

        def bring(file: str) -> None:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            source.storage.download(source.key(file), folder / file)

        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(bring, files))

    def upload(self, name: str, files: list[str], folder: Path) -> None:
        (self._checkpoints / name).publish(folder, files)

    def seal(self, name: str, manifest: bytes) -> None:
        self.workspace.publish([log for log in self.logs if (self.workspace.path / log).exists()])
        self._checkpoints.write(f"{name}/{MANIFEST}", manifest)

    def remove(self, name: str) -> None:
        self._checkpoints.delete([f"{name}/{MANIFEST}"])
        (self._checkpoints / name).delete()

    @property
    def _checkpoints(self) -> Folder:
        return self.workspace.folder / "checkpoints"


def mirror_of(workspace: Workspace, logs: tuple[str, ...]) -> RootMirror | None:
    """None where the root is a folder: that is where checkpoints are written in the first place."""
    return None if workspace.folder.local is not None else RootMirror(workspace, logs)


def extended_checkpoint(model: Artifact | None) -> Path | None:
    """The last checkpoint of a finished model, on this machine; every rank must call it."""
    if model is None:
        return None
    workspace = Workspace(model.folder)
    found = newest_checkpoint(workspace.path / "checkpoints", mirror_of(workspace, logs=()))
    if found is None or found.name != f"step-{model.counts['steps']:08d}":
        raise UserError(
            f"{model.ref}: its last checkpoint is gone or damaged, so nothing can go on from it; "
            "train it again with --force"
        )
    return found


def kept_checkpoint(folder: Folder, step: int | None = None) -> Path:
    """A whole checkpoint of a model that is finished or still training, on this machine: the newest, or that
    of `step`. `llm.training.checkpoint_weights.read_weights` reads it.

    A run in a folder removes its older ones as it goes on.

    Raises:
        UserError: there is none; the message names what there is.
    """
    workspace = Workspace(folder)
    while True:
        there = kept_steps(folder)
        found = newest_checkpoint(workspace.path / "checkpoints", mirror_of(workspace, logs=()), step)
        if found is not None:
            return found
        if kept_steps(folder) == there:  # else it was removed while we looked, for a later one
            break
    what = "no whole checkpoint" if step is None else f"no whole checkpoint of step {step}"
    others = ", ".join(str(each) for each in there if each != step)
    what_else = f"; there is that of step {others}" if step is not None and others else ""
    raise UserError(f"{folder}: there is {what}{what_else}")


def kept_steps(folder: Folder) -> list[int]:
    """Steps of the checkpoints that a model has, whole or not, the last first."""
    workspace = Workspace(folder)
    mirror = mirror_of(workspace, logs=())
    names = mirror.names() if mirror else checkpoints_in(workspace.path / "checkpoints")
    return [step_of(name) for name in names]
