"""Damage to what lies on disk between two runs."""

import contextlib
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from cluster.artifacts.store import ArtifactStore
from tests.faults.killing import Outcome, Reference, end, link_tree, start


def flip_a_bit(path: Path, choice: random.Random) -> None:
    """One bit of a file, in a copy of its own: the original may be shared."""
    content = bytearray(path.read_bytes())
    content[choice.randrange(len(content))] ^= 1 << choice.randrange(8)
    _replace(path, bytes(content))


def truncate(path: Path, choice: random.Random) -> None:
    """The file ends somewhere in its middle."""
    content = path.read_bytes()
    _replace(path, content[: choice.randrange(len(content))])


def lose(path: Path, choice: random.Random) -> None:
    """The file is gone."""
    path.unlink()


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "bit flipped": flip_a_bit,
    "truncated": truncate,
    "lost": lose,
}


def damage_checkpoint(reference: Reference, index: int, damage: str, seed: int, scratch: Path) -> Outcome:
    """The run has ended before its commit, and a file of its newest checkpoint is damaged. Run it again."""
    choice = random.Random(f"{index}/{damage}/{seed}")
    expected = reference.artifact(index)
    root = link_tree(reference.root, scratch / f"{index}-{damage}-{seed}".replace(" ", "-"))
    draft = root / expected.kind / expected.name / expected.version
    (draft / "manifest.json").unlink()
    newest = max((draft / "checkpoints").glob("step-*"))
    DAMAGES[damage](choice.choice([each for each in sorted(newest.rglob("*")) if each.is_file()]), choice)
    return _run_again(reference, index, root)


def damage_input(reference: Reference, index: int, damage: str, seed: int, scratch: Path) -> Outcome:
    """A file of an input is damaged: the stage must refuse it, by name, and make nothing."""
    choice = random.Random(f"input/{index}/{damage}/{seed}")
    expected = reference.artifact(index)
    root = link_tree(reference.root, scratch / f"input-{index}-{damage}-{seed}".replace(" ", "-"))
    draft = root / expected.kind / expected.name / expected.version
    shutil.rmtree(draft)
    source = choice.choice(sorted(each["ref"] for each in expected.manifest["inputs"].values()))
    kind, _, name = source.partition("/")
    file = choice.choice(sorted(ArtifactStore(root).resolve(kind, name).files))
    DAMAGES[damage](root / source / file, choice)
    process = start(root, index)
    _, errors = process.communicate(timeout=300)
    end(process)
    is_one_line = process.returncode == 2 and errors.count("\n") == 1
    problems = [] if is_one_line else [f"exit code {process.returncode}"]
    problems += [] if f"{source}/{file}" in errors else [f"the error does not name {file}: {errors.strip()}"]
    problems += ["a half-made artifact"] if (draft / "manifest.json").exists() else []
    shutil.rmtree(root)
    return Outcome(1, refused=not problems, same=False, problems=problems)


def fill_disk(reference: Reference, index: int, seed: int, scratch: Path) -> Outcome:
    """The disk fills up while the stage works: one clear error. With room, the same command finishes."""
    choice = random.Random(f"full/{index}/{seed}")
    expected = reference.artifact(index)
    disk = scratch / f"disk-{index}-{seed}"
    disk.mkdir()
    used = sum(path.stat().st_size for path in reference.root.rglob("*") if path.is_file())
    room = int(used * 1.3) + choice.randrange(1, max(2, expected.bytes))
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        return Outcome(0, same=False, problems=["a disk of its own needs root"])
    try:
        root = disk / "root"
        shutil.copytree(reference.root, root)
        shutil.rmtree(root / expected.ref)
        filler = disk / "filler"
        with contextlib.suppress(OSError), open(filler, "wb") as stream:
            free = shutil.disk_usage(disk).free - choice.randrange(4096, max(8192, expected.bytes // 2))
            stream.write(bytes(max(0, free)))
        process = start(root, index)
        _, errors = process.communicate(timeout=300)
        end(process)
        problems = []
        if process.returncode != 2 or "disk is full" not in errors or "Traceback" in errors:
            problems.append(f"exit code {process.returncode}: {errors.strip()[-150:]}")
        filler.unlink()
        subprocess.run(["mount", "-o", f"remount,size={room * 4}", str(disk)], check=True)
        process = start(root, index)
        _, errors = process.communicate(timeout=300)
        end(process)
        manifest = root / expected.ref / "manifest.json"
        same = manifest.exists() and manifest.read_bytes() == expected.folder.read("manifest.json")
        return Outcome(2, same=same, problems=problems)
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def _run_again(reference: Reference, index: int, root: Path) -> Outcome:
    expected = reference.artifact(index)
    process = start(root, index)
    try:
        _, errors = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        errors = "it hung"
    end(process)
    problems = [] if process.returncode == 0 else [errors.strip()[-200:]]
    manifest = root / expected.ref / "manifest.json"
    same = manifest.exists() and manifest.read_bytes() == expected.folder.read("manifest.json")
    shutil.rmtree(root)
    return Outcome(1, same=same, problems=problems)


def _replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)
