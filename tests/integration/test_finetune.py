"""Fine-tuning on Ray Train, on two workers: the replies are learned, and a second run has nothing to do."""

import json

import pytest
import ray
import torch
from safetensors.torch import load_file

from cluster.artifacts.draft import Draft
from cluster.artifacts.store import ArtifactStore
from cluster.connect import Cluster, start_local
from cluster.errors import UserError
from cluster.metrics import declared
from llm.models.decoder import Decoder
from llm.models.load import load_model, load_state, save_model
from llm.models.presets import model_config
from llm.tokenizer.load import load_tokenizer
from llm.training.loop import language_model_loss
from llm.training.loss import IGNORE
from llm.training.metrics_log import read_records
from pipelines.command_line import parse
from pipelines.finetune import stage
from pipelines.finetune.config import FinetuneConfig
from pipelines.finetune.conversations import heldout_examples, right_padded
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


LORA = """--lora.rank 4 --lora.alpha 8 --name adapted --base small --corpus small --max-seq-len 64 --epochs 3
    --global-batch 8 --optimizer.learning-rate 1e-2 --optimizer.warmup-steps 5 --precision fp32
    --threads-per-worker 1 --wandb disabled"""


def test_adapters_are_learned_merged_and_kept(root):
    config = parse(FinetuneConfig, "finetune", ["--root", str(root), *LORA.split()])
    start_local(num_cpus=2)
    try:
        artifact = stage.run(config, CLUSTER)
    finally:
        ray.shutdown()
    counts = artifact.counts
    assert counts["heldout_loss"] < counts["base_heldout_loss"] - 0.4, (
        "much, under a random head that is frozen"
    )

    folder = artifact.fetch()
    store = ArtifactStore(root)
    base, corpus = store.resolve("models", "small"), store.resolve("corpora", "small")
    model, shape = load_model(folder)
    q, d, ff = shape.n_heads * shape.head_dim, shape.d_model, shape.d_ff
    kv = shape.n_kv_heads * shape.head_dim
    inputs_and_outputs = 4 * d + 2 * q + 2 * kv + 3 * (d + ff)
    assert counts["adapter_parameters"] == shape.n_layers * 4 * inputs_and_outputs

    tokenizer = load_tokenizer(folder)
    examples, _ = heldout_examples(config, corpus.fetch(), tokenizer)
    tokens, targets = right_padded(examples, tokenizer.pad_id)
    loss = language_model_loss(model)(tokens, targets) / (targets != IGNORE).sum()
    assert loss.item() == pytest.approx(counts["heldout_loss"], rel=1e-4), "merged, it is what was measured"

    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    fields = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert fields["base_model_name_or_path"] == f"{base.ref}/export"
    a, b = (adapter[f"base_model.model.model.layers.1.self_attn.q_proj.lora_{x}.weight"] for x in "AB")
    before, after = (load_state(each.fetch())["blocks.1.attention.qkv.weight"] for each in (base, artifact))
    torch.testing.assert_close(after[:q] - before[:q], 8 / 4 * b @ a, rtol=1e-3, atol=1e-6)
    embeddings = [load_state(each.fetch())["embed.weight"] for each in (base, artifact)]
    assert torch.equal(*embeddings)
    listed = {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}
    assert listed < artifact.manifest["files"].keys()


GENTLE = {"learning_rate": 1e-3, "warmup_steps": 5}
"""At higher rates rounding grows in a T5 within a few steps: its attention has no scale."""
DIVIDED = {
    "tensor": ({"tensor": 2}, {}),  # rows of any length, which are lengthened
    "pipeline": (
        {"pipeline": 2},
        {"packing": True, "global_batch": 3, "micro_batch": 2},  # with a row more, without a target
    ),
    "context": ({"context": 2}, {"lora": {"rank": 4}}),
    "pairs": (
        {"tensor": 2},
        {"model": {"preset": "t5-tiny", "n_heads": 4}, "tokenizer": "small", "optimizer": GENTLE},
    ),
    "packed pairs": (
        {"context": 2},
        {
            "model": {"preset": "t5-tiny"},
            "tokenizer": "small",
            "packing": True,
            "epochs": 6,
            "optimizer": GENTLE,
        },
    ),
}


@pytest.mark.parametrize("way", DIVIDED)
def test_two_workers_that_divide_the_model_learn_what_one_does(root, way):
    parallel, changes = DIVIDED[way]
    fields = {
        "root": str(root),
        "corpus": "small",
        "epochs": 1,
        "global_batch": 8,
        "micro_batch": 4,
        "precision": "fp32",
        "threads_per_worker": 1,
        "optimizer": {"learning_rate": 1e-2, "warmup_steps": 5},
        "max_seq_len": 64,
        "evaluate_every": 4,
        "wandb": "disabled",
    } | ({} if "model" in changes else {"base": "small"})
    fields |= changes
    alone = FinetuneConfig(**fields, name="alone")
    divided = FinetuneConfig(**fields, name="divided", workers=2, parallel=parallel)
    start_local(num_cpus=2)
    try:
        one, two = (stage.run(config, CLUSTER) for config in (alone, divided))
    finally:
        ray.shutdown()
    assert two.version == one.version, "how it is divided is no part of what is made"
    curves = [
        [(each["loss"], each["grad_norm"], each.get("heldout_loss", 0.0)) for each in read_records(path)]
        for path in (artifact.fetch() / "metrics.jsonl" for artifact in (two, one))
    ]
    assert len(curves[0]) > 8
    torch.testing.assert_close(*map(torch.tensor, curves), rtol=1e-4, atol=0)
    for name in {"base_heldout_loss", "heldout_loss"} & one.counts.keys():
        assert two.counts[name] == pytest.approx(one.counts[name], rel=1e-4)
    torch.testing.assert_close(*(load_state(each.fetch()) for each in (two, one)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": "absent"}, "no models/absent .* there is models/small"),
        ({"corpus": "absent"}, "no corpora/absent"),
        ({"max_seq_len": 999}, "--max-seq-len 999 is longer than models/small/"),
        ({"optimizer": {"head_scale": 2}}, "--optimizer.head-scale 2.0: the head of models/small/"),
        ({"workers": 8, "parallel": {"tensor": 8}}, r"models/small/\S+: parallel: tensor=8 does not divide"),
    ],
)
def test_mistakes_are_refused_before_anything_starts(root, change, message):
    config = FinetuneConfig(
        **{"root": str(root), "name": "chat", "base": "small", "corpus": "small"} | change
    )
    with pytest.raises(UserError, match=message):
        stage.run(config, CLUSTER)
    assert not (root / "models" / "chat").exists()
