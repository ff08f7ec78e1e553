"""Two drivers of one artifact: started together, or a second one while the first is paused."""

import random
import shutil
import signal
import time
from pathlib import Path

from cluster.artifacts.manifest import MANIFEST
from tests.faults.killing import Outcome, Reference, end, finish, link_tree, start, wait_for, wait_for_workers
from tests.faults.object_storage_faults import bucket_for

_AT_ONCE = "is being made by"
_TAKEN_OVER = "took over", "has taken this run over"


def at_once_on_disk(reference: Reference, index: int, seed: int, scratch: Path) -> Outcome:
    """One makes the artifact; the other says who does, or finds it made."""
    expected = reference.artifact(index)
    root = link_tree(reference.root, scratch / f"two-{index}-{seed}")
    shutil.rmtree(root / expected.ref)
    problems = _start_two(root, index, None)
    same = _same(root / expected.ref / MANIFEST, expected.folder.read(MANIFEST))
    shutil.rmtree(root)
    return Outcome(1, same=same, problems=problems)


def at_once_in_bucket(reference: Reference, index: int, seed: int, scratch: Path) -> Outcome:
    """The same with a root in object storage."""
    expected = reference.artifact(index)
    with bucket_for(reference, expected, scratch) as bucket:
        problems = _start_two(bucket.root, index, bucket.environment)
        same = bucket.read(f"{expected.ref}/{MANIFEST}") == expected.folder.read(MANIFEST)
    return Outcome(1, same=same, problems=problems)


def paused(reference: Reference, index: int, seed: int, scratch: Path) -> Outcome:
    """The driver is stopped for longer than a lease lives, and a second one finishes. The first wakes up: it
    must say that it was taken over, and change nothing.
    """
    choice = random.Random(f"paused/{index}/{seed}")
    expected = reference.artifact(index)
    root = link_tree(reference.root, scratch / f"paused-{index}-{seed}")
    draft = root / expected.ref
    shutil.rmtree(draft)
    first = start(root, index)
    wait_for(draft, first)
    wait_for_workers(first)  # Ray does not survive a pause while it starts.
    time.sleep(reference.seconds[index] * choice.uniform(0.0, 0.3))
    first.send_signal(signal.SIGSTOP)
    if first.poll() is not None or (draft / MANIFEST).exists():
        end(first)
        shutil.rmtree(root)
        return Outcome(1, same=True, missed=True)
    second = start(root, index)
    said = finish(second)
    problems = [] if second.returncode == 0 else [f"the second: {said.strip()[-200:]}"]
    made = {path: path.read_bytes() for path in _committed(draft)}
    first.send_signal(signal.SIGCONT)
    said = finish(first)
    if first.returncode == 0 or not any(each in said for each in _TAKEN_OVER) or "Traceback" in said:
        problems.append(f"the one that was paused: exit code {first.returncode}, {said.strip()[-200:]}")
    problems += [f"{path.name} was changed" for path, content in made.items() if path.read_bytes() != content]
    same = _same(draft / MANIFEST, expected.folder.read(MANIFEST))
    shutil.rmtree(root)
    return Outcome(1, same=same, problems=problems)


def _start_two(root: Path | str, index: int, environment: dict[str, str] | None) -> list[str]:
    """What is wrong with how two drivers that were started together ended."""
    two = [start(root, index, environment=environment) for _ in range(2)]
    said = [finish(each) for each in two]
    codes = sorted(each.returncode for each in two)
    if codes == [0, 0]:
        return []
    if codes == [0, 2] and any(_AT_ONCE in each and "Traceback" not in each for each in said):
        return []
    return [f"exit codes {codes}: {' | '.join(each.strip()[-200:] for each in said)}"]


def _committed(draft: Path) -> list[Path]:
    """Files of the artifact, with what tells of its making."""
    return [path for path in sorted(draft.iterdir()) if path.is_file()]


def _same(manifest: Path, expected: bytes) -> bool:
    return manifest.exists() and manifest.read_bytes() == expected
