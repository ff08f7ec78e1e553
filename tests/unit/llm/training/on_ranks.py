"""Run a function on several ranks of a gloo group, each a process of its own."""

import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([__name__, "llm.training.loop", "llm.training.parallel.pipeline"])

_PATIENCE = timedelta(minutes=5)


def on_ranks(ranks: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(*arguments)`, a function of a module, returns on each rank. torch is imported once for all
    of them.
    """
    with tempfile.TemporaryDirectory() as folder:
        started = [
            _PROCESSES.Process(target=_rank, args=(rank, ranks, Path(folder), work, arguments))
            for rank in range(ranks)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join()
        problems = [path.read_text() for path in sorted(Path(folder).glob("*.error"))]
        assert not problems, "\n".join(problems)
        return [pickle.loads((Path(folder) / f"{rank}.result").read_bytes()) for rank in range(ranks)]


def _rank(rank: int, ranks: int, folder: Path, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=_PATIENCE)
    try:
        (folder / f"{rank}.result").write_bytes(pickle.dumps(work(*arguments)))
        dist.barrier()
    except BaseException:
        (folder / f"{rank}.error").write_text(traceback.format_exc())
        os._exit(1)  # the others are waiting for it, and are to meet an error too
    dist.destroy_process_group()
