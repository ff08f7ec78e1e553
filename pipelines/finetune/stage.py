"""Supervised fine-tuning as a stage: models/BASE + corpora/CONVERSATIONS → models/…"""

from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from cluster.connect import Cluster
from cluster.errors import UserError
from llm.models.load import load_config
from pipelines.begin import begin
from pipelines.check_model import check_language_model
from pipelines.finetune.config import FinetuneConfig
from pipelines.model_folder import CONFIG, TOKENIZER, prepare_model_folder
from pipelines.progress import console

LOGIC_VERSION = 1


def resolve_inputs(config: FinetuneConfig, store: ArtifactStore) -> dict[str, Artifact]:
    """The base model and the conversations; raises UserError if one is missing or does not fit the other."""
    base, corpus = store.resolve("models", config.base), store.resolve("corpora", config.corpus)
    if corpus.counts.get("format") != "conversations":
        raise UserError(
            f"--corpus {config.corpus}: {corpus.ref} holds plain text; "
            "fine-tuning needs a corpus of conversations (`manta corpus --help`)"
        )
    check_language_model("base", base)
    shape, _ = load_config(base.fetch(CONFIG))
    if config.max_seq_len > shape.max_seq_len:
        raise UserError(
            f"--max-seq-len {config.max_seq_len} is longer than {base.ref} allows: "
            f"use at most {shape.max_seq_len}"
        )
    if config.adapters is not None and shape.n_experts and "mlp" in config.lora.targets:
        raise UserError(
            f"--lora.targets {config.lora.targets}: {base.ref} has experts, which have no adapters; "
            "use attention"
        )
    if shape.tie_embeddings and config.optimizer.head_scale != 1:
        raise UserError(
            f"--optimizer.head-scale {config.optimizer.head_scale}: the head of {base.ref} is its embedding "
            "table; use --optimizer.embedding-scale"
        )
    return {"base": base, "corpus": corpus}


def run(config: FinetuneConfig, cluster: Cluster) -> Artifact:
    """Train, or go on training, and commit the model."""
    inputs = resolve_inputs(config, ArtifactStore(config.root))
    draft = begin(config, inputs, kind="models", stage="finetune", logic_version=LOGIC_VERSION)
    if isinstance(draft, Artifact):
        return draft
    base, corpus = inputs["base"], inputs["corpus"]
    model, _ = load_config(base.fetch(CONFIG))
    prepare_model_folder(draft, model, base)

    # Ray Train takes seconds to import, and there was nothing to do until here.
    from llm.tokenizer.load import load_tokenizer
    from pipelines.finetune.conversations import training_batches
    from pipelines.finetune.worker import finetune_worker
    from pipelines.training_launch import run_training

    batches = training_batches(config, corpus.fetch(), load_tokenizer(base.fetch(TOKENIZER)))
    if batches.too_long or batches.unanswered:
        console.print(
            f"{config.name}: learns from {len(batches):,} conversations; left out are {batches.too_long:,} "
            f"longer than --max-seq-len {config.max_seq_len} and {batches.unanswered:,} without a reply",
            markup=False,
        )
    counts = run_training(
        finetune_worker,
        stage="finetune",
        config=config,
        cluster=cluster,
        model=model,
        draft=draft,
        inputs={"base": base, "corpus": corpus, "tokenizer": base},
        steps=config.epochs * batches.batches_per_epoch,
    )
    return draft.commit(counts)
