"""What is told of a cluster that has no room now."""

import pytest

from cluster.waiting import Room, Told, shortage

GIB = 2**30


def node(total: float, free: float, **more: tuple[float, float]) -> Room:
    amounts = {"CPU": (total, free), **more}
    return Room({k: each[0] for k, each in amounts.items()}, {k: each[1] for k, each in amounts.items()})


@pytest.mark.parametrize(
    ("wanted", "nodes", "line"),
    [
        ([[{"CPU": 1}]], [node(2, 1)], None),
        ([], [node(2, 0)], None),
        ([[{"CPU": 2}]], [node(4, 1)], "waiting for 2 CPUs: 1 of 4 CPUs free"),
        ([[{"CPU": 2}]], [node(4, 1), node(4, 1)], "waiting for 2 CPUs: 2 of 8 CPUs free"),  # not on one node
        ([[{"CPU": 1}]] * 3, [node(4, 0)], "waiting for 3 × (1 CPU): 0 of 4 CPUs free"),
        (
            [[{"CPU": 1, "memory": 2 * GIB}]],
            [node(4, 4, memory=(8 * GIB, GIB))],
            "waiting for 1 CPU, 2.0 GiB of memory: 4 of 4 CPUs, 1.0 of 8.0 GiB of memory free",
        ),
        # A training's workers must all be there at once; each alone would find room.
        (
            [[{"CPU": 1, "GPU": 1}, {"CPU": 1, "GPU": 1}]],
            [node(8, 8, GPU=(2, 1))],
            "waiting for 2 × (1 CPU, 1 GPU): 8 of 8 CPUs, 1 of 2 GPUs free",
        ),
        (
            [[{"CPU": 16}]],
            [node(4, 4)],
            "waiting for 16 CPUs: 4 of 4 CPUs free, and idle nodes would have no room for it either",
        ),
    ],
)
def test_what_has_no_room(wanted, nodes, line):
    assert shortage(wanted, nodes) == line


def test_a_line_is_repeated_ever_more_rarely():
    told, line = Told(), "waiting for 2 CPUs: {} of 8 CPUs free"
    looks = {now: told.is_due(line.format(now % 2), now) for now in range(5, 2500, 5)}
    assert [now for now, due in looks.items() if due] == [10, 70, 190, 430, 910, 1870]


def test_what_is_short_for_one_look_alone_is_not_told_and_news_is_told_at_once():
    told = Told()
    lines = [None, "waiting for 1 CPU: x", None, "waiting for 1 CPU: x", "waiting for 1 CPU: y"]
    assert [told.is_due(line, 5.0 * at) for at, line in enumerate(lines)] == [False] * 4 + [True]
    assert told.is_due("waiting for 1 GPU: x", 25.0)
    assert not told.is_due(None, 30.0)
    assert not told.is_due("waiting for 1 GPU: x", 35.0)
    assert not told.is_due("waiting for 1 GPU: x", 40.0), "the same within a minute"
    assert told.is_due("waiting for 1 GPU: x", 85.0)


def told_at(lines: list[str]) -> list[int]:
    """When lines are told of which there is one a look, every five seconds."""
    told = Told()
    due = [told.is_due(line, 5.0 * at) for at, line in enumerate(lines)]
    return [5 * at for at, is_due in enumerate(due) if is_due]


def test_a_queue_that_shrinks_is_no_news():
    queue = [shortage([[{"CPU": 1}]] * left, [node(8, 0)]) for left in range(30, 0, -1)]
    assert told_at(queue) == [5, 65]


def test_wants_that_take_turns_are_each_told_ever_more_rarely():
    both = [[{"CPU": 1}], [{"GPU": 1}]]
    wants = [both[:1] * 2, both[1:], both[::-1]]
    lines = [shortage(wants[at % 3], [node(8, 0, GPU=(1, 0))]) for at in range(120)]
    assert told_at(lines) == [5, 10, 15, 65, 70, 75, 185, 190, 195, 425, 430, 435]
