"""Workers that divide the model, and not only shard it, make the same model."""

import pytest
import ray
import torch

from cluster.connect import Cluster, start_local
from llm.models.load import load_model
from llm.training.metrics_log import read_records
from pipelines.pretrain import stage
from pipelines.pretrain.config import PretrainConfig
from tests.integration.small_artifacts import small_store

FIELDS = {
    "tokens": "small",
    "steps": 12,
    "seq_len": 32,
    "global_batch": 4,
    "micro_batch": 2,
    "precision": "fp32",
    "evaluate_every": 6,
    "threads_per_worker": 1,
    "wandb": "disabled",
}


MODELS = {
    "dense": {"preset": "tiny-100k"},
    "experts": {
        "preset": "moe-280m",
        "d_model": 64,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "d_ff": 64,
    },
    "encoder-decoder": {"preset": "t5-tiny", "n_heads": 4},
    "encoder": {"preset": "bert-tiny"},
}


@pytest.fixture(scope="module")
def local_ray():
    start_local(num_cpus=2)
    yield
    ray.shutdown()


def trained(root, model, **how):
    small_store(root)
    how["document_mask"] = model in ("dense", "experts")
    artifact = stage.run(PretrainConfig(root=str(root), model=MODELS[model], **FIELDS, **how), Cluster())
    records = read_records(artifact.fetch() / "metrics.jsonl")
    measures = ("loss", "heldout_bits_per_byte", "heldout_loss", "heldout_accuracy")
    return artifact, [[each.get(name, 0.0) for name in measures] for each in records]


@pytest.fixture(scope="module")
def alone(local_ray, tmp_path_factory):
    """Each model, trained by one worker."""
    return {model: trained(tmp_path_factory.mktemp(model), model) for model in MODELS}


@pytest.mark.parametrize(
    ("model", "way"),
    [
        ("dense", "tensor"),
        ("experts", "tensor"),
        ("experts", "pipeline"),
        ("experts", "expert"),
        ("encoder-decoder", "tensor"),
        ("encoder", "pipeline"),
    ],
)
def test_two_workers_make_the_model_of_one(model, way, alone, tmp_path):
    artifact, expected = alone[model]
    divided, curve = trained(tmp_path, model, workers=2, parallel={way: 2})
    assert divided.version == artifact.version, "how it is divided is no part of what is made"
    torch.testing.assert_close(torch.tensor(curve), torch.tensor(expected), rtol=1e-4, atol=0)
    models = [load_model(each.fetch())[0].state_dict() for each in (divided, artifact)]
    torch.testing.assert_close(*models, rtol=1e-3, atol=1e-4)
