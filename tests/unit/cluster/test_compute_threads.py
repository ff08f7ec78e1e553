"""What the user chose stays, and processes that are started get the rest."""

import os

import pytest

from cluster import connect
from cluster.compute_threads import brief_waits


@pytest.mark.parametrize("chosen", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_what_the_user_chose_stays(chosen: str) -> None:
    assert brief_waits({chosen: "active"}) == {}
    assert brief_waits({}) == {"GOMP_SPINCOUNT": "1000"}


def test_ray_hands_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    connect._set_environment()
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
