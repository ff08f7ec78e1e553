"""``manta ls``: the artifacts under a root."""

from datetime import datetime

from rich.table import Table

from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import KINDS, ArtifactStore
from cluster.errors import UserError
from pipelines.inspect.format import format_bytes, format_seconds
from pipelines.progress import console
from pipelines.stage_config import Frozen


class LsConfig(Frozen):
    """List artifacts, newest version of a name marked with *."""

    root: str = "runs/default"
    """Where the artifacts are."""
    kind: str | None = None
    """Only this kind: corpora, tokenizers, tokens, models, preferences or evaluations."""


def run(config: LsConfig) -> None:
    """Print one line an artifact."""
    if config.kind is not None and config.kind not in KINDS:
        raise UserError(f"--kind {config.kind}: kinds are {', '.join(KINDS)}")
    store = ArtifactStore(config.root)
    there = store.survey(config.kind)
    if not there.artifacts and not there.damaged:
        console.print(f"no artifacts under {store.root}")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("artifact", "made by", "size", "took", "finished"):
        table.add_column(column, justify="right" if column in ("size", "took") else "left", overflow="fold")
    for artifact in there.artifacts:
        table.add_row(*_row(store, artifact))
    for damaged in there.damaged:
        table.add_row(damaged.ref, "[red]damaged[/red]", "", "", "see `manta verify`")
    console.print(table)


def _row(store: ArtifactStore, artifact: Artifact) -> tuple[str, ...]:
    run_facts = artifact.run()
    newest = store.newest(artifact.kind, artifact.name) == artifact.version
    seconds, started = run_facts.get("seconds"), run_facts.get("started")
    finished = datetime.fromtimestamp(started + seconds) if started and seconds is not None else None
    return (
        f"{artifact.ref}{'*' if newest else ''}",
        artifact.manifest["stage"],
        format_bytes(artifact.bytes),
        format_seconds(seconds) if seconds is not None else "",
        f"{finished:%Y-%m-%d %H:%M}" if finished else "",
    )
