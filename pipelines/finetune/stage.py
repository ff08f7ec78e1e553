"""Supervised fine-tuning as a stage: models/BASE + corpora/CONVERSATIONS → models/…

Or, for a new model, tokenizers/… + corpora/CONVERSATIONS → models/…
"""

from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from cluster.connect import Cluster
from cluster.errors import UserError
from llm.models.config import ModelConfig
from llm.models.load import load_config
from pipelines.begin import begin
from pipelines.check_model import check_language_model
from pipelines.finetune.config import FinetuneConfig
from pipelines.model_folder import CONFIG, prepare_model_folder
from pipelines.progress import console
from pipelines.tokenizer_artifact import load_tokenizer, resolve_tokenizer

LOGIC_VERSION = 2


def resolve_inputs(config: FinetuneConfig, store: ArtifactStore) -> dict[str, Artifact]:
    """The base model, or the tokenizer of a new one, and the conversations; raises UserError if one is
    missing or does not fit the other.
    """
    if config.tokenizer is not None:
        begins = {"tokenizer": resolve_tokenizer(store, config.tokenizer)}
    else:
        begins = {"base": store.resolve("models", config.base)}
    corpus = store.resolve("corpora", config.corpus)
    if corpus.counts.get("format") != "conversations":
        raise UserError(
            f"--corpus {config.corpus}: {corpus.ref} holds plain text; "
            "fine-tuning needs a corpus of conversations (`manta corpus --help`)"
        )
    if "base" in begins:
        check_language_model("base", begins["base"], ("decoder", "encoder-decoder"))
        shape, _ = load_config(begins["base"].fetch(CONFIG))
        _check_shape(config, shape, begins["base"].ref)
    else:
        _check_shape(config, config.model.shape(vocab_size=1), f"the new model ({config.model.preset})")
    return {**begins, "corpus": corpus}


def _check_shape(config: FinetuneConfig, shape: ModelConfig, which: str) -> None:
    """Raise UserError if the model, called `which`, cannot learn what is asked."""
    if config.max_target_len is not None and shape.family != "encoder-decoder":
        raise UserError(
            f"--max-target-len {config.max_target_len} is for encoder-decoders, and {which} is none: "
            "--max-seq-len counts question and answer together"
        )
    lengths = {"--max-seq-len": config.max_seq_len, "--max-target-len": config.longest_target}
    for flag, length in lengths.items():
        if length > shape.max_seq_len:
            raise UserError(f"{flag} {length} is longer than {which} allows: use at most {shape.max_seq_len}")
    try:
        config.check_parallel(shape, config.max_seq_len)
    except ValueError as error:
        raise UserError(f"{which}: {error}") from None
    if config.adapters is not None and shape.n_experts and "mlp" in config.lora.targets:
        raise UserError(
            f"--lora.targets {config.lora.targets}: {which} has experts, which have no adapters; "
            "use attention"
        )
    if shape.tie_embeddings and config.optimizer.head_scale != 1:
        raise UserError(
            f"--optimizer.head-scale {config.optimizer.head_scale}: the head of {which} is its embedding "
            "table; use --optimizer.embedding-scale"
        )


def run(config: FinetuneConfig, cluster: Cluster) -> Artifact:
    """Train, or go on training, and commit the model."""
    inputs = resolve_inputs(config, ArtifactStore(config.root))
    draft = begin(config, inputs, kind="models", stage="finetune", logic_version=LOGIC_VERSION)
    if isinstance(draft, Artifact):
        return draft

    # Ray Train takes seconds to import, and there was nothing to do until here.
    from pipelines.finetune.lessons import read_batches
    from pipelines.finetune.worker import finetune_worker
    from pipelines.training_launch import run_training
    from pipelines.write_model import not_exported

    begins_with = inputs["tokenizer"] if config.from_scratch else inputs["base"]
    tokenizer = load_tokenizer(begins_with)
    if config.from_scratch:
        model = config.model.trained_shape(len(tokenizer))
    else:
        model, _ = load_config(begins_with.fetch(CONFIG))
    prepare_model_folder(draft, model, begins_with)
    for line in not_exported(model):
        console.print(f"{config.name}: {line}", markup=False)
    batches = read_batches(config, model.family, inputs["corpus"].fetch(), tokenizer)
    if batches.too_long or batches.unanswered:
        lengths = f"--max-seq-len {config.max_seq_len}"
        if model.family == "encoder-decoder":
            lengths += f" or --max-target-len {config.longest_target}"
        console.print(
            f"{config.name}: learns from {len(batches):,} conversations; left out are {batches.too_long:,} "
            f"longer than {lengths} and {batches.unanswered:,} without a reply",
            markup=False,
        )
    counts = run_training(
        finetune_worker,
        stage="finetune",
        config=config,
        cluster=cluster,
        model=model,
        draft=draft,
        inputs={**inputs, "tokenizer": begins_with},
        steps=config.epochs * batches.batches_per_epoch,
    )
    return draft.commit(counts)
