"""diff, rm and gc: they say what they do, and spare what is needed."""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.artifacts import lease as lease_module
from cluster.artifacts.draft import Draft
from cluster.artifacts.folder import Folder
from cluster.artifacts.manifest import Artifact, verify
from cluster.artifacts.store import ArtifactStore
from cluster.errors import UserError
from pipelines.inspect import diff, gc, rm
from pipelines.inspect.litter import find_litter


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path)


def make(store: ArtifactStore, ref: str, inputs: dict[str, Artifact] | None = None, **what: Any) -> Artifact:
    draft = begin(store, ref, inputs, **what)
    draft.write("data.txt", repr(what).encode())
    draft.ledger.commit("unit-0", {})
    (draft.folder / "work").write("between.txt", b"0123456789")
    for step in (10, 20):
        (draft.folder / f"checkpoints/step-{step:08d}").write("manifest.json", b'{"files": {}}')
    return draft.commit({"rows": len(what)})


def begin(store: ArtifactStore, ref: str, inputs: dict[str, Artifact] | None = None, **what: Any) -> Draft:
    kind, name = ref.split("/")
    started = store.begin(kind=kind, name=name, stage="made", logic_version=1, what=what, inputs=inputs or {})
    assert isinstance(started, Draft)
    return started


def test_diff_names_fields_inputs_and_files(store: ArtifactStore) -> None:
    one, two = make(store, "corpora/a", seed=1), make(store, "corpora/a", seed=2, size=3)
    lines = diff.differences(one, two)
    assert "what.seed: 1 → 2" in lines
    assert "what.size: (none) → 3" in lines
    assert "counts.rows: 1 → 2" in lines
    assert f"files.data.txt: {one.bytes} → {two.bytes} bytes" in lines
    assert diff.differences(one, one) == []


def test_rm_refuses_what_others_are_made_from(store: ArtifactStore) -> None:
    corpus = make(store, "corpora/a")
    tokens = make(store, "tokens/b", {"corpus": corpus})
    with pytest.raises(UserError, match=rf"{tokens.ref} was made from {corpus.ref}"):
        rm.run(rm.RmConfig(artifacts=("corpora/a",), root=store.root))
    rm.run(rm.RmConfig(artifacts=("corpora/a", "tokens/b"), root=store.root, dry_run=True))
    assert len(store.artifacts()) == 2
    rm.run(rm.RmConfig(artifacts=("corpora/a", "tokens/b"), root=store.root))
    assert store.artifacts() == []
    assert store.storage.files("corpora") == {}
    leases = Folder(store.storage, "corpora/a/.leases")
    assert list(leases.files()) == [f"{corpus.version}.json"]
    gc.run(gc.GcConfig(root=store.root))
    assert leases.files() == {}


def test_a_name_falls_back_to_the_newest_version_that_is_left(store: ArtifactStore) -> None:
    first, second, third = (make(store, "corpora/a", seed=seed) for seed in range(3))
    rm.run(rm.RmConfig(artifacts=("corpora/a",), root=store.root))
    assert store.resolve("corpora", "a") == second
    rm.run(rm.RmConfig(artifacts=(first.ref,), root=store.root))
    assert store.resolve("corpora", "a") == second
    with pytest.raises(UserError, match="does not exist"):
        store.resolve("corpora", f"a/{third.version}")


def test_gc_spares_artifacts_drafts_and_whoever_works(store: ArtifactStore, tmp_path: Path) -> None:
    made = make(store, "models/a")
    unfinished = begin(store, "models/b")
    unfinished.ledger.commit("unit-0", {})
    held = set(store.storage.files("models/b"))
    scratch = tmp_path / "models" / "a" / made.version / ".writing-x"
    scratch.mkdir()
    (scratch / "half").write_bytes(b"12345")
    recent = tmp_path / "models" / "a" / made.version / "new.partial"
    recent.write_bytes(b"1")
    os.utime(scratch, (time.time() - 10**6,) * 2)

    gc.run(gc.GcConfig(root=store.root, dry_run=True, drafts=True))
    assert scratch.exists()
    assert "work/between.txt" in made.folder.files()
    gc.run(gc.GcConfig(root=store.root))
    left = made.folder.files()
    assert sorted(left) == [
        "checkpoints/step-00000020/manifest.json",
        "data.txt",
        "manifest.json",
        "new.partial",
        "run.json",
    ]
    assert not scratch.exists()
    assert list(verify(made)) == []
    assert set(store.storage.files("models/b")) == held
    assert unfinished.ticket.is_current()

    unfinished.close()
    gc.run(gc.GcConfig(root=store.root, drafts=True))
    assert store.storage.files(f"models/b/{unfinished.version}") == {}


