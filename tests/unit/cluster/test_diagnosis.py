"""`manta doctor` says what is so."""

import pytest

from cluster import connect, diagnosis


@pytest.mark.parametrize(
    ("mode", "level", "text"),
    [
        (None, "ok", "with token authentication"),
        ("token", "ok", "with token authentication"),
        ("disabled", "warn", r"without authentication (RAY_AUTH_MODE=disabled): unset it"),
    ],
)
def test_how_a_cluster_of_our_own_would_be_started(mode, level, text, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setattr(connect, "running_address", lambda: None)
    (finding,) = diagnosis.ray_cluster()
    assert finding.level == level
    assert finding.text.endswith(text)
