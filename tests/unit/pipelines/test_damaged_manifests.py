"""A damaged manifest is one line of ls and verify, and nobody else's trouble."""

import json
from pathlib import Path

import pytest

from cluster.artifacts.draft import Draft
from cluster.artifacts.manifest import Artifact, DamagedManifest, verify
from cluster.artifacts.store import ArtifactStore
from cluster.errors import UserError
from pipelines.inspect import gc, ls, rm
from pipelines.inspect import verify as verify_command

GARBAGE = {
    "cut short": b'{"kind": "corpora", "na',
    "not text": b"\xff\xfe\x00garbage",
    "empty": b"",
    "another type": b"[1, 2]",
    "a number": b"7",
    "fields missing": b'{"kind": "corpora", "name": "a"}',
    "files of another type": None,
    "nested without end": b"[" * 100_000,
}


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path)


def make(store: ArtifactStore, name: str, **more) -> Artifact:
    begun = begin(store, name, **more)
    assert isinstance(begun, Draft)
    begun.write("data.txt", b"hello")
    return begun.commit({"rows": 1})


def begin(store: ArtifactStore, name: str, **more) -> Artifact | Draft:
    arguments = {"kind": "corpora", "stage": "made", "logic_version": 1, "what": {}, "inputs": {}}
    return store.begin(name=name, **(arguments | more))


def damage(artifact: Artifact, content: bytes | None) -> None:
    if content is None:
        content = json.dumps({**artifact.manifest, "files": {"data.txt": "hello"}}).encode()
    artifact.folder.write("manifest.json", content)


@pytest.mark.parametrize("how", list(GARBAGE))
def test_the_others_are_listed_verified_collected_and_removed(store, how, capsys) -> None:
    bad, good = make(store, "bad"), make(store, "good")
    damage(bad, GARBAGE[how])
    ls.run(ls.LsConfig(root=store.root))
    lines = capsys.readouterr().out.splitlines()
    assert [("damaged" in line) for line in lines if bad.ref in line] == [True]
    assert any(good.ref in line and "damaged" not in line for line in lines)

    before = bad.folder.files()
    gc.run(gc.GcConfig(root=store.root, drafts=True))
    assert bad.folder.files() == before

    assert verify_command.run(verify_command.VerifyConfig(root=store.root)) == 1
    assert verify_command.run(verify_command.VerifyConfig(root=store.root, artifacts=(bad.ref,))) == 1
    assert verify_command.run(verify_command.VerifyConfig(root=store.root, artifacts=(good.ref,))) == 0
    rm.run(rm.RmConfig(root=store.root, artifacts=(good.ref,)))
    assert store.artifacts() == []
    for reference in ("bad", bad.ref, f"bad/{bad.version[:4]}"):
        with pytest.raises(DamagedManifest, match=rf"{bad.version}/manifest\.json is damaged; delete"):
            store.resolve("corpora", reference)


def test_rm_takes_a_damaged_one_and_no_input_of_it(store) -> None:
    corpus = make(store, "corpus")
    make(store, "bystander")
    bad = make(store, "bad", inputs={"corpus": corpus})
    damage(bad, b"{half")
    with pytest.raises(UserError, match=rf"{bad.ref}, damaged, was made from {corpus.ref}"):
        rm.run(rm.RmConfig(root=store.root, artifacts=("corpora/corpus",)))
    rm.run(rm.RmConfig(root=store.root, artifacts=("corpora/bystander",)))
    store.storage.write(f"corpora/bad/.leases/{bad.version}.json", b"")
    with pytest.raises(UserError, match=rf"cannot tell what {bad.ref}, damaged, was made from: remove it"):
        rm.run(rm.RmConfig(root=store.root, artifacts=("corpora/corpus",)))
    assert store.artifacts() == [corpus]
    rm.run(rm.RmConfig(root=store.root, artifacts=(bad.ref,)))
    assert store.survey().damaged == []
    assert bad.folder.files() == {}
    rm.run(rm.RmConfig(root=store.root, artifacts=("corpora/corpus",)))
    assert store.artifacts() == []


def test_force_makes_it_again(store) -> None:
    bad = make(store, "bad")
    damage(bad, b"{half")
    with pytest.raises(DamagedManifest):
        begin(store, "bad")
    assert make(store, "bad", force=True).manifest == bad.manifest


def test_verify_of_a_damaged_checkpoint_manifest_is_a_line(store) -> None:
    begun = begin(store, "m", kind="models")
    checkpoint = begun.folder / "checkpoints/step-00000010"
    model = begun.commit({})
    for content in (b"{half", b"[]", b'{"files": {"state.json": 3}}'):
        checkpoint.write("manifest.json", content)
        (problem,) = verify(model)
        assert "checkpoints/step-00000010/manifest.json: damaged" in problem


def test_a_manifest_must_be_the_one_of_its_folder(store) -> None:
    made = make(store, "a")
    assert list(verify(made)) == []
    made.folder.write("manifest.json", json.dumps({**made.manifest, "what": {"seed": 2}}).encode())
    (problem,) = verify(store.resolve("corpora", "a"))
    assert "fingerprint" in problem
    made.folder.write("manifest.json", json.dumps(made.manifest).encode())
    store.storage.rename(made.folder.prefix, "corpora/a/0123456789ab")
    (moved,) = store.artifacts()
    assert "the folder's name is not the start of the artifact's fingerprint" in " ".join(verify(moved))


def test_a_damaged_pointer_or_run_file_breaks_no_listing(store, capsys) -> None:
    made = make(store, "a")
    store.storage.write("corpora/a/latest.json", b"{half")
    made.folder.write("run.json", b"[]")
    ls.run(ls.LsConfig(root=store.root))
    assert made.ref in capsys.readouterr().out
    with pytest.raises(Exception, match=rf"no corpora/a .*; there is {made.ref}"):
        store.resolve("corpora", "a")
    assert begin(store, "a") == made
    assert store.resolve("corpora", "a") == made


def test_a_damaged_lease_is_free(store) -> None:
    made = make(store, "a")
    store.storage.write(f"corpora/a/.leases/{made.version}.json", b"\x00")
    gc.run(gc.GcConfig(root=store.root))
    made.folder.delete(["manifest.json"])
    assert make(store, "a").manifest == made.manifest
