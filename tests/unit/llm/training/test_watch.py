"""A rank that hangs or is slow is named; what is left is enough to find out where it was."""

import dataclasses
import gzip
import json
import multiprocessing
import os
import pickle
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp._fully_shard import _fsdp_collectives

from llm.models.decoder import Decoder
from llm.training import loop, watch
from llm.training.hang import Hang, Standing, hung_ranks
from llm.training.loop import language_model_loss, train
from llm.training.metrics_log import read_records
from llm.training.pace import SLOW, Straggler, probe_seconds, slowest, waits_for_others
from llm.training.parallel import overlap
from llm.training.parallel.fsdp import data_mesh, shard
from llm.training.profile_window import ProfileRequest
from llm.training.watch import EXIT_HUNG, Observer
from tests.unit.llm.training.checkpointed_run import CONFIG, RECIPE, a_run, micro_batches
from tests.unit.llm.training.on_ranks import _PROCESSES as PROCESSES

BAD_STEP = 5
STEPS_OF_SLOW, WITHOUT_DATA = 24, 22
"""Time to compare paces several times, on a busy machine too, before a step whose data comes late."""


def a_rank(rank: int, folder: Path, what: str) -> None:
    """A run on two ranks, of which one is not as it should be. The first has the store, as on Ray."""
    torch.set_num_threads(1)
    port = folder / "port"
    if rank == 0:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        port.with_suffix(".partial").write_text(str(store.port))
        port.with_suffix(".partial").rename(port)
    else:
        while not port.exists():
            time.sleep(0.05)
        store = dist.TCPStore("127.0.0.1", int(port.read_text()))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    watch.FIRST_STEP, watch.PACE_SECONDS = 20.0, 1.5
    model = Decoder(CONFIG)
    shard(model, data_mesh(torch.device("cpu")), "fp32")
    model.init_weights(seed=1)
    usual = language_model_loss(model)
    now = {"step": 0}

    def batches(step):
        now["step"] = step
        if step == WITHOUT_DATA and rank == 1 and what == "slow":
            time.sleep(4)
        return micro_batches(step, rank, 2)

    def loss_sum(*micro_batch):
        if what in ("slow", "hot"):
            time.sleep((0.1, 0.4)[rank] if what == "slow" else 0.3)
        if now["step"] == BAD_STEP and rank == 1 and what == "hangs":
            time.sleep(3600)
        if now["step"] == BAD_STEP and rank == 0 and what == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        return usual(*micro_batch)

    if what == "hot":  # as if each had a GPU of its own
        loop.StepWatch = lambda observer, folder, _: watch.StepWatch(observer, folder, torch.device("cuda"))
        watch.probe_seconds = lambda device: (0.002, 0.004)[rank]

    def say(topic):
        return lambda text: (folder / f"{topic}-{rank}").write_text(str(text))

    train(
        a_run(
            folder,
            model=model,
            micro_batches=batches,
            loss_sum=loss_sum,
            evaluate=dict,
            recipe=dataclasses.replace(RECIPE, steps=STEPS_OF_SLOW) if what == "slow" else RECIPE,
            observer=Observer(
                hang_timeout=2.0,
                hung=say("hung"),
                warn=say("warned"),
                profile_wanted=lambda: ProfileRequest("asked", 2, True) if what == "slow" else None,
                profiled=say("profiled"),
            ),
        )
    )


