"""``manta diff``: what two artifacts were asked for, made from and made of, where they differ."""

from typing import Annotated, Any

import tyro

from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from pipelines.inspect.show import find
from pipelines.progress import console
from pipelines.stage_config import Frozen

_SHOWN_FILES = 20


class DiffConfig(Frozen):
    """Compare two artifacts: configuration, inputs, counts, files. Exit code 1 if they differ."""

    first: Annotated[str, tyro.conf.Positional]
    """KIND/NAME or KIND/NAME/VERSION."""
    second: Annotated[str, tyro.conf.Positional]
    """The other one."""
    root: str = "runs/default"
    """Where the artifacts are."""
    other_root: str | None = None
    """Where the second one is, if elsewhere."""


def run(config: DiffConfig) -> int:
    """Print one line a difference."""
    first = find(ArtifactStore(config.root), config.first)
    second = find(ArtifactStore(config.other_root or config.root), config.second)
    console.print(f"- {first.ref}\n+ {second.ref}", markup=False)
    lines = differences(first, second)
    for line in lines:
        console.print(line, markup=False)
    if not lines:
        console.print("equal in all that their manifests say")
    return 1 if lines else 0


def differences(first: Artifact, second: Artifact) -> list[str]:
    """``what.seed: 0 → 1``: one line a field, one line a file."""
    lines = []
    for part in ("stage", "logic_version", "what", "inputs", "counts"):
        ours, theirs = (_flatten(each.manifest[part], part) for each in (first, second))
        lines += [
            f"{name}: {ours.get(name, '(none)')} → {theirs.get(name, '(none)')}"
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name) != theirs.get(name)
        ]
    names = sorted(first.files.keys() | second.files.keys())
    changed = [name for name in names if first.files.get(name) != second.files.get(name)]
    lines += [f"files.{name}: {_how(first, second, name)}" for name in changed[:_SHOWN_FILES]]
    if len(changed) > _SHOWN_FILES:
        lines.append(f"… and {len(changed) - _SHOWN_FILES} more of {len(names)} files")
    return lines


def _how(first: Artifact, second: Artifact, name: str) -> str:
    if name not in second.files:
        return "only in the first"
    if name not in first.files:
        return "only in the second"
    sizes = [each.files[name]["bytes"] for each in (first, second)]
    return "other bytes of the same length" if sizes[0] == sizes[1] else f"{sizes[0]} → {sizes[1]} bytes"


def _flatten(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {
        key: leaf for field, each in value.items() for key, leaf in _flatten(each, f"{name}.{field}").items()
    }
