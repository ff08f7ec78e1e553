"""An artifact in the making: a folder without a manifest, which a later run of the same stage continues."""

import fcntl
import importlib.metadata
import json
import os
import platform
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.artifacts.files import create, write_atomic
from cluster.artifacts.ledger import Ledger
from cluster.artifacts.manifest import MANIFEST, RUN, Artifact, hash_files
from cluster.artifacts.pointer import move_pointer
from cluster.artifacts.redact import redact
from cluster.errors import UserError

_RECORDED_PACKAGES = ("manta-llm", "torch", "ray", "pyarrow", "sentencepiece")


@dataclass
class Draft:
    """Write files below ``path``, then ``commit``. Nothing is visible to other stages before that."""

    path: Path
    manifest: dict[str, Any]
    how: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.time)
    resumed: bool = False
    _lock: int | None = None

    @property
    def name(self) -> str:
        return self.manifest["name"]

    @property
    def version(self) -> str:
        return self.path.name

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    @property
    def ref(self) -> str:
        return f"{self.manifest['kind']}/{self.name}/{self.version}"

    @property
    def ledger(self) -> Ledger:
        """Committed work units of this artifact."""
        return Ledger(self.path / "ledger")

    def open(self, discard: bool = False) -> None:
        """Become the only writer on this machine; with ``discard``, set a finished version aside.

        The finished version is deleted only after its replacement is committed.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.path.with_name(f".{self.version}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise UserError(f"{self.ref} is being made by another process; wait for it or stop it") from None
        if discard and (self.path / MANIFEST).exists():
            shutil.rmtree(self._replaced, ignore_errors=True)
            os.replace(self.path, self._replaced)
        self.resumed = self.path.exists()
        self.path.mkdir(exist_ok=True)

    def note(self, **facts: Any) -> None:
        """Remember facts that differ from run to run (times, hosts) for ``run.json``."""
        self.facts.update(facts)

    def commit(self, counts: dict[str, Any], exclude: tuple[str, ...] = ()) -> Artifact:
        """Hash every file, write ``run.json``, then the manifest, then move the name's pointer.

        Args:
            counts: what is in the artifact; must be the same for the same inputs.
            exclude: files and folders that are not part of the result (logs, checkpoints).
        """
        skipped = {"ledger", RUN, MANIFEST, *exclude}
        names = sorted(
            str(path.relative_to(self.path))
            for path in self.path.rglob("*")
            if path.is_file() and path.relative_to(self.path).parts[0] not in skipped
        )
        partial = [name for name in names if name.endswith(".partial")]
        for name in partial:
            (self.path / name).unlink()
        files = hash_files(self.path, [name for name in names if name not in partial])
        manifest = {**self.manifest, "counts": counts, "files": files}
        write_atomic(self.path / RUN, _pretty(self._run_facts()))
        create(self.path / MANIFEST, _pretty(manifest))
        self.point_name_here()
        shutil.rmtree(self._replaced, ignore_errors=True)
        self.close()
        return Artifact.read(self.path)

    def point_name_here(self) -> None:
        """Let the artifact's name stand for this version."""
        move_pointer(self.path.parent, self.version)

    def close(self) -> None:
        """Let another process continue this draft."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def _replaced(self) -> Path:
        return self.path.with_name(f".replaced-{self.version}")

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
            **self.facts,
        }


def _pretty(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False).encode() + b"\n"
