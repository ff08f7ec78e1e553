"""A folder as Qwen3 is published, with its byte-level tokenizer, through the stages and out again."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import torch

from cluster.artifacts.draft import Draft
from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from cluster.connect import Cluster, start_local
from llm.data.shards import shards_of
from llm.models.load import load_model
from llm.tokenizer.chat import encode_prompt
from llm.tokenizer.special import BOS_ID, END_ID, EOS_ID
from pipelines.cli import run
from pipelines.corpus.tables import TEXT, RowWriter
from pipelines.evaluate import stage as evaluate
from pipelines.evaluate.config import EvaluateConfig
from pipelines.finetune import stage as finetune
from pipelines.finetune.config import FinetuneConfig
from pipelines.preferences import stage as preferences
from pipelines.preferences.config import PreferencesConfig
from pipelines.pretrain import stage as pretrain
from pipelines.pretrain.config import PretrainConfig
from pipelines.tokenizer_artifact import load_tokenizer
from pipelines.tokens import stage as tokens
from pipelines.tokens.config import TokensConfig
from tests.byte_level_forms import TEXTS, save_model
from tests.integration.small_artifacts import documents, make_conversations

transformers = pytest.importorskip("transformers")

CLUSTER = Cluster()
SPELLED = "<|im_end|> naïve <think> 日本語 🎉 <|user|>"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    """models/qwen, imported; conversations corpora/small, and corpora/text."""
    folder = tmp_path_factory.mktemp("chain")
    save_model("qwen3", folder / "qwen", merges=60, texts=[*TEXTS, *documents(20, seed=0)])
    store = ArtifactStore(folder / "root")
    make_conversations(store)
    draft = store.begin(kind="corpora", name="text", stage="made", logic_version=1, what={}, inputs={})
    assert isinstance(draft, Draft)
    with draft.writing() as writing, RowWriter(writing.path / "part-00000.parquet", TEXT, 50) as rows:
        for number, text in enumerate([*documents(200, seed=1), SPELLED, *TEXTS]):
            split = "heldout" if number % 10 == 0 else "train"
            rows.add({"id": f"{number:032x}", "text": text, "source": "s", "split": split}, size=1)
    draft.commit({"format": "text"})
    assert run(["import", str(folder / "qwen"), "--name", "qwen", "--root", store.root]) == 0
    return store


@pytest.fixture(scope="module")
def made(store: ArtifactStore) -> Iterator[dict[str, Artifact]]:
    """What each stage makes of it."""
    root: dict[str, Any] = {"root": store.root}
    quick: dict[str, Any] = {**root, "precision": "fp32", "threads_per_worker": 1, "wandb": "disabled"}
    batch: dict[str, Any] = {"global_batch": 8, "micro_batch": 8}
    answers: dict[str, Any] = {"prompts": 6, "max_prompt_tokens": 64, "max_tokens": 12, "threads": 1}
    start_local(num_cpus=2)
    try:
        found = {
            "tokens": tokens.run(
                TokensConfig(**root, name="text", corpus="text", tokenizer="models/qwen"), CLUSTER
            ),
            "base": pretrain.run(
                PretrainConfig(
                    **quick,
                    **batch,
                    name="base",
                    tokens="text",
                    model={"preset": "tiny-100k"},
                    steps=2,
                    seq_len=32,
                ),
                CLUSTER,
            ),
            "chat": finetune.run(
                FinetuneConfig(
                    **quick,
                    **batch,
                    name="chat",
                    base="qwen",
                    corpus="small",
                    epochs=1,
                    checkpoint_every=10,
                    max_seq_len=128,
                    optimizer={"learning_rate": 3e-3, "warmup_steps": 2},
                ),
                CLUSTER,
            ),
        }
        found["ranked"] = preferences.run(
            PreferencesConfig(
                **root, **answers | {"prompts": 120}, name="ranked", model="chat", corpus="small", responses=2
            ),
            CLUSTER,
        )
        found["evaluation"] = evaluate.run(
            EvaluateConfig(
                **root,
                **answers,
                name="measured",
                model="chat",
                baseline="qwen",
                corpus="small",
                tokens="text",
            ),
            CLUSTER,
        )
        yield found
    finally:
        ray.shutdown()


def test_text_is_tokenized_by_the_models_own_tokenizer(
    made: dict[str, Artifact], store: ArtifactStore
) -> None:
    tokenizer = load_tokenizer(store.resolve("models", "qwen"))
    folder = made["tokens"].fetch()
    content = json.loads((folder / "shards.json").read_text())
    assert content["tokenizer"] == tokenizer.fingerprint
    rows = pq.read_table(store.resolve("corpora", "text").fetch() / "part-00000.parquet").to_pylist()
    for split in ("train", "heldout"):
        texts = [row["text"] for row in rows if row["split"] == split]
        expected = [id for text in texts for id in [*tokenizer.encode(text), EOS_ID]]
        checksums = {name: entry["sha256"] for name, entry in made["tokens"].files.items()}
        (shard,) = shards_of(content, split, checksums)
        assert np.fromfile(folder / shard.file, np.uint16).tolist() == expected
    assert made["base"].read("tokenizer.json") == store.resolve("models", "qwen").read("tokenizer.json")
    assert (made["base"].fetch() / "export" / "tokenizer.json").is_file()


def test_what_is_learned_and_measured_is_of_its_ids(made: dict[str, Artifact], store: ArtifactStore) -> None:
    chat, qwen = made["chat"], store.resolve("models", "qwen")
    assert chat.counts["heldout_loss"] < chat.counts["base_heldout_loss"] - 0.5
    results = json.loads(made["evaluation"].read("results.json"))
    assert results["prompts"] == 6
    tokenizer = load_tokenizer(chat)
    rows = pq.read_table(made["ranked"].fetch() / "preferences.parquet").to_pylist()
    assert len(rows) == made["ranked"].counts["rankings"] > 100
    for row in rows:
        assert row["prompt_ids"] == encode_prompt(tokenizer, row["prompt"])
        for response in row["responses"]:
            assert response["text"] == tokenizer.decode(response["token_ids"])
    heldout = json.loads(made["tokens"].read("shards.json"))["splits"]["heldout"]
    knowing_nothing = np.log2(len(tokenizer)) * sum(heldout["tokens"]) / sum(heldout["bytes"])
    assert results["baseline_bits_per_byte"] == pytest.approx(knowing_nothing, rel=0.05)
    assert qwen.read("tokenizer.json") == chat.read("tokenizer.json")


@pytest.mark.parametrize("step", [None, 10])
def test_transformers_computes_the_same_from_what_is_exported(
    made: dict[str, Artifact], store: ArtifactStore, tmp_path: Path, step: int | None
) -> None:
    target = tmp_path / "out"
    flags = [] if step is None else ["--step", str(step)]
    assert run(["export", "chat", "--to", str(target), "--root", store.root, *flags]) == 0
    theirs = transformers.AutoTokenizer.from_pretrained(target)
    tokenizer = load_tokenizer(made["chat"])
    for text in [*TEXTS, SPELLED, ""]:
        ids = tokenizer.encode(text)
        assert theirs.encode(text, split_special_tokens=True) == ids
        assert theirs.decode(ids) == tokenizer.decode(ids)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (BOS_ID, END_ID)
    messages = [{"role": "user", "content": "the quick fox"}]
    prompt = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert prompt == encode_prompt(tokenizer, messages)
    if step is not None:
        return
    model, shape = load_model(made["chat"].fetch())
    exported = transformers.AutoModelForCausalLM.from_pretrained(target).eval()
    with torch.no_grad():
        expected = exported(torch.tensor([prompt])).logits
        got = model(torch.tensor([prompt]))[..., : shape.vocab_size]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
