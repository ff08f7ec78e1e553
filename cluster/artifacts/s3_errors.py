"""What a failure of S3 means: whether asking again can help, and else what a person should mend."""

from collections.abc import Callable

from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
)
from s3transfer.exceptions import RetriesExceededError
from urllib3.exceptions import HTTPError

from cluster.artifacts.redact import redact
from cluster.errors import StorageError

ERRORS = (ClientError, BotoCoreError, RetriesExceededError, S3UploadFailedError, HTTPError, OSError)
"""HTTPError: botocore does not translate what breaks while it reads the body of a refusal."""

_TRANSIENT = {"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "ThrottlingException"}
_TRANSIENT |= {"Throttling", "RequestLimitExceeded", "ConditionalRequestConflict", "OperationAborted"}
_DENIED = {"AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId", "ExpiredToken", "InvalidToken"}


def cause_of(error: BaseException) -> BaseException:
    """What s3transfer wrapped, which knows more."""
    if isinstance(error, RetriesExceededError):
        return error.last_exception
    if isinstance(error, S3UploadFailedError):
        return error.__context__ or error
    return error


def is_transient(error: BaseException) -> bool:
    """Whether asking again can help: the server's fault or the network's, not the request's."""
    if isinstance(error, ClientError):
        return error.response["Error"]["Code"] in _TRANSIENT or status(error) in (429, 500, 502, 503, 504)
    if isinstance(error, FileNotFoundError | PermissionError | NoCredentialsError | ProfileNotFound):
        return False
    if isinstance(error, HTTPError):
        return True
    if isinstance(error, OSError):
        return isinstance(error, ConnectionError | TimeoutError)
    return type(error).__name__ in {
        "ConnectionClosedError",
        "ConnectTimeoutError",
        "EndpointConnectionError",
        "HTTPClientError",
        "IncompleteReadError",
        "ProxyConnectionError",
        "ReadTimeoutError",
        "ResponseStreamingError",
        "SSLError",
        "FlexibleChecksumError",
    }


def explained(error: BaseException, uri: str, key: str, where: Callable[[], str]) -> BaseException:
    """The error that says what to mend. uri: of the root; where: names the server, once one was found."""
    if isinstance(error, NoCredentialsError | PartialCredentialsError | ProfileNotFound):
        return StorageError(
            f"{uri}: no credentials ({type(error).__name__}); set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine a role"
        )
    if isinstance(error, ParamValidationError) and "Invalid bucket name" in str(error):
        return StorageError(
            f"{uri}: {_bucket(uri)!r} cannot be the name of a bucket, which is letters, digits, dots, dashes "
            "and underscores; write s3://BUCKET/PREFIX"
        )
    if isinstance(error, BotoCoreError):
        return StorageError(f"{uri}: {type(error).__name__}: {' '.join(redact(str(error)).split())}")
    if not isinstance(error, ClientError):
        return error
    code = error.response["Error"]["Code"]
    if code == "NoSuchBucket":
        return StorageError(f"{uri}: there is no bucket {_bucket(uri)!r} at {where()}; create it first")
    if code in ("NoSuchKey", "NoSuchUpload", "404", "NotFound"):
        return FileNotFoundError(f"{uri}/{key}")
    if code in _DENIED or status(error) in (401, 403):
        return StorageError(f"{uri}: {where()} refuses the credentials ({code}); check key and policy")
    return StorageError(f"{uri}/{key}: {where()} answers {code}: {error.response['Error'].get('Message')}")


def status(error: ClientError) -> int:
    """Of HTTP; 0 if the error names none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _bucket(uri: str) -> str:
    return uri.removeprefix("s3://").partition("/")[0]