def two_ranks(folder: Path, what: str) -> list[multiprocessing.Process]:
    ranks = [PROCESSES.Process(target=a_rank, args=(rank, folder, what)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    return ranks


def test_the_rank_that_the_others_wait_for_is_named_with_its_stack(tmp_path):
    ranks = two_ranks(tmp_path, "hangs")
    for rank in ranks:
        rank.join(100)
    assert [rank.exitcode for rank in ranks] == [EXIT_HUNG, EXIT_HUNG]
    said = (tmp_path / "hung-0").read_text()
    assert said.startswith("step 6 hung, no progress for ")
    assert "the others wait for rank 1 (on " in said
    assert not (tmp_path / "hung-1").exists(), "one rank tells"
    stacks = [(tmp_path / f"hangs/step-00000006/rank-{rank}.txt").read_text() for rank in range(2)]
    trains = [text.split("\nThread ")[1] for text in stacks]
    assert all("which trains" in text for text in trains)
    assert "time.sleep(3600)" in trains[1]
    assert "time.sleep(3600)" not in stacks[0]
    assert "all_gather_work.wait()" in trains[0]
    recordings = [tmp_path / f"hangs/step-00000006/flight-recorder-{rank}" for rank in range(2)]
    waiting, late = (pickle.loads(each.read_bytes())["entries"] for each in recordings)
    assert len(waiting) == len(late) + 1, "the collective that rank 1 never began"
    assert waiting[-1]["profiling_name"] == "gloo:all_gather"
    assert (tmp_path / "checkpoints/step-00000004/manifest.json").exists()


def test_a_rank_that_is_stopped_with_the_store_is_named_by_the_other(tmp_path):
    stopped, other = two_ranks(tmp_path, "stopped")
    other.join(100)
    os.kill(stopped.pid, signal.SIGKILL)
    assert other.exitcode == EXIT_HUNG
    said = (tmp_path / "hung-1").read_text()
    assert said.startswith("step 6 hung, no progress for ")
    assert said.endswith(": rank 0 does not answer")
    assert "distributed_c10d.py" in (tmp_path / "hangs/step-00000006/rank-1.txt").read_text()


def steps_in(trace: Path) -> list[str]:
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert any(event["name"] == "aten::mm" for event in events)
    return sorted({each["name"] for each in events if each["name"].startswith("step ")})


def test_a_long_step_of_many_micro_batches_is_no_hang(tmp_path):
    """In one process, which begins no collectives."""
    alone = PROCESSES.Process(target=one_that_accumulates, args=(tmp_path,))
    alone.start()
    alone.join(100)
    assert alone.exitcode == 0
    assert not (tmp_path / "hangs").exists()


def one_that_accumulates(folder: Path) -> None:
    watch.FIRST_STEP = 1.0
    run = a_run(
        folder,
        recipe=dataclasses.replace(RECIPE, steps=2),
        micro_batches=lambda step: micro_batches(step) * 5,
        observer=Observer(hang_timeout=1.5),
    )
    usual = language_model_loss(run.model)

    def loss_sum(*micro_batch):
        time.sleep(0.5)
        return usual(*micro_batch)

    train(dataclasses.replace(run, loss_sum=loss_sum))


def test_a_slow_rank_is_named_and_its_waiting_for_data_is_no_hang(tmp_path):
    """And a profile of all ranks is of the same steps."""
    ranks = two_ranks(tmp_path, "slow")
    for rank in ranks:
        rank.join(100)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    assert not (tmp_path / "hangs").exists()
    assert (tmp_path / "warned-0").read_text().startswith("rank 1 (on ")
    records = read_records(tmp_path / "timing.jsonl")
    told = next(each for each in records if "slowest_rank" in each and each["step"] <= WITHOUT_DATA)
    assert told["slowest_rank"] == 1
    assert SLOW < told["slowest_rank_ratio"] < 8, "0.4 s and a little against 0.1 s and a little"
    assert all(0 < each["communication_seconds"] < each["seconds"] for each in records if "seconds" in each)
    traces = sorted(tmp_path.glob("profiles/step-*/*"))
    assert [trace.name for trace in traces] == ["rank-0.json.gz", "rank-1.json.gz"]
    first = int(traces[0].parent.name.removeprefix("step-"))
    assert steps_in(traces[0]) == steps_in(traces[1]) == sorted([f"step {first}", f"step {first + 1}"])
    assert f"first={first}" in (tmp_path / "profiled-0").read_text()
    assert not (tmp_path / "profiled-1").exists()


def test_a_gpu_that_takes_longer_for_the_same_work_is_named(tmp_path):
    ranks = two_ranks(tmp_path, "hot")
    for rank in ranks:
        rank.join(100)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    said = (tmp_path / "warned-0").read_text()
    assert said.startswith("rank 1 (on ")
    assert "is slow: the same matmuls take 0.004 s, 2.00 times the median" in said


def test_a_probe_is_the_time_of_some_matmuls():
    small, large = (probe_seconds(torch.device("cpu"), size) for size in (16, 256))
    assert 0 < 3 * small < large, "4,096 times the work"


def test_whom_the_others_wait_for():
    def at(step, collectives, host="a"):
        return Standing(host, step, collectives, stalled=True)

    assert hung_ranks({0: at(4, 12), 1: at(4, 11, "b"), 2: at(4, 12)}, 3) == {1: "b"}
    assert hung_ranks({0: at(4, 3), 1: at(3, 9, "b")}, 2) == {1: "b"}, (
        "one that took the step apart from this"
    )
    assert hung_ranks({0: at(4, 12), 2: at(4, 11)}, 3) == {1: "?"}, "one that is silent comes before all"
    assert hung_ranks({0: at(4, 12), 1: at(4, 12)}, 2) == {0: "a", 1: "a"}


@pytest.mark.parametrize(
    "hosts, ranks, said",
    [
        ({0: "a"}, 1, "on a"),
        ({1: "b"}, 2, "the others wait for rank 1 (on b)"),
        ({0: "a", 1: "b"}, 2, "all 2 ranks wait in the same collective"),
        ({1: "?"}, 3, "rank 1 does not answer"),
        ({1: "?", 2: "?"}, 4, "ranks 1, 2 do not answer"),
        (dict.fromkeys(range(10), "?"), 20, "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 2 more do not answer"),
    ],
)
def test_what_is_said_of_a_hang(hosts, ranks, said):
    assert str(Hang(6, 600.4, hosts, ranks, Path())) == f"step 6 hung, no progress for 600 s: {said}"


def test_the_slowest_is_compared_with_the_median():
    assert slowest({0: 1.0, 1: 1.1, 2: 3.3, 3: 0.9, 4: 1.2}) == Straggler(2, pytest.approx(3.0))
    assert slowest({0: 1.0, 1: 2.0}) == Straggler(1, 2.0)
    assert not slowest({0: 1.0, 1: 1.2}).is_slow


@pytest.mark.parametrize(
    "path", [dist.distributed_c10d.__file__, _fsdp_collectives.__file__, overlap.__file__]
)
def test_a_place_in_a_collective_is_told_from_one_that_computes(path):
    exec(compile("def call(inner): return inner()", path, "exec"), names := {})
    assert waits_for_others(names["call"](sys._getframe)), "its innermost frames are a collective's"
    assert not waits_for_others(sys._getframe())
    assert not waits_for_others(None)
