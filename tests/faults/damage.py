"""Damage to what lies on disk between two runs."""

import contextlib
import json
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from cluster.artifacts.manifest import MANIFEST
from cluster.artifacts.store import ArtifactStore
from tests.faults.killing import Outcome, Reference, end, finish, link_tree, start
from tests.faults.object_storage_faults import bucket_for
from tests.object_storage import BUCKET


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
    draft = root / expected.ref
    (draft / MANIFEST).unlink()
    newest = max((draft / "checkpoints").glob("step-*"))
    DAMAGES[damage](choice.choice([each for each in sorted(newest.rglob("*")) if each.is_file()]), choice)
    return _run_again(reference, index, root)


def damage_input(reference: Reference, index: int, damage: str, seed: int, scratch: Path) -> Outcome:
    """A file of an input is damaged: the stage must refuse it, by name, and make nothing."""
    choice = random.Random(f"input/{index}/{damage}/{seed}")
    expected = reference.artifact(index)
    root = link_tree(reference.root, scratch / f"input-{index}-{damage}-{seed}".replace(" ", "-"))
    shutil.rmtree(root / expected.ref)
    source = choice.choice(sorted(each["ref"] for each in expected.manifest["inputs"].values()))
    kind, _, name = source.partition("/")
    file = choice.choice(sorted(ArtifactStore(root).resolve(kind, name).files))
    DAMAGES[damage](root / source / file, choice)
    return _refused(root, index, expected.ref, f"{source}/{file}")


def damage_manifest(reference: Reference, index: int, damage: str, seed: int, scratch: Path) -> Outcome:
    """The manifest of an input is damaged: the stage must refuse the input, by name, and make nothing."""
    choice = random.Random(f"manifest/{index}/{damage}/{seed}")
    expected = reference.artifact(index)
    root = link_tree(reference.root, scratch / f"manifest-{index}-{damage}-{seed}".replace(" ", "-"))
    shutil.rmtree(root / expected.ref)
    source = choice.choice(sorted(each["ref"] for each in expected.manifest["inputs"].values()))
    DAMAGES[damage](root / source / MANIFEST, choice)
    return _refused(root, index, expected.ref, source.rpartition("/")[0])


def damage_input_in_bucket(
    reference: Reference, index: int, damage: str, seed: int, scratch: Path
) -> Outcome:
    """As `damage_input`, where the input is in object storage; there a stage only looks at what it reads, and
    with the rest it makes the same.
    """
    choice = random.Random(f"bucket/{index}/{damage}/{seed}")
    expected = reference.artifact(index)
    source = choice.choice(sorted(each["ref"] for each in expected.manifest["inputs"].values()))
    kind, _, name = source.partition("/")
    file = choice.choice(sorted(ArtifactStore(reference.root).resolve(kind, name).files))
    with bucket_for(reference, expected, scratch) as bucket:
        at = {"Bucket": BUCKET, "Key": bucket.key(f"{source}/{file}")}
        copy = scratch / f"{index}-{seed}-{damage.replace(' ', '-')}"
        copy.write_bytes((reference.root / source / file).read_bytes())
        DAMAGES[damage](copy, choice)
        bucket.server.client.delete_object(**at)
        if copy.exists():
            bucket.server.client.put_object(**at, Body=copy.read_bytes())
            copy.unlink()
        process = start(bucket.root, index, environment=bucket.environment)
        errors = finish(process)
        made = bucket.read(f"{expected.ref}/{MANIFEST}")
    if process.returncode == 0:
        return Outcome(1, same=made == expected.folder.read(MANIFEST))
    return _refusal(process.returncode, errors, f"{source}/{file}", made is not None)


def damage_draft(reference: Reference, index: int, damage: str, seed: int, scratch: Path) -> Outcome:
    """The driver is killed once a unit is in the ledger, and a file that the unit wrote is damaged. Run the
    same command again.
    """
    choice = random.Random(f"draft/{index}/{damage}/{seed}")
    expected = reference.artifact(index)
    root = link_tree(reference.root, scratch / f"draft-{index}-{damage}-{seed}".replace(" ", "-"))
    draft = root / expected.ref
    shutil.rmtree(draft)
    process = start(root, index)
    while not (written := _files_in_ledger(draft)) and process.poll() is None:
        time.sleep(0.01)
    end(process)
    process.communicate()
    if (draft / MANIFEST).exists() or not written:
        shutil.rmtree(root)
        return Outcome(1, same=True, missed=True)
    DAMAGES[damage](draft / choice.choice(written), choice)
    return _run_again(reference, index, root)


def _files_in_ledger(draft: Path) -> list[str]:
    """Files of the artifact that finished units have written."""
    records = (draft / "ledger").glob("*.json")
    return sorted(name for path in records for name in json.loads(path.read_bytes()).get("files", {}))


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
        errors = finish(process)
        problems = []
        if process.returncode != 2 or "disk is full" not in errors or "Traceback" in errors:
            problems.append(f"exit code {process.returncode}: {errors.strip()[-150:]}")
        filler.unlink()
        subprocess.run(["mount", "-o", f"remount,size={room * 4}", str(disk)], check=True)
        process = start(root, index)
        errors = finish(process)
        manifest = root / expected.ref / MANIFEST
        same = manifest.exists() and manifest.read_bytes() == expected.folder.read(MANIFEST)
        return Outcome(2, same=same, problems=problems)
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def _refused(root: Path, index: int, ref: str, culprit: str) -> Outcome:
    """Run a step that must refuse its input."""
    process = start(root, index)
    errors = finish(process)
    made = (root / ref / MANIFEST).exists()
    shutil.rmtree(root)
    return _refusal(process.returncode, errors, culprit, made)


def _refusal(code: int, errors: str, culprit: str, made: bool) -> Outcome:
    """Whether a run ended with one line that names the culprit, and without an artifact."""
    is_one_line = code == 2 and errors.count("\n") == 1
    problems = [] if is_one_line else [f"exit code {code}: {errors.strip()[-300:]}"]
    problems += [] if culprit in errors else [f"the error does not name {culprit}: {errors.strip()[-300:]}"]
    problems += ["a half-made artifact"] if made else []
    return Outcome(1, refused=not problems, same=False, problems=problems)


def _run_again(reference: Reference, index: int, root: Path) -> Outcome:
    expected = reference.artifact(index)
    process = start(root, index)
    errors = finish(process)
    problems = [] if process.returncode == 0 else [errors.strip()[-200:]]
    manifest = root / expected.ref / MANIFEST
    same = manifest.exists() and manifest.read_bytes() == expected.folder.read(MANIFEST)
    shutil.rmtree(root)
    return Outcome(1, same=same, problems=problems)


def _replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)
