"""Preferences, reward model and evaluation, each killed and gone on with, on tiny models."""

import json
import math

import pyarrow.parquet as pq
import pytest
import ray
import torch

from cluster.connect import Cluster, start_local
from cluster.errors import UserError
from cluster.metrics import declared
from llm.models.load import load_model
from llm.training.metrics_log import read_records
from pipelines.evaluate import stage as evaluate
from pipelines.evaluate.config import EvaluateConfig
from pipelines.preferences import stage as preferences
from pipelines.preferences.config import PreferencesConfig
from pipelines.preferences.table import SCHEMA, write_rows
from pipelines.reward import stage as reward
from pipelines.reward.config import RewardConfig
from pipelines.training_config import OptimizerConfig
from tests.integration.small_artifacts import VOCAB
from tests.integration.small_chat import chat_store, make_model

CLUSTER = Cluster()


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    start_local(num_cpus=2)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return chat_store(tmp_path_factory.mktemp("root"))


def preferences_config(store, **changes):
    options = {
        "root": str(store.root),
        "name": "ranked",
        "corpus": "small",
        "prompts": 130,
        "responses": 3,
        "max_prompt_tokens": 16,
        "max_tokens": 12,
        "noise": 0.1,
        "threads": 1,
    }
    return PreferencesConfig(**(options | changes))


class Killed(Exception):
    pass


def test_preferences_go_on_from_their_finished_batches(store, monkeypatch):
    asked = preferences_config(store)
    rank_batch, sample_and_rank = preferences.rank_batch, preferences.sample_and_rank
    ranked, drafts = [], []

    def die_after_the_first(config, batch, *rest):
        if ranked:
            raise Killed
        ranked.append(batch.id)
        return rank_batch(config, batch, *rest)

    def remember_draft(config, cluster, draft, *rest):
        drafts.append(draft)
        sample_and_rank(config, cluster, draft, *rest)

    monkeypatch.setattr(preferences, "rank_batch", die_after_the_first)
    monkeypatch.setattr(preferences, "sample_and_rank", remember_draft)
    with pytest.raises(Killed):
        preferences.run(asked, CLUSTER)
    drafts[0].close()  # As the end of the process would.

    def remember_batch(config, batch, *rest):
        ranked.append(batch.id)
        return rank_batch(config, batch, *rest)

    monkeypatch.setattr(preferences, "rank_batch", remember_batch)
    artifact = preferences.run(asked, CLUSTER)
    assert len(ranked) == len(set(ranked)) == 3, "each batch is sampled and ranked once"

    # One batch of 64 prompts was finished before.
    measured = artifact.run()["prompts"]
    assert measured["answered"] == 130 - 64
    assert 66 * 3 <= measured["tokens"] <= 66 * 3 * 12

    table = pq.read_table(artifact.fetch() / "preferences.parquet")
    assert table.schema.equals(SCHEMA)
    rows = table.to_pylist()
    assert artifact.counts["rankings"] == len(rows) == 130
    assert artifact.counts["reviewers"] == ["simulated-python"]
    assert {row["split"] for row in rows} == {"train", "heldout"}
    for row in rows:
        texts = [response["text"] for response in row["responses"]]
        assert len(set(texts)) > 1, "every response has a seed of its own"
        assert all(rank == 1 + sum(other < rank for other in row["ranks"]) for rank in row["ranks"])
    assert preferences.run(asked, CLUSTER).version == artifact.version

    again = preferences.run(preferences_config(store, name="again", engines=2, max_batch=7), CLUSTER)
    assert pq.read_table(again.fetch() / "preferences.parquet").equals(table), "engines change nothing"


def make_rankings(store):
    """preferences/made: the response with more 9s is better; equally many tie."""
    draft = store.begin(
        kind="preferences",
        name="made",
        stage="made",
        logic_version=1,
        what={},
        inputs={"model": store.resolve("models", "chat")},
    )
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(240):
        responses = torch.where(torch.rand(4, 8, generator=generator) < 0.4, 9, 11).tolist()
        amounts = [response.count(9) for response in responses]
        rows.append(
            {
                "prompt_id": str(number),
                "group": str(number),
                "prompt": [{"role": "user", "content": "nines"}],
                "prompt_ids": [2, 5, 20, 21, 7, 6],
                "responses": [{"text": "", "token_ids": [*r, 7], "finish_reason": "stop"} for r in responses],
                "ranks": [1 + sum(other > own for other in amounts) for own in amounts],
                "reviewer": "simulated-nines",
                "split": "heldout" if number % 6 == 0 else "train",
            }
        )
    with draft.writing() as writing:
        write_rows(writing.path / "preferences.parquet", rows)
    return draft.commit({"train_rankings": 200, "heldout_rankings": 40})


