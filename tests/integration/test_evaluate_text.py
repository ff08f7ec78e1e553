"""What `manta evaluate --tokens` makes of an encoder-decoder or an encoder is what its training did."""

import json

import pytest
import ray

from cluster.connect import Cluster, start_local
from cluster.errors import UserError
from llm.training.metrics_log import read_records
from pipelines.evaluate import stage as evaluate
from pipelines.evaluate.config import EvaluateConfig
from pipelines.pretrain import stage as pretrain
from pipelines.pretrain.config import PretrainConfig
from tests.integration.small_artifacts import small_store

FIELDS = {
    "tokens": "small",
    "seq_len": 24,
    "global_batch": 8,
    "micro_batch": 3,
    "precision": "fp32",
    "evaluate_every": 10,
    "evaluate_windows": 7,
    "seed": 5,
    "threads_per_worker": 1,
    "wandb": "disabled",
}
OBJECTIVES = {"t5-tiny": {"noise_density": 0.3, "mean_span_length": 2.0}, "bert-tiny": {"mask_rate": 0.4}}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    small_store(root)
    start_local(num_cpus=2)
    yield root
    ray.shutdown()


def trained(root, name, preset, **how):
    config = PretrainConfig(
        root=str(root), name=name, model={"preset": preset}, objective=OBJECTIVES[preset], **FIELDS | how
    )
    return pretrain.run(config, Cluster())


def measured(root, model, **how):
    config = EvaluateConfig(root=str(root), name=model, model=model, tokens="small", threads=1, **how)
    return json.loads((evaluate.run(config, Cluster()).fetch() / "results.json").read_text())


@pytest.mark.parametrize("preset", OBJECTIVES)
def test_held_out_text_is_measured_as_in_training(root, preset):
    model = trained(root, preset, preset, steps=10)
    other = trained(root, f"{preset}-other", preset, steps=20, workers=2)
    names = ["heldout_loss", *(["heldout_accuracy"] if preset == "bert-tiny" else [])]

    of_all = measured(root, preset, windows=100_000, baseline=f"{preset}-other")
    assert of_all.pop("models") == {"model": model.ref, "baseline": other.ref}
    expected = {name: model.counts[name] for name in names}
    expected |= {f"baseline_{name}": other.counts[name] for name in names}
    assert of_all == pytest.approx(expected, rel=1e-6)
    assert len(set(expected.values())) == len(expected), "the two are not alike"

    of_some = measured(root, preset, windows=7)
    last = read_records(model.fetch() / "metrics.jsonl")[-1]
    assert of_some["heldout_loss"] == pytest.approx(last["heldout_loss"], rel=1e-6)
    assert of_some["heldout_loss"] != pytest.approx(of_all["heldout_loss"], rel=1e-4)
    if preset == "bert-tiny":
        with pytest.raises(UserError, match=r"--corpus small: models/bert\S+ is an encoder, which writes no"):
            measured(root, preset, corpus="small")
