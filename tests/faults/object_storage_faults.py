"""Stages on a root in object storage that fails: single requests, for a minute, or for good. And stages that
are killed while a checkpoint is on its way there.
"""

import itertools
import os
import random
import shutil
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from tests.faults.killing import (
    MOST_RUNS,
    Outcome,
    Reference,
    Victim,
    finish,
    kill_now,
    start,
)
from tests.faults.s3_proxy import FAULTS, FaultyS3
from tests.faults.steps import DISTURBED, TRAINED, index_of
from tests.object_storage import BUCKET, ObjectStorage, serve

OUTAGE_SECONDS = 60.0
_KILLED: tuple[Victim, ...] = ("worker", "driver")
_LATEST_UPLOAD = 3
"""Of checkpoint tensors, at which something is killed."""


@dataclass(frozen=True)
class Bucket:
    """A root in a bucket that has copies of the artifacts that a step needs, and not the step's own."""

    server: ObjectStorage
    root: str
    environment: dict[str, str]
    """Of the processes that use it."""

    def key(self, name: str) -> str:
        """Of a file below the root."""
        return f"{self.root.removeprefix(f's3://{BUCKET}/')}/{name}"

    def read(self, name: str) -> bytes | None:
        """A file below the root, if there is one."""
        try:
            content: bytes = self.server.client.get_object(Bucket=BUCKET, Key=self.key(name))["Body"].read()
        except self.server.client.exceptions.NoSuchKey:
            return None
        return content


def faulty_storage(
    undisturbed: Reference, scratch: Path
) -> Iterator[tuple[str, str, Callable[[int], Outcome], int]]:
    """The cases: every stage once with each kind of fault, and once with an outage; every training killed
    while it uploads a checkpoint.
    """
    for stage in DISTURBED:
        for fault in FAULTS:

            def case(seed: int, stage: str = stage, fault: str = fault) -> Outcome:
                return _run(undisturbed, stage, scratch, rate=0.08, fault=fault, seed=seed)

            yield stage, f"S3: {fault}", case, 1

    for stage in DISTURBED:

        def outage(seed: int, stage: str = stage) -> Outcome:
            return _run(undisturbed, stage, scratch, rate=0.0, fault="unavailable", seed=seed, outage=True)

        yield stage, f"S3: away for {OUTAGE_SECONDS:.0f} s", outage, 1

    for stage, victim in itertools.product(TRAINED, _KILLED):

        def killed(seed: int, stage: str = stage, victim: Victim = victim) -> Outcome:
            return _killed_mid_upload(undisturbed, stage, victim, seed, scratch)

        yield stage, f"S3: {victim} killed mid-upload of a checkpoint", killed, 1


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
    """One step in a bucket, behind a proxy that disturbs it."""
    index = index_of(stage)
    expected = undisturbed.artifact(index)
    with bucket_for(undisturbed, expected, scratch) as bucket:
        faults = tuple(each for each in FAULTS if each == fault)
        with FaultyS3(bucket.server.port, rate, seed, faults).running() as proxy:
            process = start(
                bucket.root, index, environment=bucket.environment | {"AWS_ENDPOINT_URL": proxy.endpoint}
            )
            if outage:
                away = (proxy, undisturbed.seconds[index])
                threading.Thread(target=_go_away, args=away, daemon=True).start()
            errors = finish(process)
        problems = [] if process.returncode == 0 else [errors.strip()[-200:]]
        problems += [] if sum(proxy.injected.values()) else ["no fault was injected"]
        same = not problems and bucket.read(f"{expected.ref}/manifest.json") == expected.folder.read(
            "manifest.json"
        )
    return Outcome(1, same=same, problems=problems)


def _killed_mid_upload(
    undisturbed: Reference, stage: str, victim: Victim, seed: int, scratch: Path
) -> Outcome:
    """A process is killed when tensors of a checkpoint have left it and not arrived; then the same command is
    run until it succeeds.
    """
    index = index_of(stage)
    expected = undisturbed.artifact(index)
    choice = random.Random(f"upload/{stage}/{victim}/{seed}")
    struck_upload, uploads = choice.randint(1, _LATEST_UPLOAD), itertools.count(1)
    drivers: list[subprocess.Popen[str]] = []
    killed: list[bool] = []

    def strike(path: str) -> None:
        if "/checkpoints/step-" in path and ".distcp" in path and next(uploads) == struck_upload:
            killed.append(kill_now(victim, drivers[-1], choice))

    with bucket_for(undisturbed, expected, scratch) as bucket:
        proxy = FaultyS3(bucket.server.port, 0.0, seed, before_upload=strike)
        with proxy.running():
            environment = bucket.environment | {"AWS_ENDPOINT_URL": proxy.endpoint}
            while len(drivers) < MOST_RUNS:
                drivers.append(start(bucket.root, index, environment=environment))
                errors = finish(drivers[-1])
                if drivers[-1].returncode == 0:
                    break
        problems = [] if drivers[-1].returncode == 0 else [errors.strip()[-200:]]
        same = not problems and bucket.read(f"{expected.ref}/manifest.json") == expected.folder.read(
            "manifest.json"
        )
    return Outcome(len(drivers), same, problems=problems, missed=not any(killed))


def _go_away(proxy: FaultyS3, seconds: float) -> None:
    time.sleep(seconds / 2)
    proxy.outage(OUTAGE_SECONDS)


@contextmanager
def bucket_for(undisturbed: Reference, made: Artifact, scratch: Path) -> Iterator[Bucket]:
    """A bucket on a server of its own with all artifacts of the reference but the one that is `made`."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    with contextmanager(serve)(folder) as server:
        environment = os.environ | server.environment() | {"MANTA_CACHE": str(folder / "cache")}
        bucket = Bucket(server, f"s3://{BUCKET}/{uuid.uuid4().hex}", environment)
        for artifact in ArtifactStore(undisturbed.root).artifacts():
            if artifact.ref != made.ref:
                names = [f"{artifact.ref}/{name}" for name in ("manifest.json", "run.json", *artifact.files)]
                for name in (*names, f"{artifact.kind}/{artifact.name}/latest.json"):
                    server.client.upload_file(str(undisturbed.root / name), BUCKET, bucket.key(name))
        yield bucket
    shutil.rmtree(folder, ignore_errors=True)
