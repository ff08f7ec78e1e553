"""A job's package: the same files are the same bytes, and what must stay at home stays at home."""

import io
import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from cluster import job_package
from cluster.errors import UserError
from cluster.job_package import is_packed, pack, pinned_requirements

SECRET = "s3cr3t-value"


def git(tree: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.com"]
    subprocess.run(["git", "-C", str(tree), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout with code, a script, a link, and things that must not travel."""
    tree = tmp_path / "tree"
    files = {
        "pipelines/cli.py": "print('hello')\n",
        "pipelines/credentials.py": "# Python source, whatever its name.\n",
        "run.sh": "#!/bin/sh\n",
        "data/Ünïcode.txt": "ü\n",
        ".env": SECRET,
        "deploy/server.key": SECRET,
        "runs/default/model.bin": SECRET,
        ".gitignore": "*.log\n",
    }
    for name, text in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tree / "run.sh").chmod(0o755)
    (tmp_path / "outside.txt").write_text(SECRET)
    (tree / "pipelines/outside.txt").symlink_to(tmp_path / "outside.txt")
    git(tree, "init", "-q")
    git(tree, "add", "-f", ".")
    git(tree, "commit", "-qm", "all")
    return tree


def names(content: bytes) -> list[str]:
    return zipfile.ZipFile(io.BytesIO(content)).namelist()


def test_the_same_files_are_the_same_bytes_whenever_and_wherever_they_are_packed(
    tree: Path, tmp_path: Path
) -> None:
    first = pack(tree, {"job.yaml": b"a: 1\n"})
    clone = tmp_path / "elsewhere"
    git(tmp_path, "clone", "-q", str(tree), str(clone))
    for path in clone.rglob("*.py"):
        os.utime(path, (1, 1))
        path.chmod(0o600)
    second = pack(clone, {"job.yaml": b"a: 1\n"})
    assert first.content == second.content
    assert first.digest == second.digest
    assert pack(tree, {"job.yaml": b"a: 2\n"}).digest != first.digest


def test_the_working_tree_travels_as_it_is_not_as_it_was_committed(tree: Path) -> None:
    (tree / "pipelines/cli.py").write_text("print('changed')\n")
    (tree / "pipelines/new.py").write_text("print('new')\n")
    (tree / "pipelines/debug.log").write_text("ignored")
    (tree / "notes.txt").write_text("not Manta's, not tracked")
    (tree / "run.sh").unlink()
    archive = zipfile.ZipFile(io.BytesIO(pack(tree, {}).content))
    assert archive.read("pipelines/cli.py") == b"print('changed')\n"
    assert "pipelines/new.py" in archive.namelist()
    assert not {"pipelines/debug.log", "notes.txt", "run.sh"} & set(archive.namelist())


def test_secrets_and_results_stay_at_home(tree: Path) -> None:
    content = pack(tree, {}).content
    assert SECRET.encode() not in content
    assert names(content) == [
        ".gitignore",
        "data/Ünïcode.txt",
        "pipelines/cli.py",
        "pipelines/credentials.py",
        "run.sh",
    ]
    modes = {e.filename: e.external_attr >> 16 for e in zipfile.ZipFile(io.BytesIO(content)).infolist()}
    assert modes["run.sh"] == 0o100755
    assert modes["pipelines/cli.py"] == 0o100644


@pytest.mark.parametrize(
    "name",
    [
        ".git/config",
        ".venv/bin/python",
        "runs/a/b",
        "x/.aws/credentials",
        ".ray/auth_token",
        "k8s/tls.pem",
        ".env.prod",
    ],
)
def test_names_that_never_travel(name: str) -> None:
    assert not is_packed(name)


def test_without_git_the_packages_travel(tmp_path: Path) -> None:
    for name in (
        "llm/a.py",
        "cluster/b.py",
        "pipelines/c/d.yaml",
        "pipelines/__pycache__/c.pyc",
        "other/e.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert names(pack(tmp_path, {}).content) == ["cluster/b.py", "llm/a.py", "pipelines/c/d.yaml"]


def test_a_tree_with_data_in_it_is_refused(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_package, "MAX_BYTES", 1000)
    (tree / "data/Ünïcode.txt").write_text("x" * 2000)
    with pytest.raises(UserError, match=r"its largest file is data/Ünïcode\.txt"):
        pack(tree, {})


def test_requirements_are_exact_and_leave_ray_to_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    stated = ["ray[default]==2.60.*", "torch<2.14,>=2.13", "numpy>=2.0", 'pytest>=9; extra == "test"']
    versions = {"torch": "2.13.0+cpu", "numpy": "2.4.1"}
    monkeypatch.setattr("importlib.metadata.requires", lambda name: stated)
    monkeypatch.setattr("importlib.metadata.version", versions.__getitem__)
    assert pinned_requirements() == ["numpy==2.4.1", "torch==2.13.0"]
