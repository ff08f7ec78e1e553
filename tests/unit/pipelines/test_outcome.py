"""What is said of an artifact whose run.json is lost or torn."""

from pathlib import Path

import pytest

from cluster.artifacts.store import ArtifactStore
from pipelines.outcome import exit_code, made_since, outcome


@pytest.mark.parametrize("content", [None, b"{half", b"[]"])
def test_an_artifact_without_run_facts_is_done_already(tmp_path: Path, content: bytes | None) -> None:
    draft = ArtifactStore(tmp_path).begin(
        kind="corpora", name="a", stage="made", logic_version=1, what={}, inputs={}
    )
    draft.write("one.txt", b"hello")
    made = draft.commit({})
    assert outcome(made, 0.0).startswith(f"{made.ref}: done in ")
    made.folder.delete(["run.json"])
    if content is not None:
        made.folder.write("run.json", content)
    assert outcome(made, 1.0) == f"{made.ref}: already done, 5 B"
    assert exit_code(made) == 0
    assert not made_since(made, 1.0)
