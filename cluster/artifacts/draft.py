"""An artifact in the making: a folder without a manifest, which a later run of the same stage continues."""

import importlib.metadata
import json
import os
import platform
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cluster.artifacts.folder import FileEntry, Folder, Writing
from cluster.artifacts.lease import LEASES, Lease, LeaseLost, Ticket
from cluster.artifacts.ledger import LEDGER, Ledger
from cluster.artifacts.manifest import MANIFEST, RUN, Artifact, DamagedManifest
from cluster.artifacts.pointer import move_pointer
from cluster.artifacts.redact import redact
from cluster.artifacts.workspace import Workspace
from cluster.errors import UserError

REPLACED = ".replaced-"
"""KIND/NAME/.replaced-VERSION is what `--force` set aside until its replacement is committed."""

_RECORDED_PACKAGES = ("manta-llm", "torch", "ray", "pyarrow", "sentencepiece")


@dataclass
class Draft:
    """Write files, then ``commit``. Nothing is visible to other stages before that.

    What belongs to the artifact is what was written through the draft, or included as written by a worker;
    other files below the folder (checkpoints, logs, work between two steps) do not count.
    """

    folder: Folder
    manifest: dict[str, Any]
    how: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    files: dict[str, FileEntry] = field(default_factory=dict)
    started: float = field(default_factory=time.time)
    resumed: bool = False
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Tells this run of the stage from others on the same draft."""

    @property
    def name(self) -> str:
        return self.manifest["name"]

    @property
    def version(self) -> str:
        return self.folder.prefix.split("/")[-1]

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    @property
    def ref(self) -> str:
        return self.folder.prefix

    @property
    def ledger(self) -> Ledger:
        """Committed work units of this artifact."""
        return Ledger(self.folder / LEDGER)

    @property
    def workspace(self) -> Workspace:
        """Where a long run writes on each machine."""
        return Workspace(self.folder)

    @property
    def ticket(self) -> Ticket:
        """For workers: whether this run may still write."""
        return self._lease.ticket

    def open(self, force: bool, announce: Callable[[str], None]) -> Artifact | None:
        """Become the only writer. The artifact if it is finished after all, unless ``force``.

        With ``force`` a finished version is set aside, and deleted after its replacement is committed.
        """
        inputs = [source["ref"] for source in self.manifest["inputs"].values()]
        self._lease = Lease(self._siblings, f"{LEASES}/{self.version}.json", self.ref, inputs)
        note = self._lease.acquire(announce)
        if note is not None:
            self._finish_commit(note)  # of a process that died between its two last writes
        if force and _has_manifest(self.folder):
            self._replaced.delete()
            self.folder.storage.rename(self.folder.prefix, self._replaced.prefix)
        try:
            finished = existing(self.folder)
        except DamagedManifest:
            self._lease.release()
            raise
        if finished is not None:
            self._lease.release()
            return finished
        self.resumed = self.folder.exists()
        return None

    def note(self, **facts: Any) -> None:
        """Remember facts that differ from run to run (times, hosts) for ``run.json``."""
        self.facts.update(facts)

    def write(self, name: str, data: bytes) -> None:
        """Write a small file of the artifact."""
        self.files[name] = self.folder.write(name, data)

    @contextmanager
    def writing(self) -> Iterator[Writing]:
        """A scratch folder on this machine whose files become the artifact's when the block ends well."""
        with self.folder.writing() as writing:
            yield writing
        self.files.update(writing.files)

    def include(self, files: dict[str, FileEntry]) -> None:
        """Count files that a worker has written as the artifact's."""
        self.files.update(files)

    def commit(self, counts: dict[str, Any]) -> Artifact:
        """Make manifest and ``run.json`` appear, then move the name's pointer.

        Both wait in one pending file until the lease has decided: a process that has lost it changes neither.

        Args:
            counts: what is in the artifact; must be the same for the same inputs.

        Raises:
            LeaseLost: another process has taken over; nothing of this one becomes visible.
            UserError: a file is not there, or not as long as it was written.
        """
        self._check_sizes()
        manifest = {**self.manifest, "counts": counts, "files": dict(sorted(self.files.items()))}
        note = {"pending": f"commit-{uuid.uuid4().hex}.pending"}
        self.folder.write(note["pending"], _pretty({"manifest": manifest, "run": self._run_facts()}))
        try:
            self._lease.commit(note)
        except LeaseLost:
            self.folder.delete([note["pending"]])
            raise
        self._finish_commit(note)
        self.point_name_here()
        self._replaced.delete()
        return Artifact.load(self.folder)

    def discard_work(self, *folders: str) -> None:
        """After `commit`: remove the ledger, then the folders that its records speak of.

        In this order no record is left that speaks of files that are gone, wherever it is interrupted.
        """
        if self.ticket.is_current():  # else another run has begun it anew, and the ledger is that one's
            self.ledger.folder.delete()
            for name in folders:
                (self.folder / name).delete()

    def point_name_here(self) -> None:
        """Let the artifact's name stand for this version."""
        move_pointer(self._siblings, self.version)

    def close(self) -> None:
        """Let another process continue this draft."""
        self._lease.release()

    def _finish_commit(self, note: dict[str, Any]) -> None:
        """What follows the swap that decided: whoever comes next does it if the one who decided died."""
        try:
            pending = json.loads(self.folder.read(note["pending"]))
        except FileNotFoundError:
            return
        self.folder.write(RUN, _pretty(pending["run"]))
        self.folder.create(MANIFEST, _pretty(pending["manifest"]))
        self.folder.delete([note["pending"]])

    def _check_sizes(self) -> None:
        found = self.folder.files()
        for name, entry in self.files.items():
            if found.get(name) != entry["bytes"]:
                self.ticket.check()  # whoever took over with --force has set this folder aside
                is_now = f"has {found[name]} bytes" if name in found else "is missing"
                raise UserError(
                    f"{self.folder}/{name} {is_now}, {entry['bytes']} bytes were written: something else "
                    "changes this folder; run again: what is missing is done again"
                )

    @property
    def _siblings(self) -> Folder:
        """``KIND/NAME``."""
        return Folder(self.folder.storage, self.folder.prefix.rpartition("/")[0])

    @property
    def _replaced(self) -> Folder:
        return self._siblings / f"{REPLACED}{self.version}"

    def _run_facts(self) -> dict[str, Any]:
        versions = {}
        for package in _RECORDED_PACKAGES:
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
        return {
            "started": self.started,
            "seconds": time.time() - self.started,
            "resumed": self.resumed,
            "host": {
                "system": platform.platform(),
                "python": platform.python_version(),
                "cpus": os.cpu_count(),
            },
            "versions": versions,
            "how": redact(self.how),
            **redact(self.facts),
        }


def existing(folder: Folder) -> Artifact | None:
    """The artifact in ``folder`` if it is finished. Raises DamagedManifest."""
    try:
        return Artifact.load(folder)
    except FileNotFoundError:
        return None


def _has_manifest(folder: Folder) -> bool:
    """Also one that is damaged."""
    try:
        folder.read(MANIFEST)
    except FileNotFoundError:
        return False
    return True


def _pretty(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False).encode() + b"\n"
