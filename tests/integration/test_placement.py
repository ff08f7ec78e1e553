"""On two nodes of one CPU each, what stages reserve is placed, and devices are what was reserved."""

import threading
from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster as RayCluster
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster import shared_places
from cluster.auth import enable_where_possible, ensure_token
from cluster.connect import Cluster
from cluster.errors import UserError
from cluster.placement import Node, Share, assigned_device
from cluster.shared_places import Places, require_seen
from pipelines.rlhf.stage import run
from tests.integration.small_chat import chat_store
from tests.integration.test_rlhf import config


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Cluster]:
    """Two raylets of this machine. Ray believes that the second has a GPU, which the machine has not."""
    # This process may have spoken with tokens to a cluster before: then it refuses workers without one.
    ensure_token()
    enable_where_possible()
    nodes = RayCluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1, num_gpus=1)
    try:
        ray.init(address=nodes.address, log_to_driver=False)
        yield Cluster()
    finally:
        ray.shutdown()
        nodes.shutdown()


@pytest.mark.timeout(400)
def test_alignment_starts_where_no_node_has_the_sum(two_nodes, tmp_path):
    assert sorted(two_nodes.nodes, key=lambda node: node.gpus) == [Node(1), Node(1, gpus=1)]
    chat_store(tmp_path)
    assert run(config(tmp_path, iterations=1, engines=2), two_nodes).counts["iterations"] == 1


@ray.remote
class Worker:
    """Asks from a thread of its own, as Ray Train's workers do."""

    def device(self) -> str:
        answers: list[str] = []
        thread = threading.Thread(target=lambda: answers.append(assigned_device()))
        thread.start()
        thread.join()
        return answers[0]


def test_the_device_is_what_was_reserved(two_nodes):
    assert two_nodes.share(1) == Share(1, gpus=1)
    assert two_nodes.share(2) == Share(1)
    group = placement_group([{"CPU": 0.5, "GPU": 1}])
    in_group = Worker.options(
        num_cpus=0.5, num_gpus=1, scheduling_strategy=PlacementGroupSchedulingStrategy(group)
    ).remote()
    beside = Worker.options(num_cpus=0.5).remote()
    assert ray.get([in_group.device.remote(), beside.device.remote()], timeout=200) == ["cuda", "cpu"]


def test_nodes_are_asked_whether_they_see_a_place(two_nodes, tmp_path, monkeypatch):
    monkeypatch.setattr(shared_places, "is_this_machine", lambda host: False)
    (tmp_path / "raw.txt").write_text("text")
    require_seen(Places({"--root": str(tmp_path)}, {"--paths": (str(tmp_path / "raw.txt"),)}))
    of_this_process_alone = "/proc/self/task/*/comm"
    with pytest.raises(UserError, match="does not see"):
        require_seen(Places({}, {"--paths": (of_this_process_alone,)}))
