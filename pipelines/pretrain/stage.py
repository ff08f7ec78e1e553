"""Pre-training as a stage: tokens/… → models/…"""

import json
from typing import Any

from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from cluster.connect import Cluster
from cluster.errors import UserError
from llm.data.shards import SHARDS_FILE, columns_of
from pipelines.begin import begin
from pipelines.model_folder import prepare_model_folder
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.extend import finished_run

LOGIC_VERSION = 1


def resolve_inputs(config: PretrainConfig, store: ArtifactStore) -> dict[str, Artifact]:
    """The token shards, and the model to extend.

    Raises:
        UserError: one is missing, the shards are too few for one sequence, or this run does not extend that
            model.
    """
    tokens = store.resolve("tokens", config.tokens)
    try:
        columns = columns_of(_shards(tokens), "train")
    except ValueError as error:
        raise UserError(f"{tokens.ref}: {error}") from None
    longest = max(columns["tokens"], default=0)
    if longest < config.seq_len:
        raise UserError(
            f"--seq-len {config.seq_len}: the largest shard of {tokens.ref} has {longest} training tokens; "
            "shorten the sequences or tokenize more text"
        )
    inputs = {"tokens": tokens}
    if config.extends is not None:
        inputs["extends"] = finished_run(config, store, tokens)
    return inputs


def run(config: PretrainConfig, cluster: Cluster) -> Artifact:
    """Train, or go on training, and commit the model."""
    store = ArtifactStore(config.root)
    inputs = resolve_inputs(config, store)
    draft = begin(config, inputs, kind="models", stage="pretrain", logic_version=LOGIC_VERSION)
    if isinstance(draft, Artifact):
        return draft
    tokens = inputs["tokens"]
    model = config.model.shape(_shards(tokens)["vocab_size"])
    tokenizer = store.resolve("tokenizers", tokens.manifest["inputs"]["tokenizer"]["ref"])
    prepare_model_folder(draft, model, tokenizer)

    # Ray Train and torch take seconds to import, and there was nothing to do until here.
    from pipelines.pretrain.worker import pretrain_worker
    from pipelines.training_launch import run_training

    counts = run_training(
        pretrain_worker,
        stage="pretrain",
        config=config,
        cluster=cluster,
        model=model,
        draft=draft,
        inputs={"tokenizer": tokenizer, **inputs},
        steps=config.steps,
    )
    return draft.commit(counts)


def _shards(tokens: Artifact) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(tokens.read(SHARDS_FILE))
    return content