def test_gc_spares_what_was_committed_by_a_process_that_died_before_the_manifest(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(self: Draft, note: dict[str, Any]) -> None:
        raise RuntimeError("died")

    with monkeypatch.context() as patch:
        patch.setattr(Draft, "_finish_commit", die)
        with pytest.raises(RuntimeError, match="died"):
            make(store, "models/a")
    gc.run(gc.GcConfig(root=store.root, drafts=True))
    finished = store.begin(kind="models", name="a", stage="made", logic_version=1, what={}, inputs={})
    assert isinstance(finished, Artifact)
    assert list(verify(finished)) == []


def hold_elsewhere(draft: Draft) -> str:
    """Let the draft's lease look as if a process of another machine held it; its key."""
    key = f"{draft.ref.rpartition('/')[0]}/.leases/{draft.version}.json"
    held = json.loads(draft.folder.storage.read(key))
    draft.close()
    held["holder"] |= {"machine": "another", "host": "spot"}
    draft.folder.storage.write(key, json.dumps(held).encode())
    return key


def test_a_holder_who_died_on_another_machine_keeps_nothing(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(lease_module, "TTL_SECONDS", 1.0)
    corpus = make(store, "corpora/a")
    drafts = [begin(store, "tokens/b", {"corpus": corpus}, n=n) for n in range(4)]
    for draft in drafts:
        draft.ledger.commit("unit-0", {})
        hold_elsewhere(draft)
    before = store.storage.files("tokens/b") | store.storage.files("tokens/b/.leases")
    began = time.monotonic()
    rm.run(rm.RmConfig(artifacts=("corpora/a",), root=store.root, dry_run=True))
    gc.run(gc.GcConfig(root=store.root, drafts=True, dry_run=True))
    assert time.monotonic() - began < 4
    said = capsys.readouterr().out
    assert "to see who of another machine is alive" in said
    assert f"unfinished: {drafts[0].ref}" in said
    assert store.storage.files("tokens/b") | store.storage.files("tokens/b/.leases") == before

    rm.run(rm.RmConfig(artifacts=("corpora/a",), root=store.root))
    assert store.artifacts() == []
    assert store.at_work() == []
    assert not any(draft.ticket.is_current() for draft in drafts)
    gc.run(gc.GcConfig(root=store.root, drafts=True))
    assert store.storage.files("tokens/b") == {}


def test_a_holder_who_lives_on_another_machine_is_spared(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "TTL_SECONDS", 2.0)
    corpus = make(store, "corpora/a")
    draft = begin(store, "tokens/b", {"corpus": corpus})
    draft.ledger.commit("unit-0", {})
    key = hold_elsewhere(draft)
    stop = threading.Event()

    def renew() -> None:
        number = 0
        while not stop.wait(0.2):
            number += 1
            store.storage.write(key, json.dumps(json.loads(store.storage.read(key)) | {"n": number}).encode())

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(UserError, match=rf"{corpus.ref} is read by process \d+ on spot"):
            rm.run(rm.RmConfig(artifacts=("corpora/a",), root=store.root))
        gc.run(gc.GcConfig(root=store.root, drafts=True))
    finally:
        stop.set()
        thread.join()
    assert draft.folder.files() != {}
    assert store.artifacts() == [corpus]


def test_what_force_set_aside_goes_with_the_draft_that_was_to_replace_it(store: ArtifactStore) -> None:
    made = make(store, "models/a")
    aside = Folder(store.storage, f"models/a/.replaced-{made.version}")
    arguments = {"kind": "models", "name": "a", "stage": "made", "logic_version": 1, "what": {}, "inputs": {}}
    draft = store.begin(**arguments, force=True)
    assert isinstance(draft, Draft)
    key = hold_elsewhere(draft)
    assert [each for each in find_litter(store, 1, drafts=True) if each.folder == aside] == []
    store.storage.delete([key])
    gc.run(gc.GcConfig(root=store.root))
    assert "data.txt" in aside.files()
    gc.run(gc.GcConfig(root=store.root, drafts=True))
    assert aside.files() == {}


def test_rm_takes_what_force_set_aside(store: ArtifactStore) -> None:
    made = make(store, "models/a")
    aside = Folder(store.storage, f"models/a/.replaced-{made.version}")
    aside.write("data.txt", b"old")
    rm.run(rm.RmConfig(artifacts=(made.ref,), root=store.root))
    assert aside.files() == {}
