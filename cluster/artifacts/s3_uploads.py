"""Uploads in parts that were cut short: no listing of a bucket shows them, and its owner pays for them."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from cluster.artifacts.s3_storage import S3Storage


@dataclass(frozen=True)
class Upload:
    """One that was begun and not ended. `key` is the bucket's, with the root's prefix."""

    key: str
    id: str
    age_seconds: float


def open_uploads(storage: S3Storage) -> Iterator[Upload]:
    """Those below the root, also of files that are being uploaded now."""
    below = f"{storage.prefix}/" if storage.prefix else ""
    marker: dict[str, str] = {}
    while True:
        request = {"Bucket": storage.bucket, "Prefix": below, **marker}
        page = storage.persist("", partial(_list, request=request))
        for each in page.get("Uploads", []):
            age = (datetime.now(UTC) - each["Initiated"]).total_seconds()
            yield Upload(each["Key"], each["UploadId"], age)
        if not page.get("IsTruncated"):
            return
        marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def abort(storage: S3Storage, upload: Upload) -> None:
    """Free its parts; one that has ended meanwhile does no harm."""
    request = {"Bucket": storage.bucket, "Key": upload.key, "UploadId": upload.id}
    try:
        storage.persist(upload.key, lambda s3: s3.abort_multipart_upload(**request))
    except FileNotFoundError:
        return


def _list(s3: Any, request: dict[str, Any]) -> Any:
    return s3.list_multipart_uploads(**request)
