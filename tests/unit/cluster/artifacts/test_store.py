"""Artifacts: identity, commit, resume, pointers, verification."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cluster.artifacts.draft import Draft
from cluster.artifacts.manifest import Artifact, verify
from cluster.artifacts.store import ArtifactStore
from cluster.errors import UserError


def begin(store: ArtifactStore, name: str = "a", what: Any = None, **more: Any) -> Artifact | Draft:
    arguments: dict[str, Any] = {
        "kind": "corpora",
        "name": name,
        "stage": "corpus",
        "logic_version": 1,
        "what": what or {"x": 1},
        "inputs": {},
    }
    return store.begin(**(arguments | more))


def make(store: ArtifactStore, name: str = "a", text: str = "hello", **more: Any) -> Artifact:
    draft = begin(store, name, **more)
    assert isinstance(draft, Draft)
    (draft.path / "part").mkdir(exist_ok=True)
    (draft.path / "part" / "0.txt").write_text(text)
    return draft.commit({"documents": 1})


def test_making_it_again_is_a_no_op(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    made = make(store)
    assert begin(store, how={"workers": 8}) == made
    assert store.resolve("corpora", "a") == made
    assert list(verify(made.path)) == []


@pytest.mark.parametrize(
    "change", [{"what": {"x": 2}}, {"logic_version": 2}, {"stage": "other"}, {"kind": "tokens"}]
)
def test_what_decides_the_version(tmp_path: Path, change: dict[str, Any]) -> None:
    store = ArtifactStore(tmp_path)
    made = make(store)
    other = begin(store, **change)
    assert isinstance(other, Draft)
    # The kind is part of the place, not of the identity.
    assert (other.version == made.version) == ("kind" in change)


def test_inputs_decide_the_version(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    one, two = make(store, "one"), make(store, "two", what={"x": 2})
    made = make(store, "out", kind="tokens", inputs={"corpus": one})
    assert made.manifest["inputs"] == {"corpus": {"ref": one.ref, "fingerprint": one.fingerprint}}
    assert isinstance(begin(store, "out", kind="tokens", inputs={"corpus": two}), Draft)


def test_a_draft_is_invisible_and_continues(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    draft = begin(store)
    assert isinstance(draft, Draft)
    draft.ledger.commit("unit-0", {"rows": 3})
    draft.close()
    with pytest.raises(UserError, match="no corpora/a"):
        store.resolve("corpora", "a")
    again = begin(store)
    assert isinstance(again, Draft)
    assert again.resumed
    assert again.ledger.done() == {"unit-0": {"rows": 3}}
    assert again.commit({}).run()["resumed"]


def test_the_same_bytes_for_the_same_inputs(tmp_path: Path) -> None:
    first, second = make(ArtifactStore(tmp_path / "one")), make(ArtifactStore(tmp_path / "two"))
    assert (first.path / "manifest.json").read_bytes() == (second.path / "manifest.json").read_bytes()


def test_two_writers_are_refused(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    draft = begin(store)
    assert isinstance(draft, Draft)
    with pytest.raises(UserError, match="another process"):
        begin(store)
    draft.close()


def test_a_unit_that_is_not_deterministic_is_refused(tmp_path: Path) -> None:
    draft = begin(ArtifactStore(tmp_path))
    assert isinstance(draft, Draft)
    draft.ledger.commit("unit-0", {"rows": 3})
    draft.ledger.commit("unit-0", {"rows": 3})
    with pytest.raises(ValueError, match="another result"):
        draft.ledger.commit("unit-0", {"rows": 4})


def test_force_keeps_the_old_one_until_the_new_one_is_committed(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    old = make(store, text="old")
    draft = begin(store, force=True)
    assert isinstance(draft, Draft)
    kept = draft.path.with_name(f".replaced-{draft.version}")
    assert (kept / "part" / "0.txt").read_text() == "old"
    (draft.path / "0.txt").write_text("new")
    new = draft.commit({})
    assert new.ref == old.ref
    assert not kept.exists()
    assert [artifact.ref for artifact in store.artifacts()] == [new.ref]


def test_the_name_points_to_what_was_asked_for_last(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    first, second = make(store), make(store, what={"x": 2})
    assert store.resolve("corpora", "a").version == second.version
    begin(store)
    assert store.resolve("corpora", "a").version == first.version
    assert store.resolve("corpora", f"a/{second.version[:6]}") == second


def test_references_that_name_nothing_say_what_there_is(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    make(store)
    with pytest.raises(UserError, match=r"no corpora/b .*there is corpora/a"):
        store.resolve("corpora", "b")
    with pytest.raises(UserError, match="does not exist"):
        store.resolve("corpora", "a/zzz")
    with pytest.raises(UserError, match="use letters"):
        begin(store, "../escape")


@pytest.mark.parametrize("damage", ["missing", "shorter", "flipped"])
def test_verify_names_the_damaged_file(tmp_path: Path, damage: str) -> None:
    made = make(ArtifactStore(tmp_path))
    path = made.path / "part" / "0.txt"
    if damage == "missing":
        path.unlink()
    else:
        path.write_text("hell" if damage == "shorter" else "jello")
    (problem,) = verify(made.path)
    assert str(path) in problem


def test_secrets_are_not_recorded(tmp_path: Path) -> None:
    how = {"api_key": "s3cret", "nested": {"password": "s3cret"}, "endpoint": "https://me:s3cret@host/x"}
    made = make(ArtifactStore(tmp_path), how=how)
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"s3cret" not in written
    assert made.run()["how"]["endpoint"] == "https://[redacted]@host/x"


def test_a_copy_elsewhere_is_the_same_artifact(tmp_path: Path) -> None:
    made = make(ArtifactStore(tmp_path / "here"))
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    copy = ArtifactStore(tmp_path / "there").resolve("corpora", "a")
    assert (copy.ref, copy.fingerprint) == (made.ref, made.fingerprint)
    assert str(tmp_path) not in json.dumps(copy.manifest)
