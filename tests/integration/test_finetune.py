"""Fine-tuning on Ray Train, on two workers: the replies are learned, and a second run has nothing to do."""

import pytest
import ray

from cluster.artifacts.draft import Draft
from cluster.connect import Cluster, start_local
from cluster.errors import UserError
from cluster.metrics import declared
from llm.models.decoder import Decoder
from llm.models.load import load_model, save_model
from llm.models.presets import model_config
from llm.training.metrics_log import read_records
from pipelines.finetune import stage
from pipelines.finetune.config import FinetuneConfig
from pipelines.model_folder import prepare_model_folder
from tests.integration.small_artifacts import VOCAB, small_store

CLUSTER = Cluster()


@pytest.fixture
def root(tmp_path):
    """A store whose models/small has random weights."""
    store = small_store(tmp_path)
    draft = store.begin(kind="models", name="small", stage="made", logic_version=1, what={}, inputs={})
    assert isinstance(draft, Draft)
    config = model_config("tiny-100k", VOCAB)
    model = Decoder(config)
    model.init_weights(seed=0)
    prepare_model_folder(draft, config, store.resolve("tokenizers", "small"))
    with draft.writing() as writing:
        save_model(writing.path, model.state_dict(), config)
    draft.commit({})
    return tmp_path


def test_replies_are_learned(root):
    config = FinetuneConfig(
        root=str(root),
        name="chat",
        base="small",
        corpus="small",
        epochs=4,
        global_batch=8,
        micro_batch=2,
        workers=2,
        threads_per_worker=1,
        optimizer={"learning_rate": 1e-2, "warmup_steps": 5},
        max_seq_len=64,
        evaluate_every=20,
        wandb="disabled",
    )
    start_local(num_cpus=2)
    try:
        artifact = stage.run(config, CLUSTER)
        again = stage.run(config, CLUSTER)
        changes = {"name": "packed", "packing": True, "epochs": 16, "workers": 1}
        packed = stage.run(config.model_copy(update=changes), CLUSTER)
    finally:
        ray.shutdown()
    assert again.version == artifact.version
    counts = packed.counts
    assert counts["train_conversations"] == 140
    assert counts["steps"] < 16 * (140 // 8) / 3, "several conversations a sequence"
    assert counts["heldout_loss"] < 0.6 * counts["base_heldout_loss"]
    counts = artifact.counts
    assert counts["train_conversations"] == 140
    assert counts["heldout_conversations"] == 20
    assert counts["steps"] == 4 * (140 // 8)
    assert counts["heldout_loss"] < 0.6 * counts["base_heldout_loss"]
    assert [r["step"] for r in read_records(artifact.fetch() / "metrics.jsonl") if "heldout_loss" in r] == [
        20,
        40,
        60,
        68,
    ]
    assert set().union(*read_records(artifact.fetch() / "metrics.jsonl")) <= declared("training").keys()
    assert artifact.manifest["inputs"].keys() == {"base", "corpus"}
    model, _ = load_model(artifact.fetch())
    assert model.config.vocab_size == VOCAB


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": "absent"}, "no models/absent .* there is models/small"),
        ({"corpus": "absent"}, "no corpora/absent"),
        ({"max_seq_len": 999}, "--max-seq-len 999 is longer than models/small/"),
        ({"optimizer": {"head_scale": 2}}, "--optimizer.head-scale 2.0: the head of models/small/"),
    ],
)
def test_mistakes_are_refused_before_anything_starts(root, change, message):
    config = FinetuneConfig(
        **{"root": str(root), "name": "chat", "base": "small", "corpus": "small"} | change
    )
    with pytest.raises(UserError, match=message):
        stage.run(config, CLUSTER)
    assert not (root / "models" / "chat").exists()
