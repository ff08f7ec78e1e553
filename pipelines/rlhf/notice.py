"""Nodes that are about to be taken back, as Ray hears of it. Driver side.

Training workers learn of theirs from Ray Train (`pipelines/training_observer.py`); here nobody looks but us.
"""

from collections.abc import Callable

from ray._private.state import state


def draining_nodes() -> set[str]:
    """By Ray's ids; those of spot machines, for instance, once their cloud has given notice."""
    return set(state.get_draining_nodes())


def notices(nodes: frozenset[str], say: Callable[[str], None]) -> Callable[[], bool]:
    """Whether one of `nodes` is about to be taken back; `say` is told of each once."""
    told: set[str] = set()

    def noticed() -> bool:
        leaving = nodes & draining_nodes()
        if leaving - told:
            told.update(leaving)
            say(
                f"nodes {', '.join(sorted(leaving))} are to be taken back: checkpoints are written until then"
            )
        return bool(leaving)

    return noticed
