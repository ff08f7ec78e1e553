"""A function in one process ends: with its result, its error, or one line after a few deaths."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
import ray

from cluster.connect import start_local
from cluster.errors import UserError
from cluster.one_process import run_in_one_process

HOW = {"cpus": 1, "what": "count", "less_memory": "count less"}


@pytest.fixture
def memory_threshold(request):
    """With the small one Ray's memory monitor kills whatever runs for a while."""
    start_local(
        num_cpus=2,
        _system_config={"memory_usage_threshold": request.param, "memory_monitor_refresh_ms": 100},
    )
    yield request.param
    ray.shutdown()


def begin(marks: Path) -> int:
    """The number of this attempt."""
    number = len(list(marks.iterdir()))
    (marks / str(number)).touch()
    return number


def linger(marks: Path) -> None:
    begin(marks)
    time.sleep(30)


def die(marks: Path, times: int) -> str:
    if begin(marks) < times:
        os._exit(1)
    return "done"


def reserved() -> float:
    return ray.get_runtime_context().get_assigned_resources()["memory"]


def take_all() -> int:
    return len(np.ones(2**60, dtype=np.uint8))


@pytest.mark.parametrize("memory_threshold", [0.001], indirect=True)
def test_what_the_memory_monitor_kills_is_not_run_for_ever(memory_threshold, tmp_path):
    line = r"count: its process died 3 times, .* its node ran out of memory \(.*GB limit\); count less"
    with pytest.raises(UserError, match=line) as raised:
        run_in_one_process(linger, tmp_path, **HOW)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("memory_threshold", [1.0], indirect=True)
def test_results_errors_and_deaths(memory_threshold, tmp_path):
    assert run_in_one_process(die, tmp_path, 2, **HOW) == "done"
    assert len(list(tmp_path.iterdir())) == 3
    assert run_in_one_process(reserved, memory_bytes=2**20, **HOW) == 2**20
    with pytest.raises(UserError, match=r"count: out of memory .*; count less"):
        run_in_one_process(take_all, **HOW)
    with pytest.raises(FileNotFoundError):
        run_in_one_process(linger, tmp_path / "nowhere", **HOW)
    with pytest.raises(
        UserError, match=r"count: its process died 3 times.*if memory is short, count less"
    ) as raised:
        run_in_one_process(die, tmp_path, 99, **HOW)
    assert "\n" not in str(raised.value)
    assert len(list(tmp_path.iterdir())) == 6
