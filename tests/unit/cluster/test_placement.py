"""Shares are as large as they can be and all fit at once, whatever the nodes."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.placement import Node, Share, room, share


def all_fit(nodes: list[Node], actors: int, wanted: Share) -> bool:
    """Put one actor after the other on the first node with room: with equal actors the order is no matter."""
    free = [[round(node.cpus * 10_000), node.gpus] for node in nodes]
    for _ in range(actors):
        for node in free:
            if node[0] >= round(wanted.cpus * 10_000) and node[1] >= wanted.gpus:
                node[0] -= round(wanted.cpus * 10_000)
                node[1] -= wanted.gpus
                break
        else:
            return False
    return True


nodes_strategy = st.lists(
    st.builds(Node, cpus=st.integers(1, 16).map(float), gpus=st.integers(0, 3)), min_size=1, max_size=5
)


@given(nodes=nodes_strategy, actors=st.integers(1, 12), use_gpus=st.booleans())
@settings(max_examples=300, deadline=None)
def test_all_actors_fit_and_none_could_have_more(nodes, actors, use_gpus):
    found = share(nodes, actors, use_gpus)
    assert found.gpus == int(use_gpus and sum(node.gpus for node in nodes) >= actors)
    assert all_fit(nodes, actors, found)
    assert not all_fit(nodes, actors, Share(found.cpus + 0.001, found.gpus))
    assert room(nodes, found) >= actors


@pytest.mark.parametrize(
    ("nodes", "actors", "expected"),
    [
        ([Node(1), Node(1)], 1, Share(1)),  # not 2: no node has so many
        ([Node(3), Node(1)], 2, Share(1.5)),  # not 2: the second would wait for ever
        ([Node(2)], 3, Share(0.6666)),  # not 0.6667: three of them are more than 2
        ([Node(64), Node(8, gpus=1)], 1, Share(8, gpus=1)),  # CPUs of the node that has the GPU
        ([Node(64), Node(8, gpus=1)], 2, Share(32)),  # two actors, one GPU: none
        ([Node(0), Node(4)], 1, Share(4)),
    ],
)
def test_shares_on_particular_clusters(nodes, actors, expected):
    assert share(nodes, actors) == expected


def test_parts_of_shares_fit_beside_each_other():
    """What the actors of alignment reserve: parts that add up to one."""
    for cpus, learners, engines in itertools.product((1, 2, 3, 7), (1, 2, 3), (1, 2, 3)):
        node = [Node(cpus)]
        taken = (
            share(node, learners).part(0.25).cpus * learners
            + share(node, 1).part(0.25).cpus
            + share(node, engines).part(0.5).cpus * engines
        )
        assert 0.99 * cpus < taken <= cpus
