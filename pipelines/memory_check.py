"""What a training run will need of each worker's memory, said before it starts."""

import math
import socket
from dataclasses import dataclass

import torch
import torch.distributed as dist

from cluster.errors import UserError
from cluster.host_memory import host_memory
from llm.planning.fit import Demand
from llm.planning.memory import Step
from llm.training.precision import Precision
from pipelines.inspect.format import format_bytes
from pipelines.parallel_config import ParallelConfig
from pipelines.training_launch import SAID, TrainingJob

_HOPELESS = 2.0
"""Times what there is: an estimate is never as wrong as this."""


def say_memory(
    job: TrainingJob,
    device: torch.device,
    precision: Precision,
    seq_len: int,
    input_len: int | None = None,
    trained: int | None = None,
    parallel: ParallelConfig | None = None,
) -> None:
    """Let the driver print what a worker needs and has. Every worker must call it, before it has a model.

    Args:
        seq_len: tokens of a sequence, the longest.
        input_len: of an encoder-decoder, those that its encoder reads.
        trained: parameters that are trained, if not all are.

    Raises:
        UserError: the run cannot but run out of memory; on every worker alike.
    """
    config = job.config
    layout = (parallel or ParallelConfig()).layout(dist.get_world_size())
    rows = math.ceil(config.global_batch / layout.data)
    divided = layout.context * layout.tensor
    step = Step(
        micro_batch=min(config.micro_batch, rows),
        seq_len=math.ceil(seq_len / divided),
        input_len=None if input_len is None else math.ceil(input_len / divided),
        micro_batches=math.ceil(rows / config.micro_batch),
        ranks=layout.ranks // layout.replicate,
        precision=precision,
        checkpointing=config.activation_checkpointing == "full",
        on_gpu=device.type == "cuda",
    )
    demand = Demand(
        job.model,
        step,
        trained=trained,
        averaged=config.optimizer.ema_decay > 0,
        copied=config.checkpoint_async and device.type == "cpu",
    )
    note = verdict(demand, tightest(room_here(device)))
    if dist.get_rank() == 0:
        job.board.post.remote({SAID: note})


@dataclass(frozen=True)
class Room:
    """Bytes for one worker."""

    total: int
    """At the very most, if nothing else ran there,"""
    free: int
    """and now."""
    where: str
    """The device, for people."""
    shared: bool
    """Whether more workers would have it between them."""


def room_here(device: torch.device) -> Room:
    """This worker's. Every worker must call it: those of one machine share its memory evenly."""
    names: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(names, socket.gethostname())
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return Room(total, total, torch.cuda.get_device_name(device), shared=False)
    memory, workers = host_memory(), names.count(socket.gethostname())
    return Room(memory.total // workers, memory.free // workers, "the machine", len(set(names)) == 1)


def tightest(room: Room) -> Room:
    """The least of all workers' rooms. Every worker must call it."""
    rooms = [room] * dist.get_world_size()
    dist.all_gather_object(rooms, room)
    return min(rooms, key=lambda each: each.free)


def verdict(demand: Demand, room: Room) -> str:
    """One line: what is needed and what there is; if it is too much, with what would help.

    Raises:
        UserError: it is so much too much that the run cannot but die.
    """
    needed = demand.needed
    line = f"a worker needs about {format_bytes(needed)}"
    if needed <= room.free:
        return f"{line} of the {format_bytes(room.free)} that {room.where} has for it"
    mends = demand.mends(room.free, more_ranks=not room.shared)
    mend = f"try {' or '.join(mends)}" if mends else "take a smaller model, or shorter sequences"
    line = f"{line}, and {room.where} has {format_bytes(room.free)} for it"
    if needed > _HOPELESS * room.total:
        raise UserError(f"{line}: {mend}")
    return f"{line}; it may run out of memory: {mend}"
