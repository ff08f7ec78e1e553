"""Stages on a root in object storage that fails: single requests, for a minute, or for good."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.artifacts.store import ArtifactStore
from tests.faults.killing import KINDS, Outcome, Reference
from tests.faults.reference import index_of
from tests.faults.s3_proxy import FAULTS, FaultyS3
from tests.object_storage import BUCKET, ObjectStorage, serve

OUTAGE_SECONDS = 60.0


def faulty_storage(
    undisturbed: Reference, scratch: Path
) -> Iterator[tuple[str, str, Callable[[int], Outcome], int]]:
    """The cases: every stage once with each kind of fault, and an outage in pre-training."""
    for stage in KINDS:
        for fault in FAULTS:

            def case(seed: int, stage: str = stage, fault: str = fault) -> Outcome:
                return _run(undisturbed, stage, scratch, rate=0.08, fault=fault, seed=seed)

            yield stage, f"S3: {fault}", case, 1

    def outage(seed: int) -> Outcome:
        return _run(undisturbed, "pretrain", scratch, rate=0.0, fault="unavailable", seed=seed, outage=True)

    yield "pretrain", f"S3: away for {OUTAGE_SECONDS:.0f} s", outage, 1


def _run(
    undisturbed: Reference,
    stage: str,
    scratch: Path,
    *,
    rate: float,
    fault: str,
    seed: int,
    outage: bool = False,
) -> Outcome:
    """One step in a bucket that has copies of its inputs."""
    index = index_of(stage)
    expected = undisturbed.artifact(index)
    with tempfile.TemporaryDirectory(dir=scratch) as cache, _server(scratch) as server:
        root = f"s3://{BUCKET}/{uuid.uuid4().hex}"
        environment = os.environ | server.environment()
        environment["MANTA_CACHE"] = cache
        _upload(undisturbed.root, server, root, expected.ref)
        faults = tuple(each for each in FAULTS if each == fault)
        with FaultyS3(server.port, rate, seed, faults).running() as proxy:
            environment["AWS_ENDPOINT_URL"] = proxy.endpoint
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.driver", root, str(index)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
            if outage:
                away = (proxy, undisturbed.seconds[index])
                threading.Thread(target=_go_away, args=away, daemon=True).start()
            _, errors = process.communicate(timeout=900)
        problems = [] if process.returncode == 0 else [errors.strip()[-200:]]
        problems += [] if sum(proxy.injected.values()) else ["no fault was injected"]
        key = f"{root.removeprefix(f's3://{BUCKET}/')}/{expected.ref}/manifest.json"
        same = not problems and (
            server.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
            == expected.folder.read("manifest.json")
        )
    return Outcome(1, same=same, problems=problems)


def _go_away(proxy: FaultyS3, seconds: float) -> None:
    time.sleep(seconds / 2)
    proxy.outage(OUTAGE_SECONDS)


def _upload(source: Path, server: ObjectStorage, root: str, without: str) -> None:
    """Artifacts of the reference, but for one and what was made after it."""
    prefix = root.removeprefix(f"s3://{BUCKET}/")
    store = ArtifactStore(source)
    for artifact in store.artifacts():
        if artifact.ref == without:
            continue
        names = ("manifest.json", "run.json", *artifact.files)
        for name in names:
            key = f"{prefix}/{artifact.ref}/{name}"
            server.client.upload_file(str(source / artifact.ref / name), BUCKET, key)
        pointer = f"{artifact.kind}/{artifact.name}/latest.json"
        server.client.upload_file(str(source / pointer), BUCKET, f"{prefix}/{pointer}")


@contextmanager
def _server(scratch: Path) -> Iterator[ObjectStorage]:
    folder = Path(tempfile.mkdtemp(dir=scratch))
    yield from serve(folder)
    shutil.rmtree(folder, ignore_errors=True)
