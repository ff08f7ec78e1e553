"""Run a function on several processes joined by gloo, for what must not depend on their number."""

import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

PATIENCE = timedelta(seconds=120)
"""After which a rank that waits for another one in vain is an error."""


def on_ranks(world: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`function(*arguments)` on ranks 0 … world − 1; their results (what `torch.save` can write) in order."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, (world, folder, function, arguments), nprocs=world)
        return [torch.load(Path(folder) / str(rank), weights_only=False) for rank in range(world)]


def _rank(
    rank: int, world: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world, timeout=PATIENCE)
    torch.save(function(*arguments), Path(folder) / str(rank))
    dist.barrier()
    dist.destroy_process_group()
