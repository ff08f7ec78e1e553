"""On a cluster that others use, a command says what it waits for, and goes on once there is room."""

import time

import pytest
import ray
from ray.util.placement_group import placement_group

from cluster import waiting
from cluster.connect import Cluster, start_local


@pytest.fixture
def told(monkeypatch):
    """What a command connected to a cluster of two CPUs says, after the line on the cluster itself."""
    monkeypatch.setattr(waiting, "_LOOK_SECONDS", 0.5)
    start_local(num_cpus=2)
    said: list[str] = []
    cluster = Cluster(announce=said.append)
    cluster.connect()
    said.clear()
    yield said
    cluster.close()


@ray.remote(num_cpus=2)
class Holder:
    """Has all CPUs."""

    def answer(self) -> int:
        return 7


def test_a_busy_cluster_is_told_and_an_idle_one_is_not(told):
    other = Holder.remote()
    assert ray.get(other.answer.remote()) == 7
    time.sleep(2)
    assert told == [], "whoever has room waits for nothing"
    ours = Holder.remote()
    time.sleep(3)
    assert told == ["waiting for 2 CPUs: 0 of 2 CPUs free"], "once a minute"
    ray.kill(other)
    assert ray.get(ours.answer.remote()) == 7


def test_workers_that_must_be_there_at_once(told):
    other = Holder.options(num_cpus=1).remote()
    assert ray.get(other.answer.remote()) == 7
    group = placement_group([{"CPU": 1}, {"CPU": 1}])
    time.sleep(3)
    assert told == ["waiting for 2 × (1 CPU): 1 of 2 CPUs free"]
    ray.kill(other)
    ray.get(group.ready(), timeout=60)
