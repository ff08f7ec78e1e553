"""rm and gc: what they refuse, spare and find."""

import os
import time
import uuid
from pathlib import Path

import pytest

from cluster.artifacts import holder
from cluster.artifacts import lease as lease_module
from cluster.artifacts.draft import Draft
from cluster.artifacts.folder import Folder
from cluster.artifacts.lease import LEASES, Lease
from cluster.artifacts.manifest import Artifact, verify
from cluster.artifacts.store import ArtifactStore
from cluster.artifacts.workspace import Workspace
from cluster.errors import StorageError, UserError
from llm.training.checkpoint_manifest import manifest_json
from pipelines.inspect import gc, rm
from tests.object_storage import BUCKET


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "root")


@pytest.fixture
def in_bucket(object_storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    for name, value in object_storage.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MANTA_CACHE", str(tmp_path / "cache"))
    return ArtifactStore(f"s3://{BUCKET}/{uuid.uuid4().hex}")


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases of this process count as those of another that is alive."""
    monkeypatch.setattr(lease_module, "is_gone", lambda holder: False)


def begin(store: ArtifactStore, ref: str, inputs: dict[str, Artifact] | None = None, **more) -> Draft:
    kind, name = ref.split("/")
    arguments = {"stage": "made", "logic_version": 1, "what": {}, "inputs": inputs or {}}
    draft = store.begin(kind=kind, name=name, **arguments, **more)
    assert isinstance(draft, Draft)
    return draft


def make(store: ArtifactStore, ref: str) -> Artifact:
    draft = begin(store, ref)
    draft.write("data.txt", b"hello")
    return draft.commit({})


@pytest.mark.usefixtures("others")
def test_rm_refuses_what_is_being_made_or_read(store: ArtifactStore) -> None:
    corpus = make(store, "corpora/a")
    draft = begin(store, "tokens/b", {"corpus": corpus})
    process = f"process {os.getpid()} on"
    with pytest.raises(UserError, match=rf"{corpus.ref} is read by {process} .*makes {draft.ref}; wait"):
        rm.run(rm.RmConfig(artifacts=("corpora/a",), root=store.root))
    draft.close()
    lease = Lease(Folder(store.storage, "corpora/a"), f"{LEASES}/{corpus.version}.json", corpus.ref)
    lease.acquire()
    with pytest.raises(UserError, match=rf"{corpus.ref} is being made by {process}"):
        rm.run(rm.RmConfig(artifacts=("corpora/a",), root=store.root))
    lease.release()
    rm.run(rm.RmConfig(artifacts=("corpora/a",), root=store.root))
    assert store.artifacts() == []


def test_gc_removes_files_that_the_manifest_does_not_list(store: ArtifactStore) -> None:
    draft = begin(store, "models/a")
    draft.write("weights", b"hello")
    for name in (
        "evaluations.jsonl",
        "metrics.jsonl",
        "samples.jsonl",
        "timing.jsonl",
        "wandb/run/x",
        "checkpoints/writer",
    ):
        draft.folder.write(name, b"1")
    made = draft.commit({})
    kept = set(made.folder.files())
    for name in ("part-00009.parquet", "train/part-00001-0.tok", "commit-0.pending"):
        made.folder.write(name, b"12345")
    gc.run(gc.GcConfig(root=store.root, dry_run=True))
    assert len(made.folder.files()) == len(kept) + 3
    gc.run(gc.GcConfig(root=store.root))
    assert set(made.folder.files()) == kept


def checkpoint(folder: Folder, step: int, damage: str | None = None, for_ever: bool = False) -> str:
    at = folder / f"checkpoints/step-{step:08d}"
    files = {"state.json": at.write("state.json", b"12345")}
    at.write("manifest.json", manifest_json(step, files, for_ever))
    if damage == "manifest":
        at.write("manifest.json", b"{half")
    elif damage == "no manifest":
        at.delete(["manifest.json"])
    elif damage == "file":
        at.write("state.json", b"123")
    return f"step-{step:08d}"


@pytest.mark.parametrize("damage", ["manifest", "no manifest", "file"])
def test_gc_keeps_the_newest_whole_checkpoint(store: ArtifactStore, damage: str) -> None:
    draft = begin(store, "models/a")
    checkpoint(draft.folder, 10)
    whole = checkpoint(draft.folder, 20)
    checkpoint(draft.folder, 30, damage)
    made = draft.commit({})
    gc.run(gc.GcConfig(root=store.root))
    assert {name.split("/")[1] for name in made.folder.files() if name.startswith("checkpoints/")} == {whole}
    assert list(verify(made)) == []


def test_gc_keeps_what_the_run_was_to_keep_for_ever(store: ArtifactStore) -> None:
    draft = begin(store, "models/a")
    kept = [checkpoint(draft.folder, step, for_ever=step in (10, 30)) for step in (10, 20, 30, 40, 50)]
    made = draft.commit({})
    gc.run(gc.GcConfig(root=store.root))
    assert (made.folder / "checkpoints").folders() == [kept[0], kept[2], kept[4]]


def test_gc_removes_no_checkpoint_if_none_is_whole(store: ArtifactStore) -> None:
    draft = begin(store, "models/a")
    for step in (10, 20):
        checkpoint(draft.folder, step, "file")
    before = draft.folder.files()
    made = draft.commit({})
    gc.run(gc.GcConfig(root=store.root))
    assert before.items() <= made.folder.files().items()
    gc.run(gc.GcConfig(root=store.root, keep_checkpoints=0))
    assert list(made.folder.files()) == ["manifest.json", "run.json"]


def test_gc_removes_leases_of_dead_processes_on_versions_that_are_not_there(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(store, "corpora/a")
    leases = Folder(store.storage, f"corpora/a/{LEASES}")
    ours, theirs = Lease(leases, "one.json", "corpora/a/one"), Lease(leases, "two.json", "corpora/a/two")
    ours.acquire()  # this process counts as gone: what it left may be taken
    ours._stop.set()  # and renews no more
    elsewhere = holder.this_process() | {"machine": "another"}
    monkeypatch.setattr(lease_module, "this_process", lambda: elsewhere)
    theirs.acquire()
    gc.run(gc.GcConfig(root=store.root))
    assert "one.json" not in leases.files()
    assert "two.json" in leases.files()


def test_gc_ends_uploads_that_were_cut_short(in_bucket, object_storage, monkeypatch, capsys) -> None:
    client, prefix = object_storage.client, in_bucket.root.removeprefix(f"s3://{BUCKET}/")
    for key in (f"{prefix}/models/a/weights", f"{prefix}-other/weights"):
        client.create_multipart_upload(Bucket=BUCKET, Key=key)

    def left() -> list[str]:
        uploads = client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
        return [each["Key"] for each in uploads if each["Key"].startswith(prefix)]

    gc.run(gc.GcConfig(root=in_bucket.root))
    assert len(left()) == 2, "they are younger than a day"
    monkeypatch.setattr(gc, "OLD_SECONDS", -3600.0)
    gc.run(gc.GcConfig(root=in_bucket.root, dry_run=True))
    assert len(left()) == 2
    gc.run(gc.GcConfig(root=in_bucket.root))
    assert left() == [f"{prefix}-other/weights"]
    assert "upload that was cut short" in capsys.readouterr().out


def test_gc_does_the_rest_where_uploads_must_not_be_listed(in_bucket, monkeypatch, capsys) -> None:
    def refuse(storage):
        raise StorageError("s3://x: refuses the credentials (AccessDenied)")

    monkeypatch.setattr("cluster.artifacts.s3_uploads.open_uploads", refuse)
    gc.run(gc.GcConfig(root=in_bucket.root))
    assert "were not looked for: s3://x: refuses" in capsys.readouterr().out


@pytest.mark.usefixtures("others")
def test_gc_cache_spares_workspaces_in_use(in_bucket: ArtifactStore, tmp_path: Path) -> None:
    made = make(in_bucket, "corpora/a")
    copy = made.fetch()
    running, old, recent = (begin(in_bucket, f"models/{name}") for name in ("running", "old", "recent"))
    places = {each.name: Workspace(each.folder).path for each in (running, old, recent)}
    long_ago = (time.time() - 10**6,) * 2
    for name, place in places.items():
        (place / "checkpoints").mkdir()
        (place / "checkpoints/x").write_bytes(b"1")
        if name != "recent":
            for path in (place / "checkpoints/x", place / "checkpoints", place):
                os.utime(path, long_ago)
    old.close()
    recent.close()
    gc.run(gc.GcConfig(root=in_bucket.root, cache=True, dry_run=True))
    assert copy.exists()
    gc.run(gc.GcConfig(root=in_bucket.root, cache=True))
    assert not copy.exists()
    assert {name for name, place in places.items() if place.exists()} == {"running", "recent"}
    running.close()
