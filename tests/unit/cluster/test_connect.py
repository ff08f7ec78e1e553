"""What ends a command on a cluster: one line if a process was lost, all there is to know of a bug."""

import pytest
from ray.exceptions import RayActorError, WorkerCrashedError

from cluster.connect import connect
from cluster.errors import UserError


@pytest.mark.parametrize("error", [RayActorError(), WorkerCrashedError()])
def test_a_lost_process_is_one_line(error: Exception) -> None:
    with pytest.raises(UserError, match=r"was lost: .*; run the same command again") as seen, connect():
        raise error
    assert "\n" not in str(seen.value)


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), connect():
        1 / 0  # noqa: B018
