"""Tokenizer: text corpus → tokenizers/NAME. Actors take the sample; one process trains on it."""

import hashlib
from collections import Counter
from collections.abc import Iterator

import pyarrow.parquet as pq
import ray

from cluster.artifacts.draft import Draft
from cluster.artifacts.folder import Folder
from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from cluster.connect import Cluster
from cluster.errors import UserError
from cluster.one_process import run_in_one_process
from llm.tokenizer.load import MODEL_FILE, VOCABULARY_FILE, Tokenizer
from llm.tokenizer.special import MIN_VOCAB_SIZE
from llm.tokenizer.train import TokenizerTrainingError, train_tokenizer
from pipelines.begin import begin
from pipelines.corpus_pieces import check_text, corpus_pieces
from pipelines.progress import stage_progress
from pipelines.tokenizer.config import TokenizerConfig
from pipelines.tokenizer.sample_worker import SAMPLE_FOLDER, SampleWorker
from pipelines.units import Unit, run_units

LOGIC_VERSION = 1


def resolve_inputs(config: TokenizerConfig, store: ArtifactStore) -> dict[str, Artifact]:
    """The corpus; raises UserError if it is missing, holds conversations, or has nothing to train on."""
    if config.vocab_size <= MIN_VOCAB_SIZE:
        raise UserError(
            f"--vocab-size {config.vocab_size}: the special and byte pieces alone are {MIN_VOCAB_SIZE}; "
            f"make it at least {MIN_VOCAB_SIZE + 64}"
        )
    corpus = store.resolve("corpora", config.corpus)
    check_text(corpus, needed_for="the tokenizer")
    if not corpus.manifest["counts"]["train_bytes"]:
        raise UserError(f"{corpus.ref} has no document in its training split")
    return {"corpus": corpus}


def run(config: TokenizerConfig, cluster: Cluster) -> Artifact:
    """Make tokenizers/NAME."""
    inputs = resolve_inputs(config, ArtifactStore(config.root))
    started = begin(config, inputs, kind="tokenizers", stage="tokenizer", logic_version=LOGIC_VERSION)
    if isinstance(started, Artifact):
        return started

    cluster.connect()
    corpus = inputs["corpus"]
    units = [Unit(f"sample-{number:05d}", vars(piece)) for number, piece in enumerate(corpus_pieces(corpus))]
    options = {
        "corpus": corpus,
        "target": started.folder / SAMPLE_FOLDER,
        "seed": config.seed,
        "fraction": min(1.0, config.sample_bytes / corpus.manifest["counts"]["train_bytes"]),
    }
    records = run_units(
        units,
        SampleWorker,
        options,
        draft=started,
        config=config,
        title=f"{config.name}: sample",
    )
    sampled: Counter[str] = Counter()
    for record in records.values():
        sampled.update({"documents": record["documents"], "bytes": record["bytes"]})

    sample = sorted(name for record in records.values() for name in record["files"])
    tokenizer = Tokenizer(train(config, started, sample))
    started.write(MODEL_FILE, tokenizer.model)
    started.write(VOCABULARY_FILE, tokenizer.vocabulary().encode())
    artifact = started.commit(
        counts={
            "vocab_size": tokenizer.vocab_size,
            "sampled_documents": sampled["documents"],
            "sampled_bytes": sampled["bytes"],
            "model_sha256": tokenizer.fingerprint,
        }
    )
    started.discard_work(SAMPLE_FOLDER)
    return artifact


def train(config: TokenizerConfig, draft: Draft, sample: list[str]) -> bytes:
    """Train in one process on the sample's files; the model, or that of a run before this one."""
    # With --max-failed-units, a later run may have more of the sample.
    trained = f"train-{hashlib.sha256(' '.join(sample).encode()).hexdigest()[:8]}"
    if trained in draft.ledger.done():
        return draft.folder.read(MODEL_FILE)
    with stage_progress(f"{config.name}: train", total=1, unit="tokenizer") as progress:
        try:
            model: bytes = run_in_one_process(
                _train,
                config,
                draft.folder,
                sample,
                cpus=1,
                what=f"{config.name}: train",
                less_memory=f"lower --sample-bytes {config.sample_bytes}",
            )
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, TokenizerTrainingError):
                raise UserError(str(error.cause)) from None
            raise
        progress.update(1)
    draft.ledger.commit(trained, {"files": {MODEL_FILE: draft.folder.write(MODEL_FILE, model)}})
    return model


def _train(config: TokenizerConfig, folder: Folder, sample: list[str]) -> bytes:
    return train_tokenizer(
        _sampled_texts(folder, sample),
        vocab_size=config.vocab_size,
        model_type=config.model,
        normalization=config.normalization,
        character_coverage=config.character_coverage,
    )


def _sampled_texts(folder: Folder, sample: list[str]) -> Iterator[str]:
    for name in sample:
        with folder.open(name) as source:
            for batch in pq.ParquetFile(source).iter_batches(1024):
                yield from batch["text"].to_pylist()
