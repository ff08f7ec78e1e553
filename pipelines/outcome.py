"""What the terminal says of a stage that has ended."""

from cluster.artifacts.manifest import Artifact
from pipelines.inspect.format import format_bytes, format_seconds


def made_since(artifact: Artifact, began: float) -> bool:
    """Whether the artifact was made after the time ``began``, or was there before."""
    return bool(artifact.run()["started"] >= began)


def outcome(artifact: Artifact, began: float) -> str:
    """``tokens/default/1a2b…: done in 3.2 s, 5.4 MiB``, or that it was done already."""
    done = "done in" if made_since(artifact, began) else "already done, in"
    took = format_seconds(artifact.run()["seconds"])
    return f"{artifact.ref}: {done} {took}, {format_bytes(artifact.bytes)}"
