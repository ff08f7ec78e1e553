"""What a commit checks, and in which order it cleans up."""

from pathlib import Path

import pytest

from cluster.artifacts.store import ArtifactStore
from cluster.errors import UserError


def test_a_file_that_vanishes_before_the_commit_is_named(tmp_path: Path) -> None:
    draft = ArtifactStore(tmp_path).begin(
        kind="corpora", name="a", stage="made", logic_version=1, what={}, inputs={}
    )
    draft.write("one.txt", b"hello")
    draft.write("two.txt", b"hello")
    draft.folder.delete(["one.txt"])
    with pytest.raises(UserError, match=r"one\.txt is missing, 5 bytes were written.*; run again"):
        draft.commit({})
    draft.write("one.txt", b"hello")
    draft.folder.write("two.txt", b"hell")
    with pytest.raises(UserError, match=r"two\.txt has 4 bytes"):
        draft.commit({})
    assert ArtifactStore(tmp_path).artifacts() == []


def test_the_ledger_goes_before_the_files_that_it_speaks_of(tmp_path: Path, monkeypatch) -> None:
    draft = ArtifactStore(tmp_path).begin(
        kind="corpora", name="a", stage="made", logic_version=1, what={}, inputs={}
    )
    (draft.folder / "work").write("x", b"1")
    draft.ledger.commit("unit", {"files": {}})
    draft.commit({})
    removed = []
    monkeypatch.setattr(type(draft.folder), "delete", lambda folder: removed.append(folder.prefix))
    draft.discard_work("work")
    assert removed == [f"{draft.ref}/ledger", f"{draft.ref}/work"]
