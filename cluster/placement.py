"""How much each of several equal actors may reserve, so that Ray can place them all.

Ray waits for ever, and says nothing, for an actor that fits on no node: CPUs of different nodes do not add up
for one actor, and a node's GPUs are of use only with CPUs of the same node. The arithmetic is here;
`Cluster.share` applies it to the nodes that are alive.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

_CPU_STEPS = 10_000  # Ray counts in ten thousandths of a CPU.


@dataclass(frozen=True)
class Node:
    """What Ray may give away on one machine."""

    cpus: float
    gpus: int = 0


@dataclass(frozen=True)
class Share:
    """What one actor reserves. An actor that reserves no GPU works on CPUs, whatever the node has."""

    cpus: float
    gpus: int = 0

    def part(self, fraction: float) -> "Share":
        """The same with a fraction of the CPUs, for an actor beside others of the same node."""
        return Share(_whole_steps(self.cpus * fraction), self.gpus)


def share(nodes: Sequence[Node], actors: int, use_gpus: bool = True) -> Share:
    """The most that each of `actors` may reserve: one GPU if there are enough for all, and CPUs."""
    if use_gpus and sum(node.gpus for node in nodes) >= actors:
        return _most_cpus(nodes, actors, gpus=1)
    return _most_cpus(nodes, actors, gpus=0)


def room(nodes: Sequence[Node], wanted: Share) -> int:
    """How many actors that reserve `wanted` fit on the nodes at once. `wanted.cpus` must be positive."""
    return sum(_room_on(node, wanted) for node in nodes)


def _most_cpus(nodes: Sequence[Node], actors: int, gpus: int) -> Share:
    """The largest share is one node's CPUs divided by a whole number: were it not, it could still grow."""
    shares = {
        Share(_whole_steps(node.cpus / parts), gpus) for node in nodes for parts in range(1, actors + 1)
    }
    fitting = [each for each in shares if each.cpus > 0 and room(nodes, each) >= actors]
    return max(fitting, key=lambda each: each.cpus, default=Share(0.0, gpus))


def _room_on(node: Node, wanted: Share) -> int:
    by_cpus = round(node.cpus * _CPU_STEPS) // round(wanted.cpus * _CPU_STEPS)
    return min(by_cpus, node.gpus // wanted.gpus) if wanted.gpus else by_cpus


def _whole_steps(cpus: float) -> float:
    """Rounded down: rounded up, the last of several would not fit."""
    return math.floor(cpus * _CPU_STEPS) / _CPU_STEPS


def assigned_device() -> str:
    """`cuda` in an actor that reserved a GPU, else `cpu`; for use inside actors.

    Whether torch sees a GPU says nothing: Ray hides GPUs only from actors that reserved some of them.
    """
    import ray

    return "cuda" if ray.get_runtime_context().get_assigned_resources().get("GPU", 0) else "cpu"
