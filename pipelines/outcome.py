"""What the terminal says of a stage that has ended."""

from cluster.artifacts.manifest import Artifact
from pipelines.inspect.format import format_bytes, format_seconds

EXIT_UNITS_LEFT_OUT = 3
"""Exit code of a command whose artifact lacks units of work that failed, as the user allowed."""


def exit_code(artifact: Artifact) -> int:
    """Of a command that made the artifact, or found it: 0, or 3."""
    return EXIT_UNITS_LEFT_OUT if artifact.run().get("failed_units") else 0


def made_since(artifact: Artifact, began: float) -> bool:
    """Whether the artifact was made after the time ``began``, or was there before."""
    return bool(artifact.run().get("started", 0) >= began)


def outcome(artifact: Artifact, began: float) -> str:
    """``tokens/default/1a2b…: done in 3.2 s, 5.4 MiB``, or that it was done already."""
    done = "done" if made_since(artifact, began) else "already done"
    seconds = artifact.run().get("seconds")
    took = "" if seconds is None else f"{' in' if done == 'done' else ', in'} {format_seconds(seconds)}"
    return f"{artifact.ref}: {done}{took}, {format_bytes(artifact.bytes)}"
