"""Training on the sample, in one process of the cluster, with the memory that it needs reserved for it."""

import hashlib
from collections.abc import Iterator

import pyarrow.parquet as pq
import ray

from cluster.artifacts.draft import Draft
from cluster.artifacts.folder import Folder
from cluster.errors import UserError
from cluster.one_process import run_in_one_process
from llm.tokenizer.memory import most_text, training_memory
from llm.tokenizer.sentence_piece import MODEL_FILE
from llm.tokenizer.train import TokenizerTrainingError, train_tokenizer
from pipelines.inspect.format import format_bytes
from pipelines.progress import stage_progress
from pipelines.tokenizer.config import TokenizerConfig

_BATCH_DOCUMENTS = 64


def required_memory(config: TokenizerConfig, text_bytes: int, room: int) -> int:
    """Bytes that training on so much text takes at most.

    room: the most that one node gives. Raises UserError if it is less.
    """
    needed = training_memory(config.model, text_bytes, config.vocab_size)
    if needed > room:
        most = most_text(config.model, room, config.vocab_size)
        mend = f"lower --sample-bytes {config.sample_bytes} to {most}" if most else "lower --vocab-size"
        raise UserError(
            f"training a {config.model} tokenizer on {format_bytes(text_bytes)} of text takes up to "
            f"{format_bytes(needed)} of memory, and no node has more than {format_bytes(room)} for Ray's "
            f"workers; {mend}, or use a larger node"
        )
    return needed


def train(config: TokenizerConfig, draft: Draft, sample: list[str], text_bytes: int, room: int) -> bytes:
    """The model that the sample's files give, or that of a run before this one.

    text_bytes: in the sample. room: memory of the largest node. Raises UserError if it is too little, or if
    the text does not suit the configuration.
    """
    # With --max-failed-units, a later run may have more of the sample.
    trained = f"train-{hashlib.sha256(' '.join(sample).encode()).hexdigest()[:8]}"
    if trained in draft.ledger.done():
        return draft.folder.read(MODEL_FILE)
    memory = required_memory(config, text_bytes, room)
    with stage_progress(f"{config.name}: train", total=1, unit="tokenizer") as progress:
        try:
            model: bytes = run_in_one_process(
                _train,
                config,
                draft.folder,
                sample,
                cpus=1,
                memory_bytes=memory,
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
            for batch in pq.ParquetFile(source).iter_batches(_BATCH_DOCUMENTS, columns=["text"]):
                for text in batch["text"]:
                    yield text.as_py()
