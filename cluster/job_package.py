"""The working tree that travels with a job, as a ZIP file whose bytes depend on its files alone.

Files are stored in the order of their names, uncompressed (compressors differ between versions), all with the
same date. So the same tree is the same package: Ray uploads it once, and its digest says what code ran.
"""

import fnmatch
import hashlib
import importlib.metadata
import io
import re
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import UserError

MAX_BYTES = 100 * 2**20
"""Ray's own limit is five times that; a working tree that comes near it holds data by mistake."""

_OURS = ("cluster", "llm", "pipelines")
_NEVER_FOLDERS = {
    ".git",
    ".venv",
    "venv",
    "runs",
    "__pycache__",
    "node_modules",
    "wandb",
    ".ray",
    ".aws",
    ".ssh",
}
_NEVER_FILES = (
    ".env",
    ".env.*",
    ".netrc",
    ".pypirc",
    "*.pem",
    "*.key",
    "*.p12",
    "*.pfx",
    "id_rsa*",
    "id_ed25519*",
    "auth_token",
    "credentials",
    "credentials.json",
    "kubeconfig",
    "*.tfstate",
    "*.pyc",
)
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Package:
    """A packed working tree."""

    content: bytes
    names: tuple[str, ...]
    """Files in it, relative to the tree."""

    @property
    def digest(self) -> str:
        """SHA-256 of the content."""
        return hashlib.sha256(self.content).hexdigest()


def pack(tree: Path, extra: dict[str, bytes]) -> Package:
    """Pack the files of `tree` that git tracks, as they are now, and new ones in Manta's own packages.

    Without git, Manta's packages alone. Never `.git`, `.venv` and `runs`, nor files whose names say that they
    hold secrets.

    extra: more files of the package, by name, such as a job's configuration.

    Raises:
        UserError: the package is too large.
    """
    files = {name: tree / name for name in _names(tree) if is_packed(name)}
    contents = {name: path.read_bytes() for name, path in files.items() if _is_inside(path, tree)}
    executable = {name for name in contents if files[name].stat().st_mode & 0o100}
    contents |= extra
    total = sum(map(len, contents.values()))
    if total > MAX_BYTES:
        largest = max(contents, key=lambda name: len(contents[name]))
        raise UserError(
            f"the working tree {tree} has {total / 2**20:.0f} MiB to send with the job, more than "
            f"{MAX_BYTES / 2**20:.0f}: its largest file is {largest}; "
            "keep data under runs/ or in object storage"
        )
    return Package(_zip(contents, executable), tuple(sorted(contents)))


def is_packed(name: str) -> bool:
    """Whether a file of this name, relative to the tree, may travel."""
    *folders, file = name.split("/")
    return not _NEVER_FOLDERS & set(folders) and not any(fnmatch.fnmatch(file, each) for each in _NEVER_FILES)


def pinned_requirements() -> list[str]:
    """Manta's direct dependencies at the versions installed here, for pip; Ray is the cluster's own.

    Raises:
        UserError: Manta is not installed, so that nobody knows its dependencies.
    """
    try:
        stated = importlib.metadata.requires("manta-llm") or []
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            "--pip: Manta is not installed here (`make install`): its versions are not known"
        ) from None
    needed = [line for line in stated if "extra ==" not in line]
    names = [match[0] for line in needed if (match := re.match(r"[A-Za-z0-9._-]+", line))]
    versions = {name: importlib.metadata.version(name).partition("+")[0] for name in names if name != "ray"}
    return [f"{name}=={version}" for name, version in sorted(versions.items())]


def _names(tree: Path) -> list[str]:
    """Files to pack: what git tracks, and what is new in Manta's packages and not ignored."""
    if (tree / ".git").exists():
        tracked = _git_files(tree)
        if tracked is not None:
            return sorted(
                {*tracked, *(_git_files(tree, "--others", "--exclude-standard", "--", *_OURS) or [])}
            )
    paths = [path for package in _OURS for path in (tree / package).rglob("*")]
    return sorted(path.relative_to(tree).as_posix() for path in paths)


def _git_files(tree: Path, *options: str) -> list[str] | None:
    """What `git ls-files` says; None if there is no git or it does not answer."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(tree), "ls-files", "-z", *options], capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return sorted({name.decode() for name in answer.stdout.split(b"\0") if name})


def _is_inside(path: Path, tree: Path) -> bool:
    """Whether it is a file, and no link to a place outside of the tree."""
    return path.is_file() and path.resolve().is_relative_to(tree.resolve())


def _zip(contents: dict[str, bytes], executable: set[str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(contents):
            entry = zipfile.ZipInfo(name, date_time=_EPOCH)
            entry.create_system = 3  # Unix, on every system: the mode below is read as such.
            entry.external_attr = (0o100755 if name in executable else 0o100644) << 16
            archive.writestr(entry, contents[name])
    return buffer.getvalue()
