"""Storage in a bucket of S3, or of anything that speaks its protocol.

Commits rest on conditional writes: `If-None-Match: *` to create, `If-Match: ETAG` to replace. A request whose
answer was lost is sent again and then finds its own work: such a refusal counts as success if the object
holds what we sent (all contested contents carry an identity of their own).

Credentials come from the usual chain (environment, profile, instance role) on the machine that needs them,
and are never part of this object, which travels to Ray actors.
"""

import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import BotoCoreError, ClientError

from cluster.artifacts.redact import redact
from cluster.artifacts.s3_connection import client, endpoint_of, file_system
from cluster.artifacts.s3_errors import ERRORS, cause_of, explained, is_transient, status
from cluster.errors import StorageError

GIVE_UP_SECONDS = 180.0
"""How long an outage may last. A minute is not rare; after three, a person should look."""

_LONGEST_PAUSE_SECONDS = 10.0
_DELETED_AT_ONCE = 1000
_THREADS = 16
_SMALL_BYTES, _CHUNK_BYTES = 2**20, 2**20
_TRANSFER = TransferConfig(
    multipart_threshold=64 * 2**20,
    multipart_chunksize=32 * 2**20,
    max_concurrency=4,
    preferred_transfer_client="classic",
)
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class S3Storage:
    """Objects `prefix/KEY` of a bucket. Implements `cluster.artifacts.storage.Storage`."""

    bucket: str
    prefix: str
    endpoint: str | None = None
    """None: that of the profile, if it has one, else AWS itself."""
    region: str | None = None
    patience_seconds: float | None = None
    """How long an outage may last; None: `GIVE_UP_SECONDS`."""

    @classmethod
    def from_environment(cls, bucket: str, prefix: str) -> "S3Storage":
        """With the endpoint and the region of this process, so that actors elsewhere use the same."""
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        return cls(bucket, prefix, endpoint, region)

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def read(self, key: str) -> bytes:
        return self.persist(key, lambda s3: s3.get_object(**self._at(key))["Body"].read())

    def read_range(self, key: str, first: int, count: int) -> bytes:
        if count == 0:
            return b""
        wanted = f"bytes={first}-{first + count - 1}"
        return self.persist(key, lambda s3: _body(s3, Range=wanted, **self._at(key)))

    def write(self, key: str, data: bytes) -> None:
        self.persist(key, lambda s3: s3.put_object(**self._at(key), Body=data))

    def create(self, key: str, data: bytes) -> bool:
        return self._conditional(key, data, IfNoneMatch="*")

    def swap(self, key: str, expected: bytes | None, data: bytes) -> bool:
        if expected is None:
            return self.create(key, data)
        try:
            found = self.persist(key, lambda s3: _content_and_etag(s3.get_object(**self._at(key))))
        except FileNotFoundError:
            return False
        return found[0] == expected and self._conditional(key, data, IfMatch=found[1])

    def upload(self, path: Path, key: str) -> None:
        """In parts if the file is large; the object appears when the last part has arrived."""
        if path.stat().st_size <= _SMALL_BYTES:
            self.write(key, path.read_bytes())
            return
        where = (self.bucket, self._key(key))
        self.persist(key, lambda s3: s3.upload_file(str(path), *where, Config=_TRANSFER))

    def download(self, key: str, path: Path) -> None:
        """In parts if the object is large."""
        self.persist(key, lambda s3: _download(s3, path, **self._at(key)))

    def copy(self, key: str, new_key: str) -> None:
        """On the server's side, in parts if the object is large."""
        source, target = self._at(key), self._at(new_key)
        self.persist(key, lambda s3: s3.copy(source, target["Bucket"], target["Key"], Config=_TRANSFER))

    def open(self, key: str) -> pa.NativeFile:
        try:
            files = file_system(self.endpoint, self.region)
        except BotoCoreError as error:
            raise self._explained(key, error) from error
        file: pa.NativeFile = files.open_input_file(f"{self.bucket}/{self._key(key)}")
        return file

    def files(self, prefix: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for page in self._pages(prefix):
            for each in page.get("Contents", []):
                found[self._relative(each["Key"])] = each["Size"]
        return found

    def etags(self, prefix: str) -> dict[str, tuple[int, str]]:
        """Like `files`, with size and ETag of each object: what identifies an input that is not ours."""
        return {
            self._relative(each["Key"]): (each["Size"], each["ETag"].strip('"'))
            for page in self._pages(prefix)
            for each in page.get("Contents", [])
        }

    def etag(self, key: str) -> tuple[int, str] | None:
        """Size and ETag of one object; None if there is none."""
        try:
            found = self.persist(key, lambda s3: s3.head_object(**self._at(key)))
        except FileNotFoundError:
            return None
        return found["ContentLength"], found["ETag"].strip('"')

    def folders(self, prefix: str) -> list[str]:
        below = self._key(f"{prefix}/" if prefix else "")
        names = (
            each["Prefix"].removeprefix(below).rstrip("/")
            for page in self._pages(prefix, Delimiter="/")
            for each in page.get("CommonPrefixes", [])
        )
        return sorted(name for name in names if not name.startswith("."))

    def delete(self, keys: list[str]) -> None:
        for start in range(0, len(keys), _DELETED_AT_ONCE):
            objects = [{"Key": self._key(key)} for key in keys[start : start + _DELETED_AT_ONCE]]
            request: Any = {"Bucket": self.bucket, "Delete": {"Objects": objects, "Quiet": True}}
            self.persist(keys[start], partial(_delete, request=request))

    def rename(self, prefix: str, new_prefix: str) -> None:
        """Copies on the server's side, then deletes, what is directly in the folder first: without its
        manifest no half of it is taken for the whole.
        """
        keys = sorted(self.files(prefix), key=lambda key: (key.count("/"), not key.endswith(".json")))

        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(lambda key: self.copy(key, new_prefix + key.removeprefix(prefix)), keys))
        self.delete(keys)

    def local(self, key: str) -> None:
        return None

    def _conditional(self, key: str, data: bytes, **condition: str) -> bool:
        """Put under a condition. True if the object is now ours."""
        attempts = 0

        def put(s3: Any) -> bool:
            nonlocal attempts
            attempts += 1
            try:
                s3.put_object(**self._at(key), Body=data, **condition)
            except ClientError as error:
                if error.response["Error"]["Code"] == "NoSuchBucket" or status(error) not in (404, 412):
                    raise
                if status(error) == 404:
                    return False  # what was to be replaced is gone
                sent_before = attempts > 1 or error.response["ResponseMetadata"].get("RetryAttempts", 0)
                return bool(sent_before) and s3.get_object(**self._at(key))["Body"].read() == data
            return True

        return self.persist(key, put)

    def _pages(self, prefix: str, **more: str) -> Iterator[Any]:
        """Pages of a listing. Each is fetched with patience: an outage between two loses nothing."""
        below = self._key(f"{prefix}/" if prefix else "")
        token: dict[str, str] = {}
        while True:
            request: Any = {"Bucket": self.bucket, "Prefix": below, **more, **token}
            page = self.persist(prefix, partial(_list_page, request=request))
            yield page
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def persist(self, key: str, action: Callable[[Any], _Result]) -> _Result:
        """Do `action` with a client, again after transient errors, with pauses that grow and are jittered.

            pause = random(0, min(10 s, 0.1 s · 2^attempt))      ("full jitter")

        Raises FileNotFoundError if the object is missing, StorageError for all that a person must mend.
        """
        patience = GIVE_UP_SECONDS if self.patience_seconds is None else self.patience_seconds
        deadline, attempt = time.monotonic() + patience, 0
        while True:
            try:
                return action(client(self.endpoint, self.region))
            except ERRORS as error:
                cause = cause_of(error)
                if not is_transient(cause):
                    raise self._explained(key, cause) from error
                if time.monotonic() > deadline:
                    raise StorageError(
                        f"{self.uri}/{key}: {self._where()} has not answered for {patience:.0f} s "
                        f"({type(cause).__name__}); run again when it does: finished work is kept"
                    ) from error
            time.sleep(random.uniform(0, min(_LONGEST_PAUSE_SECONDS, 0.1 * 2**attempt)))
            attempt += 1

    def _explained(self, key: str, error: BaseException) -> BaseException:
        return explained(error, self.uri, key, self._where)

    def _where(self) -> str:
        endpoint: str = redact(endpoint_of(client(self.endpoint, self.region)) or "AWS S3")
        return endpoint

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._key(key)}

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _relative(self, key: str) -> str:
        return key.removeprefix(f"{self.prefix}/") if self.prefix else key


def _delete(s3: Any, request: dict[str, Any]) -> None:
    """What could not be deleted is in an answer that says 200."""
    for failed in s3.delete_objects(**request).get("Errors", []):
        raise ClientError({"Error": failed}, "DeleteObjects")


def _list_page(s3: Any, request: dict[str, Any]) -> Any:
    return s3.list_objects_v2(**request)


def _download(s3: Any, path: Path, **where: str) -> None:
    response = s3.get_object(**where)
    with closing(response["Body"]) as body:
        if response["ContentLength"] <= _TRANSFER.multipart_threshold:  # half of what s3transfer takes
            with open(path, "wb") as stream:
                for chunk in body.iter_chunks(_CHUNK_BYTES):
                    stream.write(chunk)
            return
    s3.download_file(where["Bucket"], where["Key"], str(path), Config=_TRANSFER)


def _body(s3: Any, **request: str) -> bytes:
    """Of a range; none of it where the object ends before."""
    try:
        content: bytes = s3.get_object(**request)["Body"].read()
    except ClientError as error:
        if error.response["Error"]["Code"] != "InvalidRange":
            raise
        return b""
    return content


def _content_and_etag(response: Any) -> tuple[bytes, str]:
    return response["Body"].read(), response["ETag"]
