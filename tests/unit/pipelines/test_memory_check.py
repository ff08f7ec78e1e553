"""Before a run starts, one line says what it needs and has; only what is hopeless is refused."""

import pytest
import torch
import torch.distributed as dist

from cluster.errors import UserError
from llm.models.presets import model_config
from llm.planning.fit import Demand
from llm.planning.memory import Step
from pipelines.memory_check import Room, room_here, tightest, verdict

DEMAND = Demand(model_config("llama-125m"), Step(micro_batch=16, seq_len=1024))
NEEDED = DEMAND.needed


def room(total: float, free: float, shared: bool = True) -> Room:
    return Room(int(total * NEEDED), int(free * NEEDED), "an H1", shared)


def test_enough_too_little_and_hopeless() -> None:
    enough = verdict(DEMAND, room(3, 1.01))
    assert enough.startswith("a worker needs about ")
    assert enough.endswith(" GiB that an H1 has for it")
    tight = verdict(DEMAND, room(3, 0.8))
    assert "it may run out of memory: try --micro-batch 8 or --activation-checkpointing full" in tight
    assert "--workers" not in tight
    assert verdict(DEMAND, room(0.51, 0.1)).endswith("take a smaller model, or shorter sequences")
    assert "or --workers 2" in verdict(DEMAND, room(1, 0.9, shared=False))
    with pytest.raises(UserError, match=r"^a worker needs about .* GiB for it: try .*--workers \d+$"):
        verdict(DEMAND, room(0.4, 0.4, shared=False))
    for line in (enough, tight):
        assert "\n" not in line


def test_workers_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        alone = room_here(torch.device("cpu"))
        assert tightest(alone) == alone
        monkeypatch.setattr(dist, "get_world_size", lambda: 4)
        monkeypatch.setattr(
            dist, "all_gather_object", lambda into, mine: into.__setitem__(slice(0, 3), [mine] * 3)
        )
        together = room_here(torch.device("cpu"))
    finally:
        monkeypatch.undo()
        dist.destroy_process_group()
    assert together.total == alone.total // 3
    assert alone.shared
    assert not together.shared
