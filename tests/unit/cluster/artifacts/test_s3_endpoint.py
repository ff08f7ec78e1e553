"""The endpoint of a profile is used by both libraries that speak to S3."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.artifacts import s3_connection
from cluster.artifacts.storage import open_storage
from tests.object_storage import ACCESS_KEY, BUCKET, SECRET_KEY

PROFILE = """
[profile plain]
region = us-east-1
endpoint_url = {endpoint}

[profile by-service]
region = us-east-1
services = ours

[services ours]
s3 =
  endpoint_url = {endpoint}

[profile aws]
region = eu-central-1
"""


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request) -> Iterator[None]:
    endpoint = "http://s3.ours.example:9000"
    if "object_storage" in request.fixturenames:
        endpoint = request.getfixturevalue("object_storage").endpoint
    config, credentials = tmp_path / "config", tmp_path / "credentials"
    config.write_text(PROFILE.format(endpoint=endpoint))
    keys = f"aws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
    credentials.write_text("".join(f"[{name}]\n{keys}\n" for name in ("plain", "by-service", "aws")))
    for name in ("ENDPOINT_URL", "ENDPOINT_URL_S3", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "REGION"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    s3_connection._session_client.cache_clear()
    yield
    s3_connection._session_client.cache_clear()


@pytest.mark.parametrize("profile", ["plain", "by-service"])
def test_a_profile_with_an_endpoint(object_storage, profiles, profile, monkeypatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", profile)
    storage = open_storage(f"s3://{BUCKET}/{uuid.uuid4().hex}")
    storage.write("a", b"hello")
    with storage.open("a") as file:
        assert file.read() == b"hello"
    assert storage._where() == object_storage.endpoint


@pytest.mark.parametrize("profile", ["plain", "by-service"])
def test_a_bucket_needs_no_name_of_its_own(profiles, profile, monkeypatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", profile)
    s3 = s3_connection.client(None, None)
    assert s3_connection.endpoint_of(s3) == "http://s3.ours.example:9000"
    url = s3.generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "key"})
    assert url.startswith("http://s3.ours.example:9000/bucket/key?")


def test_the_environment_goes_before_the_profile(profiles, monkeypatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "plain")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    assert open_storage("s3://bucket/x")._where() == "http://127.0.0.1:9"


def test_aws_itself_is_left_to_pyarrow(profiles, monkeypatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "aws")
    s3 = s3_connection.client(None, None)
    assert s3_connection.endpoint_of(s3) is None
    assert open_storage("s3://bucket/x")._where() == "AWS S3"
