"""Artifacts: identity, commit, resume, pointers, verification."""

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import pytest

from cluster.artifacts.cache import cache_root
from cluster.artifacts.draft import Draft
from cluster.artifacts.folder import Folder
from cluster.artifacts.lease import LeaseLost
from cluster.artifacts.manifest import Artifact, verify
from cluster.artifacts.store import ArtifactStore
from cluster.errors import UserError
from tests.object_storage import BUCKET


@pytest.fixture(params=["disk", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    if request.param == "disk":
        return ArtifactStore(tmp_path)
    server = request.getfixturevalue("object_storage")
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MANTA_CACHE", str(tmp_path / "cache"))
    return ArtifactStore(f"s3://{BUCKET}/{uuid.uuid4().hex}")


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
    draft.write("part/0.txt", text.encode())
    return draft.commit({"documents": 1})


def test_making_it_again_is_a_no_op(store: ArtifactStore) -> None:
    made = make(store)
    assert begin(store, how={"workers": 8}) == made
    assert store.resolve("corpora", "a") == made
    assert list(verify(made)) == []


@pytest.mark.parametrize(
    "change", [{"what": {"x": 2}}, {"logic_version": 2}, {"stage": "other"}, {"kind": "tokens"}]
)
def test_what_decides_the_version(store: ArtifactStore, change: dict[str, Any]) -> None:
    made = make(store)
    other = begin(store, **change)
    assert isinstance(other, Draft)
    # The kind is part of the place, not of the identity.
    assert (other.version == made.version) == ("kind" in change)


def test_inputs_decide_the_version(store: ArtifactStore) -> None:
    one, two = make(store, "one"), make(store, "two", what={"x": 2})
    made = make(store, "out", kind="tokens", inputs={"corpus": one})
    assert made.manifest["inputs"] == {"corpus": {"ref": one.ref, "fingerprint": one.fingerprint}}
    assert isinstance(begin(store, "out", kind="tokens", inputs={"corpus": two}), Draft)


def test_a_draft_is_invisible_and_continues(store: ArtifactStore) -> None:
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
    assert (first.fetch() / "manifest.json").read_bytes() == (second.fetch() / "manifest.json").read_bytes()


def test_of_two_drafts_the_one_begun_last_commits(store: ArtifactStore) -> None:
    """In one process: a stage that raised in a notebook is begun again. (For two see test_lease.py.)"""
    first, second = begin(store), begin(store)
    assert isinstance(first, Draft)
    assert isinstance(second, Draft)
    with pytest.raises(LeaseLost, match="took over"):
        first.commit({"by": 1})
    with pytest.raises(UserError, match="no corpora/a"):
        store.resolve("corpora", "a")
    assert second.commit({"by": 2}).counts == {"by": 2}


def test_only_the_winner_writes_run_facts(store: ArtifactStore) -> None:
    """A driver that was paused until its lease was lost leaves nothing, and changes nothing."""
    paused, winner = begin(store, how={"workers": 1}), begin(store, how={"workers": 2})
    assert isinstance(paused, Draft)
    assert isinstance(winner, Draft)
    with pytest.raises(LeaseLost):
        paused.commit({})
    assert list(paused.folder.files()) == []
    made = winner.commit({})
    with pytest.raises(LeaseLost):
        paused.commit({})
    assert made.run()["how"] == {"workers": 2}
    assert list(made.folder.files()) == ["manifest.json", "run.json"]


def test_a_paused_run_whose_folder_was_set_aside_says_that_it_was_taken_over(store: ArtifactStore) -> None:
    make(store)
    paused = begin(store, force=True)
    assert isinstance(paused, Draft)
    paused.write("0.txt", b"1")
    winner = begin(store, force=True)
    assert isinstance(winner, Draft)
    winner.folder.delete()
    with pytest.raises(LeaseLost):
        paused.commit({})


def test_a_commit_that_was_cut_short_is_finished(store: ArtifactStore, monkeypatch) -> None:
    """The process dies after the swap that decides and before the manifest is there."""
    draft = begin(store)
    assert isinstance(draft, Draft)
    draft.write("0.txt", b"hello")

    class Died(Exception):
        pass

    def die(self: Draft, note: dict[str, Any]) -> None:
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(Draft, "_finish_commit", die)
        with pytest.raises(Died):
            draft.commit({"documents": 1})
    with pytest.raises(UserError, match="no corpora/a"):
        store.resolve("corpora", "a")
    finished = begin(store)
    assert isinstance(finished, Artifact)
    assert finished.counts == {"documents": 1}
    assert finished.run()["seconds"] > 0
    assert list(verify(finished)) == []
    assert [name for name in finished.folder.files() if "pending" in name] == []


def test_a_unit_that_is_not_deterministic_is_refused(store: ArtifactStore) -> None:
    draft = begin(store)
    assert isinstance(draft, Draft)
    draft.ledger.commit("unit-0", {"rows": 3})
    draft.ledger.commit("unit-0", {"rows": 3})
    with pytest.raises(ValueError, match="another result"):
        draft.ledger.commit("unit-0", {"rows": 4})


def test_force_keeps_the_old_one_until_the_new_one_is_committed(store: ArtifactStore) -> None:
    old = make(store, text="old")
    draft = begin(store, force=True)
    assert isinstance(draft, Draft)
    kept = Folder(store.storage, f"corpora/a/.replaced-{draft.version}")
    assert kept.read("part/0.txt") == b"old"
    draft.write("0.txt", b"new")
    new = draft.commit({})
    assert new.ref == old.ref
    assert not kept.exists()
    assert [artifact.ref for artifact in store.artifacts()] == [new.ref]


def test_the_name_points_to_what_was_asked_for_last(store: ArtifactStore) -> None:
    first, second = make(store), make(store, what={"x": 2})
    assert store.resolve("corpora", "a").version == second.version
    begin(store)
    assert store.resolve("corpora", "a").version == first.version
    assert store.resolve("corpora", f"a/{second.version[:6]}") == second


def test_references_that_name_nothing_say_what_there_is(store: ArtifactStore) -> None:
    make(store)
    with pytest.raises(UserError, match=r"no corpora/b .*there is corpora/a"):
        store.resolve("corpora", "b")
    with pytest.raises(UserError, match="does not exist"):
        store.resolve("corpora", "a/zzz")
    with pytest.raises(UserError, match="use letters"):
        begin(store, "../escape")


@pytest.mark.parametrize("damage", ["missing", "shorter", "flipped"])
def test_verify_names_the_damaged_file(store: ArtifactStore, damage: str) -> None:
    made = make(store)
    if damage == "missing":
        made.folder.delete(["part/0.txt"])
    else:
        made.folder.write("part/0.txt", b"hell" if damage == "shorter" else b"jello")
    (problem,) = verify(made)
    assert f"{made.folder}/part/0.txt" in problem


def test_a_damaged_manifest_is_one_line_and_spares_the_others(store: ArtifactStore) -> None:
    made, other = make(store), make(store, "other")
    made.folder.write("manifest.json", b"{half")
    there = store.survey()
    assert there.artifacts == [other]
    assert [damaged.ref for damaged in there.damaged] == [made.ref]
    with pytest.raises(UserError, match=r"manifest\.json is damaged; delete that file and run"):
        store.resolve("corpora", "a")


def test_fetched_files_are_the_manifests_or_refused(store: ArtifactStore) -> None:
    made = make(store)
    assert (made.fetch("part/0.txt") / "part/0.txt").read_bytes() == b"hello"
    if made.folder.local is None:
        made.folder.write("part/0.txt", b"jello")
        assert (made.fetch() / "part/0.txt").read_bytes() == b"hello", "a good copy stays good"
        shutil.rmtree(cache_root())
        with pytest.raises(UserError, match="not those of the manifest"):
            made.fetch()


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
