"""Folders and files on a disk that every node must see, and whether nodes on other machines do.

A stage's workers may run on any node. A folder that all nodes share (NFS and the like) is as good as a
bucket, so other machines are asked instead of refused.
"""

import glob
import itertools
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.addresses import is_this_machine
from cluster.errors import UserError

_ANSWER_SECONDS = 120


@dataclass(frozen=True)
class Places:
    """What a command reads and writes on a disk, by the flag that names it."""

    written: Mapping[str, str]
    """Folders that workers write into; made if they are not there."""
    read: Mapping[str, tuple[str, ...]]
    """Files, folders and globs that workers read."""


Ask = Callable[[list[str], list[str]], dict[str, list[int | None]]]
"""(node ids, paths) → what each node's `size` says of every path; without nodes that are lost meanwhile."""


def require_seen(places: Places) -> None:
    """Ask every node on another machine whether it sees the places; nothing is asked if all nodes are here.

    Nodes that join later are not asked.

    Raises:
        UserError: one of them does not.
    """
    import ray

    elsewhere = {
        node["NodeID"]: node["NodeManagerHostname"]
        for node in ray.nodes()
        if node["Alive"] and not is_this_machine(node["NodeManagerAddress"])
    }
    if elsewhere and (places.written or places.read):
        check_nodes(places, elsewhere, _ask)


def check_nodes(places: Places, nodes: Mapping[str, str], ask: Ask) -> None:
    """Raise UserError for the first place that one of the nodes (id → hostname) does not see."""
    with _probes(places.written) as probes:
        samples = [*probes, *_samples(places.read)]
        paths = [path for _, _, path in samples]
        here = [size(path) for path in paths]
        answers = ask(list(nodes), paths)
    for node, there in answers.items():
        for (flag, place, _), mine, theirs in zip(samples, here, there, strict=True):
            if mine != theirs:
                raise UserError(
                    f"{flag} {place} is a place on this machine, which the cluster's node {nodes[node]} does "
                    "not see: give one in object storage (s3://BUCKET/PREFIX), or one that all nodes share"
                )


def size(path: str) -> int | None:
    """Bytes of a file; None if it cannot be seen."""
    try:
        return os.path.getsize(path)
    except OSError:
        return None


@contextmanager
def _probes(folders: Mapping[str, str]) -> Iterator[list[tuple[str, str, str]]]:
    """(flag, folder, a new file in it), which no other disk has; an old one where we may only read."""
    probes: list[tuple[str, str, str]] = []
    made: list[Path] = []
    try:
        for flag, folder in folders.items():
            probe = Path(folder).expanduser().absolute() / f".manta-probe-{uuid.uuid4().hex}"
            try:
                probe.parent.mkdir(parents=True, exist_ok=True)
                probe.touch()
            except OSError:
                probes += _samples({flag: (folder,)})
            else:
                made.append(probe)
                probes.append((flag, folder, str(probe)))
        yield probes
    finally:
        for path in made:
            path.unlink(missing_ok=True)


def _samples(read: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[str, str, str]]:
    """(flag, place, one file of it); a place without files is left to whoever reads it."""
    for flag, places in read.items():
        for place in places:
            matches = glob.iglob(os.path.abspath(os.path.expanduser(place)), recursive=True)
            files = (file for match in matches for file in _files(match))
            yield from ((flag, place, file) for file in itertools.islice(files, 1))


def _files(path: str) -> Iterator[str]:
    if not os.path.isdir(path):
        yield path
    for folder, _, names in os.walk(path):
        yield from (os.path.join(folder, name) for name in names)


def _ask(nodes: list[str], paths: list[str]) -> dict[str, list[int | None]]:
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look: Any = ray.remote(num_cpus=0, max_retries=0)(_sizes)
    asked = {
        node: look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(paths)
        for node in nodes
    }
    answers: dict[str, list[int | None]] = {}
    for node, answer in asked.items():
        try:
            answers[node] = ray.get(answer, timeout=_ANSWER_SECONDS)
        except RayError:  # It died, or starts no process: what is placed there will say so.
            continue
    return answers


def _sizes(paths: list[str]) -> list[int | None]:
    return [size(path) for path in paths]
