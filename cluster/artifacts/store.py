"""The root that holds all artifacts, at ``KIND/NAME/VERSION/``.

An artifact exists if and only if its ``manifest.json`` does, and that is written last. Until then the folder
is a draft (``draft.py``), which a later run of the same stage continues.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.artifacts.draft import Draft
from cluster.artifacts.fingerprint import VERSION_LENGTH, fingerprint
from cluster.artifacts.manifest import MANIFEST, Artifact
from cluster.artifacts.pointer import read_pointer
from cluster.errors import UserError

KINDS = ("corpora", "tokenizers", "tokens", "models", "preferences", "evaluations")


@dataclass(frozen=True)
class ArtifactStore:
    """All artifacts under one root folder, which is made absolute at once (Ray workers change directory)."""

    root: Path

    def __init__(self, root: str | Path) -> None:
        if "://" in str(root):
            raise UserError(f"--root {root}: object storage is not supported yet; give a folder")
        object.__setattr__(self, "root", Path(root).expanduser().absolute())

    def resolve(self, kind: str, reference: str) -> Artifact:
        """Find a finished artifact by NAME (its newest version) or NAME/VERSION (or the start of one).

        Raises:
            UserError: there is none; the message names what there is.
        """
        name, _, version = reference.removeprefix(f"{kind}/").partition("/")
        folder = self.root / kind / name
        if not version:
            version = read_pointer(folder) or ""
            if not version:
                raise UserError(f"no {kind}/{name} under {self.root}; {self._what_there_is(kind)}")
        matches = [a for a in self._versions(kind, name) if a.version.startswith(version)]
        if len(matches) != 1:
            problem = "is ambiguous" if matches else "does not exist"
            raise UserError(
                f"{kind}/{name}/{version} {problem} under {self.root}; {self._what_there_is(kind)}"
            )
        return matches[0]

    def artifacts(self, kind: str | None = None) -> list[Artifact]:
        """Finished artifacts, by kind in the order of the chain, then name, then version."""
        found: list[Artifact] = []
        for each in [kind] if kind else KINDS:
            for folder in sorted((self.root / each).glob("*")):
                found += self._versions(each, folder.name)
        return found

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
    ) -> Artifact | Draft:
        """The finished artifact of this name and fingerprint if there is one, else a draft to fill.

        Raises:
            UserError: another process on this machine is making the same artifact, or the name is impossible.
        """
        _check_name(name)
        identity = fingerprint(
            stage, logic_version, what, {role: a.fingerprint for role, a in inputs.items()}
        )
        version = identity[:VERSION_LENGTH]
        folder = self.root / kind / name / version
        draft = Draft(
            path=folder,
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
        if (folder / MANIFEST).exists() and not force:
            draft.point_name_here()
            return Artifact.read(folder)
        draft.open(discard=force)
        return draft

    def _versions(self, kind: str, name: str) -> list[Artifact]:
        manifests = sorted((self.root / kind / name).glob(f"*/{MANIFEST}"))
        return [Artifact.read(path.parent) for path in manifests if not path.parent.name.startswith(".")]

    def _what_there_is(self, kind: str) -> str:
        names = sorted({f"{a.kind}/{a.name}" for a in self.artifacts(kind)})
        return f"there is {', '.join(names)}" if names else f"there are no {kind} yet"


def _check_name(name: str) -> None:
    if not name or name.startswith(".") or not all(c.isalnum() or c in "-_." for c in name):
        raise UserError(f"--name {name!r}: use letters, digits, '-', '_' and '.', not starting with '.'")
