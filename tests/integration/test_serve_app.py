"""The application that a Serve config file names, deployed from the RayService's own file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import ray
import yaml
from ray import serve
from ray.serve._private.api import serve_start
from ray.serve.schema import ServeDeploySchema

from cluster.artifacts.store import ArtifactStore
from cluster.connect import start_local
from cluster.errors import UserError
from pipelines.serve.app import build
from pipelines.serve.config import ServedModel
from tests.integration.small_artifacts import small_store
from tests.integration.small_chat import make_model
from tests.integration.test_serve import free_port

KEY = "a-key-for-tests"
RAY_SERVICE = Path(__file__).resolve().parents[2] / "infra/kubernetes/serve/ray-service.yaml"


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ArtifactStore:
    store = small_store(tmp_path_factory.mktemp("root"))
    make_model(store, "chat", "lm", seed=0)
    make_model(store, "score", "scalar", seed=1)
    return store


@pytest.fixture(scope="module")
def url(store) -> Iterator[str]:
    config = yaml.safe_load(yaml.safe_load(RAY_SERVICE.read_text())["spec"]["serveConfigV2"])
    config["http_options"] |= {"host": "127.0.0.1", "port": free_port()}
    config["applications"][0]["args"] |= {
        "root": str(store.root),
        "model": "chat",
        "threads": 1,
        "replicas": 1,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANTA_API_KEY", KEY)  # before Ray starts, whose workers inherit it
        start_local(num_cpus=2)
        try:
            # What Ray's dashboard does with a config that it is sent; there is no dashboard here.
            schema = ServeDeploySchema.model_validate(config)
            client = serve_start(
                http_options=schema.http_options.model_dump(), proxy_location=schema.proxy_location
            )
            client.deploy_apps(schema, _blocking=True)
            yield f"http://127.0.0.1:{config['http_options']['port']}"
        finally:
            serve.shutdown()
            ray.shutdown()


def test_the_ray_services_application_serves_the_model(url):
    status = serve.status()
    assert status.applications["manta"].status == "RUNNING", status.applications["manta"].message
    assert httpx.get(f"{url}/-/healthz").text == "success", "what KubeRay's probe asks for"
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=60)
    assert [model.id for model in client.models.list()] == ["chat"]
    answer = client.completions.create(model="chat", prompt="the quick", max_tokens=5, seed=1)
    assert answer.usage.completion_tokens == 5
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threads": None}, "args.threads is missing"),
        ({"model": "score"}, "is a reward model"),
        ({"model": "nothing"}, "no models/nothing"),
    ],
)
def test_an_application_that_cannot_run_is_refused(store, monkeypatch, change: dict[str, Any], message: str):
    monkeypatch.setenv("MANTA_API_KEY", KEY)
    options = {"root": str(store.root), "model": "chat", "threads": 1} | change
    with pytest.raises(UserError, match=message):
        build(ServedModel(**options))


def test_an_application_without_a_key_is_refused(store, monkeypatch):
    monkeypatch.delenv("MANTA_API_KEY", raising=False)
    with pytest.raises(UserError, match="MANTA_API_KEY is not set"):
        build(ServedModel(root=str(store.root), model="chat", threads=1))
