"""What ends a command on a cluster: one line if a process was lost, all there is to know of a bug."""

import pytest
from ray.exceptions import OutOfMemoryError, RayActorError, WorkerCrashedError

from cluster.connect import connect
from cluster.errors import UserError


@pytest.mark.parametrize("error", [RayActorError(), WorkerCrashedError()])
def test_a_lost_process_is_one_line(error: Exception) -> None:
    with pytest.raises(UserError, match=r"was lost: .*; run the same command again") as seen, connect():
        raise error
    assert "\n" not in str(seen.value)


def test_a_node_without_memory_is_one_line_that_says_the_mend() -> None:
    error = OutOfMemoryError(
        "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.1, "
        "ID: a12a) was 7.81GB used / 8.00GB limit (0.976)\nOOM kill reason: Memory usage exceeded"
    )
    with (
        pytest.raises(
            UserError, match=r"ran out of memory \(7.81GB used / 8.00GB limit\); have fewer .*--max-batch"
        ) as seen,
        connect(),
    ):
        raise error
    assert "\n" not in str(seen.value)


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), connect():
        1 / 0  # noqa: B018
