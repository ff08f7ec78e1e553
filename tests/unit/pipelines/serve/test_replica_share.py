"""Replicas that no cluster of this size can hold are refused; by default all fit."""

import pytest

from cluster.errors import UserError
from cluster.placement import Node, Share, room
from pipelines.serve.config import ServeConfig
from pipelines.serve.stage import replica_share

TWO, TWO_TIMES_ONE = [Node(2)], [Node(1), Node(1)]


@pytest.mark.parametrize(
    ("nodes", "options", "message"),
    [
        (TWO, {"threads": 8}, r"--replicas 1 of 8 CPUs each: the cluster takes 0 \(it has 2 CPUs"),
        (TWO, {"replicas": 4}, r"--replicas 4 of 1 CPUs each: the cluster takes 2 .* lower --threads or"),
        (TWO_TIMES_ONE, {"threads": 2}, "takes 0 .*2 CPUs, at most 1 on one node"),
        (TWO, {"gpus": 1}, "of 1 CPUs and a GPU each: .* and 0 GPUs"),
    ],
)
def test_what_would_wait_for_ever_is_refused(nodes, options, message):
    with pytest.raises(UserError, match=message) as raised:
        replica_share(ServeConfig(**options), nodes)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("nodes", "options", "expected"),
    [
        (TWO, {}, Share(1)),
        ([Node(8)], {"replicas": 2}, Share(3)),
        ([Node(8)], {"threads": 8}, Share(8)),
        ([Node(3), Node(1)], {"replicas": 2}, Share(1)),
        ([Node(8, gpus=2)], {"replicas": 2}, Share(3, gpus=1)),
        ([Node(8, gpus=1)], {"replicas": 2}, Share(3)),
        ([Node(8, gpus=1)], {"gpus": 0}, Share(7)),
    ],
)
def test_by_default_all_replicas_fit(nodes, options, expected):
    found = replica_share(ServeConfig(**options), nodes)
    assert found == expected
    assert room(nodes, found) >= options.get("replicas", 1)