def test_a_reward_model_learns_the_rankings_and_is_centred(store):
    made = make_rankings(store)
    config = RewardConfig(
        root=str(store.root),
        name="nines",
        preferences="made",
        epochs=4,
        global_batch=8,
        precision="fp32",
        optimizer=OptimizerConfig(learning_rate=3e-3, min_learning_rate=0.0, warmup_steps=5),
        checkpoint_every=30,
        wandb="disabled",
        threads_per_worker=1,
    )
    artifact = reward.run(config, CLUSTER)
    assert artifact.counts["heldout_accuracy"] > 0.9
    assert set().union(*read_records(artifact.fetch() / "metrics.jsonl")) <= declared("training").keys()
    assert artifact.manifest["inputs"]["preferences"]["fingerprint"] == made.fingerprint

    model, _ = load_model(artifact.fetch())
    rows = pq.read_table(made.fetch() / "preferences.parquet").to_pylist()
    sequences = [
        row["prompt_ids"] + response["token_ids"]
        for row in rows
        if row["split"] == "train"
        for response in row["responses"]
    ]
    with torch.no_grad():
        scores = model(torch.tensor(sequences))[:, -1]
    assert scores.mean().abs() < 1e-3
    assert scores.std().item() == pytest.approx(artifact.counts["train_score_std"], rel=1e-2)


def test_evaluation_compares_two_models_on_the_same_prompts(store):
    make_model(store, "other", "lm", seed=7)
    config = EvaluateConfig(
        root=str(store.root),
        name="compared",
        model="chat",
        baseline="other",
        corpus="small",
        tokens="small",
        prompts=50,
        max_prompt_tokens=16,
        max_tokens=12,
        threads=1,
    )
    artifact = evaluate.run(config, CLUSTER)
    results = json.loads((artifact.fetch() / "results.json").read_text())
    assert results["prompts"] == results["win_rate"]["n"] == 20
    assert artifact.run()["prompts"]["answered"] == 2 * 20
    rate = results["win_rate"]
    assert rate["wins"] + rate["ties"] + rate["losses"] == 20
    assert rate["low"] <= rate["value"] <= rate["high"]
    assert results["parse_rate"]["model"]["n"] == 20
    tokens = store.resolve("tokens", "small").fetch()
    shards = json.loads((tokens / "shards.json").read_text())["splits"]["heldout"]
    guessing = math.log2(VOCAB) * sum(shards["tokens"]) / sum(shards["bytes"])
    assert results["bits_per_byte"] == pytest.approx(guessing, rel=0.05), "random weights know nothing"
    samples = [json.loads(line) for line in (artifact.fetch() / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 20
    assert all({"prompt", "model", "baseline"} <= sample.keys() for sample in samples)

    against_itself = EvaluateConfig(
        **config.model_dump() | {"name": "itself", "baseline": "chat", "tokens": None}
    )
    itself = json.loads((evaluate.run(against_itself, CLUSTER).fetch() / "results.json").read_text())
    assert itself["win_rate"]["ties"] == 20, "the same model with the same seeds answers the same"


def test_a_base_model_is_measured_on_text_alone(store):
    config = EvaluateConfig(root=str(store.root), name="text", model="chat", tokens="small", threads=1)
    artifact = evaluate.run(config, CLUSTER)
    results = json.loads((artifact.fetch() / "results.json").read_text())
    assert set(results) == {"models", "bits_per_byte", "baseline_bits_per_byte"}
    assert results["bits_per_byte"] > 1
    assert results["baseline_bits_per_byte"] is None
    assert not (artifact.fetch() / "samples.jsonl").exists()


def test_what_does_not_fit_is_said_before_anything_runs(store):
    with pytest.raises(UserError, match="trained with 64 tokens"):
        preferences.resolve_inputs(preferences_config(store, max_tokens=60), store)
    with pytest.raises(UserError, match=r"--model models/reward\S* is no language model but a reward model"):
        preferences.resolve_inputs(preferences_config(store, model="reward"), store)
    with pytest.raises(UserError, match=r"--model models/reward\S* is no language model"):
        evaluate.resolve_inputs(EvaluateConfig(root=str(store.root), model="reward", tokens="small"), store)
    with pytest.raises(UserError, match=r"nothing to measure: --tokens .* --corpus"):
        evaluate.resolve_inputs(EvaluateConfig(root=str(store.root), model="chat"), store)
    with pytest.raises(UserError, match="no corpora/missing"):
        preferences.resolve_inputs(preferences_config(store, corpus="missing"), store)
    with pytest.raises(UserError, match="no training prompt of 2 tokens or less; raise --max-prompt-tokens"):
        preferences.run(preferences_config(store, name="none", max_prompt_tokens=2), CLUSTER)
