"""A finished artifact and its manifest: what it is, what it was made from, and what every byte should be."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.artifacts.files import sha256_file

MANIFEST = "manifest.json"
RUN = "run.json"


@dataclass(frozen=True)
class Artifact:
    """A finished, immutable folder ``KIND/NAME/VERSION`` under a root."""

    kind: str
    name: str
    version: str
    path: Path
    manifest: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "Artifact":
        """Read the artifact in ``folder``; its manifest must exist."""
        manifest = json.loads((folder / MANIFEST).read_bytes())
        return cls(manifest["kind"], manifest["name"], folder.name, folder, manifest)

    @property
    def ref(self) -> str:
        """``KIND/NAME/VERSION``."""
        return f"{self.kind}/{self.name}/{self.version}"

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    @property
    def counts(self) -> dict[str, Any]:
        return self.manifest["counts"]

    @property
    def bytes(self) -> int:
        """Size of the files that the manifest lists."""
        return sum(entry["bytes"] for entry in self.manifest["files"].values())

    def run(self) -> dict[str, Any]:
        """What ``run.json`` says of the making: seconds, host, versions; empty if it is missing."""
        path = self.path / RUN
        return json.loads(path.read_bytes()) if path.exists() else {}


def hash_files(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of each named file of a folder."""
    return {n: {"bytes": (folder / n).stat().st_size, "sha256": sha256_file(folder / n)} for n in names}


def verify(folder: Path) -> Iterator[str]:
    """What is wrong with a folder that has a manifest: one line a file that is missing or changed.

    Checkpoints inside a model have manifests of their own and are checked too.
    """
    for manifest in [folder / MANIFEST, *sorted(folder.glob(f"checkpoints/*/{MANIFEST}"))]:
        for name, expected in json.loads(manifest.read_bytes())["files"].items():
            path = manifest.parent / name
            if not path.exists():
                yield f"{path}: missing"
            elif path.stat().st_size != expected["bytes"]:
                yield f"{path}: has {path.stat().st_size} bytes, the manifest says {expected['bytes']}"
            elif sha256_file(path) != expected["sha256"]:
                yield f"{path}: its bytes have changed (SHA-256 differs from the manifest)"
