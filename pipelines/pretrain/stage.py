"""Pre-training as a stage: tokens/… → models/…"""

from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from cluster.connect import Cluster
from cluster.errors import UserError
from llm.data.mixed_order import MixedOrder
from llm.data.shards import TokenShards
from pipelines.begin import begin
from pipelines.model_folder import prepare_model_folder
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.extend import finished_run
from pipelines.pretrain.token_source import order_of
from pipelines.progress import console
from pipelines.token_shards import ranged_shards
from pipelines.tokenizer_artifact import resolve_tokenizer

LOGIC_VERSION = 2
_REPEATED = 4
"""Epochs up to which repeated text is worth almost as much as new (Muennighoff et al. 2023)."""


def resolve_inputs(config: PretrainConfig, store: ArtifactStore) -> dict[str, Artifact]:
    """The token shards, and the model to extend.

    Raises:
        UserError: one is missing, shards are too few for one sequence or of different tokenizers, or this run
            does not extend that model.
    """
    inputs = {role: store.resolve("tokens", name) for role, name in config.sources.roles.items()}
    _check_sources(config, list(inputs.values()))
    if config.extends is not None:
        inputs["extends"] = finished_run(config, store, inputs)
    return inputs


def _check_sources(config: PretrainConfig, sources: list[Artifact]) -> None:
    first = sources[0]
    needed = "" if config.window == config.seq_len else f", and {config.window} are taken for one sequence"
    for number, tokens in enumerate(sources):
        shards = ranged_shards(tokens, "train")
        longest = max(shards.shard_tokens, default=0)
        if longest < config.window:
            raise UserError(
                f"--seq-len {config.seq_len}: the largest shard of {tokens.ref} has {longest} training "
                f"tokens{needed}; shorten the sequences or tokenize more text"
            )
        if shards.tokenizer != ranged_shards(first, "train").tokenizer:
            made_by, expected = (each.manifest["inputs"]["tokenizer"]["ref"] for each in (tokens, first))
            raise UserError(
                f"--tokens: {tokens.ref} was made with {made_by}, {first.ref} with {expected}, which differ; "
                "tokenize all with one tokenizer"
            )
        for before in sources[:number]:
            if before.fingerprint == tokens.fingerprint:
                raise UserError(
                    f"--tokens: {before.ref} and {tokens.ref} are the same tokens; name one of them, with "
                    "the weights of both"
                )


def run(config: PretrainConfig, cluster: Cluster) -> Artifact:
    """Train, or go on training, and commit the model."""
    store = ArtifactStore(config.root)
    inputs = resolve_inputs(config, store)
    draft = begin(config, inputs, kind="models", stage="pretrain", logic_version=LOGIC_VERSION)
    if isinstance(draft, Artifact):
        return draft
    tokens = inputs["tokens"]
    sources = {name: ranged_shards(inputs[role], "train") for role, name in config.sources.roles.items()}
    for line in [*reading_plan(config, sources), *_not_measured(config, inputs)]:
        console.print(line, markup=False)
    model = config.trained_shape(sources[config.sources.names[0]].vocab_size)
    tokenizer = resolve_tokenizer(store, tokens.manifest["inputs"]["tokenizer"]["ref"])
    prepare_model_folder(draft, model, tokenizer)

    # Ray Train and torch take seconds to import, and there was nothing to do until here.
    from pipelines.pretrain.evaluate_checkpoint import evaluate_newest
    from pipelines.pretrain.worker import pretrain_worker
    from pipelines.training_launch import run_training
    from pipelines.write_model import not_exported

    for line in not_exported(model):
        console.print(f"{config.name}: {line}", markup=False)
    counts = run_training(
        pretrain_worker,
        stage="pretrain",
        config=config,
        cluster=cluster,
        model=model,
        draft=draft,
        inputs={"tokenizer": tokenizer, **inputs},
        steps=config.steps,
        evaluate=evaluate_newest if config.evaluate_beside else None,
    )
    return draft.commit(counts)


def reading_plan(config: PretrainConfig, sources: dict[str, TokenShards]) -> list[str]:
    """How often the run goes through each source of a mixture, and through any that it repeats much."""
    order = order_of(config, list(sources.values()))
    epochs = dict(zip(sources, order.epochs(config.steps * config.global_batch), strict=True))
    lines = [f"{config.name}: {name} is read {times:.2f} times" for name, times in epochs.items()]
    if isinstance(order, MixedOrder):
        starts = order.mixture.starts[1:] * config.window
        lines += [f"{config.name}: another mixture after {int(start):,} tokens" for start in starts]
    elif max(epochs.values()) <= _REPEATED:
        return []
    if max(epochs.values()) > _REPEATED:
        lines.append(f"{config.name}: beyond {_REPEATED} times text teaches ever less (arXiv:2305.16264)")
    return lines


def _not_measured(config: PretrainConfig, inputs: dict[str, Artifact]) -> list[str]:
    """Held-out text that is too short for the objective; bits per byte are measured on any."""
    if config.family == "decoder":
        return []
    heldout = {name: ranged_shards(inputs[role], "heldout") for role, name in config.sources.roles.items()}
    return [
        f"{config.name}: no shard of the text that {name} holds out has {config.window} tokens, as many as "
        "a sequence is made from: nothing is measured on it"
        for name, shards in heldout.items()
        if shards.tokens and max(shards.shard_tokens) < config.window
    ]
