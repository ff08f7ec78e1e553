"""Run a function on several processes joined by gloo, for what must not depend on their number."""

import os
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
    return in_turn([(world, function, arguments)])[0]


def in_turn(runs: list[tuple[int, Callable[..., Any], tuple[Any, ...]]]) -> list[list[Any]]:
    """Like `on_ranks` for (world, function, arguments) one after the other, in the same processes: starting
    them is what takes long.
    """
    most = max(world for world, _, _ in runs)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_process, (folder, runs), nprocs=most)
        return [
            [torch.load(Path(folder) / f"{run}-{rank}", weights_only=False) for rank in range(world)]
            for run, (world, _, _) in enumerate(runs)
        ]


def _process(rank: int, folder: str, runs: list[tuple[int, Callable[..., Any], tuple[Any, ...]]]) -> None:
    torch.set_num_threads(1)
    for run, (world, function, arguments) in enumerate(runs):
        if rank < world:
            meeting = f"file://{folder}/store-{run}"
            dist.init_process_group(
                "gloo", init_method=meeting, rank=rank, world_size=world, timeout=PATIENCE
            )
            torch.save(function(*arguments), Path(folder) / f"{run}-{rank}")
            dist.barrier()
            dist.destroy_process_group()
    # A thread of gloo that frees a tensor while Python shuts down aborts the process (pytorch issue 190489).
    os._exit(0)
