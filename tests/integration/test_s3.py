"""The chain's stages on a root in object storage: the same artifacts, byte for byte, and nothing secret."""

import json
import os
import uuid
from pathlib import Path

import pytest
import ray

from cluster.artifacts.manifest import verify
from cluster.artifacts.store import KINDS, ArtifactStore
from cluster.connect import Cluster, start_local
from cluster.errors import UserError
from pipelines.corpus import stage as corpus_stage
from pipelines.corpus.config import CorpusConfig
from pipelines.corpus.work_files import WORK
from pipelines.model_options import ModelOptions
from pipelines.pretrain import stage as pretrain_stage
from pipelines.pretrain.config import PretrainConfig
from pipelines.tokenizer import stage as tokenizer_stage
from pipelines.tokenizer.config import TokenizerConfig
from pipelines.tokenizer.sample_worker import SAMPLE_FOLDER
from pipelines.tokens import stage as tokens_stage
from pipelines.tokens.config import TokensConfig
from tests.faults.s3_proxy import FaultyS3
from tests.object_storage import BUCKET, SECRET_KEY

CLUSTER = Cluster()
INPUTS = "raw"


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    """Raw inputs: some of the standard library's files, and JSON lines in pieces."""
    folder = tmp_path_factory.mktemp("inputs")
    for path in sorted(Path(json.__file__).parent.glob("*.py")):
        (folder / path.name).write_bytes(path.read_bytes())
    lines = [json.dumps({"text": f"line {number} of a larger file"}) for number in range(30_000)]
    (folder / "lines.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def proxy(object_storage, tmp_path_factory):
    """The object storage behind a network that loses one request in twenty."""
    with (
        FaultyS3(object_storage.port, rate=0.05, seed=0).running() as proxy,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in object_storage.environment().items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        patch.setenv("MANTA_CACHE", str(tmp_path_factory.mktemp("cache")))
        start_local(num_cpus=2)
        yield proxy
        ray.shutdown()


def make(root: str, paths: tuple[str, ...]) -> list[dict]:
    """Four stages; their manifests."""
    common = {"root": root, "workers": 2}
    corpus = CorpusConfig(**common, name="c", paths=paths, heldout_fraction=0.2)
    tokenizer = TokenizerConfig(**common, name="t", corpus="c", vocab_size=512)
    tokens = TokensConfig(**common, name="t", corpus="c", tokenizer="t")
    pretrain = PretrainConfig(
        root=root,
        name="m",
        tokens="t",
        copy_tokens_up_to=0,  # in a bucket, every sample is a request of its own
        model=ModelOptions(preset="tiny-100k"),
        seq_len=64,
        steps=20,
        checkpoint_every=10,
        evaluate_every=10,
        wandb="disabled",
    )
    stages = (corpus_stage, tokenizer_stage, tokens_stage, pretrain_stage)
    configs = (corpus, tokenizer, tokens, pretrain)
    return [stage.run(config, CLUSTER).manifest for stage, config in zip(stages, configs, strict=True)]


@pytest.fixture(scope="module")
def in_bucket(proxy, texts) -> tuple[str, list[dict]]:
    """(root, manifests) of four stages' artifacts in the bucket."""
    root = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    return root, make(root, (str(texts),))


def test_object_storage_and_disk_hold_the_same_artifacts(in_bucket, proxy, texts, tmp_path) -> None:
    root, manifests = in_bucket
    assert manifests == make(str(tmp_path / "root"), (str(texts),))
    assert sum(proxy.injected.values()) > 20, "the network was bad"
    store = ArtifactStore(root)
    assert [problem for artifact in store.artifacts() for problem in verify(artifact)] == []
    assert [artifact.kind for artifact in store.artifacts()] == ["corpora", "tokenizers", "tokens", "models"]
    # Nothing of the making is left but ledgers, checkpoints and logs; and no secret anywhere.
    keys = [key for kind in KINDS for key in store.storage.files(kind)]
    between_steps = (f"/{WORK}/", f"/{SAMPLE_FOLDER}/", "pending")
    assert [key for key in keys if any(part in key for part in between_steps)] == []
    for key in keys:
        assert SECRET_KEY.encode() not in store.storage.read(key)


def test_raw_inputs_in_a_bucket(proxy, object_storage, texts) -> None:
    prefix = uuid.uuid4().hex
    for path in texts.iterdir():
        object_storage.client.upload_file(str(path), BUCKET, f"{prefix}/in/{path.name}")
    root = f"s3://{BUCKET}/{prefix}/out"
    config = CorpusConfig(root=root, name="c", paths=(f"s3://{BUCKET}/{prefix}/in",), workers=2)
    corpus = corpus_stage.run(config, CLUSTER)
    again = config.model_copy(update={"paths": (f"s3://{BUCKET}/{prefix}/in/*",)})
    assert corpus_stage.run(again, CLUSTER).ref == corpus.ref
    assert corpus.counts["documents"] == 30_000 + len(list(texts.glob("*.py")))
    with pytest.raises(UserError, match="no such object or prefix"):
        corpus_stage.run(config.model_copy(update={"paths": (f"s3://{BUCKET}/nowhere",)}), CLUSTER)


def test_an_interrupted_training_run_goes_on_from_the_bucket(in_bucket, texts, monkeypatch, tmp_path) -> None:
    """Its machine is gone with all that was on it: only what was published counts."""
    root, (*_, expected) = in_bucket
    (model,) = ArtifactStore(root).artifacts("models")
    metrics = model.folder.read("metrics.jsonl")
    newest = "checkpoints/step-00000020"
    model.folder.delete(["manifest.json", *(n for n in model.folder.files() if n.startswith(newest))])
    monkeypatch.setenv("MANTA_CACHE", str(tmp_path / "another machine"))
    ray.shutdown()
    start_local(num_cpus=2)
    assert make(root, (str(texts),))[-1] == expected
    again = ArtifactStore(root).resolve("models", "m")
    assert again.run()["resumed"]
    assert again.folder.read("metrics.jsonl") == metrics
    assert os.listdir(tmp_path / "another machine")
