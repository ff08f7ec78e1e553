"""A finished artifact and its manifest: what it is, what it was made from, and what every byte should be."""

import builtins
import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.artifacts.cache import damaged_file, download, fetch
from cluster.artifacts.fingerprint import VERSION_LENGTH, fingerprint
from cluster.artifacts.folder import FileEntry, Folder, describe
from cluster.artifacts.manifest_format import parse_files, parse_manifest
from cluster.errors import UserError

MANIFEST = "manifest.json"
RUN = "run.json"

_ATTEMPTS = 3
"""At reading a file whose bytes arrive changed: that may be the network's fault."""


class DamagedManifest(UserError):
    """There is a manifest, and it cannot be believed. The artifact's folder is `folder`."""

    def __init__(self, folder: Folder) -> None:
        super().__init__(
            f"{folder}/{MANIFEST} is damaged; delete that file and run the command that made the "
            f"artifact again, or remove it: manta rm {folder.prefix}"
        )
        self.folder = folder

    @property
    def ref(self) -> str:
        """``KIND/NAME/VERSION``."""
        return self.folder.prefix


@dataclass(frozen=True)
class Artifact:
    """A finished, immutable folder ``KIND/NAME/VERSION`` under a root. Cheap to pickle."""

    kind: str
    name: str
    version: str
    folder: Folder
    manifest: dict[str, Any] = field(repr=False)

    @classmethod
    def load(cls, folder: Folder) -> "Artifact":
        """The artifact in ``folder``.

        Raises:
            FileNotFoundError: there is no manifest, and so no artifact.
            DamagedManifest: it cannot be believed.
        """
        content = folder.read(MANIFEST)
        try:
            manifest = parse_manifest(content)
        except ValueError:
            raise DamagedManifest(folder) from None
        return cls(manifest["kind"], manifest["name"], folder.prefix.split("/")[-1], folder, manifest)

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
    def files(self) -> dict[str, FileEntry]:
        """Every file of the artifact, by name."""
        return self.manifest["files"]

    @property
    def bytes(self) -> int:
        """Size of the files that the manifest lists."""
        return sum(entry["bytes"] for entry in self.files.values())

    def run(self) -> dict[str, Any]:
        """What ``run.json`` says of the making: seconds, host, versions; empty if it cannot be read."""
        try:
            facts = json.loads(self.folder.read(RUN))
        except (FileNotFoundError, ValueError):
            return {}
        return facts if isinstance(facts, dict) else {}

    def fetch(self, *names: str) -> Path:
        """A folder on this machine that has the named files of the artifact; all of them if none are named.

        The artifact's own folder where the root is one. Read it, do not write to it.
        """
        local = self.folder.local
        if local is not None:
            return local
        identity = hashlib.sha256(json.dumps(self.files, sort_keys=True).encode()).hexdigest()
        return fetch(self.folder, self.files, names or self.files, identity)

    def read(self, name: str) -> builtins.bytes:
        """All of a small file. Raises UserError if its bytes are not those of the manifest."""
        for _ in range(_ATTEMPTS):
            try:
                content = self.folder.read(name)
            except FileNotFoundError:
                raise damaged_file(self.folder, name, "it is missing") from None
            if hashlib.sha256(content).hexdigest() == self._entry(name)["sha256"]:
                return content
        raise damaged_file(self.folder, name, "its bytes are not those of the manifest")

    def open(self, name: str) -> pa.NativeFile:
        """One file that will be read whole, for random access.

        Out of object storage it is copied first, and compared with the manifest; the copy goes with the file.
        Raises UserError if its bytes (on a disk, its size) are not those of the manifest.
        """
        if self.folder.local is not None:
            return self.peek(name)
        with tempfile.TemporaryDirectory(prefix="manta-") as scratch:
            path = Path(scratch, "file")
            download(self.folder, name, self._entry(name), path)
            return pa.memory_map(str(path))

    def peek(self, name: str) -> pa.NativeFile:
        """One file of which little will be read; only its size is compared with the manifest."""
        expected = self._entry(name)["bytes"]
        try:
            file = self.folder.open(name)
        except FileNotFoundError:
            raise damaged_file(self.folder, name, "it is missing") from None
        if file.size() != expected:
            raise damaged_file(self.folder, name, f"it has {file.size()} bytes, the manifest says {expected}")
        return file

    def _entry(self, name: str) -> FileEntry:
        if name not in self.files:
            raise UserError(f"{self.ref} has no file {name}; make it again with --force")
        return self.files[name]


def verify(artifact: Artifact, checkpoints: bool = True) -> Iterator[str]:
    """What is wrong with an artifact: one line a file that is missing or changed, or a false manifest.

    Checkpoints inside a model have manifests of their own and are checked too, unless told otherwise.
    """
    yield from _identity_problems(artifact)
    found = artifact.folder.files()
    yield from _differences(artifact.folder, artifact.files, found)
    for name in found if checkpoints else ():
        if name.startswith("checkpoints/") and name.count("/") == 2 and name.endswith(f"/{MANIFEST}"):
            checkpoint = name.removesuffix(f"/{MANIFEST}")
            try:
                files = parse_files(artifact.folder.read(name))
            except ValueError:
                yield f"{artifact.folder}/{name}: damaged; training goes on from the checkpoint before it"
                continue
            yield from _differences(
                artifact.folder, {f"{checkpoint}/{each}": entry for each, entry in files.items()}, found
            )


def _identity_problems(artifact: Artifact) -> Iterator[str]:
    """What the manifest says of itself that does not fit together, or does not fit its place."""
    manifest = artifact.manifest
    sources = {role: source["fingerprint"] for role, source in manifest["inputs"].items()}
    expected = fingerprint(manifest["stage"], manifest["logic_version"], manifest["what"], sources)
    if artifact.fingerprint != expected:
        yield (
            f"{artifact.folder}/{MANIFEST}: its fingerprint {artifact.fingerprint[:VERSION_LENGTH]}… is not "
            f"that of its stage, configuration and inputs, {expected[:VERSION_LENGTH]}…; it was changed"
        )
    if artifact.version != artifact.fingerprint[:VERSION_LENGTH]:
        yield (
            f"{artifact.folder}: the folder's name is not the start of the artifact's fingerprint, "
            f"{artifact.fingerprint[:VERSION_LENGTH]}"
        )
    if artifact.ref != artifact.folder.prefix:
        yield f"{artifact.folder}: its manifest says that it is {artifact.ref}"


def _differences(folder: Folder, expected: dict[str, FileEntry], found: dict[str, int]) -> Iterator[str]:
    for name, entry in expected.items():
        if name not in found:
            yield f"{folder}/{name}: missing"
        elif found[name] != entry["bytes"]:
            yield f"{folder}/{name}: has {found[name]} bytes, the manifest says {entry['bytes']}"
        else:
            with folder.reading(name) as path:
                if describe(path) != entry:
                    yield f"{folder}/{name}: its bytes have changed (SHA-256 differs from the manifest)"
