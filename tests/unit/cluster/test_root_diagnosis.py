"""`manta doctor --root`: a disk is looked at, a bucket is tried out."""

import uuid

import pytest

from cluster import root_diagnosis
from cluster.artifacts import s3_connection
from cluster.artifacts.s3_storage import S3Storage
from cluster.artifacts.storage import open_storage
from cluster.errors import StorageError
from cluster.root_diagnosis import root_of_artifacts
from tests.object_storage import BUCKET


def test_of_a_folder_the_disk_is_looked_at(tmp_path):
    (finding,) = root_of_artifacts(str(tmp_path / "not/yet/there"))
    assert f"GiB free on the disk of {tmp_path}/not/yet/there" in finding.text


@pytest.fixture
def root(object_storage, monkeypatch, tmp_path):
    for name, value in object_storage.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MANTA_CACHE", str(tmp_path / "cache"))
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


def test_a_bucket_is_tried_out_and_left_as_it_was(root, object_storage, tmp_path):
    bucket, cache = root_of_artifacts(root)
    assert (bucket.level, bucket.text) == (
        "ok",
        f"{root} lists, takes and deletes files, and knows conditional writes",
    )
    assert f"GiB free on the disk of {tmp_path}/cache" in cache.text
    prefix = root.rpartition("/")[2]
    assert object_storage.client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["KeyCount"] == 0


def test_what_keeps_a_bucket_from_being_of_use(root, monkeypatch):
    (finding,) = root_of_artifacts("s3://no-such-bucket/manta")
    assert finding.level == "bad"
    assert "there is no bucket 'no-such-bucket'" in finding.text
    (finding,) = root_of_artifacts("gs://bucket/manta")
    assert (finding.level, "gs:// is not supported" in finding.text) == ("bad", True)
    with monkeypatch.context() as patch:
        patch.setattr(S3Storage, "create", lambda self, key, data: self.write(key, data) or True)
        finding, _ = root_of_artifacts(root)
    assert finding.level == "bad"
    assert "ignores `If-None-Match`" in finding.text
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(root_diagnosis, "_PATIENCE_SECONDS", 0.5)
    (finding,) = root_of_artifacts(root)
    assert finding.level == "bad"
    assert "has not answered" in finding.text
    assert "\n" not in finding.text


@pytest.mark.parametrize(
    "endpoint", ["localhost:9000", "http://", "http://a b", "http://[::1", "someone:s3cret@h:1"]
)
def test_an_endpoint_that_is_no_url_is_named_with_the_mend(endpoint, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    (finding,) = root_of_artifacts("s3://bucket/manta")
    shown = endpoint.replace("someone:s3cret", "[redacted]")
    assert finding.level == "bad"
    assert finding.text.startswith(f"the S3 endpoint {shown!r} is no URL: write http://HOST:PORT or")


def test_an_endpoint_of_a_profile_that_is_no_url(tmp_path, monkeypatch):
    (tmp_path / "config").write_text("[profile typed]\nregion = us-east-1\nendpoint_url = localhost:9000\n")
    for name in ("ENDPOINT_URL", "ENDPOINT_URL_S3", "REGION"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "typed")
    s3_connection._session_client.cache_clear()
    (finding,) = root_of_artifacts("s3://bucket/manta")
    s3_connection._session_client.cache_clear()
    assert finding.text.startswith("the S3 endpoint 'localhost:9000' is no URL")


@pytest.mark.parametrize(
    ("root", "region", "text"),
    [
        (
            "s3://my!bucket/manta",
            "us-east-1",
            "s3://my!bucket/manta: 'my!bucket' cannot be the name of a bucket",
        ),
        ("s3://bucket/manta", "us east", "s3://bucket/manta: InvalidRegionError: "),
    ],
)
def test_what_botocore_does_not_even_send_is_one_line(root, region, text, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something")
    monkeypatch.setenv("AWS_REGION", region)
    (finding,) = root_of_artifacts(root)
    assert (finding.level, finding.text[: len(text)], "\n" in finding.text) == ("bad", text, False)
    with pytest.raises(StorageError):
        open_storage(root).folders("")
