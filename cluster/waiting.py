"""Say so when a busy cluster makes us wait: Ray schedules, and says nothing while it waits.

Nothing is held back here: what was asked for is in Ray's queue all the while, where an autoscaler sees it.
One thread looks on for the whole of a command, and so covers all actors and placement groups of a stage.
"""

import math
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

_LOOK_SECONDS = 5.0
"""Between two looks. What is short at two looks in a row is told: a process that starts is no shortage."""
_REPEAT_SECONDS = 60.0
_LONGEST_REPEAT_SECONDS = 960.0
_LONGEST_STOP_SECONDS = 2.0  # A cluster that does not answer must not hold up a command that ends.

Resources = Mapping[str, float]
"""CPU and GPU in numbers, memory in bytes, as Ray counts them."""

_TOLD = ("CPU", "GPU", "memory")


@dataclass(frozen=True)
class Room:
    """What one node has, and how much of it is free."""

    total: Resources
    free: Resources


class Watch:
    """A thread that tells `say` of what this job waits for, until `stop`; Ray must be running."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cluster-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Before Ray stops: a thread that is still in Ray then takes the process down."""
        self._stopped.set()
        self._thread.join(_LONGEST_STOP_SECONDS)

    def _run(self) -> None:
        told = Told()
        while not self._stopped.wait(_LOOK_SECONDS):
            line = _look()
            if told.is_due(line, time.monotonic()):
                self._say(str(line))


class Told:
    """What was said when: the same is said again after one minute, then two, four … at most 16.

    Two lines are the same if they want the same: how often, and what is free, changes all the time.
    """

    def __init__(self) -> None:
        self._was_short = False
        self._said: dict[frozenset[str], tuple[float, float]] = {}
        """By what is wanted: when it was said, and the pause before it is said again."""

    def is_due(self, line: str | None, now: float) -> bool:
        """Whether to say the line of this look (None: nothing is short) at `now`, in seconds."""
        was_short, self._was_short = self._was_short, line is not None
        if line is None:
            self._said = {wanted: (at, _REPEAT_SECONDS) for wanted, (at, _) in self._said.items()}
            return False
        wanted = _wanted(line)
        at, pause = self._said.get(wanted, (-math.inf, _REPEAT_SECONDS / 2))
        if not was_short or now < at + pause:
            return False
        self._said[wanted] = (now, min(2 * pause, _LONGEST_REPEAT_SECONDS))
        return True


def _wanted(line: str) -> frozenset[str]:
    """The bundles that a line of `shortage` names, without their numbers."""
    bundles = line.partition(":")[0].removeprefix("waiting for ").split(" and ")
    return frozenset(re.sub(r"^\d+ × \((.*)\)$", r"\1", bundle) for bundle in bundles)


def shortage(wanted: Sequence[Sequence[Resources]], nodes: Sequence[Room]) -> str | None:
    """One line on what of `wanted` no node has room for now; None if there is room for each.

    wanted: groups of what must be there at the same time. Each bundle of a group needs one node for itself.
    """
    short = [group for group in wanted if not _fits(group, [node.free for node in nodes])]
    if not short:
        return None
    bundles = Counter(_text(bundle) for group in short for bundle in group)
    what = " and ".join(f"{count} × ({text})" if count > 1 else text for text, count in bundles.items())
    names = [name for name in _TOLD if any(bundle.get(name) for group in short for bundle in group)]
    free = ", ".join(
        f"{_amount(name, sum(node.free.get(name, 0) for node in nodes))} of "
        f"{_amount(name, sum(node.total.get(name, 0) for node in nodes))} {_noun(name)}"
        for name in names
    )
    never = not all(_fits(group, [node.total for node in nodes]) for group in short)
    return f"waiting for {what}: {free} free" + (
        ", and idle nodes would have no room for it either" if never else ""
    )


def _fits(group: Sequence[Resources], nodes: Sequence[Resources]) -> bool:
    """Whether each bundle of a group finds a node, put on the first one with room."""
    left = [dict(node) for node in nodes]
    for bundle in group:
        asked = {name: amount for name, amount in bundle.items() if name in _TOLD and amount > 0}
        for node in left:
            if all(node.get(name, 0) >= amount for name, amount in asked.items()):
                for name, amount in asked.items():
                    node[name] -= amount
                break
        else:
            return False
    return True


def _text(bundle: Resources) -> str:
    return ", ".join(
        f"{_amount(name, bundle[name])} {_noun(name, bundle[name])}" for name in _TOLD if bundle.get(name)
    )


def _amount(name: str, value: float) -> str:
    return f"{value / 2**30:.1f}" if name == "memory" else f"{value:g}"


def _noun(name: str, value: float = 2) -> str:
    return "GiB of memory" if name == "memory" else name if value == 1 else f"{name}s"


def _look() -> str | None:
    """What this job waits for now. Reads Ray's own tables, for it has no public call that works without its
    dashboard.
    """
    import ray
    from ray._private.state import available_resources_per_node, state
    from ray.core.generated.gcs_pb2 import ActorTableData, PlacementGroupTableData

    if not ray.is_initialized():
        return None
    try:
        job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
        accessor = state._connect_and_get_accessor()
        actors = map(ActorTableData.FromString, accessor.get_actor_table(job, "PENDING_CREATION"))
        groups = map(PlacementGroupTableData.FromString, accessor.get_placement_group_table())
        free = available_resources_per_node()
        nodes = [
            Room(node["Resources"], free.get(node["NodeID"], {})) for node in ray.nodes() if node["Alive"]
        ]
    except Exception:  # A cluster that does not answer now; whoever works on it will say so.
        return None
    wanted = [[dict(actor.required_resources)] for actor in actors if not actor.pid]  # without a process
    wanted += [
        [dict(bundle.unit_resources) for bundle in group.bundles]
        for group in groups
        if group.state == PlacementGroupTableData.PENDING and group.creator_job_id == job.binary()
    ]
    return shortage([group for group in wanted if any(map(_text, group))], nodes)
