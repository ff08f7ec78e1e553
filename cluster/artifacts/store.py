"""The root that holds all artifacts, at ``KIND/NAME/VERSION/``.

An artifact exists if and only if its ``manifest.json`` does, and that is written last. Until then the folder
is a draft (``draft.py``), which a later run of the same stage continues.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.artifacts.draft import Draft, existing
from cluster.artifacts.fingerprint import VERSION_LENGTH, fingerprint
from cluster.artifacts.folder import Folder
from cluster.artifacts.lease import LEASES, at_work, inputs_of
from cluster.artifacts.manifest import Artifact, DamagedManifest
from cluster.artifacts.pointer import POINTER, move_pointer, read_pointer
from cluster.artifacts.storage import Storage, open_storage
from cluster.errors import UserError

KINDS = ("corpora", "tokenizers", "tokens", "models", "preferences", "evaluations")

_THREADS = 16


@dataclass(frozen=True)
class Survey:
    """What lies under a root, by kind in the order of the chain, then name, then version."""

    artifacts: list[Artifact]
    damaged: list[DamagedManifest]
    """Of artifacts that were finished once; nothing can be said of what they hold."""


@dataclass(frozen=True)
class AtWork:
    """Somebody who makes an artifact now."""

    ref: str
    holder: str
    inputs: list[str]
    """Refs of what they read."""


@dataclass(frozen=True)
class ArtifactStore:
    """All artifacts under one root: a folder, or ``s3://bucket/prefix``."""

    storage: Storage

    def __init__(self, root: str | Path) -> None:
        object.__setattr__(self, "storage", open_storage(root))

    @property
    def root(self) -> str:
        """What the user calls it: an absolute folder, or ``s3://bucket/prefix``."""
        return self.storage.uri

    def resolve(self, kind: str, reference: str) -> Artifact:
        """Find a finished artifact by NAME (its newest version) or NAME/VERSION (or the start of one).

        Raises:
            UserError: there is none; the message names what there is.
            DamagedManifest: there is one, and its manifest cannot be believed.
        """
        name, _, version = reference.removeprefix(f"{kind}/").partition("/")
        if not version:
            version = self.newest(kind, name) or ""
            if not version:
                raise UserError(f"no {kind}/{name} under {self.root}; {self._what_there_is(kind, name)}")
        exact = existing(self._folder(kind, name, version))
        if exact is not None:
            return exact
        there = self._versions(kind, name)
        matches = [each for each in there if each.folder.prefix.startswith(f"{kind}/{name}/{version}")]
        if len(matches) != 1:
            problem = "is ambiguous" if matches else "does not exist"
            raise UserError(
                f"{kind}/{name}/{version} {problem} under {self.root}; {self._what_there_is(kind, name)}"
            )
        if isinstance(matches[0], DamagedManifest):
            raise matches[0]
        return matches[0]

    def newest(self, kind: str, name: str) -> str | None:
        """The version that ``KIND/NAME`` points to; None if it has none that is finished."""
        return read_pointer(self._folder(kind, name))

    def point(self, kind: str, name: str, version: str | None) -> None:
        """Let ``KIND/NAME`` stand for a version, or for none."""
        folder = self._folder(kind, name)
        if version is None:
            folder.delete([POINTER])
        else:
            move_pointer(folder, version)

    def artifacts(self, kind: str | None = None) -> list[Artifact]:
        """Finished artifacts whose manifests can be believed, in the order of `survey`."""
        return self.survey(kind).artifacts

    def survey(self, kind: str | None = None) -> Survey:
        """Finished artifacts, and those whose manifests are damaged."""
        found: list[Artifact | DamagedManifest] = []
        for each in [kind] if kind else KINDS:
            for name in self.storage.folders(each):
                found += self._versions(each, name)
        return Survey(
            [each for each in found if isinstance(each, Artifact)],
            [each for each in found if isinstance(each, DamagedManifest)],
        )

    def at_work(self) -> list[AtWork]:
        """Everybody who makes an artifact under this root, or who died on another machine at it."""
        found = []
        for kind in KINDS:
            for name in self.storage.folders(kind):
                for lease, holder, inputs in at_work(self._folder(kind, name, LEASES)):
                    version = lease.removesuffix(".json")
                    found.append(AtWork(f"{kind}/{name}/{version}", holder, inputs))
        return found

    def inputs_of(self, damaged: DamagedManifest) -> list[str] | None:
        """Refs of what an artifact was made from, as its lease remembers them; None if it does not."""
        siblings, _, version = damaged.ref.rpartition("/")
        return inputs_of(self._folder(siblings, LEASES), f"{version}.json")

    def begin(
        self,
        *,
        kind: str,
        name: str,
        stage: str,
        logic_version: int,
        what: dict[str, Any],
        inputs: dict[str, Artifact],
        how: dict[str, Any] | None = None,
        force: bool = False,
        announce: Callable[[str], None] = lambda text: None,
    ) -> Artifact | Draft:
        """The finished artifact of this name and fingerprint if there is one, else a draft to fill.

        Args:
            announce: told if we wait for another process, which may be dead.

        Raises:
            UserError: another process is making the same artifact, or the name is impossible.
        """
        _check_name(name)
        identity = fingerprint(
            stage, logic_version, what, {role: a.fingerprint for role, a in inputs.items()}
        )
        version = identity[:VERSION_LENGTH]
        draft = Draft(
            folder=self._folder(kind, name, version),
            manifest={
                "kind": kind,
                "name": name,
                "stage": stage,
                "logic_version": logic_version,
                "fingerprint": identity,
                "what": what,
                "inputs": {
                    role: {"ref": a.ref, "fingerprint": a.fingerprint} for role, a in sorted(inputs.items())
                },
            },
            how=how or {},
        )
        finished = None if force else existing(draft.folder)
        finished = finished or draft.open(force, announce)
        if finished is None:
            return draft
        draft.point_name_here()
        return finished

    def _folder(self, *parts: str) -> Folder:
        return Folder(self.storage, "/".join(parts))

    def _versions(self, kind: str, name: str) -> list[Artifact | DamagedManifest]:
        folder = self._folder(kind, name)
        with ThreadPoolExecutor(_THREADS) as pool:
            found = list(pool.map(lambda version: _look(folder / version), folder.folders()))
        return [each for each in found if each is not None]

    def _what_there_is(self, kind: str, name: str) -> str:
        there = self.survey(kind)
        versions = [a.ref for a in there.artifacts if a.name == name]
        if versions:  # its pointer is lost, or the version is another's
            return f"there is {', '.join(versions)}"
        names = sorted({f"{a.kind}/{a.name}" for a in there.artifacts})
        return f"there is {', '.join(names)}" if names else f"there are no {kind} yet"


def _look(folder: Folder) -> Artifact | DamagedManifest | None:
    try:
        return existing(folder)
    except DamagedManifest as damaged:
        return damaged


def _check_name(name: str) -> None:
    if not name or name.startswith(".") or not all(c.isalnum() or c in "-_." for c in name):
        raise UserError(f"--name {name!r}: use letters, digits, '-', '_' and '.', not starting with '.'")
