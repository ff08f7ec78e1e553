"""``manta show``: one artifact, what is in it, and the chain of artifacts that it was made from."""

import json
from typing import Annotated

import tyro
from rich.tree import Tree

from cluster.artifacts.manifest import Artifact, DamagedManifest
from cluster.artifacts.store import KINDS, ArtifactStore
from cluster.errors import UserError
from pipelines.inspect.format import format_bytes, format_seconds
from pipelines.progress import console
from pipelines.stage_config import Frozen
from pipelines.tokenizer_report import REPORT_FILE, readable


class ShowConfig(Frozen):
    """Show one artifact: lineage, configuration, counts, files."""

    artifact: Annotated[str, tyro.conf.Positional]
    """KIND/NAME or KIND/NAME/VERSION; the start of a version is enough."""
    root: str = "runs/default"
    """Where the artifacts are."""
    manifest: bool = False
    """Print the manifest as it is (JSON)."""


def run(config: ShowConfig) -> None:
    """Print the artifact for people, or its manifest for programs."""
    store = ArtifactStore(config.root)
    artifact = find(store, config.artifact)
    if config.manifest:
        print(json.dumps(artifact.manifest, indent=2, sort_keys=True, ensure_ascii=False))
        return
    files = len(artifact.manifest["files"])
    console.print(f"[bold]{artifact.ref}[/bold]  {format_bytes(artifact.bytes)} in {files} files")
    console.print(f"at {artifact.folder}")
    seconds = artifact.run().get("seconds")
    if seconds is not None:
        console.print(f"made by `{artifact.manifest['stage']}` in {format_seconds(seconds)}")
    console.print("\n[bold]made from[/bold]")
    console.print(_lineage(store, artifact, Tree(artifact.ref)))
    for title in ("counts", "what"):
        console.print(f"\n[bold]{title}[/bold]")
        for line in _flatten(artifact.manifest[title]):
            console.print(f"  {line}", markup=False)
    if REPORT_FILE in artifact.files and artifact.kind == "tokenizers":
        console.print(f"\n[bold]{REPORT_FILE}[/bold]")
        for part in readable(json.loads(artifact.read(REPORT_FILE))):
            console.print(part)


def find(store: ArtifactStore, reference: str) -> Artifact:
    """The artifact of a reference that starts with its kind."""
    kind, _, rest = reference.partition("/")
    if kind not in KINDS or not rest:
        raise UserError(f"{reference!r} is not KIND/NAME; kinds are {', '.join(KINDS)}")
    return store.resolve(kind, rest)


def _lineage(store: ArtifactStore, artifact: Artifact, tree: Tree) -> Tree:
    """The inputs of an artifact below it, and theirs below them; one that is gone is said to be."""
    for role, source in artifact.manifest["inputs"].items():
        branch = tree.add(f"{role}: {source['ref']}")
        kind, _, rest = source["ref"].partition("/")
        try:
            _lineage(store, store.resolve(kind, rest), branch)
        except DamagedManifest:
            branch.label = f"{role}: {source['ref']} (damaged)"
        except UserError:
            branch.label = f"{role}: {source['ref']} (not under this root any more)"
    return tree


def _flatten(value: object, prefix: str = "") -> list[str]:
    """``{"a": {"b": 1}}`` → ``["a.b: 1"]``; long lists are cut."""
    if isinstance(value, dict):
        return [line for key, item in value.items() for line in _flatten(item, f"{prefix}.{key}".lstrip("."))]
    if isinstance(value, list) and len(value) > 6:
        return [f"{prefix}: [{', '.join(map(str, value[:3]))}, … {len(value)} in all]"]
    return [
        f"{prefix}: {value:,}"
        if isinstance(value, int) and not isinstance(value, bool)
        else f"{prefix}: {value}"
    ]
