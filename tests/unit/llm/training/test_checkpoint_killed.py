"""A run on two processes is ended while a checkpoint is written or uploaded beside training. It goes on from
a whole one, and its weights and metrics are those of a run that was left alone, bit for bit.
"""

import multiprocessing
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint import FileSystemWriter

from llm.models.load import build
from llm.training import checkpoint_writing
from llm.training.checkpoint_manifest import what_is_wrong
from llm.training.loop import train
from llm.training.parallel.fsdp import data_mesh, shard
from llm.training.parallel.weights import gather_weights
from tests.unit.llm.training.checkpointed_run import CONFIG, FolderMirror, a_run, micro_batches

Held = Literal["writing", "uploading"]
PATIENCE = 120.0
WORLD = 2
STRUCK = "step-00000008"
"""The checkpoint in whose making a run is ended."""


class Run:
    """The processes of one run; the machine's folder and the mirror are below `folder`."""

    def __init__(self, folder: Path, held: Held | None = None, seconds: float = PATIENCE) -> None:
        """held: at this point of making `STRUCK`, each process stays for so many seconds."""
        self.folder, self.meeting = folder, folder / f"meeting-{time.monotonic_ns()}"
        self.meeting.mkdir(parents=True)
        # Forked from a process that has imported all of torch already, and has no threads.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, "torch._dynamo"])
        self.processes = [
            context.Process(target=rank_of_a_run, args=(rank, folder, self.meeting, held, seconds))
            for rank in range(WORLD)
        ]
        for process in self.processes:
            process.start()

    def wait_until_held(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while len(list(self.meeting.glob("held-*"))) < WORLD:
            assert time.monotonic() < deadline
            assert all(process.is_alive() for process in self.processes)
            time.sleep(0.01)

    def strike(self, signal_number: int, ranks: range = range(WORLD)) -> None:
        for rank in ranks:
            os.kill(self.processes[rank].pid, signal_number)

    def end(self) -> list[int]:
        """Exit codes."""
        for process in self.processes:
            process.join(PATIENCE)
        return [process.exitcode for process in self.processes]


def rank_of_a_run(rank: int, folder: Path, meeting: Path, held: Held | None, seconds: float) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ray's workers do

    def stay(at: Held, name: str) -> None:
        if at == held and STRUCK in name:
            (meeting / f"held-{rank}").touch()
            time.sleep(seconds)

    class Writer(FileSystemWriter):
        def write_data(self, plan, planner):
            answer = super().write_data(plan, planner)
            stay("writing", str(self.path))
            return answer

    checkpoint_writing.FileSystemWriter = Writer
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting}/store",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=PATIENCE),
    )
    model = build(CONFIG)
    shard(model, data_mesh(torch.device("cpu")), "bf16")
    model.to_empty(device="cpu")
    model.init_weights(seed=1)
    train(
        a_run(
            folder / "run",
            model=model,
            mirror=FolderMirror(folder / "mirror", before_upload=lambda name: stay("uploading", name)),
            micro_batches=lambda step: micro_batches(step, rank, WORLD),
            evaluate=dict,
        )
    )
    weights = gather_weights(model)
    if rank == 0:
        torch.save(weights, folder / "weights.pt")
    dist.barrier()


def whole_checkpoints(folder: Path) -> list[str]:
    names = FolderMirror(folder / "mirror").names()
    return [name for name in names if what_is_wrong(folder / "mirror" / name) is None]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert Run(folder).end() == [0, 0]
    return folder


def assert_goes_on_to_the_same(folder: Path, undisturbed: Path) -> None:
    assert Run(folder).end() == [0, 0]
    metrics = [each / "run" / "metrics.jsonl" for each in (folder, undisturbed)]
    assert metrics[0].read_bytes() == metrics[1].read_bytes()
    ours, theirs = (torch.load(each / "weights.pt") for each in (folder, undisturbed))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert whole_checkpoints(folder) == ["step-00000012", STRUCK]
    assert not list((folder / "run/checkpoints").glob(".*.partial")), "litter was left"


@pytest.mark.parametrize("held", ["writing", "uploading"])
def test_killed_while_a_checkpoint_is_made(tmp_path, undisturbed, held):
    run = Run(tmp_path, held)
    run.wait_until_held()
    run.strike(signal.SIGKILL)
    assert run.end() == [-signal.SIGKILL] * WORLD
    assert whole_checkpoints(tmp_path) == ["step-00000004"]
    assert_goes_on_to_the_same(tmp_path, undisturbed)


def test_terminated_while_a_checkpoint_is_made(tmp_path, undisturbed):
    """It is finished first, and nothing is done twice."""
    run = Run(tmp_path, "uploading", seconds=1.0)
    run.wait_until_held()
    run.strike(signal.SIGTERM)
    assert 0 not in run.end()
    assert whole_checkpoints(tmp_path) == [STRUCK, "step-00000004"]
    assert_goes_on_to_the_same(tmp_path, undisturbed)


def test_who_is_left_alone_does_not_wait_for_ever(tmp_path):
    run = Run(tmp_path, "uploading", seconds=1.0)
    run.wait_until_held()
    began = time.monotonic()
    run.strike(signal.SIGKILL, range(1, WORLD))
    codes = run.end()
    assert codes[0] not in (0, None)
    assert time.monotonic() - began < PATIENCE / 2, "the timeout of the process group"
    assert whole_checkpoints(tmp_path) == ["step-00000004"]
