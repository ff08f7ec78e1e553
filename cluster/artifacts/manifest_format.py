"""What a manifest must look like to be believed."""

import json
from typing import Any

from cluster.artifacts.folder import FileEntry

_FIELDS: dict[str, type] = {
    "kind": str,
    "name": str,
    "stage": str,
    "logic_version": int,
    "fingerprint": str,
    "what": dict,
    "inputs": dict,
    "counts": dict,
}


def parse_manifest(content: bytes) -> dict[str, Any]:
    """The manifest of an artifact. Raises ValueError if it is cut short, or anything else than a manifest."""
    manifest = _parse_object(content)
    for name, kind in _FIELDS.items():
        if not isinstance(manifest.get(name), kind):
            raise ValueError(f"{name} is {manifest.get(name)!r}")
    for role, source in manifest["inputs"].items():
        if not isinstance(source, dict) or not all(
            isinstance(source.get(field), str) for field in ("ref", "fingerprint")
        ):
            raise ValueError(f"inputs.{role} is {source!r}")
    _check_files(manifest)
    return manifest


def parse_files(content: bytes) -> dict[str, FileEntry]:
    """The files of a checkpoint's manifest. Raises ValueError like `parse_manifest`."""
    return _check_files(_parse_object(content))


def _parse_object(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"it is a {type(value).__name__}")
    return value


def _check_files(manifest: dict[str, Any]) -> dict[str, FileEntry]:
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise ValueError(f"files is {files!r}")
    for name, entry in files.items():
        if not (
            isinstance(entry, dict)
            and isinstance(entry.get("bytes"), int)
            and isinstance(entry.get("sha256"), str)
        ):
            raise ValueError(f"files.{name} is {entry!r}")
    return files
