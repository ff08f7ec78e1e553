"""What ranks tell each other beside the collectives: when one of those hangs, words still come through.

It is the key-value store by which the process group was made. A rank's word is there until it is replaced;
nobody waits for anybody, so a thread of its own can use it while another trains.
"""

import json
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store


class Noticeboard:
    """Words by topic and rank, JSON types. In a single process without a group, what it says itself.

    Methods raise RuntimeError if the store is gone, with the process of rank 0 or its machine.
    """

    def __init__(self) -> None:
        joined = dist.is_initialized()
        self.rank: int = dist.get_rank() if joined else 0
        self.ranks: int = dist.get_world_size() if joined else 1
        self._store = (_get_default_store() if joined else dist.HashStore()).clone()

    def tell(self, topic: str, word: Any) -> None:
        """Say something, in place of what this rank has said on the topic before."""
        self._store.set(_key(topic, self.rank), json.dumps(word))

    def told(self, topic: str) -> dict[int, Any]:
        """What was said, by rank; only of ranks that have said something."""
        return {rank: word for rank in range(self.ranks) if (word := self.told_by(rank, topic)) is not None}

    def told_by(self, rank: int, topic: str) -> Any:
        """What a rank has said last, or None."""
        key = _key(topic, rank)
        return json.loads(self._store.get(key)) if self._store.check([key]) else None

    def number(self, topic: str) -> int:
        """A number that all ranks see; 0 at first."""
        return self._store.add(_key(topic), 0)

    def raise_number(self, topic: str, seen: int) -> int:
        """Make it one more than `seen`, unless another rank has; returns what it is then."""
        if self.number(topic) == seen and self._store.add(_key(topic, f"raised-from-{seen}"), 1) == 1:
            return self._store.add(_key(topic), 1)
        return self.number(topic)


def _key(topic: str, of: int | str = "all") -> str:
    return f"manta/{topic}/{of}"
