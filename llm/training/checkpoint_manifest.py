"""What lies in a checkpoint's folder, and whether it is what was written.

step-NNNNNNNN/
  config.json  tokenizer.model    attachments: with them it is a model by itself
  dcp/                            every tensor by name (torch.distributed.checkpoint)
  state.json                      step, loader state, precision
  manifest.json                   size and SHA-256 of each file above; written last
"""

import hashlib
import json
from pathlib import Path
from typing import Any

MANIFEST, STATE, TENSORS = "manifest.json", "state.json", "dcp"


def checkpoint_name(step: int) -> str:
    """Its folder; names sort as steps do."""
    return f"step-{step:08d}"


def step_of(name: str) -> int:
    """The step of a checkpoint's name."""
    return int(name.removeprefix("step-"))


def checkpoints_in(folder: Path) -> list[str]:
    """Names of the checkpoints there, newest first, whole or not."""
    return sorted((path.name for path in folder.glob("step-*")), reverse=True)


def describe(path: Path) -> dict[str, Any]:
    """What a manifest says of a file."""
    with open(path, "rb") as stream:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def manifest_json(step: int, files: dict[str, dict[str, Any]], for_ever: bool) -> bytes:
    """The manifest of a checkpoint with these files."""
    return as_json({"step": step, "files": files, "for_ever": for_ever})


def is_for_ever(manifest: bytes) -> bool:
    """Whether the run was to keep the checkpoint for ever. Raises ValueError if the manifest is damaged."""
    return json.loads(manifest).get("for_ever") is True


def files_in(manifest: bytes) -> dict[str, dict[str, Any]]:
    """The files that a manifest names. Raises ValueError if it is damaged."""
    try:
        files: dict[str, dict[str, Any]] = json.loads(manifest)["files"]
        return dict(files.items())
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a manifest: {error}") from error


def what_is_wrong(path: Path) -> str | None:
    """Why a checkpoint cannot be trusted, in a few words; None if it is whole."""
    try:
        files = files_in((path / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return f"no readable {MANIFEST}"
    for name, expected in files.items():
        try:
            if describe(path / name) != expected:
                return f"{name} has changed"
        except FileNotFoundError:  # maybe just now: a run removes checkpoints that others look at
            return f"{name} is missing"
    return None


def as_json(value: dict[str, Any]) -> bytes:
    """Indented, keys in order, one newline at the end."""
    return json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"
