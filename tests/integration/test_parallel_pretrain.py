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
    "model": {"preset": "tiny-100k"},
    "steps": 12,
    "seq_len": 32,
    "global_batch": 4,
    "micro_batch": 2,
    "precision": "fp32",
    "evaluate_every": 6,
    "threads_per_worker": 1,
    "document_mask": True,
    "wandb": "disabled",
}


@pytest.fixture(scope="module")
def local_ray():
    start_local(num_cpus=2)
    yield
    ray.shutdown()


def trained(root, **how):
    small_store(root)
    artifact = stage.run(PretrainConfig(root=str(root), **FIELDS, **how), Cluster())
    records = read_records(artifact.fetch() / "metrics.jsonl")
    return artifact, [(each["loss"], each.get("heldout_bits_per_byte", 0.0)) for each in records]


def test_two_tensor_ranks_make_the_model_of_one_worker(local_ray, tmp_path):
    alone, expected = trained(tmp_path / "alone")
    divided, curve = trained(tmp_path / "divided", workers=2, parallel={"tensor": 2})
    assert divided.version == alone.version, "how it is divided is no part of what is made"
    torch.testing.assert_close(torch.tensor(curve), torch.tensor(expected), rtol=1e-4, atol=0)
    models = [load_model(each.fetch())[0].state_dict() for each in (divided, alone)]
    torch.testing.assert_close(*models, rtol=1e-3, atol=1e-4)
