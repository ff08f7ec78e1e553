"""Connections of this process to S3: boto3's client, and pyarrow's file system with the same settings."""

import os
import re
import threading
from functools import cache
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, NoCredentialsError

from cluster.artifacts.redact import redact
from cluster.errors import StorageError

CONNECTIONS = 32

_LOCK = threading.Lock()
_OF_AWS = re.compile(r"https://s3(\.[a-z0-9-]+)?\.amazonaws\.com(\.cn)?")


def client(endpoint: str | None, region: str | None) -> Any:
    """boto3's client. Without an endpoint, that of the profile (its `endpoint_url`), else AWS.

    Raises StorageError for an endpoint that is no URL.
    """
    with _LOCK:
        return _session_client(os.getpid(), endpoint, region)


def file_system(endpoint: str | None, region: str | None) -> Any:
    """pyarrow's file system, with boto3's credentials and endpoint: it knows fewer ways to find them itself.

    Raises NoCredentialsError.
    """
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    s3 = client(endpoint, region)
    credentials = s3._request_signer._credentials
    if credentials is None:
        raise NoCredentialsError
    frozen = credentials.get_frozen_credentials()
    return S3FileSystem(
        access_key=frozen.access_key,
        secret_key=frozen.secret_key,
        session_token=frozen.token,
        region=s3.meta.region_name,
        endpoint_override=endpoint_of(s3),
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=10),
        request_timeout=30,
        connect_timeout=10,
    )


def endpoint_of(s3: Any) -> str | None:
    """Where a client sends its requests, wherever that was configured; None: AWS's own endpoint."""
    url: str = s3.meta.endpoint_url
    return None if _OF_AWS.fullmatch(url) else url


@cache
def _session_client(process: int, endpoint: str | None, region: str | None) -> Any:
    # `process` is there because a client must not be shared over a fork.
    session = boto3.Session()
    region = region or session.region_name or "us-east-1"

    def connect(endpoint: str | None) -> Any:
        config = Config(
            retries={"mode": "standard", "total_max_attempts": 2},
            connect_timeout=10,
            read_timeout=30,
            max_pool_connections=CONNECTIONS,
            s3={"addressing_style": "path" if endpoint else "auto"},
        )
        try:
            return session.client("s3", endpoint_url=endpoint, region_name=region, config=config)
        except BotoCoreError:  # some are ValueErrors too
            raise
        except ValueError as error:
            raise _no_url(endpoint or str(error).removeprefix("Invalid endpoint: ")) from error

    s3 = connect(endpoint)
    configured = endpoint_of(s3)
    # Servers other than AWS's seldom have a name for every bucket.
    return s3 if endpoint or not configured else connect(configured)


def _no_url(endpoint: str) -> StorageError:
    shown = redact(endpoint if "://" in endpoint else f"http://{endpoint}")
    shown = shown if "://" in endpoint else shown.removeprefix("http://")
    return StorageError(
        f"the S3 endpoint {shown!r} is no URL: write http://HOST:PORT or https://HOST into AWS_ENDPOINT_URL "
        "(AWS_ENDPOINT_URL_S3, or endpoint_url of the profile)"
    )
